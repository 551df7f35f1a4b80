//! What the node part is told: [`NodeNetworkConfig`].

use std::path::PathBuf;
use std::time::Duration;

/// How packets reach the pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlay {
    /// By plain routes. The nodes have to be on one link.
    #[default]
    None,
    /// In VXLAN packets between the nodes' addresses.
    Vxlan {
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
}

/// The settings of [`crate::run`].
#[derive(Debug, Clone)]
pub struct NodeNetworkConfig {
    /// The name of the own Node.
    pub node_name: String,
    /// How packets reach the pods of other nodes.
    pub overlay: Overlay,
    /// The link towards the other nodes; none: the one that carries the node's own address.
    pub uplink: Option<String>,
    /// Where the runtime looks for network configurations, usually `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// Where the runtime looks for plugins, usually `/opt/cni/bin`.
    pub cni_bin_dir: PathBuf,
    /// Where the plugin keeps its reservations.
    pub data_dir: PathBuf,
    /// The executable to install as `seaway-cni`.
    pub plugin_source: PathBuf,
    /// Rewrite the source of pod packets that leave the cluster to the node's address.
    pub masquerade: bool,
    /// How long something that vanished from the kernel may stay away, at most.
    pub resync_interval: Duration,
}
