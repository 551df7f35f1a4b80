//! The command line: every command, flag and example that `--help` shows.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use seaway_node::{PodHandOver, ProxyMode, XdpMode};
use tracing_subscriber::EnvFilter;

pub use self::proxy::Proxy;
use crate::cluster::spec::check_name;
use crate::place::Place;

mod proxy;

/// Kubernetes networking in Rust, with a small control plane.
#[derive(Debug, Parser)]
#[command(name = "seaway", version, about, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    /// What to log, e.g. `debug` or `warn,seaway_proxy=debug`
    #[arg(long, global = true, env = "SEAWAY_LOG", value_name = "FILTER", value_parser = log_filter)]
    pub log: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  seaway up --detach            a cluster of three nodes with a demo, on this machine
  seaway check                  try every kind of path through it
  seaway status                 what runs, and how much memory it takes
  seaway down                   remove all of it";

static PROXY_MODES: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<&str> = ProxyMode::NAMES.iter().map(|(name, _)| *name).collect();
    format!("The service proxy's backend: {}", names.join(", "))
});

fn cluster_name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.to_string()).map(|()| text.to_owned())
}

fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| {
        "want an address and the length of its prefix, such as 10.244.0.0/16 or fd00::/56".into()
    })
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|error| error.to_string()).map(|_| text.to_owned())
}

fn proxy_mode(text: &str) -> Result<ProxyMode, String> {
    text.parse()
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine: control plane, nodes, demo
    Up(Up),
    /// Remove everything that `up` made, also after a crash
    Down(Which),
    /// Try every kind of path: pods, nodes and a client outside, one row each
    Check(Check),
    /// Show what runs, on which node, and how much memory it takes
    Status(Show),
    /// Show the Services as the nodes' proxies serve them
    Services(Show),
    /// Run the control plane: API server, scheduler, controllers
    Server(Box<Server>),
    /// Run the agent of one node: service proxy, pod network, DNS
    Node(Box<Node>),
    /// Run the service proxy alone, with kube-proxy's flags and configuration file
    Proxy(Box<Proxy>),
    /// Run cluster DNS alone
    Dns(Dns),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Execute one network probe, given as JSON on standard input
    #[command(hide = true)]
    Probe(Probe),
    /// Keep the processes of a cluster running
    #[command(hide = true)]
    Supervise {
        /// The cluster's state directory
        #[arg(long)]
        cluster_of: PathBuf,
    },
    /// Listen and hand on, for the service proxy in user space
    #[command(hide = true)]
    UserspaceWorker {
        /// Where it is found
        #[arg(long)]
        directory: PathBuf,
    },
    /// Hold the sockets of a node's DNS server, should its agent die
    #[command(hide = true)]
    DnsStandby {
        /// Where it is found
        #[arg(long)]
        directory: PathBuf,
    },
    /// Run one of the images that this binary carries
    #[command(hide = true)]
    Image {
        /// Its name
        image: String,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Hold one pod's namespaces and containers
    #[command(hide = true)]
    PodShim {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

impl Command {
    /// What is logged where nothing says it: kube-proxy's -v.
    pub fn log_filter(&self) -> Option<&'static str> {
        const VERBOSE: u8 = 4;
        match self {
            Self::Proxy(proxy) if proxy.v >= VERBOSE => {
                Some("info,seaway=debug,seaway_node=debug,seaway_proxy=debug")
            }
            _ => None,
        }
    }

    /// A person waits for its end.
    pub fn is_interactive(&self) -> bool {
        !matches!(
            self,
            Self::Server(_)
                | Self::Node(_)
                | Self::Proxy(_)
                | Self::Dns(_)
                | Self::Supervise { .. }
                | Self::UserspaceWorker { .. }
                | Self::DnsStandby { .. }
                | Self::PodShim { .. }
        )
    }
}

/// Where clusters keep their state unless told otherwise.
pub const STATES: &str = "/var/lib/seaway/clusters";

/// Which cluster of this machine.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// The cluster's name
    #[arg(long, default_value = "seaway", value_parser = cluster_name)]
    pub name: String,
    /// Where clusters keep their state
    #[arg(long, default_value = STATES, env = "SEAWAY_STATE_DIR", value_name = "DIR")]
    pub state_dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seaway up                                    stay in the foreground; Ctrl-C removes the cluster
  seaway up --detach --nodes 5 --overlay vxlan
  seaway up --detach --name blue --api-listen 127.0.0.1:7443 --publish 127.0.0.1:8081")]
pub struct Up {
    #[command(flatten)]
    pub which: Which,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub nodes: u8,
    /// Return when the cluster is ready, and leave it running
    #[arg(long)]
    pub detach: bool,
    /// Pod addresses, one range per address family
    #[arg(long = "pod-cidr", value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    pub pod_cidrs: Vec<IpNet>,
    /// Service addresses, one range per address family
    #[arg(long = "service-cidr", value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    pub service_cidrs: Vec<IpNet>,
    /// How pod packets travel between nodes
    #[arg(long, value_enum, default_value_t = OverlayKind::None)]
    pub overlay: OverlayKind,
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = proxy_mode, help = PROXY_MODES.as_str())]
    pub proxy_mode: ProxyMode,
    #[command(flatten)]
    pub balance: Balance,
    /// Where the API server is reached from this machine
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR")]
    pub api_listen: SocketAddr,
    /// Where the demo is reached from this machine
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub publish: SocketAddr,
    /// Start without the demo application
    #[arg(long)]
    pub no_demo: bool,
}

