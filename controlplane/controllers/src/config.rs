//! What the controllers are told at start, and their names.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// One controller, by the name that switches it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControllerName {
    /// Deployments → ReplicaSets.
    Deployment,
    /// ReplicaSets → pods.
    ReplicaSet,
    /// DaemonSets → one pod per node.
    DaemonSet,
    /// Services and pods → EndpointSlices.
    EndpointSlice,
    /// Services and pods → Endpoints, the classic object.
    Endpoints,
    /// Pod CIDRs for nodes.
    NodeIpam,
    /// Leases → node conditions, taints and evictions; pods of vanished nodes.
    NodeLifecycle,
    /// Owner references.
    GarbageCollector,
    /// Empties namespaces that are being deleted.
    Namespace,
    /// The ServiceAccount `default` of each namespace.
    ServiceAccount,
    /// The ConfigMap `kube-root-ca.crt` of each namespace.
    RootCa,
    /// The Service `kube-system/kube-dns`.
    ClusterDns,
}

impl ControllerName {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Deployment,
        Self::ReplicaSet,
        Self::DaemonSet,
        Self::EndpointSlice,
        Self::Endpoints,
        Self::NodeIpam,
        Self::NodeLifecycle,
        Self::GarbageCollector,
        Self::Namespace,
        Self::ServiceAccount,
        Self::RootCa,
        Self::ClusterDns,
    ];

    /// The name as an operator writes it, and as it stands in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::ReplicaSet => "replicaset",
            Self::DaemonSet => "daemonset",
            Self::EndpointSlice => "endpointslice",
            Self::Endpoints => "endpoints",
            Self::NodeIpam => "nodeipam",
            Self::NodeLifecycle => "nodelifecycle",
            Self::GarbageCollector => "garbagecollector",
            Self::Namespace => "namespace",
            Self::ServiceAccount => "serviceaccount",
            Self::RootCa => "root-ca",
            Self::ClusterDns => "cluster-dns",
        }
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A controller's name that nobody knows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown controller {given:?}; known are {}", known())]
pub struct UnknownController {
    /// What was given.
    pub given: String,
}

fn known() -> String {
    ControllerName::ALL.map(ControllerName::as_str).join(", ")
}

impl FromStr for ControllerName {
    type Err = UnknownController;

    fn from_str(given: &str) -> Result<Self, UnknownController> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == given);
        found.ok_or_else(|| UnknownController { given: given.to_owned() })
    }
}

/// What the controllers are told at start.
#[derive(Debug, Clone)]
pub struct ControllersConfig {
    /// Controllers that do not run (upstream's do, or nobody's).
    pub disabled: BTreeSet<ControllerName>,
    /// The networks that node pod CIDRs are cut from, at most one of each family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 pod CIDR.
    pub node_cidr_mask_v4: u8,
    /// Prefix length of a node's IPv6 pod CIDR.
    pub node_cidr_mask_v6: u8,
    /// The networks of ClusterIPs, the primary family first.
    pub service_cidrs: Vec<IpNet>,
    /// Make the selector-less Service `kube-system/kube-dns` with the tenth address of each service CIDR.
    pub cluster_dns: bool,
    /// The CA that goes into each namespace's ConfigMap `kube-root-ca.crt`; without it none is made.
    pub root_ca_pem: Option<String>,
    /// How long a node's Lease may go without renewal before the node counts as gone.
    pub node_grace_period: Duration,
    /// The same for a node that has not reported yet.
    pub node_startup_grace_period: Duration,
    /// How many objects of one kind are worked on at a time.
    pub workers: usize,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        Self {
            disabled: BTreeSet::new(),
            cluster_cidrs: Vec::new(),
            node_cidr_mask_v4: 24,
            node_cidr_mask_v6: 64,
            service_cidrs: Vec::new(),
            cluster_dns: true,
            root_ca_pem: None,
            node_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_secs(60),
            workers: 4,
        }
    }
}

/// Why the controllers did not start, or ended other than by their shutdown token.
#[derive(Debug, thiserror::Error)]
pub enum ControllersError {
    /// The cluster CIDRs cannot be divided among nodes.
    #[error("cluster CIDR {cidr} cannot be divided into node CIDRs of /{mask}: the mask must be between {} and {}",
        cidr.prefix_len(), cidr.max_prefix_len())]
    NodeCidrMask {
        /// The network.
        cidr: IpNet,
        /// The prefix length that nodes would get.
        mask: u8,
    },
    /// Two cluster CIDRs are of the same family.
    #[error("cluster CIDRs {first} and {second} are of the same family: give at most one of each")]
    SameFamily {
        /// The one.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// A task of a controller panicked.
    #[error("a task of the controllers panicked")]
    Panicked(#[source] tokio::task::JoinError),
}
