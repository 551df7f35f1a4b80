//! Prometheus metrics, under CoreDNS's names, so that its dashboards and alerts work.

mod meter;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hickory_proto::op::ResponseCode;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

pub(crate) use meter::{Count, Meter, Scope, Source, Transport, code_name};
pub(crate) use tally::Tally;

use crate::settings::Settings;

/// The DNS server's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    set: Arc<Set>,
}

#[derive(Debug)]
struct Set {
    questions: Questions,
    cache: Cache,
    forward: Forward,
    programming: HistogramVec,
    api: Api,
    autopath: IntCounterVec,
    reloads: IntCounterVec,
    shed: IntCounterVec,
    reload_failures: IntCounter,
    plugins: IntGaugeVec,
    hosts_entries: IntGauge,
    hosts_loaded: Gauge,
    version: IntGaugeVec,
    health: Histogram,
    health_failures: IntCounter,
    panics: IntCounter,
    synced: IntGauge,
    services: IntGauge,
    ready: AtomicBool,
}

#[derive(Debug)]
struct Questions {
    requests: IntCounterVec,
    do_requests: IntCounterVec,
    responses: IntCounterVec,
    duration: HistogramVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
}

#[derive(Debug)]
struct Cache {
    entries: IntGaugeVec,
    requests: IntCounterVec,
    hits: IntCounterVec,
    misses: IntCounterVec,
    evictions: IntCounterVec,
    served_stale: IntCounterVec,
    prefetches: IntCounterVec,
    drops: IntCounterVec,
}

#[derive(Debug)]
struct Forward {
    requests: IntCounterVec,
    responses: IntCounterVec,
    duration: HistogramVec,
    rejects: IntCounter,
    all_failing: IntCounter,
    health_failures: IntCounterVec,
    connection_hits: IntCounterVec,
    connection_misses: IntCounterVec,
}

/// Requests to the API server.
#[derive(Debug)]
struct Api {
    duration: HistogramVec,
    requests: IntCounterVec,
}

