//! The settings of a node agent, as the command line builds them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use seaway_proxy::conntrack::Conntrack;

/// How pod packets travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlay {
    /// By routes: all nodes share a link.
    #[default]
    None,
    /// Inside VXLAN.
    Vxlan {
        /// The virtual network's number.
        vni: u32,
        /// The UDP port that carries it.
        port: u16,
    },
    /// By routes to nodes on one link with this one, inside VXLAN to all others.
    VxlanAcrossLinks {
        /// The virtual network's number.
        vni: u32,
        /// The UDP port that carries it.
        port: u16,
    },
}

pub use seaway_proxy::{Mode as ProxyMode, NodePortAddresses, PodHandOver, XdpMode};

/// Everything that [`crate::run`] needs to know. [`NodeConfig::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The Node's name.
    pub name: String,
    /// A kubeconfig file for the API server, with the credentials of `system:node:<name>`. Empty: those that a pod has.
    pub kubeconfig: PathBuf,
    /// The API server's URL, where it is not the kubeconfig's.
    pub api_server: Option<String>,
    /// The node's own addresses (InternalIP), the first of a family being the preferred one. Empty, where a kubelet
    /// registers the node: those of its Node.
    pub node_ips: Vec<IpAddr>,
    /// Where state is kept: pods, logs, IPAM, the local socket.
    pub state_dir: PathBuf,
    /// This node's cgroup2 directory: socket programs attach here, pods live in `pods/<uid>` below.
    pub cgroup: PathBuf,
    /// This node's bpffs directory.
    pub bpffs: PathBuf,
    /// Where the CNI conflist is written and read.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are installed and executed.
    pub cni_bin_dir: PathBuf,
    /// Run pods bound to this node (where no kubelet does).
    pub run_pods: bool,
    /// Run the service proxy.
    pub proxy: bool,
    /// Run the pod network.
    pub cni: bool,
    /// Run cluster DNS.
    pub dns: bool,
    /// This agent registers its Node and says how it is. Otherwise a kubelet does.
    pub register: bool,
    /// The proxy's backend.
    pub proxy_mode: ProxyMode,
    /// Which of the node's addresses serve NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// NodePorts answer at the node's loopback addresses as well.
    pub localhost_node_ports: bool,
    /// How often the proxy compares everything; `None`: as it thinks fit.
    pub sync_period: Option<Duration>,
    /// The least time between two syncs of the proxy; `None`: as it thinks fit.
    pub min_sync_period: Option<Duration>,
    /// How the kernel's connection tracking is set; `None`: it is left alone.
    pub conntrack: Option<Conntrack>,
    /// Backends of ClusterIPs see the node in the place of its own pods, too.
    pub masquerade_all: bool,
    /// Choose backends by Maglev where a Service does not say how.
    pub maglev: bool,
    /// Backends on other nodes answer clients outside directly where a Service does not say how.
    pub dsr: bool,
    /// Whether packets between pods may pass the node's stack by.
    pub pod_hand_over: PodHandOver,
    /// Whether uplinks send packets that only pass this node on before the kernel makes buffers of them.
    pub xdp: XdpMode,
    /// Count connections, packets and bytes per Service and backend.
    pub traffic_metrics: bool,
    /// Let this node answer for LoadBalancer addresses.
    pub announce_load_balancers: bool,
    /// Devices that north-south traffic arrives on; empty: those that carry the node's addresses.
    pub devices: Vec<String>,
    /// What names of the node's ends of pods' links begin with, beside the links of this project's CNI plugin.
    pub pod_link_prefixes: Vec<String>,
    /// How pod packets travel between nodes.
    pub overlay: Overlay,
    /// The link towards the other nodes; `None`: the one that carries the node's first address.
    pub uplink: Option<String>,
    /// The name of the VXLAN device.
    pub vxlan_device: String,
    /// Masquerade pod traffic that leaves the cluster.
    pub masquerade: bool,
    /// Destinations outside of the cluster that see the pods' own addresses nevertheless.
    pub not_masqueraded: Vec<IpNet>,
    /// The executable that is installed as `seaway-cni`.
    pub plugin_source: PathBuf,
    /// The cluster's DNS zone.
    pub cluster_domain: String,
    /// What pods get as nameservers; empty: the ClusterIPs of the Service `kube-system/kube-dns`.
    pub cluster_dns: Vec<IpAddr>,
    /// The port on the node's addresses where its DNS server listens.
    pub dns_port: u16,
    /// Upstream resolvers; empty: those of `/etc/resolv.conf`.
    pub dns_upstreams: Vec<SocketAddr>,
    /// A file with settings of the DNS server, watched: TOML, or a Corefile.
    pub dns_config: Option<PathBuf>,
    /// The ranges of ClusterIPs: their reverse names are DNS's to deny.
    pub service_cidrs: Vec<IpNet>,
    /// The certificate (PEM) that the kubelet endpoint shows.
    pub serving_cert: PathBuf,
    /// Its key (PEM).
    pub serving_key: PathBuf,
    /// The cluster's CA (PEM): clients of the kubelet endpoint must have a certificate of it.
    pub ca: PathBuf,
    /// The kubelet endpoint's port (logs); it listens only with `run_pods`.
    pub kubelet_port: u16,
    /// The port of /healthz and /livez; 0 switches it off.
    pub healthz_port: u16,
    /// The port of /metrics; 0 switches it off.
    pub metrics_port: u16,
    /// The address that healthz listens at, and metrics unless they have one of their own.
    pub bind_address: IpAddr,
    /// The address that metrics listen at.
    pub metrics_address: Option<IpAddr>,
    /// The executable that carries the hidden subcommands `pod-shim`, `image` and `userspace-worker`.
    pub self_exe: PathBuf,
    /// `topology.kubernetes.io/zone`, when known.
    pub zone: Option<String>,
    /// Further labels of the Node.
    pub labels: BTreeMap<String, String>,
}

