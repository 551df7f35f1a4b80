//! The flags of `seaway proxy`: kube-proxy's, so that a DaemonSet of kube-proxy needs another image and nothing else.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use seaway_node::kube_proxy::instead;

use crate::cli::Balance;
use crate::place::Place;

/// What a flag says counts more than what the file says.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Examples:
  seaway proxy --config /var/lib/kube-proxy/config.conf --hostname-override \"$(NODE_NAME)\"
  seaway proxy --kubeconfig /etc/seaway/kubeconfig --proxy-mode ebpf
  seaway proxy --cleanup"
)]
pub struct Proxy {
    #[command(flatten)]
    pub place: Place,
    /// A KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Credentials for the API server (default: those that a pod has)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The API server's URL, in the place of the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// The Node's name (default: the host's)
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The backend; nothing is the first that the kernel offers
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    #[command(flatten)]
    pub balance: Balance,
    /// Ranges of the node's addresses that serve NodePorts; `primary`: those of the Node object; `localhost`; `all`
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Backends of ClusterIPs see the node in the place of its own pods, too (nftables, iptables; in userspace always)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true,
        action = ArgAction::Set)]
    pub masquerade_all: Option<bool>,
    /// NodePorts answer at the node's loopback addresses as well, unless --nodeport-addresses leaves those out
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
    /// Entries of connection tracking per CPU (0: leave it alone)
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,
    /// Entries of connection tracking at least
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<u32>,
    /// How long an idle established TCP connection is remembered (0: leave it)
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,
    /// How long a TCP connection in CLOSE_WAIT is remembered (0: leave it)
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    /// Let packets outside of the TCP window through
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true,
        action = ArgAction::Set)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// How long a UDP exchange without an answer is remembered (0: leave it)
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,
    /// How long a UDP exchange with answers is remembered (0: leave it)
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
    /// The port of --healthz-bind-address, where that is not given; 0 switches it off
    #[arg(long, value_name = "PORT", hide = true)]
    pub healthz_port: Option<u16>,
    /// The port of --metrics-bind-address, where that is not given; 0 switches it off
    #[arg(long, value_name = "PORT", hide = true)]
    pub metrics_port: Option<u16>,
    /// What the kernel's OOM killer is told about this process, from -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// What names of the node's ends of pods' links begin with, as --pod-link-prefix
    #[arg(long, value_name = "NAME", hide = true)]
    pub pod_interface_name_prefix: Option<String>,
    /// Says in which family health and metrics are served, where nothing else does
    #[arg(long, value_name = "IP", hide = true)]
    pub bind_address: Option<std::net::IpAddr>,
    /// Write the configuration that flags and file come to, and end
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Set connection tracking, which takes privileges, and end
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true,
        default_value_t = false, action = ArgAction::Set)]
    pub init_only: bool,
    /// Remove what a proxy left in the kernel, and end
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true,
        default_value_t = false, action = ArgAction::Set)]
    pub cleanup: bool,
    /// How much is logged: from 4 on, what is done as well
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0)]
    pub v: u8,
    #[command(flatten)]
    pub unneeded: Unneeded,
}

