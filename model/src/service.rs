//! A Kubernetes Service, reduced to what a data plane and a DNS server act on.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

/// The name of a Service within the cluster. Ordered by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name within the namespace.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// A key from its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Ord for ServiceKey {
    fn cmp(&self, other: &Self) -> Ordering {
        // Namespaces are shared (see `watch`): most comparisons of a search need not look into them.
        let namespaces = if Arc::ptr_eq(&self.namespace, &other.namespace) {
            Ordering::Equal
        } else {
            self.namespace.cmp(&other.namespace)
        };
        namespaces.then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ServiceKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that a Service port may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default of the API.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as it stands in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name as the Kubernetes API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A protocol name that the API does not know.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown protocol {0:?}: want TCP, UDP or SCTP")]
pub struct ParseProtocolError(pub String);

impl FromStr for Protocol {
    type Err = ParseProtocolError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            other => Err(ParseProtocolError(other.to_owned())),
        }
    }
}

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// Reached inside the cluster only.
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also at addresses that a load balancer announces.
    LoadBalancer,
    /// A DNS alias; no data plane is involved.
    ExternalName,
}

/// `spec.externalTrafficPolicy` and `spec.internalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Every usable endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints of the node that the traffic reaches first, only.
    Local,
}

/// `spec.trafficDistribution` (KEP-3015).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// Endpoints of the client's zone, if there are any.
    PreferSameZone,
    /// Endpoints of the client's node, then of its zone, if there are any.
    PreferSameNode,
}

/// How a backend is chosen for a new connection: the annotation `seaway.dev/load-balancing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Balancing {
    /// By chance.
    Random,
    /// By consistent hashing: a backend that comes or goes moves hardly any connection of the others.
    Maglev,
    /// The annotation says something else.
    Unknown,
}

/// How packets from outside reach backends on other nodes: the annotation `seaway.dev/north-south`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forwarding {
    /// By source NAT: the backend sees the node that the client reached, and answers by it.
    Snat,
    /// By direct server return: the backend sees the client, and its node answers it.
    Dsr,
    /// The annotation says something else.
    Unknown,
}

/// `status.loadBalancer.ingress[].ipMode` (KEP-1860).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IngressMode {
    /// Packets arrive with the address still in them: the node serves it.
    #[default]
    Vip,
    /// The load balancer rewrites packets itself: the node must not take the address over.
    Proxy,
}

/// An address at which a load balancer offers the Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoadBalancerIngress {
    /// The address.
    pub addr: IpAddr,
    /// Who serves it.
    pub mode: IngressMode,
}

/// One port of a Service. The port that packets go to is a property of each [`crate::Endpoint`], since a named
/// targetPort may resolve to a different number on each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The port's name; empty where the only port has none. It joins a Service port with its endpoint ports.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port at the ClusterIP, external and load balancer addresses.
    pub port: u16,
    /// The port at the nodes' addresses.
    pub node_port: Option<u16>,
    /// `appProtocol`, a hint for layer 7.
    pub app_protocol: Option<Arc<str>>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub key: ServiceKey,
    /// `metadata.uid`, which tells a re-created Service from its predecessor.
    pub uid: Arc<str>,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs` without "None". Empty for headless and ExternalName Services.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP` is "None".
    pub headless: bool,
    /// `spec.externalName`, of an ExternalName Service.
    pub external_name: Option<Arc<str>>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`, those that have an address.
    pub load_balancer: Vec<LoadBalancerIngress>,
    /// `spec.loadBalancerClass`.
    pub load_balancer_class: Option<Arc<str>>,
    /// `spec.loadBalancerSourceRanges`; empty allows everyone.
    pub source_ranges: Vec<IpNet>,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub session_affinity: Option<Duration>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// How backends are chosen; `None` leaves it to the node.
    pub balancing: Option<Balancing>,
    /// How packets from outside reach backends on other nodes; `None` leaves it to the node.
    pub forwarding: Option<Forwarding>,
    /// The label `service.kubernetes.io/service-proxy-name`: another proxy serves this Service.
    pub proxy_name: Option<Arc<str>>,
}

impl Service {
    /// A ClusterIP Service without addresses and ports, to fill in.
    pub fn new(key: ServiceKey) -> Self {
        Self {
            key,
            uid: "".into(),
            kind: ServiceKind::ClusterIp,
            cluster_ips: Vec::new(),
            headless: false,
            external_name: None,
            ports: Vec::new(),
            external_ips: Vec::new(),
            load_balancer: Vec::new(),
            load_balancer_class: None,
            source_ranges: Vec::new(),
            session_affinity: None,
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            publish_not_ready: false,
            traffic_distribution: None,
            balancing: None,
            forwarding: None,
            proxy_name: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_by_what_they_say() {
        let (shared, name): (Arc<str>, Arc<str>) = ("b".into(), "x".into());
        let of = |namespace: &Arc<str>, name: &Arc<str>| ServiceKey {
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
        };
        assert_eq!(of(&shared, &name).cmp(&ServiceKey::new("b", "x")), Ordering::Equal);
        assert!(of(&shared, &"w".into()) < of(&shared, &name));
        assert!(ServiceKey::new("a", "z") < of(&shared, &name));
    }

    #[test]
    fn protocol_names_round_trip() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(protocol.as_str().parse(), Ok(protocol));
        }
        assert_eq!("tcp".parse::<Protocol>(), Err(ParseProtocolError("tcp".into())));
    }
}
