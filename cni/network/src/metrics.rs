//! What the pod network tells about itself.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges of one node's pod network.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) rounds: IntCounterVec,
    pub(crate) steps: IntCounter,
    pub(crate) peers: IntGauge,
    pub(crate) skipped: IntGauge,
    pub(crate) mtu: IntGauge,
    pub(crate) serving: IntGauge,
    pub(crate) masquerade_tables: IntGauge,
    pub(crate) reservations: IntGauge,
    pub(crate) leak_candidates: IntGauge,
    pub(crate) leaks_released: IntCounter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let rounds = Opts::new("seaway_network_rounds_total", "Rounds of the pod network, by outcome");
        let metrics = Self {
            rounds: IntCounterVec::new(rounds, &["outcome"])?,
            steps: IntCounter::new(
                "seaway_network_steps_total",
                "Changes made to routes and forwarding entries",
            )?,
            peers: IntGauge::new(
                "seaway_network_peer_subnets",
                "Pod subnets of other nodes that are routed",
            )?,
            skipped: IntGauge::new("seaway_network_skipped", "Nodes and subnets that are left out")?,
            mtu: IntGauge::new("seaway_network_mtu_bytes", "MTU of pods")?,
            serving: IntGauge::new("seaway_network_serving", "1: the network configuration is installed")?,
            masquerade_tables: IntGauge::new(
                "seaway_network_masquerade_tables",
                "Families whose pods are masqueraded by nftables, and not by the proxy's programs",
            )?,
            reservations: IntGauge::new(
                "seaway_network_ipam_reservations",
                "Interfaces that hold addresses",
            )?,
            leak_candidates: IntGauge::new(
                "seaway_network_ipam_leak_candidates",
                "Reservations without wiring that are being watched",
            )?,
            leaks_released: IntCounter::new(
                "seaway_network_ipam_leaks_released_total",
                "Leaked reservations freed",
            )?,
        };
        registry.register(Box::new(metrics.rounds.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.leaks_released.clone()))?;
        let gauges = [
            &metrics.peers,
            &metrics.skipped,
            &metrics.mtu,
            &metrics.serving,
            &metrics.masquerade_tables,
            &metrics.reservations,
            &metrics.leak_candidates,
        ];
        for gauge in gauges {
            registry.register(Box::new(gauge.clone()))?;
        }
        Ok(metrics)
    }
}

/// A number for a gauge.
pub(crate) fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
