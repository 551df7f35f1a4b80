//! The flags of `seaway proxy`: kube-proxy's, so that a DaemonSet of kube-proxy needs another image and nothing else.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::place::Place;

/// What a flag says counts more than what the file says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seaway proxy --config /var/lib/kube-proxy/config.conf --hostname-override \"$(NODE_NAME)\"
  seaway proxy --kubeconfig /etc/seaway/kubeconfig --proxy-mode ebpf
  seaway proxy --cleanup")]
pub struct Proxy {
    #[command(flatten)]
    pub place: Place,
    /// A KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Credentials for the API server (default: those that a pod has)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The Node's name (default: the host's)
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The backend; nothing is the first that the kernel offers
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// Ranges of the node's addresses that serve NodePorts, or `primary`
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// NodePorts answer at the node's loopback addresses as well
    #[arg(long, visible_alias = "iptables-localhost-nodeports", value_name = "BOOL", num_args = 0..=1,
        default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub localhost_node_ports: Option<bool>,
    /// Where /healthz and /livez are served; nothing in quotes switches them off
    #[arg(long, value_name = "ADDR")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics is served; nothing in quotes switches it off
    #[arg(long, value_name = "ADDR")]
    pub metrics_bind_address: Option<String>,
    /// How often everything is compared
    #[arg(long, visible_alias = "iptables-sync-period", value_name = "DURATION")]
    pub sync_period: Option<String>,
    /// The least time between two syncs
    #[arg(long, visible_alias = "iptables-min-sync-period", value_name = "DURATION")]
    pub min_sync_period: Option<String>,
    /// Devices that traffic from outside arrives on (default: those with the node's addresses)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub device: Vec<String>,
    /// With eBPF: what names of the node's ends of pods' links begin with (those with the MAC address
    /// ee:ee:ee:ee:ee:ee, which Seaway's and Calico's plugins give, are known without)
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub pod_link_prefix: Vec<String>,
    /// The cgroup2 directory of this node (default: where cgroup2 is mounted)
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// The bpffs directory of this node
    #[arg(long, default_value = "/sys/fs/bpf/seaway/node", value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Where the socket for `seaway status` is made
    #[arg(long, default_value = "/run/seaway-proxy", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Remove what a proxy left in the kernel, and end
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true,
        default_value_t = false, action = ArgAction::Set)]
    pub cleanup: bool,
    /// How much is logged: from 4 on, what is done as well
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0)]
    pub v: u8,
    /// Read and not needed: which traffic is the cluster's own is known from the Services
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "ADDR", hide = true)]
    pub bind_address: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "GATES", hide = true)]
    pub feature_gates: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "FORMAT", hide = true)]
    pub logging_format: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "MODE", hide = true)]
    pub detect_local_mode: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "SCORE", hide = true, allow_hyphen_values = true)]
    pub oom_score_adj: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub config_sync_period: Option<String>,
}
