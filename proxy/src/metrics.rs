//! What the proxy counts, under kube-proxy's names where kube-proxy counts the same, so that its dashboards work.

mod rules;

use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use seaway_model::{Changes, Family};
use tokio::sync::watch;

use crate::desired::Desired;
use crate::plan::Plan;
use crate::sockets::View;
use crate::stale::Forgotten;
use crate::status::{DropCount, RuleCount};
use crate::traffic::{TrafficCollector, TrafficTable};
use rules::Rules;
pub(crate) use rules::SyncEnd;

/// The proxy's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    rules: Rules,
    conntrack_duration: HistogramVec,
    invalid_dropped: IntGauge,
    localhost_node_ports: IntGauge,
    network_programming: HistogramVec,
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
    pods_handed_over: IntGauge,
    xdp_forwarded: IntGauge,
    announce_replies: IntCounterVec,
    traffic: TrafficCollector,
}

/// The label of kube-proxy's metrics that says `IPv4` or `IPv6`.
const IP_FAMILY: &str = "ip_family";

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
            conntrack_duration: by_family(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                &SYNC_BUCKETS_S,
            ),
            invalid_dropped: int_gauge(
                "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
                "packets dropped by iptables to work around conntrack problems",
            ),
            localhost_node_ports: int_gauge(
                "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
                "Number of packets accepted on nodeports of loopback interface",
            ),
            network_programming: by_family(
                "kubeproxy_network_programming_duration_seconds",
                "In cluster network programming latency in seconds",
                &PROGRAMMING_BUCKETS_S,
            ),
            no_local_endpoints: int_gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Number of services with a Local traffic policy and no endpoints",
                &["ip_family", "traffic_policy"],
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
            pods_handed_over: int_gauge(
                "seaway_proxy_pods_handed_over",
                "1 while packets between pods pass the node's stack and firewall by",
            ),
            xdp_forwarded: int_gauge(
                "seaway_proxy_xdp_forwarded_packets",
                "Packets between clients outside and backends on other nodes that XDP sent on",
            ),
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
        let all: [Box<dyn Collector>; 23] = [
            Box::new(self.conntrack_duration.clone()),
            Box::new(self.invalid_dropped.clone()),
            Box::new(self.localhost_node_ports.clone()),
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
            Box::new(self.pods_handed_over.clone()),
            Box::new(self.xdp_forwarded.clone()),
            Box::new(self.announce_replies.clone()),
            Box::new(self.traffic.clone()),
        ];
        for collector in self.rules.collectors().into_iter().chain(all) {
            if let Err(error) = registry.register(collector) {
                tracing::warn!(%error, "a metric is not shown");
            }
        }
    }

    pub(crate) fn queued(&self, families: &[&str]) {
        self.rules.queued(families);
    }

    /// What iptables rules there are.
    pub(crate) fn rules_counted(&self, counts: &[RuleCount]) {
        self.rules.counted(counts);
    }

    pub(crate) fn sync_done(&self, desired: &Desired, sync: &SyncEnd) {
        self.rules.sync_done(sync);
        self.syncs.with_label_values(&[if sync.ok { "ok" } else { "error" }]).inc();
        for family in Family::ALL {
            let (internal, external) = desired.no_local_endpoints(family);
            for (policy, count) in [("internal", internal), ("external", external)] {
                let labels = [ip_family(family), policy];
                self.no_local_endpoints.with_label_values(&labels).set(as_i64(count));
            }
        }
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
    pub(crate) fn programmed(&self, families: &[&str], changed_at: SystemTime) {
        if let Ok(latency) = SystemTime::now().duration_since(changed_at) {
            observe(&self.network_programming, families, latency);
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

    pub(crate) fn forgot_udp(&self, families: &[&str], flows: Forgotten, took: Duration) {
        observe(&self.conntrack_duration, families, took);
        for family in Family::ALL {
            let name = ip_family(family);
            let count = flows.of(family) as u64;
            // What did not happen is shown as well, as 0.
            if count > 0 || families.contains(&name) {
                self.conntrack_deleted.with_label_values(&[name]).inc_by(count);
            }
            self.forgotten_udp.inc_by(count);
        }
    }

    /// So many connections went to NodePorts at loopback addresses.
    pub(crate) fn localhost_node_ports(&self, accepted: u64) {
        self.localhost_node_ports.set(i64::try_from(accepted).unwrap_or(i64::MAX));
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

    pub(crate) fn pods_handed_over(&self, direct: bool) {
        self.pods_handed_over.set(i64::from(direct));
    }

    pub(crate) fn xdp_forwarded(&self, packets: u64) {
        self.xdp_forwarded.set(i64::try_from(packets).unwrap_or(i64::MAX));
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

/// A histogram with kube-proxy's label: it has a proxier for each family, and we have one for both, so what is observed
/// of a sync is observed of each.
fn by_family(name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &[IP_FAMILY])
        .expect("the name is a valid metric name")
}

fn observe(histogram: &HistogramVec, families: &[&str], took: Duration) {
    for family in families {
        histogram.with_label_values(&[family]).observe(took.as_secs_f64());
    }
}

/// A family's name in kube-proxy's metrics.
fn ip_family(family: Family) -> &'static str {
    if family == Family::V4 { "IPv4" } else { "IPv6" }
}

fn gauges_by_family(name: &str, help: &str) -> GaugeVec {
    GaugeVec::new(Opts::new(name, help), &[IP_FAMILY]).expect("the name is a valid metric name")
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
    use prometheus::proto::LabelPair;

    use super::*;

    /// What kube-proxy shows on Linux, by its documentation: the metric's name, and its labels.
    const KUBE_PROXY: [(&str, &[&str]); 23] = [
        ("conntrack_reconciler_deleted_entries_total", &["ip_family"]),
        ("conntrack_reconciler_sync_duration_seconds", &["ip_family"]),
        ("iptables_ct_state_invalid_dropped_packets_total", &[]),
        ("iptables_localhost_nodeports_accepted_packets_total", &[]),
        ("network_programming_duration_seconds", &["ip_family"]),
        ("proxy_healthz_total", &["code"]),
        ("proxy_livez_total", &["code"]),
        ("sync_full_proxy_rules_duration_seconds", &["ip_family"]),
        ("sync_partial_proxy_rules_duration_seconds", &["ip_family"]),
        ("sync_proxy_rules_duration_seconds", &["ip_family"]),
        ("sync_proxy_rules_endpoint_changes_pending", &[]),
        ("sync_proxy_rules_endpoint_changes_total", &[]),
        ("sync_proxy_rules_iptables_last", &["ip_family", "table"]),
        ("sync_proxy_rules_iptables_partial_restore_failures_total", &["ip_family"]),
        ("sync_proxy_rules_iptables_restore_failures_total", &["ip_family"]),
        ("sync_proxy_rules_iptables_total", &["ip_family", "table"]),
        ("sync_proxy_rules_last_queued_timestamp_seconds", &["ip_family"]),
        ("sync_proxy_rules_last_timestamp_seconds", &["ip_family"]),
        ("sync_proxy_rules_nftables_cleanup_failures_total", &["ip_family"]),
        ("sync_proxy_rules_nftables_sync_failures_total", &["ip_family"]),
        ("sync_proxy_rules_no_local_endpoints_total", &["ip_family", "traffic_policy"]),
        ("sync_proxy_rules_service_changes_pending", &[]),
        ("sync_proxy_rules_service_changes_total", &[]),
    ];

    #[test]
    fn kube_proxys_metrics_are_there_under_its_names_and_labels() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let families: &[&str] = &["IPv4", "IPv6"];
        for (mode, full) in [("nftables", true), ("iptables", true), ("iptables", false)] {
            for ok in [true, false] {
                let sync = SyncEnd { mode, families, took: Duration::from_millis(3), ok, full };
                metrics.sync_done(&Desired::default(), &sync);
            }
        }
        metrics.queued(families);
        metrics.programmed(families, SystemTime::UNIX_EPOCH);
        metrics.healthz_answered(200);
        metrics.livez_answered(503);
        metrics.forgot_udp(families, Forgotten { v4: 0, v6: 2 }, Duration::from_millis(1));
        metrics.rules_counted(&[RuleCount { family: Family::V6, table: "nat", owned: 7, written: 3 }]);
        let shown = registry.gather();
        for (name, labels) in KUBE_PROXY {
            let family = shown.iter().find(|family| family.name() == format!("kubeproxy_{name}"));
            let family = family.unwrap_or_else(|| panic!("{name} is missing"));
            let has: Vec<&str> = family.get_metric()[0].get_label().iter().map(LabelPair::name).collect();
            assert_eq!(has, labels, "{name}");
        }
        let failures = metrics.rules.nftables_failures.with_label_values(&["IPv6"]).get();
        let full = metrics.rules.full_sync_duration.with_label_values(&["IPv4"]).get_sample_count();
        assert_eq!((failures, full), (1, 4));
        assert_eq!(metrics.rules.iptables_total.with_label_values(&["IPv6", "nat"]).get(), 7);
        let deleted = |family| metrics.conntrack_deleted.with_label_values(&[family]).get();
        assert_eq!((deleted("IPv4"), deleted("IPv6"), metrics.forgotten_udp.get()), (0, 2, 2));
    }
}
