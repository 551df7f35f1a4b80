//! What the server counts, under the names that upstream's dashboards know.

use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use seaway_kinds::path::ResourcePath;
use seaway_store::EngineStats;

/// The server's figures.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    watches: IntGaugeVec,
    keys: IntGauge,
    live_bytes: IntGauge,
    log_bytes: IntGauge,
    writes: IntGauge,
    syncs: IntGauge,
    resident: IntGauge,
}

/// One open watch.
#[derive(Debug)]
pub(crate) struct OpenWatch(IntGauge);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All figures, registered.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let requests = IntCounterVec::new(
            Opts::new("apiserver_request_total", "Requests by verb, resource and HTTP code."),
            &["verb", "group", "resource", "subresource", "code"],
        )?;
        let buckets = vec![0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "apiserver_request_duration_seconds",
                "Time until a request's answer begins, watches and logs apart.",
            )
            .buckets(buckets),
            &["verb"],
        )?;
        let watches =
            IntGaugeVec::new(Opts::new("apiserver_longrunning_requests", "Open watches."), &["resource"])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(watches.clone()))?;
        Ok(Self {
            requests,
            durations,
            watches,
            keys: gauge("seaway_store_keys", "Objects in the store.")?,
            live_bytes: gauge("seaway_store_live_bytes", "Bytes of the objects in the store.")?,
            log_bytes: gauge("seaway_store_log_bytes", "Bytes of the current write-ahead log.")?,
            writes: gauge("seaway_store_writes", "Durable writes since the start.")?,
            syncs: gauge("seaway_store_syncs", "Syncs of the write-ahead log since the start.")?,
            resident: gauge("process_resident_memory_bytes", "Resident memory of the process.")?,
            registry,
        })
    }

    /// Counts one answered request.
    pub(crate) fn observe(&self, verb: &str, path: Option<&ResourcePath<'_>>, code: u16, took: Duration) {
        let Some(path) = path else { return };
        let subresource = path.subresource.unwrap_or_default();
        let code = code.to_string();
        self.requests.with_label_values(&[verb, path.group, path.resource, subresource, &code]).inc();
        if verb != "watch" && subresource != "log" {
            self.durations.with_label_values(&[verb]).observe(took.as_secs_f64());
        }
    }

    /// Counts a watch until the result is dropped.
    pub(crate) fn watch_opened(&self, resource: &str) -> OpenWatch {
        let gauge = self.watches.with_label_values(&[resource]);
        gauge.inc();
        OpenWatch(gauge)
    }

    /// The text that Prometheus reads.
    pub(crate) fn render(&self, stats: &EngineStats) -> Result<String, prometheus::Error> {
        let figure = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.keys.set(figure(stats.keys));
        self.live_bytes.set(figure(stats.live_bytes));
        self.log_bytes.set(figure(stats.log_bytes));
        self.writes.set(figure(stats.writes));
        self.syncs.set(figure(stats.syncs));
        if let Some(resident) = resident_bytes() {
            self.resident.set(resident);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}