/// Upper bounds of CoreDNS's size histograms.
const SIZE_BUCKETS: [f64; 13] =
    [0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 64e3];

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When metrics of the same names are registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let new = Maker { registry };
        let set = Set {
            questions: Questions::new(&new)?,
            cache: Cache::new(&new)?,
            forward: Forward::new(&new)?,
            api: Api::new(&new)?,
            programming: new.add(HistogramVec::new(
                HistogramOpts::new(
                    "coredns_kubernetes_dns_programming_duration_seconds",
                    "Time from a change of endpoints to answers that show it.",
                )
                .buckets(exponential_buckets(0.001, 2.0, 20)?),
                &["service_kind"],
            )?)?,
            autopath: new.counters(
                "coredns_autopath_success_total",
                "Names that were found along the search path.",
                &["server"],
            )?,
            reloads: new.counters(
                "seaway_dns_settings_loads_total",
                "Times that the settings file was read, by what came of it.",
                &["result"],
            )?,
            shed: new.counters(
                "seaway_dns_shed_total",
                "Questions that were dropped, by why: the queue was full, or their source asked too much.",
                &["reason"],
            )?,
            reload_failures: new
                .counter("coredns_reload_failed_total", "Times that a new settings file was refused.")?,
            plugins: new.gauges(
                "coredns_plugin_enabled",
                "What is at work for a zone, in CoreDNS's words.",
                &["server", "zone", "view", "name"],
            )?,
            hosts_entries: new
                .gauge("coredns_hosts_entries", "Addresses that the settings give to names.")?,
            hosts_loaded: new.add(Gauge::new(
                "coredns_hosts_reload_timestamp_seconds",
                "When addresses by name were last taken over from the settings.",
            )?)?,
            version: new.gauges(
                "coredns_reload_version_info",
                "1, with a hash of the settings that are at work: servers with the same ones have the same.",
                &["hash", "value"],
            )?,
            health: new.add(Histogram::with_opts(
                HistogramOpts::new(
                    "coredns_health_request_duration_seconds",
                    "Time that the server's own requests for /health take.",
                )
                .buckets(exponential_buckets(0.000_25, 10.0, 5)?),
            )?)?,
            health_failures: new.counter(
                "coredns_health_request_failures_total",
                "The server's own requests for /health that failed.",
            )?,
            panics: new.counter("coredns_panics_total", "Panics while answering.")?,
            synced: new
                .gauge("seaway_dns_synced", "Whether the zone is complete (1) or not yet known (0).")?,
            services: new.gauge("seaway_dns_services", "Services in the zone.")?,
            ready: AtomicBool::new(false),
        };
        let build =
            new.gauges("coredns_build_info", "What runs here.", &["version", "revision", "goversion"])?;
        build.with_label_values(&[concat!("seaway-", env!("CARGO_PKG_VERSION")), "", ""]).set(1);
        Ok(Self { set: Arc::new(set) })
    }

    /// Whether the server listens and its zone is complete. What a readiness probe should tell.
    pub fn ready(&self) -> bool {
        self.set.ready.load(Ordering::Relaxed)
    }

    pub(crate) fn set_state(&self, ready: bool, synced: bool, services: usize) {
        self.set.ready.store(ready, Ordering::Relaxed);
        self.set.synced.set(synced.into());
        self.set.services.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// Says whether questions are answered at all, for a readiness probe.
    pub(crate) fn set_draining(&self) {
        self.set.ready.store(false, Ordering::Relaxed);
    }

    pub(crate) fn programmed(&self, service_kind: &str, took: Duration) {
        self.set.programming.with_label_values(&[service_kind]).observe(took.as_secs_f64());
    }

    /// A request that the process's client has made of the API server, and the status code, if there was an answer.
    pub fn api_request(&self, method: &str, host: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.set.api.duration.with_label_values(&[method, host]).observe(took.as_secs_f64());
        self.set.api.requests.with_label_values(&[&*code, method, host]).inc();
    }

    pub(crate) fn autopath_success(&self) {
        self.set.autopath.with_label_values(&[SERVER]).inc();
    }

    pub(crate) fn settings_loaded(&self, good: bool) {
        self.set.reload_failures.inc_by(u64::from(!good));
        self.set.reloads.with_label_values(&[if good { "applied" } else { "refused" }]).inc();
    }

    pub(crate) fn shed(&self, reason: &str, count: usize) {
        self.set.shed.with_label_values(&[reason]).inc_by(count as u64);
    }

    /// Says what is at work at `listening`, instead of what was before.
    pub(crate) fn set_plugins(&self, listening: &[SocketAddr], settings: &Settings) {
        self.set.plugins.reset();
        for (zone, name) in settings.plugins() {
            for server in listening {
                let server = format!("dns://{server}");
                self.set.plugins.with_label_values(&[&*server, &*zone.to_ascii(), "", name]).set(1);
            }
        }
        let entries: usize = settings.zones.iter().map(|zone| zone.hosts.entries.len()).sum();
        self.set.hosts_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        if entries > 0 {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.set.hosts_loaded.set(now.as_secs_f64());
        }
        self.set.version.reset();
        self.set.version.with_label_values(&["siphash", &*settings.version()]).set(1);
    }

    /// What became of a request for /health that the server made itself.
    pub(crate) fn health_asked(&self, good: bool, took: Duration) {
        self.set.health.observe(took.as_secs_f64());
        self.set.health_failures.inc_by(u64::from(!good));
    }

    pub(crate) fn cache_dropped(&self, zone: &str, count: u64) {
        if count > 0 {
            self.set.cache.drops.with_label_values(&cache_of(zone)).inc_by(count);
        }
    }

    pub(crate) fn cache_prefetch(&self, zone: &str) {
        self.set.cache.prefetches.with_label_values(&cache_of(zone)).inc();
    }

    pub(crate) fn health_check_failed(&self, to: &str) {
        self.set.forward.health_failures.with_label_values(&["forward", to]).inc();
    }

    pub(crate) fn forward_connections(&self, to: &str, reused: u64, opened: u64) {
        if reused > 0 {
            self.set.forward.connection_hits.with_label_values(&["forward", to, "tcp"]).inc_by(reused);
        }
        if opened > 0 {
            self.set.forward.connection_misses.with_label_values(&["forward", to, "tcp"]).inc_by(opened);
        }
    }

    pub(crate) fn panicked(&self) {
        self.set.panics.inc();
    }

    pub(crate) fn cache_hit(&self, zone: &str, denial: bool) {
        self.set.cache.requests.with_label_values(&cache_of(zone)).inc();
        self.set.cache.hits.with_label_values(&entries_of(zone, denial)).inc();
    }

    pub(crate) fn cache_miss(&self, zone: &str) {
        self.set.cache.requests.with_label_values(&cache_of(zone)).inc();
        self.set.cache.misses.with_label_values(&cache_of(zone)).inc();
    }

    /// Entries with an answer that had to go, and entries that say no.
    pub(crate) fn cache_evicted(&self, zone: &str, (success, denial): (usize, usize)) {
        for (is_denial, count) in [(false, success), (true, denial)] {
            if count > 0 {
                let labels = entries_of(zone, is_denial);
                self.set.cache.evictions.with_label_values(&labels).inc_by(count as u64);
            }
        }
    }

    pub(crate) fn cache_served_stale(&self, zone: &str) {
        self.set.cache.served_stale.with_label_values(&cache_of(zone)).inc();
    }

    pub(crate) fn cache_entries(&self, zone: &str, (success, denial): (usize, usize)) {
        for (is_denial, count) in [(false, success), (true, denial)] {
            let gauge = self.set.cache.entries.with_label_values(&entries_of(zone, is_denial));
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn forward_request(&self, to: &str) {
        self.set.forward.requests.with_label_values(&[to]).inc();
    }

    pub(crate) fn forward_response(&self, to: &str, code: Option<ResponseCode>, took: Duration) {
        let code = code.map_or("none", code_name);
        self.set.forward.responses.with_label_values(&[to, code]).inc();
        self.set.forward.duration.with_label_values(&["forward", to, code]).observe(took.as_secs_f64());
    }

    pub(crate) fn forward_rejected(&self) {
        self.set.forward.rejects.inc();
    }

    pub(crate) fn forward_all_failing(&self) {
        self.set.forward.all_failing.inc();
    }
}

/// The cache and the forwarder belong to all listeners together.
const SERVER: &str = "dns://";

/// The labels of a zone's cache: `server`, `zones`, `view`.
fn cache_of(zone: &str) -> [&str; 3] {
    [SERVER, zone, ""]
}

/// The same for one kind of entries: `server`, `type`, `zones`, `view`.
fn entries_of(zone: &str, denial: bool) -> [&str; 4] {
    [SERVER, if denial { "denial" } else { "success" }, zone, ""]
}

impl Questions {
    fn new(new: &Maker<'_>) -> Result<Self, prometheus::Error> {
        let per_server = ["server", "zone", "view"];
        Ok(Self {
            requests: new.counters(
                "coredns_dns_requests_total",
                "DNS requests.",
                &["server", "zone", "view", "proto", "family", "type"],
            )?,
            do_requests: new.counters(
                "coredns_dns_do_requests_total",
                "DNS requests with the DO bit.",
                &per_server,
            )?,
            responses: new.counters(
                "coredns_dns_responses_total",
                "DNS answers, by response code and by who made them.",
                &["server", "zone", "view", "rcode", "plugin"],
            )?,
            duration: new.seconds(
                "coredns_dns_request_duration_seconds",
                "Time to an answer.",
                &per_server,
            )?,
            request_size: new.sizes("coredns_dns_request_size_bytes", "Size of requests.")?,
            response_size: new.sizes("coredns_dns_response_size_bytes", "Size of answers.")?,
        })
    }
}

impl Cache {
    fn new(new: &Maker<'_>) -> Result<Self, prometheus::Error> {
        let of_cache = ["server", "zones", "view"];
        let of_entries = ["server", "type", "zones", "view"];
        Ok(Self {
            entries: new.gauges("coredns_cache_entries", "Answers remembered.", &of_entries)?,
            requests: new.counters("coredns_cache_requests_total", "Look-ups in the cache.", &of_cache)?,
            hits: new.counters("coredns_cache_hits_total", "Look-ups that hit.", &of_entries)?,
            misses: new.counters("coredns_cache_misses_total", "Look-ups that missed.", &of_cache)?,
            evictions: new.counters(
                "coredns_cache_evictions_total",
                "Answers dropped for others.",
                &of_entries,
            )?,
            served_stale: new.counters(
                "coredns_cache_served_stale_total",
                "Answers given past their time, since no upstream answered.",
                &of_cache,
            )?,
            prefetches: new.counters(
                "coredns_cache_prefetch_total",
                "Answers asked for anew before they ended.",
                &of_cache,
            )?,
            drops: new.counters(
                "coredns_cache_drops_total",
                "Replies that were not remembered, since they do not answer the question.",
                &of_cache,
            )?,
        })
    }
}

impl Forward {
    fn new(new: &Maker<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: new.counters("coredns_forward_requests_total", "Questions sent upstream.", &["to"])?,
            responses: new.counters(
                "coredns_forward_responses_total",
                "Answers of upstreams, by response code; \"none\" where there was none in time.",
                &["to", "rcode"],
            )?,
            duration: new.seconds(
                "coredns_proxy_request_duration_seconds",
                "Time to an upstream's answer.",
                &["proxy_name", "to", "rcode"],
            )?,
            rejects: new.counter(
                "coredns_forward_max_concurrent_rejects_total",
                "Questions refused since too many are waiting for upstreams.",
            )?,
            all_failing: new.counter(
                "coredns_forward_healthcheck_broken_total",
                "Questions that came while every upstream was failing.",
            )?,
            health_failures: new.counters(
                "coredns_proxy_healthcheck_failures_total",
                "Times that a failing upstream was found to be still failing.",
                &["proxy_name", "to"],
            )?,
            connection_hits: new.counters(
                "coredns_proxy_conn_cache_hits_total",
                "Questions over a connection that was there already.",
                &["proxy_name", "to", "proto"],
            )?,
            connection_misses: new.counters(
                "coredns_proxy_conn_cache_misses_total",
                "Connections opened to upstreams.",
                &["proxy_name", "to", "proto"],
            )?,
        })
    }
}

