//! What the proxy counts, under kube-proxy's names where kube-proxy counts the same, so that its dashboards work.

mod rules;

use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use seaway_model::Changes;
use tokio::sync::watch;

use crate::desired::Desired;
use crate::plan::Plan;
use crate::sockets::View;
use crate::status::DropCount;
use crate::traffic::{TrafficCollector, TrafficTable};
use rules::Rules;
pub(crate) use rules::SyncEnd;

/// The proxy's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    rules: Rules,
    conntrack_duration: Histogram,
    invalid_dropped: IntGauge,
    network_programming: Histogram,
    no_local_endpoints: IntGaugeVec,
    syncs: IntCounterVec,
    plan_ops: IntCounterVec,
    frontends: IntGauge,
    backends: IntGauge,
    services: IntGauge,
    conflicts: IntGauge,
    repairs: IntCounter,
    forgotten_udp: IntCounter,
    ended_sockets: IntCounterVec,
    conntrack_deleted: IntCounterVec,
    health: IntCounterVec,
    live: IntCounterVec,
    drops: IntGaugeVec,
    announced: IntGauge,
    announce_replies: IntCounterVec,
    traffic: TrafficCollector,
}

/// Buckets of a sync: from 50 µs (one endpoint) to some seconds (everything).
const SYNC_BUCKETS_S: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Buckets of the time from an endpoint's change to its packets.
const PROGRAMMING_BUCKETS_S: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

impl Metrics {
    /// Metrics registered with `registry`. Names that are taken already are counted apart, unseen.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            rules: Rules::new(),
            conntrack_duration: histogram(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                &SYNC_BUCKETS_S,
            ),
            invalid_dropped: int_gauge(
                "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
                "packets dropped by iptables to work around conntrack problems",
            ),
            network_programming: histogram(
                "kubeproxy_network_programming_duration_seconds",
                "In cluster network programming latency in seconds",
                &PROGRAMMING_BUCKETS_S,
            ),
            no_local_endpoints: int_gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Number of services with a Local traffic policy and no endpoints",
                &["traffic_policy"],
            ),
            syncs: counters("seaway_proxy_syncs_total", "Syncs by result", &["result"]),
            plan_ops: counters("seaway_proxy_plan_ops_total", "Steps of plans by kind", &["op"]),
            frontends: int_gauge("seaway_proxy_frontends", "Frontends that are served"),
            backends: int_gauge("seaway_proxy_backends", "Backends over all frontends"),
            services: int_gauge("seaway_proxy_services", "Services that are served"),
            conflicts: int_gauge("seaway_proxy_conflicts", "Frontends that several Services claim"),
            repairs: counter(
                "seaway_proxy_repaired_total",
                "Frontends that a read-back found to differ although nothing had changed",
            ),
            forgotten_udp: counter(
                "seaway_proxy_forgotten_udp_flows_total",
                "UDP flow entries removed because their endpoint was gone",
            ),
            ended_sockets: counters(
                "seaway_proxy_ended_sockets_total",
                "Sockets whose endpoint was gone",
                &["protocol"],
            ),
            conntrack_deleted: counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                &["ip_family"],
            ),
            health: counters("kubeproxy_proxy_healthz_total", "Cumulative proxy healthz status", &["code"]),
            live: counters("kubeproxy_proxy_livez_total", "Cumulative proxy livez HTTP status", &["code"]),
            drops: int_gauges("seaway_proxy_dropped_packets", "Dropped packets by reason", &["reason"]),
            announced: int_gauge("seaway_proxy_announced_addresses", "Addresses this node answers for"),
            announce_replies: counters(
                "seaway_proxy_announce_replies_total",
                "Answers about announced addresses by protocol",
                &["protocol"],
            ),
            traffic: TrafficCollector::new(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &Registry) {
        let all: [Box<dyn Collector>; 20] = [
            Box::new(self.conntrack_duration.clone()),
            Box::new(self.invalid_dropped.clone()),
            Box::new(self.network_programming.clone()),
            Box::new(self.no_local_endpoints.clone()),
            Box::new(self.syncs.clone()),
            Box::new(self.plan_ops.clone()),
            Box::new(self.frontends.clone()),
            Box::new(self.backends.clone()),
            Box::new(self.services.clone()),
            Box::new(self.conflicts.clone()),
            Box::new(self.repairs.clone()),
            Box::new(self.forgotten_udp.clone()),
            Box::new(self.ended_sockets.clone()),
            Box::new(self.conntrack_deleted.clone()),
            Box::new(self.health.clone()),
            Box::new(self.live.clone()),
            Box::new(self.drops.clone()),
            Box::new(self.announced.clone()),
            Box::new(self.announce_replies.clone()),
            Box::new(self.traffic.clone()),
        ];
        for collector in self.rules.collectors().into_iter().chain(all) {
            if let Err(error) = registry.register(collector) {
                tracing::warn!(%error, "a metric is not shown");
            }
        }
    }

    pub(crate) fn queued(&self) {
        self.rules.queued();
    }

    pub(crate) fn sync_done(&self, desired: &Desired, sync: &SyncEnd) {
        self.rules.sync_done(sync);
        self.syncs.with_label_values(&[if sync.ok { "ok" } else { "error" }]).inc();
        let (internal, external) = desired.no_local_endpoints();
        self.no_local_endpoints.with_label_values(&["internal"]).set(as_i64(internal));
        self.no_local_endpoints.with_label_values(&["external"]).set(as_i64(external));
        self.frontends.set(as_i64(desired.frontends.len()));
        self.backends.set(as_i64(desired.backend_count()));
        self.services.set(as_i64(desired.service_count()));
        self.conflicts.set(as_i64(desired.contested.len()));
    }

    /// Services and their endpoints have changed.
    pub(crate) fn changed(&self, changes: &Changes) {
        self.rules.changed(changes.service_objects, changes.endpoint_sets);
    }

    /// /healthz was answered with this status code.
    pub fn healthz_answered(&self, code: u16) {
        self.health.with_label_values(&[&code.to_string()]).inc();
    }

    /// /livez was answered with this status code.
    pub fn livez_answered(&self, code: u16) {
        self.live.with_label_values(&[&code.to_string()]).inc();
    }

    /// An endpoint changed at `changed_at` and packets follow now.
    pub(crate) fn programmed(&self, changed_at: SystemTime) {
        if let Ok(latency) = SystemTime::now().duration_since(changed_at) {
            self.network_programming.observe(latency.as_secs_f64());
        }
    }

    pub(crate) fn planned(&self, plan: &Plan) {
        for (op, count) in [
            ("host", usize::from(plan.host.is_some())),
            ("upsert", plan.upserts.len()),
            ("remove", plan.removals.len()),
            ("sweep", usize::from(plan.sweep)),
        ] {
            self.plan_ops.with_label_values(&[op]).inc_by(count as u64);
        }
    }

    pub(crate) fn forgot_udp(&self, flows: usize, took: Duration) {
        self.conntrack_duration.observe(took.as_secs_f64());
        self.conntrack_deleted.with_label_values(&["any"]).inc_by(flows as u64);
        self.forgotten_udp.inc_by(flows as u64);
    }

    pub(crate) fn ended_sockets(&self, protocol: &'static str, sockets: usize) {
        self.ended_sockets.with_label_values(&[protocol]).inc_by(sockets as u64);
    }

    pub(crate) fn repaired(&self, steps: usize) {
        self.repairs.inc_by(steps as u64);
    }

    pub(crate) fn dropped(&self, drops: &[DropCount]) {
        for drop in drops {
            let packets = i64::try_from(drop.packets).unwrap_or(i64::MAX);
            self.drops.with_label_values(&[&drop.reason]).set(packets);
            if drop.reason == "invalid" {
                self.invalid_dropped.set(packets);
            }
        }
    }

    /// What `table` counts is shown from now on.
    pub(crate) fn show_traffic(&self, table: Box<dyn TrafficTable>, views: watch::Receiver<View>) {
        self.traffic.show(table, views);
    }

    pub(crate) fn announcing(&self, addresses: usize) {
        self.announced.set(as_i64(addresses));
    }

    pub(crate) fn announce_reply(&self, protocol: &'static str) {
        self.announce_replies.with_label_values(&[protocol]).inc();
    }
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        .expect("the name is a valid metric name")
}