impl NodeConfig {
    /// Settings with every default, for a node `name` that keeps its state below `state_dir`.
    pub fn new(name: &str, kubeconfig: PathBuf, node_ips: Vec<IpAddr>, state_dir: &Path) -> Self {
        let self_exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        Self {
            name: name.to_owned(),
            kubeconfig,
            api_server: None,
            node_ips,
            state_dir: state_dir.to_owned(),
            cgroup: PathBuf::from("/sys/fs/cgroup"),
            bpffs: PathBuf::from("/sys/fs/bpf/seaway"),
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dir: PathBuf::from("/opt/cni/bin"),
            run_pods: false,
            proxy: true,
            cni: true,
            dns: true,
            register: true,
            proxy_mode: ProxyMode::Auto,
            node_port_addresses: NodePortAddresses::default(),
            localhost_node_ports: true,
            sync_period: None,
            min_sync_period: None,
            conntrack: None,
            masquerade_all: false,
            maglev: false,
            dsr: false,
            pod_hand_over: PodHandOver::Auto,
            xdp: XdpMode::Off,
            traffic_metrics: false,
            announce_load_balancers: true,
            devices: Vec::new(),
            pod_link_prefixes: Vec::new(),
            overlay: Overlay::None,
            uplink: None,
            vxlan_device: seaway_cni_network::VXLAN_DEVICE.to_owned(),
            masquerade: true,
            not_masqueraded: Vec::new(),
            plugin_source: self_exe.clone(),
            cluster_domain: "cluster.local".to_owned(),
            cluster_dns: Vec::new(),
            dns_port: 10053,
            dns_upstreams: Vec::new(),
            dns_config: None,
            service_cidrs: Vec::new(),
            serving_cert: state_dir.join("serving.crt"),
            serving_key: state_dir.join("serving.key"),
            ca: state_dir.join("ca.crt"),
            kubelet_port: 10250,
            healthz_port: 10256,
            metrics_port: 10249,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            metrics_address: None,
            self_exe,
            zone: None,
            labels: BTreeMap::new(),
        }
    }

    /// Where the processes are found that serve in user space.
    pub fn workers_dir(&self) -> PathBuf {
        self.state_dir.join("userspace")
    }

    /// The local socket that `seaway status` asks.
    pub fn agent_socket(&self) -> PathBuf {
        self.state_dir.join("agent.sock")
    }
}
