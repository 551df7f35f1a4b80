//! The words of the data plane: a frontend is an address that clients use, a backend an address where packets end.
//!
//! An Endpoint is in the model, a backend in a data plane; what lies between them is [`crate::desired`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use seaway_model::{Protocol, ServiceKey};
use serde::Serialize;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// A pod or process of this node.
    Internal,
    /// A packet that arrives from outside of the node.
    External,
}

/// What a frontend is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address that the client uses.
    pub addr: IpAddr,
    /// The port that the client uses.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Who asks.
    pub scope: Scope,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match self.scope {
            Scope::Internal => "internal",
            Scope::External => "external",
        };
        write!(f, "{}/{} {scope}", SocketAddr::new(self.addr, self.port), self.protocol)
    }
}

/// Where packets of a frontend may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// The endpoint's own port.
    pub port: u16,
    /// It runs on this node.
    pub local: bool,
}

/// What the kernel is told about a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The backends, ordered and without copies. None: clients are refused at once.
    pub backends: Arc<[Backend]>,
    /// One client keeps its backend for this long after its last connection.
    pub affinity: Option<Duration>,
    /// Only these sources may enter. Empty: everyone.
    pub source_ranges: Arc<[IpNet]>,
    /// The client's address must reach the backend unchanged (externalTrafficPolicy Local).
    pub preserve_source: bool,
    /// There are no backends here, but there are on other nodes: packets are dropped rather than refused, since
    /// whoever sent them here should try elsewhere.
    pub elsewhere: bool,
}

/// What kind of address a frontend stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIP,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIP,
    /// A node's address with `spec.ports[].nodePort`.
    NodePort,
}

/// To whom a frontend belongs. This is for people; the kernel is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The Service.
    pub service: ServiceKey,
    /// The name of the Service port.
    pub port_name: Arc<str>,
    /// The kind of address.
    pub kind: FrontendKind,
}
