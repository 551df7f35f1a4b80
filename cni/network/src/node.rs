//! The ways between nodes, kept as the snapshot says: [`run`].
//!
//! Level-triggered: a new snapshot, a change in the kernel and the clock all lead to the same round, which looks at
//! the whole. So a deleted device comes back with all its peers, and routes to nodes that have vanished while no
//! agent ran go. They are told from others' by their protocol number.

mod desired;
mod install;
mod kernel;
mod leaks;
mod masquerade;
mod mtu;
mod plan;
mod reconcile;
mod way_out;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seaway_model::Snapshot;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::ipam::IpamError;
use crate::netlink::{Monitor, MonitorGroups, Netlink, NetlinkError};
use crate::netns::sysctl::SysctlError;
use crate::pod::retired;
use crate::{Metrics, NodeNetworkConfig, NodeNetworkOptions};
use reconcile::Reconciler;

pub use masquerade::{NftError, TABLE as MASQUERADE_TABLE};
pub use way_out::MasqueradeOffer;

/// Changes in the kernel come in bursts (also those that we make ourselves): one round does for a burst.
const SETTLE: Duration = Duration::from_millis(50);
/// After an error the next round comes sooner than otherwise.
const RETRY: Duration = Duration::from_secs(1);

/// Why the node part could not start, finish a round, or clean up. While it runs it tries again.
#[derive(Debug, Error)]
pub enum NodeNetworkError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A sysctl.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The reservations.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The nftables tables.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Somebody else has the port, or the network at that port, that the VXLAN device is to have.
    #[error(
        "VXLAN network {vni} at UDP port {port}: {holder} is in the way; remove it, or choose another --vxlan-port"
    )]
    VxlanTaken {
        /// Who has it.
        holder: String,
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
    /// Another link has the name that the VXLAN device is to have.
    #[error("link {name} is there and no VXLAN device: choose another --vxlan-device")]
    NotVxlan {
        /// The name.
        name: String,
    },
    /// The own pod subnet is the nodes' network, or has it in it.
    #[error(
        "the pod subnet {subnet} of this node takes the place of {network}, the network of the nodes: choose another cluster CIDR"
    )]
    SubnetTaken {
        /// The pod subnet.
        subnet: ipnet::IpNet,
        /// The network.
        network: ipnet::IpNet,
    },
    /// The plugin or the network configuration.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The runtime of the process.
    #[error("the pod network cannot be watched")]
    Watch(#[source] io::Error),
}

/// Keeps the node's pod network as the newest snapshot says, until `shutdown`. Whatever it made in the kernel stays
/// then: traffic does not stop for a restart. [`cleanup`] removes it.
///
/// Works in the network namespace of the calling thread, which has to be that of the whole runtime.
pub async fn run(
    config: NodeNetworkConfig,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    shutdown: CancellationToken,
) -> Result<(), NodeNetworkError> {
    run_with(config, NodeNetworkOptions::default(), None, snapshots, shutdown).await
}

/// As [`run`], with choices, and with what it tells about itself.
pub async fn run_with(
    config: NodeNetworkConfig,
    options: NodeNetworkOptions,
    metrics: Option<Metrics>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    shutdown: CancellationToken,
) -> Result<(), NodeNetworkError> {
    let resync = config.resync_interval;
    let groups = MonitorGroups { links: true, addresses: true, routes: true, neighbours: false };
    let mut monitor = Monitor::open(groups)?.into_async().map_err(NodeNetworkError::Watch)?;
    let mut done = options.masquerade.as_ref().map(|offer| offer.done.clone());
    let mut reconciler = Reconciler::new(config, options, metrics)?;
    let mut last_error = String::new();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let round = tokio::task::spawn_blocking(move || {
            let outcome = reconciler.round(&snapshot, Instant::now());
            (reconciler, outcome)
        });
        let (back, outcome) =
            round.await.map_err(|error| NodeNetworkError::Watch(io::Error::other(error)))?;
        reconciler = back;
        let pause = if outcome.is_ok() { resync } else { RETRY.min(resync) };
        report(outcome, &mut last_error);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            changed = snapshots.changed() => {
                if changed.is_err() {
                    // There will be no other snapshot: the last one is kept up.
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(()),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
            () = heard(&mut done) => {}
            ready = monitor.readable_mut() => {
                if let Ok(mut ready) = ready {
                    tokio::time::sleep(SETTLE).await;
                    ready.get_inner_mut().drain()?;
                    ready.clear_ready();
                }
            }
        }
    }
}

/// Waits until the proxy masquerades elsewhere than before; for ever, if it says nothing.
async fn heard<T>(done: &mut Option<watch::Receiver<T>>) {
    let heard = match done {
        Some(done) => done.changed().await.is_ok(),
        None => false,
    };
    if !heard {
        std::future::pending::<()>().await;
    }
}

/// Says each error once, and when it is over.
fn report(outcome: Result<(), NodeNetworkError>, last_error: &mut String) {
    let Err(error) = outcome else {
        last_error.clear();
        return;
    };
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    if text != *last_error {
        warn!(error = %text, "the pod network is not complete; trying again");
        *last_error = text;
    }
}

/// Removes everything that [`run`] made: network configuration and plugin, routes, device, tables. Links that DEL is
/// done with go as well; other pods' wiring and reservations are not touched; forwarding stays on.
pub fn cleanup(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    install::uninstall(config)?;
    let mut netlink = Netlink::open()?;
    retired::delete_now(&mut netlink)?;
    let actual = kernel::read(&mut netlink, None)?;
    kernel::apply(&mut netlink, &plan::plan(&desired::Desired::default(), &actual, None, true))?;
    kernel::remove_vxlan(&mut netlink)?;
    masquerade::remove_all()?;
    Ok(())
}

/// The Ethernet address of a node's VXLAN device. It follows from the node's name, so that it is the same after
/// every restart and known before the device exists. The node agent publishes it as the annotation
/// `seaway.dev/vtep-mac`.
pub fn vtep_mac(node_name: &str) -> [u8; 6] {
    crate::hash::mac(crate::hash::fnv1a(&[b"vtep", node_name.as_bytes()]))
}
