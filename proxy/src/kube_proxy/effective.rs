//! The configuration that is in effect, written as kube-proxy would (`--write-config-to`): read again, it says the same.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::{API_VERSION, KIND};
use crate::conntrack::Conntrack;
use crate::{Mode, NodePortAddresses};

/// What flags, file and defaults come to.
#[derive(Debug, Clone)]
pub struct Effective<'a> {
    /// The name of the Node.
    pub node_name: &'a str,
    /// Empty: the credentials that a pod has.
    pub kubeconfig: &'a str,
    /// The backend.
    pub mode: Mode,
    /// Where /healthz is served; port 0: nowhere.
    pub healthz: SocketAddr,
    /// Where /metrics is served; port 0: nowhere.
    pub metrics: SocketAddr,
    /// Which of the node's addresses serve NodePorts.
    pub node_port_addresses: &'a NodePortAddresses,
    /// NodePorts answer at loopback addresses.
    pub localhost_node_ports: bool,
    /// Backends of ClusterIPs see the node in the place of its pods.
    pub masquerade_all: bool,
    /// How often everything is compared.
    pub sync_period: Option<Duration>,
    /// The least time between two syncs.
    pub min_sync_period: Option<Duration>,
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// What the kernel's OOM killer is told.
    pub oom_score_adj: Option<i32>,
}

impl Effective<'_> {
    /// The file.
    pub fn to_yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        let mode = if self.mode == Mode::Auto { "" } else { self.mode.name() };
        let of_mode = json!({
            "masqueradeAll": self.masquerade_all,
            "syncPeriod": period(self.sync_period),
            "minSyncPeriod": period(self.min_sync_period),
        });
        let mut iptables = of_mode.clone();
        iptables["localhostNodePorts"] = self.localhost_node_ports.into();
        let conntrack = &self.conntrack;
        serde_yaml_ng::to_string(&json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "clientConnection": { "kubeconfig": self.kubeconfig },
            "hostnameOverride": self.node_name,
            "healthzBindAddress": self.healthz.to_string(),
            "metricsBindAddress": self.metrics.to_string(),
            "mode": mode,
            "iptables": iptables,
            "nftables": of_mode,
            "nodePortAddresses": self.addresses(),
            "oomScoreAdj": self.oom_score_adj,
            "conntrack": {
                "maxPerCore": conntrack.max_per_core,
                "min": conntrack.min,
                "tcpEstablishedTimeout": period(conntrack.tcp_established),
                "tcpCloseWaitTimeout": period(conntrack.tcp_close_wait),
                "tcpBeLiberal": conntrack.tcp_be_liberal,
                "udpTimeout": period(conntrack.udp),
                "udpStreamTimeout": period(conntrack.udp_stream),
            },
        }))
    }

    fn addresses(&self) -> Vec<String> {
        let primary = self.node_port_addresses.primary.then(|| "primary".to_owned());
        primary.into_iter().chain(self.node_port_addresses.ranges.iter().map(ToString::to_string)).collect()
    }
}

/// As Go writes it, in whole nanoseconds or more.
fn period(period: Option<Duration>) -> String {
    let period = period.unwrap_or_default();
    if period.subsec_nanos() == 0 {
        format!("{}s", period.as_secs())
    } else {
        format!("{}ns", period.as_nanos())
    }
}
