//! What the node part is told: [`NodeNetworkConfig`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::MasqueradeOffer;

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
    /// By plain routes to nodes on one link with this one, in VXLAN packets to all others.
    VxlanAcrossLinks {
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
}

impl Overlay {
    /// Network identifier and port, if there is a device.
    pub(crate) const fn vxlan(self) -> Option<(u32, u16)> {
        match self {
            Self::None => None,
            Self::Vxlan { vni, port } | Self::VxlanAcrossLinks { vni, port } => Some((vni, port)),
        }
    }
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

impl NodeNetworkConfig {
    /// For a node of this name, at the usual pace and with everything where runtimes look for it.
    pub fn new(node_name: impl Into<String>, overlay: Overlay, plugin_source: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            overlay,
            uplink: None,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            data_dir: "/var/lib/cni/seaway".into(),
            plugin_source: plugin_source.into(),
            masquerade: true,
            resync_interval: Duration::from_secs(5),
        }
    }

    /// With all directories below this one: for a node that shares its machine with others.
    #[must_use]
    pub fn below(self, directory: &Path) -> Self {
        Self {
            cni_conf_dir: directory.join("net.d"),
            cni_bin_dir: directory.join("bin"),
            data_dir: directory.join("ipam"),
            ..self
        }
    }
}

/// What [`crate::run`] takes for granted and [`crate::run_with`] lets one choose.
#[derive(Debug, Clone)]
pub struct NodeNetworkOptions {
    /// For how long a reservation has to be without wiring until it counts as leaked. An ADD that is under way has
    /// none for a moment.
    pub leak_grace: Duration,
    /// For how long rounds have to fail until the network configuration is taken away, so that the runtime starts no
    /// more pods here.
    pub withdraw_after: Duration,
    /// Destinations outside of the cluster that see the pod's own address.
    pub not_masqueraded: Vec<IpNet>,
    /// The name of the VXLAN device.
    pub vxlan_device: String,
    /// The proxy's programs may masquerade in the place of tables.
    pub masquerade: Option<MasqueradeOffer>,
}

/// The name of the VXLAN device, unless another is chosen.
pub const VXLAN_DEVICE: &str = "seaway-vxlan";

impl Default for NodeNetworkOptions {
    fn default() -> Self {
        Self {
            leak_grace: Duration::from_secs(300),
            withdraw_after: Duration::from_secs(60),
            not_masqueraded: Vec::new(),
            vxlan_device: VXLAN_DEVICE.to_owned(),
            masquerade: None,
        }
    }
}