impl Api {
    fn new(new: &Maker<'_>) -> Result<Self, prometheus::Error> {
        let name = "coredns_kubernetes_rest_client_request_duration_seconds";
        let options = HistogramOpts::new(name, "Time to the API server's answer.");
        Ok(Self {
            duration: new.add(HistogramVec::new(options, &["verb", "host"])?)?,
            requests: new.counters(
                "coredns_kubernetes_rest_client_requests_total",
                "Requests to the API server, by what it answered.",
                &["code", "method", "host"],
            )?,
        })
    }
}

struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn add<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: M,
    ) -> Result<M, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
        let buckets = exponential_buckets(0.000_25, 2.0, 16)?;
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?)
    }

    fn sizes(&self, name: &str, help: &str) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(SIZE_BUCKETS.to_vec());
        self.add(HistogramVec::new(options, &["server", "zone", "view", "proto"])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What dashboards and alerts of CoreDNS ask for, each with its labels.
    #[test]
    fn names_and_labels_are_corednss() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let listening = ["192.0.2.53:53".parse().unwrap()];
        metrics.set_plugins(&listening, &Settings::of(&crate::DnsConfig::default()));
        let origin = hickory_proto::rr::Name::from_ascii("cluster.local.").unwrap();
        let mut meter = &Meter::new(&metrics, listening[0], &origin);
        let (scope, udp, took) = (Scope::Cluster, Transport::Udp, Duration::from_millis(1));
        meter.request(scope, udp, hickory_proto::rr::RecordType::A, 40, true);
        meter.response(scope, udp, (ResponseCode::NXDomain, Source::Kubernetes), 90, took);
        metrics.cache_hit(".", false);
        metrics.cache_miss(".");
        metrics.cache_prefetch(".");
        metrics.cache_dropped(".", 1);
        metrics.cache_served_stale(".");
        metrics.cache_evicted(".", (0, 1));
        metrics.cache_entries(".", (1, 1));
        metrics.forward_request("192.0.2.1:53");
        metrics.forward_response("192.0.2.1:53", Some(ResponseCode::NoError), took);
        metrics.forward_connections("192.0.2.1:53", 1, 1);
        metrics.health_check_failed("192.0.2.1:53");
        metrics.autopath_success();
        metrics.programmed("headless_with_selector", took);
        metrics.api_request("GET", "api:6443", Some(200), took);
        let told: std::collections::BTreeMap<String, String> = registry
            .gather()
            .iter()
            .map(|family| {
                let labels = family.get_metric()[0].get_label().iter().map(|label| label.name().to_owned());
                (family.name().to_owned(), labels.collect::<Vec<_>>().join(","))
            })
            .collect();
        let wanted = [
            ("build_info", "goversion,revision,version"),
            ("panics_total", ""),
            ("plugin_enabled", "name,server,view,zone"),
            ("dns_requests_total", "family,proto,server,type,view,zone"),
            ("dns_request_duration_seconds", "server,view,zone"),
            ("dns_request_size_bytes", "proto,server,view,zone"),
            ("dns_response_size_bytes", "proto,server,view,zone"),
            ("dns_responses_total", "plugin,rcode,server,view,zone"),
            ("dns_do_requests_total", "server,view,zone"),
            ("cache_entries", "server,type,view,zones"),
            ("cache_hits_total", "server,type,view,zones"),
            ("cache_misses_total", "server,view,zones"),
            ("cache_requests_total", "server,view,zones"),
            ("cache_prefetch_total", "server,view,zones"),
            ("cache_drops_total", "server,view,zones"),
            ("cache_served_stale_total", "server,view,zones"),
            ("cache_evictions_total", "server,type,view,zones"),
            ("forward_healthcheck_broken_total", ""),
            ("forward_max_concurrent_rejects_total", ""),
            ("proxy_request_duration_seconds", "proxy_name,rcode,to"),
            ("proxy_healthcheck_failures_total", "proxy_name,to"),
            ("proxy_conn_cache_hits_total", "proto,proxy_name,to"),
            ("proxy_conn_cache_misses_total", "proto,proxy_name,to"),
            ("health_request_duration_seconds", ""),
            ("health_request_failures_total", ""),
            ("autopath_success_total", "server"),
            ("reload_failed_total", ""),
            ("hosts_entries", ""),
            ("kubernetes_dns_programming_duration_seconds", "service_kind"),
            ("kubernetes_rest_client_request_duration_seconds", "host,verb"),
            ("kubernetes_rest_client_requests_total", "code,host,method"),
        ];
        for (name, labels) in wanted {
            let found = told.get(&format!("coredns_{name}")).map(String::as_str);
            assert_eq!(found, Some(labels), "coredns_{name} in {told:?}");
        }
    }

    #[test]
    fn requests_to_the_api_server_are_told_as_corednss_client_tells_them() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.api_request("GET", "api:6443", Some(200), Duration::from_millis(20));
        metrics.api_request("GET", "api:6443", None, Duration::from_secs(3));
        let page = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let name = "coredns_kubernetes_rest_client_request";
        for line in [
            format!("{name}s_total{{code=\"200\",host=\"api:6443\",method=\"GET\"}} 1"),
            format!("{name}s_total{{code=\"<error>\",host=\"api:6443\",method=\"GET\"}} 1"),
            format!("{name}_duration_seconds_bucket{{host=\"api:6443\",verb=\"GET\",le=\"0.025\"}} 1"),
            format!("{name}_duration_seconds_count{{host=\"api:6443\",verb=\"GET\"}} 2"),
        ] {
            assert!(page.contains(&line), "{line} is not in\n{page}");
        }
    }
}
