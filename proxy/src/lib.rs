//! The service proxy of a node: a replacement of kube-proxy.
//!
//! Follow one change: `watch` publishes a [`Snapshot`]; [`desired`] computes what the kernel should hold for it;
//! [`plan::diff`] compares that with what it does hold; a [`dataplane::Dataplane`] carries the difference out. The
//! loop in `reconcile` runs at its own pace and reads the kernel back now and then.
//!
//! **Invariant:** when the proxy stops, what it programmed stays and goes on serving; [`cleanup`] removes it.

pub mod announce;
mod config;
pub mod conntrack;
pub mod dataplane;
pub mod desired;
mod error;
pub mod firewall;
pub mod frontend;
pub mod health;
pub mod kube_proxy;
pub mod links;
mod masquerade;
mod metrics;
mod modes;
mod monitor;
mod notices;
pub mod plan;
pub mod reconcile;
pub mod sockets;
pub mod stale;
mod status;
pub mod traffic;

use std::sync::Arc;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::{Mode, NodePortAddresses, ProxyConfig};
pub use error::ProxyError;
pub use firewall::{PodHandOver, PodPath};
pub use masquerade::{MasqueradeOrder, MasqueradedAt};
pub use metrics::Metrics;
pub use modes::cleanup;
pub use notices::{Allowance, Notice, Reporter};
pub use seaway_ebpf_loader::{XdpMode, share_arenas};
pub use status::{
    BackendStatus, DropCount, FrontendStatus, RuleCount, ServiceStatus, Status, StatusHandle, Xdp, XdpUplink,
};

use reconcile::Reconciler;

/// Serves Services on this node until `shutdown`. Kernel state stays when it returns.
pub async fn run(
    config: ProxyConfig,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    let mut reconciler = Reconciler::waiting(config.clone(), metrics.clone());
    let mut dataplane = {
        let mut opening = std::pin::pin!(modes::open(&config));
        loop {
            tokio::select! {
                opened = &mut opening => break opened?,
                Ok(()) = snapshots.changed() => {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    reconciler.foresee(&snapshot);
                }
            }
        }
    };
    snapshots.mark_changed();
    if let Some(conntrack) = config.conntrack {
        conntrack.apply();
    }
    tracing::info!(mode = dataplane.name(), node = config.node_name, "serving Services");
    let mut parts = tokio::task::JoinSet::new();
    let health = health::run(
        config.node_name.clone(),
        snapshots.clone(),
        config.status.clone(),
        shutdown.child_token(),
    );
    parts.spawn(health);
    if config.announce_load_balancers {
        let (config, shutdown) = (config.clone(), shutdown.child_token());
        parts.spawn(announce::run(config, snapshots.clone(), metrics.clone(), shutdown));
    }
    parts.spawn(modes::succeed(config.clone(), dataplane.name(), shutdown.child_token()));
    let (table, cgroup) = (dataplane.sockets(), config.cgroup.clone());
    let counted = if config.count_traffic { dataplane.count_traffic() } else { None };
    if config.count_traffic && counted.is_none() {
        tracing::warn!(mode = dataplane.name(), "this mode does not count traffic per backend");
    }
    if config.xdp != XdpMode::Off && dataplane.name() != Mode::Ebpf.name() {
        tracing::warn!(mode = dataplane.name(), "this mode has no XDP program");
    }
    let hands_over = dataplane.serves_pod_links();
    reconciler.begin(dataplane);
    if hands_over && config.pod_hand_over == PodHandOver::Auto {
        let (found, rulesets) = watch::channel(firewall::look_once().await);
        reconciler.observe(rulesets);
        parts.spawn(firewall::watch(found, config.firewall_interval, shutdown.child_token()));
    }
    if let Some(counted) = counted {
        metrics.show_traffic(counted, reconciler.views());
    }
    if let Some(table) = table {
        parts.spawn(sockets::run(table, cgroup, reconciler.views(), metrics, shutdown.child_token()));
    }
    parts.spawn(reconciler.run(snapshots, shutdown.clone()));
    while let Some(ended) = parts.join_next().await {
        if ended.is_err() || !shutdown.is_cancelled() {
            parts.abort_all();
            return Err(ended.map_or_else(ProxyError::Part, |()| ProxyError::Ended));
        }
    }
    Ok(())
}
