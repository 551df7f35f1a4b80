//! The pod network of a node: addresses (IPAM), pod wiring, the ways between nodes, and the namespaces and netlink
//! calls underneath. This is the only place of the project that speaks rtnetlink.
//!
//! Two callers with opposite needs share it: the CNI plugin, which lives for a few milliseconds and does everything
//! synchronously, and the node agent, which reconciles for as long as it runs ([`run`]). Everything here is
//! therefore synchronous; [`run`] alone knows tokio. The plugin is built without the agent's part (feature `node`).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests are broken off by nobody"))]

#[cfg(feature = "node")]
mod config;
mod disk;
pub mod fault;
mod hash;
pub mod ipam;
mod lock;
#[cfg(feature = "node")]
mod metrics;
pub mod netlink;
pub mod netns;
#[cfg(feature = "node")]
mod node;
pub mod pod;
pub mod ready;

#[cfg(feature = "node")]
pub use config::{NodeNetworkConfig, NodeNetworkOptions, Overlay, VXLAN_DEVICE};
#[cfg(feature = "node")]
pub use metrics::Metrics;
#[cfg(feature = "node")]
pub use node::{
    MASQUERADE_TABLE, MasqueradeOffer, NftError, NodeNetworkError, cleanup, run, run_with, vtep_mac,
};