/// Flags of kube-proxy that are read, so that its command line works, and named in the log where they are given.
#[derive(Debug, Args)]
pub struct Unneeded {
    /// Read and not needed: which traffic is the cluster's own is known from the Services
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BOOL", hide = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true)]
    pub bind_address_hard_fail: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub config_sync_period: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "MODE", hide = true)]
    pub detect_local_mode: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "GATES", hide = true)]
    pub feature_gates: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "CIDR", hide = true)]
    pub ipvs_exclude_cidrs: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_min_sync_period: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "NAME", hide = true)]
    pub ipvs_scheduler: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BOOL", hide = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true)]
    pub ipvs_strict_arp: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_sync_period: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_tcp_timeout: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_tcpfin_timeout: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_udp_timeout: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BIT", hide = true)]
    pub iptables_masquerade_bit: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "N", hide = true)]
    pub kube_api_burst: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "TYPE", hide = true)]
    pub kube_api_content_type: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "N", hide = true)]
    pub kube_api_qps: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "DURATION", hide = true)]
    pub log_flush_frequency: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "FORMAT", hide = true)]
    pub logging_format: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BYTES", hide = true)]
    pub log_json_info_buffer_size: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BOOL", hide = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true)]
    pub log_json_split_stream: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BYTES", hide = true)]
    pub log_text_info_buffer_size: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BOOL", hide = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true)]
    pub log_text_split_stream: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "NAME", hide = true)]
    pub pod_bridge_interface: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "BOOL", hide = true, num_args = 0..=1, default_missing_value = "true",
        require_equals = true)]
    pub profiling: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "VERSION", hide = true)]
    pub show_hidden_metrics_for_version: Option<String>,
    /// Read and not needed
    #[arg(long, value_name = "PATTERN", hide = true)]
    pub vmodule: Option<String>,
}

impl Unneeded {
    /// Those that were given, by their names, and what happens instead.
    pub fn given(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            ("--cluster-cidr", self.cluster_cidr.is_some(), instead::LOCAL),
            ("--bind-address-hard-fail", self.bind_address_hard_fail.is_some(), instead::HARD_FAIL),
            ("--config-sync-period", self.config_sync_period.is_some(), instead::WATCHED),
            ("--detect-local-mode", self.detect_local_mode.is_some(), instead::LOCAL),
            ("--feature-gates", self.feature_gates.is_some(), instead::GATES),
            ("--ipvs-exclude-cidrs", self.ipvs_exclude_cidrs.is_some(), instead::IPVS),
            ("--ipvs-min-sync-period", self.ipvs_min_sync_period.is_some(), instead::IPVS),
            ("--ipvs-scheduler", self.ipvs_scheduler.is_some(), instead::IPVS),
            ("--ipvs-strict-arp", self.ipvs_strict_arp.is_some(), instead::IPVS),
            ("--ipvs-sync-period", self.ipvs_sync_period.is_some(), instead::IPVS),
            ("--ipvs-tcp-timeout", self.ipvs_tcp_timeout.is_some(), instead::IPVS),
            ("--ipvs-tcpfin-timeout", self.ipvs_tcpfin_timeout.is_some(), instead::IPVS),
            ("--ipvs-udp-timeout", self.ipvs_udp_timeout.is_some(), instead::IPVS),
            ("--iptables-masquerade-bit", self.iptables_masquerade_bit.is_some(), instead::MARKS),
            ("--kube-api-burst", self.kube_api_burst.is_some(), instead::REQUESTS),
            ("--kube-api-content-type", self.kube_api_content_type.is_some(), instead::CONTENT),
            ("--kube-api-qps", self.kube_api_qps.is_some(), instead::REQUESTS),
            ("--log-flush-frequency", self.log_flush_frequency.is_some(), instead::LOGGING),
            ("--logging-format", self.logging_format.is_some(), instead::LOGGING),
            ("--log-json-info-buffer-size", self.log_json_info_buffer_size.is_some(), instead::LOGGING),
            ("--log-json-split-stream", self.log_json_split_stream.is_some(), instead::LOGGING),
            ("--log-text-info-buffer-size", self.log_text_info_buffer_size.is_some(), instead::LOGGING),
            ("--log-text-split-stream", self.log_text_split_stream.is_some(), instead::LOGGING),
            ("--pod-bridge-interface", self.pod_bridge_interface.is_some(), instead::LOCAL),
            ("--profiling", self.profiling.is_some(), instead::PROFILING),
            (
                "--show-hidden-metrics-for-version",
                self.show_hidden_metrics_for_version.is_some(),
                instead::METRICS,
            ),
            ("--vmodule", self.vmodule.is_some(), instead::LOGGING),
        ];
        let given = all.into_iter().filter(|(_, given, _)| *given);
        given.map(|(name, _, instead)| (name, instead)).collect()
    }
}
