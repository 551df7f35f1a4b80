//! kube-proxy's configuration file (`kubeproxy.config.k8s.io/v1alpha1`, kind `KubeProxyConfiguration`), so that Seaway
//! fits where kube-proxy stood.
//!
//! Every field of the format is known by name; what is unknown is refused. A field that says something which Seaway
//! does not do is read and named in [`KubeProxyConfiguration::without_effect`], with what happens instead.

mod effective;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;

pub use effective::Effective;

use crate::conntrack::Conntrack;
use crate::{Mode, NodePortAddresses};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum KubeProxyError {
    /// It is not YAML, or has fields or values that the format does not.
    #[error("{0}")]
    Syntax(#[from] serde_yaml_ng::Error),
    /// It is of another kind or version.
    #[error("{field} is {value:?}: want {wanted:?}")]
    Kind {
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        wanted: &'static str,
    },
    /// A value makes no sense.
    #[error("{field} is {value:?}: {reason}")]
    Value {
        /// The path of the field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The whole file. Field names are the format's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeProxyConfiguration {
    api_version: String,
    kind: String,
    feature_gates: Option<BTreeMap<String, bool>>,
    client_connection: ClientConnection,
    logging: Option<serde_yaml_ng::Value>,
    hostname_override: String,
    bind_address: String,
    healthz_bind_address: String,
    metrics_bind_address: String,
    bind_address_hard_fail: Option<bool>,
    enable_profiling: Option<bool>,
    show_hidden_metrics_for_version: String,
    mode: String,
    iptables: Iptables,
    ipvs: Ipvs,
    nftables: Nftables,
    winkernel: Option<serde_yaml_ng::Value>,
    detect_local_mode: String,
    detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    node_port_addresses: Option<Vec<String>>,
    oom_score_adj: Option<i32>,
    conntrack: ConntrackSection,
    config_sync_period: Period,
    port_range: String,
    windows_run_as_service: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientConnection {
    kubeconfig: String,
    accept_content_types: String,
    content_type: String,
    qps: Option<f64>,
    burst: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DetectLocal {
    bridge_interface: String,
    interface_name_prefix: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Iptables {
    masquerade_bit: Option<u32>,
    masquerade_all: Option<bool>,
    localhost_node_ports: Option<bool>,
    #[serde(rename = "snatNodeInternalIP")]
    snat_node_internal_ip: Option<bool>,
    sync_period: Period,
    min_sync_period: Period,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Nftables {
    masquerade_bit: Option<u32>,
    masquerade_all: Option<bool>,
    sync_period: Period,
    min_sync_period: Period,
}

/// Read so that a file that carries its defaults is not refused; there is no such mode.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "the names are what matters")]
struct Ipvs {
    sync_period: Period,
    min_sync_period: Period,
    scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    strict_arp: Option<bool>,
    tcp_timeout: Period,
    tcp_fin_timeout: Period,
    udp_timeout: Period,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConntrackSection {
    max_per_core: Option<u32>,
    min: Option<u32>,
    tcp_established_timeout: Period,
    tcp_close_wait_timeout: Period,
    tcp_be_liberal: Option<bool>,
    udp_timeout: Period,
    udp_stream_timeout: Period,
}

/// A time as Kubernetes writes it: `1h30m`, `0s`. Nothing, null and 0 mean "not said".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Period(Option<Duration>);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(Self(None)) };
        let period = parse_duration(&text).map_err(D::Error::custom)?;
        Ok(Self(Some(period).filter(|period| !period.is_zero())))
    }
}

/// Reads a duration as Go writes it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS_NS: [(&str, f64); 7] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("µs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60.0 * 1e9),
        ("h", 3600.0 * 1e9),
    ];
    let refused = || format!("{text:?} is not a duration: want one such as 30s, 1m0s or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: f64 = number.parse().map_err(|_| refused())?;
        let (_, ns) = UNITS_NS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
        total += number * ns;
        rest = tail;
    }
    if text.is_empty() {
        return Err(refused());
    }
    Duration::try_from_secs_f64(total / 1e9).map_err(|_| refused())
}

impl KubeProxyConfiguration {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, KubeProxyError> {
        let parsed: Self = serde_yaml_ng::from_str(text)?;
        for (field, value, wanted) in
            [("apiVersion", &parsed.api_version, API_VERSION), ("kind", &parsed.kind, KIND)]
        {
            if value != wanted {
                return Err(KubeProxyError::Kind { field, value: value.clone(), wanted });
            }
        }
        Ok(parsed)
    }

    /// The backend. Empty: the first that the kernel offers.
    pub fn mode(&self) -> Result<Mode, KubeProxyError> {
        let refused = |reason| KubeProxyError::Value { field: "mode", value: self.mode.clone(), reason };
        if self.mode.is_empty() { Ok(Mode::Auto) } else { self.mode.parse().map_err(refused) }
    }

    /// `hostnameOverride`: the name of the Node.
    pub fn node_name(&self) -> Option<&str> {
        Some(self.hostname_override.as_str()).filter(|name| !name.is_empty())
    }

    /// `clientConnection.kubeconfig`.
    pub fn kubeconfig(&self) -> Option<&str> {
        Some(self.client_connection.kubeconfig.as_str()).filter(|path| !path.is_empty())
    }

    /// `healthzBindAddress`, of whose port 0 means "none".
    pub fn healthz(&self) -> Result<Option<SocketAddr>, KubeProxyError> {
        listen("healthzBindAddress", &self.healthz_bind_address, 10_256)
    }

    /// `metricsBindAddress`.
    pub fn metrics(&self) -> Result<Option<SocketAddr>, KubeProxyError> {
        listen("metricsBindAddress", &self.metrics_bind_address, 10_249)
    }

    /// `nodePortAddresses`.
    pub fn node_port_addresses(&self) -> Result<NodePortAddresses, KubeProxyError> {
        let field = "nodePortAddresses";
        let refused = |(value, reason)| KubeProxyError::Value { field, value, reason };
        parse_node_port_addresses(self.node_port_addresses.as_deref().unwrap_or_default()).map_err(refused)
    }

    /// `bindAddress`, which says no more than in which family health and metrics are served.
    pub fn bind_address(&self) -> Result<Option<IpAddr>, KubeProxyError> {
        let text = &self.bind_address;
        let refused = |_| KubeProxyError::Value {
            field: "bindAddress",
            value: text.clone(),
            reason: "want an IP".to_owned(),
        };
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(refused) }
    }

    /// `detectLocal.interfaceNamePrefix`, where `detectLocalMode` asks for it.
    pub fn pod_link_prefix(&self) -> Option<&str> {
        let prefix = self.detect_local.interface_name_prefix.as_str();
        (self.detect_local_mode == "InterfaceNamePrefix" && !prefix.is_empty()).then_some(prefix)
    }

    /// `oomScoreAdj`.
    pub fn oom_score_adj(&self) -> Option<i32> {
        self.oom_score_adj
    }

    /// `iptables.localhostNodePorts`.
    pub fn localhost_node_ports(&self) -> Option<bool> {
        self.iptables.localhost_node_ports
    }

    /// `iptables.masqueradeAll` or `nftables.masqueradeAll`.
    pub fn masquerade_all(&self) -> bool {
        self.iptables.masquerade_all == Some(true) || self.nftables.masquerade_all == Some(true)
    }

    /// `syncPeriod` of the mode: how often everything is compared.
    pub fn sync_period(&self) -> Option<Duration> {
        if self.mode == "nftables" { self.nftables.sync_period.0 } else { self.iptables.sync_period.0 }
    }

    /// `minSyncPeriod` of the mode: the least time between two syncs.
    pub fn min_sync_period(&self) -> Option<Duration> {
        if self.mode == "nftables" {
            self.nftables.min_sync_period.0
        } else {
            self.iptables.min_sync_period.0
        }
    }

    /// `conntrack`, with kube-proxy's defaults.
    pub fn conntrack(&self) -> Conntrack {
        let (section, default) = (&self.conntrack, Conntrack::kube_proxy());
        Conntrack {
            max_per_core: section.max_per_core.unwrap_or(default.max_per_core),
            min: section.min.unwrap_or(default.min),
            tcp_established: section.tcp_established_timeout.0.or(default.tcp_established),
            tcp_close_wait: section.tcp_close_wait_timeout.0.or(default.tcp_close_wait),
            tcp_be_liberal: section.tcp_be_liberal.unwrap_or(false),
            udp: section.udp_timeout.0,
            udp_stream: section.udp_stream_timeout.0,
        }
    }

    /// Fields that say something which is read and not done, and what happens instead.
    pub fn without_effect(&self) -> Vec<(String, &'static str)> {
        let said = |text: &String| !text.is_empty();
        let gates = self.feature_gates.iter().flat_map(BTreeMap::keys);
        let gates = gates.map(|gate| (format!("featureGates.{gate}"), instead::GATES));
        let client = &self.client_connection;
        let asks_otherwise = said(&client.accept_content_types) || said(&client.content_type);
        let other_bit = |bit: Option<u32>| bit.is_some_and(|bit| bit != 14);
        let fields = [
            ("clientConnection.qps", client.qps.is_some_and(|qps| qps != 0.0), instead::REQUESTS),
            ("clientConnection.burst", client.burst.is_some_and(|burst| burst != 0), instead::REQUESTS),
            ("clientConnection.contentType", asks_otherwise, instead::CONTENT),
            ("configSyncPeriod", self.config_sync_period.0.is_some(), instead::WATCHED),
            ("iptables.masqueradeBit", other_bit(self.iptables.masquerade_bit), instead::MARKS),
            ("nftables.masqueradeBit", other_bit(self.nftables.masquerade_bit), instead::MARKS),
            (
                "iptables.snatNodeInternalIP",
                self.iptables.snat_node_internal_ip == Some(false),
                instead::SNAT,
            ),
            ("portRange", said(&self.port_range), instead::UNUSED),
            ("enableProfiling", self.enable_profiling == Some(true), instead::PROFILING),
            ("showHiddenMetricsForVersion", said(&self.show_hidden_metrics_for_version), instead::METRICS),
            ("bindAddressHardFail", self.bind_address_hard_fail == Some(true), instead::HARD_FAIL),
            ("windowsRunAsService", self.windows_run_as_service == Some(true), instead::WINDOWS),
            ("detectLocalMode", said(&self.detect_local_mode), instead::LOCAL),
            ("logging.format", self.logs_otherwise(), instead::LOGGING),
        ];
        let fields = fields.into_iter().filter(|(_, told, _)| *told);
        gates.chain(fields.map(|(name, _, instead)| (name.to_owned(), instead))).collect()
    }

    /// Another format of the log is asked for than text.
    fn logs_otherwise(&self) -> bool {
        let format = self.logging.as_ref().and_then(|logging| logging.get("format"));
        format.and_then(serde_yaml_ng::Value::as_str).is_some_and(|format| !["", "text"].contains(&format))
    }

    /// `clusterCIDR`, where it can be read.
    pub fn cluster_cidrs(&self) -> Result<Vec<IpNet>, KubeProxyError> {
        let ranges = self.cluster_cidr.split(',').filter(|range| !range.is_empty());
        let parse = |range: &str| {
            range.trim().parse().map_err(|error: ipnet::AddrParseError| KubeProxyError::Value {
                field: "clusterCIDR",
                value: range.to_owned(),
                reason: error.to_string(),
            })
        };
        ranges.map(parse).collect()
    }
}

/// What happens instead of that which a field or flag asks for.
pub mod instead {
    /// Feature gates.
    pub const GATES: &str = "there are no feature gates; what is done is done";
    /// Limits of requests.
    pub const REQUESTS: &str = "lists and watches are few, and their number is not limited";
    /// Content types.
    pub const CONTENT: &str = "objects are read as JSON";
    /// How often everything is listed.
    pub const WATCHED: &str = "changes are watched; lists are read again when a watch breaks";
    /// The mark's bit.
    pub const MARKS: &str = "the marks are fixed: 0x4000 with iptables, 0x2000 with nftables, none with ebpf";
    /// SNAT to the node's InternalIP.
    pub const SNAT: &str = "sources are translated to the node's InternalIP";
    /// What kube-proxy does not use either.
    pub const UNUSED: &str = "kube-proxy does not use it either";
    /// pprof.
    pub const PROFILING: &str = "there is no profiling handler";
    /// Hidden metrics.
    pub const METRICS: &str = "no metric is hidden";
    /// A port that is taken.
    pub const HARD_FAIL: &str = "a port that is taken is tried again, and the log tells of it";
    /// Windows.
    pub const WINDOWS: &str = "this is not Windows";
    /// How traffic of this node is known.
    pub const LOCAL: &str =
        "what arrives by an uplink (--device) is from outside, everything else is of this node";
    /// The log.
    pub const LOGGING: &str = "the log is text, a line an event, on standard error";
    /// IPVS.
    pub const IPVS: &str = "there is no mode ipvs";
}

/// Which node addresses serve NodePorts: ranges, and the words `primary` (the addresses of the Node object, as nothing
/// says), `localhost` and `all`. `Err`: the value and what is wrong with it.
pub fn parse_node_port_addresses(texts: &[String]) -> Result<NodePortAddresses, (String, String)> {
    const LOCALHOST: [&str; 2] = ["127.0.0.0/8", "::1/128"];
    const ALL: [&str; 2] = ["0.0.0.0/0", "::/0"];
    let mut said = NodePortAddresses::default();
    for text in texts.iter().map(|text| text.trim()) {
        let ranges = match text {
            "primary" => {
                said.primary = true;
                continue;
            }
            "localhost" => &LOCALHOST[..],
            "all" => &ALL[..],
            range => &[range][..],
        };
        for range in ranges {
            let parsed = range.parse::<IpNet>().map_err(|_| {
                let reason = "want a CIDR such as 192.0.2.0/24, \"primary\", \"localhost\" or \"all\"";
                (text.to_owned(), reason.to_owned())
            });
            said.ranges.push(parsed?);
        }
    }
    Ok(said)
}

/// An address to listen at: `IP:PORT`, or an IP alone. `None`: nothing is said.
fn listen(field: &'static str, text: &str, default_port: u16) -> Result<Option<SocketAddr>, KubeProxyError> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_listen(text, default_port).map(Some).map_err(|reason| KubeProxyError::Value {
        field,
        value: text.to_owned(),
        reason,
    })
}

/// An address to listen at: `IP:PORT`, or an IP alone.
pub fn parse_listen(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    let bare = text.parse::<IpAddr>();
    bare.map(|ip| SocketAddr::new(ip, default_port)).map_err(|_| "want IP:PORT".to_owned())
}

impl fmt::Display for KubeProxyConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mode={:?}", self.kind, self.mode)
    }
}

#[cfg(test)]
mod tests;
