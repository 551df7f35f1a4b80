//! The ways between nodes, kept as the snapshot says: [`run`].

use std::sync::Arc;

use seaway_model::Snapshot;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::NodeNetworkConfig;
use crate::netlink::NetlinkError;

/// Why the node part could not start or clean up. While it runs it retries.
#[derive(Debug, Error)]
pub enum NodeNetworkError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Keeps the node's pod network as the newest snapshot says, until `shutdown`. Whatever it made in the kernel stays
/// then: traffic does not stop for a restart. [`cleanup`] removes it.
///
/// Runs in the network namespace of the calling thread's process.
pub async fn run(
    config: NodeNetworkConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    shutdown: CancellationToken,
) -> Result<(), NodeNetworkError> {
    let _ = (config, snapshots);
    shutdown.cancelled().await;
    Ok(())
}

/// Removes everything that [`run`] made: routes, devices, tables, configuration and plugin. The pods' own wiring
/// and reservations are not touched.
pub fn cleanup(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    let _ = config;
    Ok(())
}

/// The Ethernet address of a node's VXLAN device. It follows from the node's name, so that it is the same after
/// every restart and known before the device exists. The node agent publishes it as the annotation
/// `seaway.dev/vtep-mac`.
pub fn vtep_mac(node_name: &str) -> [u8; 6] {
    let hash = crate::hash::fnv1a(&[b"vtep", node_name.as_bytes()]);
    crate::hash::mac(hash)
}
