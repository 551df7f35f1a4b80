//! What the proxy of a node is told when it starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::conntrack::Conntrack;
use crate::dataplane::userspace::WorkerConfig;
use crate::masquerade::MasqueradeOrder;
use crate::{PodHandOver, Reporter, StatusHandle, XdpMode};

/// Which backend programs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The first backend that this kernel offers.
    #[default]
    Auto,
    /// eBPF: socket hooks and tcx.
    Ebpf,
    /// nftables: maps that packets are rewritten by. NodePorts do not answer at loopback addresses.
    Nftables,
    /// iptables: rules in the restore format, for kernels without the others.
    Iptables,
    /// Sockets of a worker process that hand on what arrives: needs no privilege, keeps no client's address.
    Userspace,
    /// In memory only: decides everything and programs nothing. For trying out and for tests.
    Fake,
}

impl FromStr for Mode {
    type Err = String;

    /// Reads the name that flags and configuration files use.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, mode)| *mode).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("there is no such mode; want one of {}", names.join(", "))
        })
    }
}

impl Mode {
    /// The modes by the names that flags and configuration files use.
    pub const NAMES: &[(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("ebpf", Self::Ebpf),
        ("nftables", Self::Nftables),
        ("iptables", Self::Iptables),
        ("userspace", Self::Userspace),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, mode)| *mode == self).map_or("fake", |(name, _)| *name)
    }
}

/// Which of the node's addresses serve NodePorts. Nothing: the addresses of the Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The addresses of the Node object, beside those in `ranges`.
    pub primary: bool,
    /// Every address of the node's links that lies in one of these.
    pub ranges: Vec<IpNet>,
}

impl NodePortAddresses {
    /// Whether a loopback address is among them; `None`: nothing is said.
    pub fn loopback(&self) -> Option<bool> {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let named = loopback.iter().any(|addr| self.ranges.iter().any(|range| range.contains(addr)));
        (*self != Self::default()).then_some(named)
    }
}

/// The configuration of one node's proxy.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The name of the own Node object.
    pub node_name: String,
    /// The backend.
    pub mode: Mode,
    /// The cgroup2 directory whose processes the socket programs serve (the node's root cgroup, as a rule).
    pub cgroup: PathBuf,
    /// The bpffs directory that maps and links are pinned below.
    pub bpffs: PathBuf,
    /// The uplinks, where traffic from outside arrives. Empty: the links that carry the node's own addresses.
    pub devices: Vec<String>,
    /// Names of the node's ends of pods' links begin with one of these. Those with the MAC address that Seaway's (and
    /// Calico's) CNI plugin gives them are known without.
    pub pod_link_prefixes: Vec<String>,
    /// Every pod's link is one of Seaway's CNI plugin.
    pub own_pod_links: bool,
    /// Whether packets between pods may pass the node's stack by, if the backend can.
    pub pod_hand_over: PodHandOver,
    /// Whether uplinks send packets between clients outside and backends on other nodes on before the kernel makes buffers
    /// of them, if the backend can, and the devices.
    pub xdp: XdpMode,
    /// How often other people's rules are looked at that the kernel tells nothing of.
    pub firewall_interval: Duration,
    /// Which of the node's addresses serve NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// NodePorts answer at the loopback addresses as well.
    pub node_port_loopback: bool,
    /// Choose backends by Maglev where a Service does not say how, if the backend can.
    pub maglev: bool,
    /// Backends on other nodes answer clients outside directly (direct server return) where a Service does not say how,
    /// if the backend can.
    pub dsr: bool,
    /// Backends of ClusterIPs see the node in the place of its own pods, too, if the backend can.
    pub masquerade_all: bool,
    /// The node's tunnels to other nodes: what comes by them is served as what comes by the uplinks, but no address is
    /// announced there.
    pub tunnels: Vec<String>,
    /// Their UDP port.
    pub tunnel_port: Option<u16>,
    /// Count connections, packets and bytes per Service and backend, if the backend can.
    pub count_traffic: bool,
    /// Answer ARP and NDP for LoadBalancer addresses, one node at a time.
    pub announce_load_balancers: bool,
    /// How often the kernel's state is read back and repaired.
    pub resync_interval: Duration,
    /// The least time between two syncs.
    pub min_sync_interval: Duration,
    /// After a change of mode, how long connections may go on that the kernel's connection tracking translates for the
    /// former one. It remembers for a day a client that vanished without a word: nobody waits that long for it.
    pub drain_max: Duration,
    /// The process that serves in user space. `None`: this one, and what it serves ends with it.
    pub worker: Option<WorkerConfig>,
    /// What the pod network wants masqueraded, and where it is told what of that is done. `None`: nothing is.
    pub masquerade: Option<MasqueradeOrder>,
    /// The kernel's connection tracking is set so. `None`: it is left alone.
    pub conntrack: Option<Conntrack>,
    /// Who is told what operators should know about a Service.
    pub reporter: Option<Arc<dyn Reporter>>,
    /// Where the proxy reports how it is doing; keep a clone to read it.
    pub status: StatusHandle,
}

impl ProxyConfig {
    /// The configuration of `node_name` with defaults for everything that has one.
    pub fn new(node_name: &str, cgroup: impl Into<PathBuf>, bpffs: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.to_owned(),
            mode: Mode::Auto,
            cgroup: cgroup.into(),
            bpffs: bpffs.into(),
            devices: Vec::new(),
            pod_link_prefixes: Vec::new(),
            pod_hand_over: PodHandOver::Auto,
            xdp: XdpMode::Off,
            firewall_interval: Duration::from_secs(30),
            own_pod_links: false,
            node_port_addresses: NodePortAddresses::default(),
            node_port_loopback: true,
            maglev: false,
            dsr: false,
            masquerade_all: false,
            tunnels: Vec::new(),
            tunnel_port: None,
            count_traffic: false,
            announce_load_balancers: true,
            resync_interval: Duration::from_secs(30),
            min_sync_interval: Duration::from_millis(1),
            drain_max: Duration::from_secs(900),
            worker: None,
            masquerade: None,
            conntrack: None,
            reporter: None,
            status: StatusHandle::default(),
        }
    }
}
