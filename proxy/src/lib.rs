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
pub mod frontend;
pub mod health;
pub mod kube_proxy;
pub mod links;
mod metrics;
mod notices;
pub mod plan;
pub mod reconcile;
pub mod sockets;
pub mod stale;
mod status;

use std::sync::Arc;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::{Mode, ProxyConfig};
pub use error::ProxyError;
pub use metrics::Metrics;
pub use notices::{Allowance, Notice, Reporter};
pub use status::{BackendStatus, DropCount, FrontendStatus, ServiceStatus, Status, StatusHandle};

use dataplane::Dataplane;
use dataplane::ebpf::Ebpf;
use dataplane::fake::Fake;
use dataplane::iptables::{self, Iptables};
use dataplane::nftables::{self, Nftables};
use dataplane::userspace::{self, Userspace};
use reconcile::Reconciler;

/// Serves Services on this node until `shutdown`. Kernel state stays when it returns.
pub async fn run(
    mut config: ProxyConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    let dataplane = open(&config).await?;
    if let Some(conntrack) = config.conntrack {
        conntrack.apply();
    }
    // Packets from a loopback address cannot leave the node, and nftables sees nothing but packets.
    config.node_port_loopback &= config.mode != Mode::Nftables;
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
    let (table, cgroup) = (dataplane.sockets(), config.cgroup.clone());
    let reconciler = Reconciler::new(config, metrics.clone(), dataplane);
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

/// The data plane that the mode asks for. `auto` takes the first that this kernel offers.
async fn open(config: &ProxyConfig) -> Result<Box<dyn Dataplane>, ProxyError> {
    match config.mode {
        Mode::Fake => Ok(Box::new(Fake::default())),
        Mode::Nftables => {
            let opened = Nftables::open();
            let dataplane = opened.map_err(|source| ProxyError::Open { backend: "nftables", source })?;
            Ok(Box::new(dataplane))
        }
        Mode::Iptables => {
            let opened = Iptables::open();
            let dataplane = opened.map_err(|source| ProxyError::Open { backend: "iptables", source })?;
            Ok(Box::new(dataplane))
        }
        Mode::Userspace => {
            let opened = Userspace::open(userspace::Limits::default());
            let dataplane = opened.map_err(|source| ProxyError::Open { backend: "userspace", source })?;
            Ok(Box::new(dataplane))
        }
        Mode::Auto | Mode::Ebpf => {
            let (bpffs, cgroup) = (config.bpffs.clone(), config.cgroup.clone());
            // Loading programs takes the verifier a while.
            let opened = tokio::task::spawn_blocking(move || Ebpf::open(&bpffs, &cgroup)).await;
            let opened = opened.map_err(ProxyError::Part)?;
            let dataplane = opened.map_err(|source| ProxyError::Open { backend: "ebpf", source })?;
            Ok(Box::new(dataplane))
        }
    }
}

/// Removes everything that the proxy put into the kernel, in whatever mode: links, maps, pins, tables.
pub fn cleanup(config: &ProxyConfig) -> Result<(), ProxyError> {
    nftables::remove_all().map_err(ProxyError::Tables)?;
    iptables::remove_all().map_err(ProxyError::Tables)?;
    dataplane::ebpf::remove_all(&config.bpffs)
        .map_err(|source| ProxyError::Cleanup { path: config.bpffs.clone(), source })
}