fn gauge(name: &str, help: &str) -> Gauge {
    Gauge::new(name, help).expect("the name is a valid metric name")
}

fn int_gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("the name is a valid metric name")
}

fn int_gauges(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), labels).expect("name and labels are valid")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("the name is a valid metric name")
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("name and labels are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kube-proxy shows on Linux, by its documentation, save what counts rules that are not written here
    /// (`…_iptables_last`, `…_iptables_total`) and what a rule of its own counts (`…_localhost_nodeports_…`).
    const KUBE_PROXY: [&str; 20] = [
        "conntrack_reconciler_deleted_entries_total",
        "conntrack_reconciler_sync_duration_seconds",
        "iptables_ct_state_invalid_dropped_packets_total",
        "network_programming_duration_seconds",
        "proxy_healthz_total",
        "proxy_livez_total",
        "sync_full_proxy_rules_duration_seconds",
        "sync_partial_proxy_rules_duration_seconds",
        "sync_proxy_rules_duration_seconds",
        "sync_proxy_rules_endpoint_changes_pending",
        "sync_proxy_rules_endpoint_changes_total",
        "sync_proxy_rules_iptables_partial_restore_failures_total",
        "sync_proxy_rules_iptables_restore_failures_total",
        "sync_proxy_rules_last_queued_timestamp_seconds",
        "sync_proxy_rules_last_timestamp_seconds",
        "sync_proxy_rules_nftables_cleanup_failures_total",
        "sync_proxy_rules_nftables_sync_failures_total",
        "sync_proxy_rules_no_local_endpoints_total",
        "sync_proxy_rules_service_changes_pending",
        "sync_proxy_rules_service_changes_total",
    ];

    #[test]
    fn kube_proxys_metrics_are_there_under_its_names() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let sync = SyncEnd { mode: "nftables", took: Duration::from_millis(3), ok: false, full: true };
        metrics.sync_done(&Desired::default(), &sync);
        metrics.healthz_answered(200);
        metrics.livez_answered(503);
        metrics.forgot_udp(1, Duration::from_millis(1));
        let shown: Vec<String> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        for name in KUBE_PROXY {
            assert!(shown.contains(&format!("kubeproxy_{name}")), "{name}");
        }
        assert_eq!(
            (metrics.rules.nftables_failures.get(), metrics.rules.full_sync_duration.get_sample_count()),
            (1, 1)
        );
    }
}