/// How the service proxy chooses backends and ways, and what it counts.
#[derive(Debug, Clone, Args)]
pub struct Balance {
    /// How backends are chosen where a Service's annotation seaway.dev/load-balancing does not say it
    #[arg(long, value_enum, default_value_t = Balancing::Random, value_name = "HOW")]
    pub load_balancing: Balancing,
    /// How packets from outside reach backends on other nodes, where a Service's annotation seaway.dev/north-south does
    /// not say it
    #[arg(long, value_enum, default_value_t = Forwarding::Snat, value_name = "HOW")]
    pub north_south: Forwarding,
    /// Whether packets of pods, between each other and from and to clients outside, may pass the node's stack, and with it
    /// its firewall, by (ebpf)
    #[arg(long, value_enum, default_value_t = HandOver::Auto, value_name = "WHEN")]
    pub pod_hand_over: HandOver,
    /// Whether packets between clients outside and backends on other nodes leave by XDP, before the kernel makes buffers
    /// of them, past queueing disciplines and packet captures of the uplinks (ebpf)
    #[arg(long, value_enum, default_value_t = Xdp::Off, value_name = "HOW")]
    pub xdp: Xdp,
    /// Count connections, packets and bytes per Service and backend, for /metrics (mode ebpf)
    #[arg(long)]
    pub traffic_metrics: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Balancing {
    /// By chance
    Random,
    /// By consistent hashing: one backend that goes moves hardly any connection of the others (ebpf, userspace)
    Maglev,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Forwarding {
    /// By source NAT: backends see the node
    Snat,
    /// By direct server return: backends see the client, and answer it past the node that it reached (ebpf)
    Dsr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HandOver {
    /// While nobody but Seaway has rules about forwarded packets, in nftables or iptables
    Auto,
    /// Never: every packet passes the stack
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// Not at all
    Off,
    /// At the uplinks whose drivers can; the others, and what XDP cannot do, go on as without. For network cards: virtual
    /// links are no faster by it
    Native,
    /// At every uplink, after its driver: no faster, for trying out
    Generic,
}

impl From<Xdp> for XdpMode {
    fn from(said: Xdp) -> Self {
        match said {
            Xdp::Off => Self::Off,
            Xdp::Native => Self::Native,
            Xdp::Generic => Self::Generic,
        }
    }
}

impl From<HandOver> for PodHandOver {
    fn from(said: HandOver) -> Self {
        match said {
            HandOver::Auto => Self::Auto,
            HandOver::Never => Self::Never,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OverlayKind {
    /// By routes: all nodes share a link
    None,
    /// Inside VXLAN
    Vxlan,
}

/// How pod packets travel from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeOverlay {
    /// By routes: all nodes share a link
    None,
    /// Inside VXLAN
    Vxlan,
    /// By routes to nodes on one link with this one, inside VXLAN to all others
    VxlanAcrossLinks,
}

/// A name that a link can have.
fn link_name(text: &str) -> Result<String, String> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    match text {
        "" | "." | ".." => Err("no link can be called that".to_owned()),
        text if text.len() > 15 => Err("a link's name has at most 15 characters".to_owned()),
        text if text.contains(bad) => Err("'/', ':', '%' and blanks are not allowed".to_owned()),
        text => Ok(text.to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub which: Which,
    /// One JSON object per row
    #[arg(long)]
    pub json: bool,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
}

#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    pub which: Which,
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Probe {
    #[command(flatten)]
    pub place: Place,
    /// Let the client image that listens at this address execute it
    #[arg(long, value_name = "ADDR")]
    pub via: Option<SocketAddr>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  seaway server --data-dir /var/lib/seaway/server --listen 0.0.0.0:6443 --advertise-address 192.0.2.1")]
pub struct Server {
    #[command(flatten)]
    pub place: Place,
    /// Where certificates and objects are kept
    #[arg(long, default_value = "/var/lib/seaway/server", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where the API is served, over TLS
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6443")]
    pub listen: Vec<SocketAddr>,
    /// A further address, taken before the process moves to its network namespace
    #[arg(long, value_name = "ADDR", hide = true)]
    pub host_listen: Vec<SocketAddr>,
    /// Where others reach the API: the endpoints of the Service `kubernetes`
    #[arg(long, value_name = "IP")]
    pub advertise_address: Vec<IpAddr>,
    /// Further names and addresses for the server's certificate
    #[arg(long, value_name = "NAME")]
    pub san: Vec<String>,
    /// Service addresses, one range per address family
    #[arg(long, value_name = "CIDR", default_values = ["10.96.0.0/16", "fd00:10:96::/112"], value_delimiter = ',', value_parser = cidr)]
    pub service_cidr: Vec<IpNet>,
    /// Pod addresses, one range per address family
    #[arg(long, value_name = "CIDR", default_values = ["10.244.0.0/16", "fd00:10:244::/56"], value_delimiter = ',', value_parser = cidr)]
    pub cluster_cidr: Vec<IpNet>,
    /// Addresses for LoadBalancer Services
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    pub load_balancer_pool: Vec<IpNet>,
    /// Ports for NodePort Services
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub node_port_range: String,
    /// Run no scheduler (run upstream's beside)
    #[arg(long)]
    pub no_scheduler: bool,
    /// Controllers to switch off, or `*` for all
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub disable_controllers: Vec<String>,
    /// The state directory of the local cluster that this server belongs to
    #[arg(long, value_name = "DIR", hide = true)]
    pub cluster_of: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seaway node                              in a pod beside a kubelet, as deploy/ runs it
  seaway node --kubeconfig /etc/seaway/kubeconfig --no-cni --no-dns     as kube-proxy would be
  seaway node --run-pods --name node1 --kubeconfig /etc/seaway/kubeconfig --node-ip 192.0.2.11")]
pub struct Node {
    #[command(flatten)]
    pub place: Place,
    /// The Node's name (default: the host's)
    #[arg(long, env = "NODE_NAME")]
    pub name: Option<String>,
    /// Credentials for the API server (default: those that a pod has)
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// The API server's URL, where it is not the kubeconfig's, or where its Service is not reached before this agent
    /// runs
    #[arg(long, value_name = "URL")]
    pub api_server: Option<String>,
    /// The node's addresses, preferred ones first (default: those of the Node that a kubelet has registered)
    #[arg(long, value_name = "IP", value_delimiter = ',', required_if_eq("run_pods", "true"))]
    pub node_ip: Vec<IpAddr>,
    /// Where state is kept
    #[arg(long, default_value = "/var/lib/seaway/node", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// The cgroup2 directory of this node (default: where cgroup2 is mounted)
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// The bpffs directory of this node
    #[arg(long, default_value = "/sys/fs/bpf/seaway/node", value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Where the CNI configuration is written
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub cni_conf_dir: PathBuf,
    /// Where the CNI plugin is installed
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// Register the Node and run its pods (where no kubelet does)
    #[arg(long)]
    pub run_pods: bool,
    /// Run no service proxy
    #[arg(long)]
    pub no_proxy: bool,
    /// Run no pod network
    #[arg(long)]
    pub no_cni: bool,
    /// Run no DNS
    #[arg(long)]
    pub no_dns: bool,
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = proxy_mode, help = PROXY_MODES.as_str())]
    pub proxy_mode: ProxyMode,
    #[command(flatten)]
    pub balance: Balance,
    /// Do not answer for LoadBalancer addresses
    #[arg(long)]
    pub no_announce: bool,
    /// Ranges of the node's addresses that serve NodePorts (default: the addresses of the Node object)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// NodePorts answer at the node's loopback addresses as well
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub localhost_node_ports: bool,
    /// Devices that traffic from outside arrives on (default: those with the node's addresses)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub device: Vec<String>,
    /// With eBPF: what names of the node's ends of pods' links begin with (those with the MAC address
    /// ee:ee:ee:ee:ee:ee, which Seaway's and Calico's plugins give, are known without)
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub pod_link_prefix: Vec<String>,
    /// How pod packets travel between nodes
    #[arg(long, value_enum, default_value_t = NodeOverlay::None)]
    pub overlay: NodeOverlay,
    /// VXLAN's network number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vxlan_vni: u32,
    /// VXLAN's UDP port
    #[arg(long, default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: u16,
    /// The name of the VXLAN device
    #[arg(long, default_value = seaway_cni_network::VXLAN_DEVICE, value_name = "NAME", value_parser = link_name)]
    pub vxlan_device: String,
    /// The link towards the other nodes (default: the one that carries the node's address)
    #[arg(long, value_name = "NAME", value_parser = link_name)]
    pub uplink: Option<String>,
    /// Leave the source address of pod traffic that leaves the cluster. Otherwise it becomes the node's: by the proxy's
    /// eBPF programs, or by nftables where these do not reach
    #[arg(long)]
    pub no_masquerade: bool,
    /// Destinations outside of the cluster that see the pods' own addresses
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub no_masquerade_to: Vec<IpNet>,
    /// The DNS zone of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Upstream resolvers (default: those of /etc/resolv.conf, which is followed)
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub dns_upstream: Vec<SocketAddr>,
    /// Settings of the DNS server, watched: TOML (NAME.toml, as dns/settings.example.toml), or a CoreDNS Corefile
    #[arg(long, value_name = "FILE")]
    pub dns_config: Option<PathBuf>,
    /// Ranges of Service addresses, whose reverse names are answered for
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112", value_parser = cidr)]
    pub service_cidr: Vec<IpNet>,
    /// topology.kubernetes.io/zone
    #[arg(long)]
    pub zone: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  seaway dns --kubeconfig /etc/seaway/kubeconfig --listen 0.0.0.0:53 --upstream 192.0.2.53:53")]
pub struct Dns {
    /// Credentials for the API server
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// Where to answer, UDP and TCP
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:53", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// The DNS zone of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Upstream resolvers (default: those of /etc/resolv.conf, which is followed)
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub upstream: Vec<SocketAddr>,
    /// Further settings, watched: TOML (NAME.toml, as dns/settings.example.toml), or a CoreDNS Corefile
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ranges of Service addresses, whose reverse names are answered for
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112", value_parser = cidr)]
    pub service_cidr: Vec<IpNet>,
    /// Walk the search path for pods (watches every pod of the cluster)
    #[arg(long)]
    pub autopath: bool,
    /// Where to serve /health, /ready and /metrics
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_refused_by_every_command() {
        for command in ["up", "down", "check", "status", "services"] {
            for name in ["", "..", "x/../y", "/etc", "-x", "a.b"] {
                let flag = format!("--name={name}");
                assert!(Cli::try_parse_from(["seaway", command, &flag]).is_err(), "{command} {flag}");
            }
            assert!(Cli::try_parse_from(["seaway", command, "--name=blue-2"]).is_ok(), "{command}");
        }
    }

    #[test]
    fn a_range_that_is_none_is_told_what_one_looks_like() {
        let error =
            Cli::try_parse_from(["seaway", "up", "--pod-cidr", "10.0.0.0/33"]).unwrap_err().to_string();
        assert!(error.contains("such as 10.244.0.0/16"), "{error}");
    }
}
