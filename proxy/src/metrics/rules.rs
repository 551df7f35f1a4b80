//! Metrics of syncs under kube-proxy's names.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{
    IP_FAMILY, SYNC_BUCKETS_S, as_i64, by_family, counter, counters, gauges_by_family, int_gauge, int_gauges,
    ip_family, observe, unix_s,
};
use crate::status::RuleCount;

/// A sync that has ended, well or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyncEnd {
    pub(crate) mode: &'static str,
    /// The families that it was for.
    pub(crate) families: &'static [&'static str],
    pub(crate) took: Duration,
    pub(crate) ok: bool,
    /// Everything was read back and compared.
    pub(crate) full: bool,
}

/// What is counted about syncs.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) sync_duration: HistogramVec,
    pub(super) full_sync_duration: HistogramVec,
    partial_sync_duration: HistogramVec,
    last_timestamp: GaugeVec,
    last_queued: GaugeVec,
    service_changes: IntCounter,
    endpoint_changes: IntCounter,
    service_changes_pending: IntGauge,
    endpoint_changes_pending: IntGauge,
    iptables_failures: IntCounterVec,
    iptables_partial_failures: IntCounterVec,
    pub(super) nftables_failures: IntCounterVec,
    nftables_cleanup_failures: IntCounterVec,
    pub(super) iptables_total: IntGaugeVec,
    iptables_last: IntGaugeVec,
}

impl Rules {
    pub(super) fn new() -> Self {
        let duration = |name: &str, help: &str| by_family(name, help, &SYNC_BUCKETS_S);
        let table = [IP_FAMILY, "table"];
        Self {
            sync_duration: duration(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
            ),
            full_sync_duration: duration(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
            ),
            partial_sync_duration: duration(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
            ),
            last_timestamp: gauges_by_family(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            ),
            last_queued: gauges_by_family(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
            ),
            service_changes: rules("service_changes_total", "Cumulative proxy rules Service changes"),
            endpoint_changes: rules("endpoint_changes_total", "Cumulative proxy rules Endpoint changes"),
            service_changes_pending: int_gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
            ),
            endpoint_changes_pending: int_gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
            ),
            iptables_failures: failures(
                "iptables_restore_failures_total",
                "Cumulative proxy iptables restore failures",
            ),
            iptables_partial_failures: failures(
                "iptables_partial_restore_failures_total",
                "Cumulative proxy iptables partial restore failures",
            ),
            nftables_failures: failures(
                "nftables_sync_failures_total",
                "Cumulative proxy nftables sync failures",
            ),
            nftables_cleanup_failures: failures(
                "nftables_cleanup_failures_total",
                "Cumulative proxy nftables cleanup failures",
            ),
            iptables_total: int_gauges(
                "kubeproxy_sync_proxy_rules_iptables_total",
                "Total number of iptables rules owned by kube-proxy",
                &table,
            ),
            iptables_last: int_gauges(
                "kubeproxy_sync_proxy_rules_iptables_last",
                "Number of iptables rules written by kube-proxy in last sync",
                &table,
            ),
        }
    }

    pub(super) fn collectors(&self) -> [Box<dyn Collector>; 15] {
        [
            Box::new(self.sync_duration.clone()),
            Box::new(self.full_sync_duration.clone()),
            Box::new(self.partial_sync_duration.clone()),
            Box::new(self.last_timestamp.clone()),
            Box::new(self.last_queued.clone()),
            Box::new(self.service_changes.clone()),
            Box::new(self.endpoint_changes.clone()),
            Box::new(self.service_changes_pending.clone()),
            Box::new(self.endpoint_changes_pending.clone()),
            Box::new(self.iptables_failures.clone()),
            Box::new(self.iptables_partial_failures.clone()),
            Box::new(self.nftables_failures.clone()),
            Box::new(self.nftables_cleanup_failures.clone()),
            Box::new(self.iptables_total.clone()),
            Box::new(self.iptables_last.clone()),
        ]
    }

    pub(super) fn queued(&self, families: &[&str]) {
        for family in families {
            self.last_queued.with_label_values(&[family]).set(unix_s());
        }
    }

    pub(super) fn counted(&self, counts: &[RuleCount]) {
        for count in counts {
            let labels = [ip_family(count.family), count.table];
            self.iptables_total.with_label_values(&labels).set(as_i64(count.owned));
            self.iptables_last.with_label_values(&labels).set(as_i64(count.written));
        }
    }

    pub(super) fn changed(&self, services: usize, endpoints: usize) {
        self.service_changes.inc_by(services as u64);
        self.service_changes_pending.add(as_i64(services));
        self.endpoint_changes.inc_by(endpoints as u64);
        self.endpoint_changes_pending.add(as_i64(endpoints));
    }

    pub(super) fn sync_done(&self, sync: &SyncEnd) {
        let kind = if sync.full { &self.full_sync_duration } else { &self.partial_sync_duration };
        for histogram in [&self.sync_duration, kind] {
            observe(histogram, sync.families, sync.took);
        }
        if sync.ok {
            for family in sync.families {
                self.last_timestamp.with_label_values(&[family]).set(unix_s());
            }
            self.service_changes_pending.set(0);
            self.endpoint_changes_pending.set(0);
        }
        let failures = [
            (&self.nftables_failures, sync.mode == "nftables"),
            (&self.iptables_failures, sync.mode == "iptables" && sync.full),
            (&self.iptables_partial_failures, sync.mode == "iptables" && !sync.full),
        ];
        // What did not happen is shown as well, as 0.
        for (counter, _) in failures.iter().chain(&[(&self.nftables_cleanup_failures, false)]) {
            for family in sync.families {
                counter.with_label_values(&[family]);
            }
        }
        for (counter, _) in failures.iter().filter(|(_, here)| *here && !sync.ok) {
            for family in sync.families {
                counter.with_label_values(&[family]).inc();
            }
        }
    }
}

fn failures(name: &str, help: &str) -> IntCounterVec {
    counters(&format!("kubeproxy_sync_proxy_rules_{name}"), help, &[IP_FAMILY])
}

fn rules(name: &str, help: &str) -> IntCounter {
    counter(&format!("kubeproxy_sync_proxy_rules_{name}"), help)
}
