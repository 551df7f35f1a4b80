//! Metrics of syncs under kube-proxy's names.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::{SYNC_BUCKETS_S, as_i64, counter, gauge, histogram, int_gauge, unix_s};

/// A sync that has ended, well or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyncEnd {
    pub(crate) mode: &'static str,
    pub(crate) took: Duration,
    pub(crate) ok: bool,
    /// Everything was read back and compared.
    pub(crate) full: bool,
}

/// What is counted about syncs.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) sync_duration: Histogram,
    pub(super) full_sync_duration: Histogram,
    partial_sync_duration: Histogram,
    last_timestamp: Gauge,
    last_queued: Gauge,
    service_changes: IntCounter,
    endpoint_changes: IntCounter,
    service_changes_pending: IntGauge,
    endpoint_changes_pending: IntGauge,
    iptables_failures: IntCounter,
    iptables_partial_failures: IntCounter,
    pub(super) nftables_failures: IntCounter,
    nftables_cleanup_failures: IntCounter,
}

impl Rules {
    pub(super) fn new() -> Self {
        let duration = |name: &str, help: &str| histogram(name, help, &SYNC_BUCKETS_S);
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
            last_timestamp: gauge(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            ),
            last_queued: gauge(
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
            iptables_failures: rules(
                "iptables_restore_failures_total",
                "Cumulative proxy iptables restore failures",
            ),
            iptables_partial_failures: rules(
                "iptables_partial_restore_failures_total",
                "Cumulative proxy iptables partial restore failures",
            ),
            nftables_failures: rules(
                "nftables_sync_failures_total",
                "Cumulative proxy nftables sync failures",
            ),
            nftables_cleanup_failures: rules(
                "nftables_cleanup_failures_total",
                "Cumulative proxy nftables cleanup failures",
            ),
        }
    }

    pub(super) fn collectors(&self) -> [Box<dyn Collector>; 13] {
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
        ]
    }

    pub(super) fn queued(&self) {
        self.last_queued.set(unix_s());
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
            histogram.observe(sync.took.as_secs_f64());
        }
        if sync.ok {
            self.last_timestamp.set(unix_s());
            self.service_changes_pending.set(0);
            self.endpoint_changes_pending.set(0);
            return;
        }
        match (sync.mode, sync.full) {
            ("nftables", _) => self.nftables_failures.inc(),
            ("iptables", true) => self.iptables_failures.inc(),
            ("iptables", false) => self.iptables_partial_failures.inc(),
            _ => {}
        }
    }
}

fn rules(name: &str, help: &str) -> IntCounter {
    counter(&format!("kubeproxy_sync_proxy_rules_{name}"), help)
}
