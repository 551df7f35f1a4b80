//! What the data plane knows about the cluster: Services, their Endpoints, and Nodes, as one immutable
//! [`Snapshot`].
//!
//! The model sits in the middle of the flow (watch → **snapshot** → desired → plan → apply). It does no I/O, knows
//! no Kubernetes API types and no kernel, so that every decision made from it is a pure function on values.
//! `watch` is the only writer; proxy, CNI and DNS read.

mod endpoint;
mod masquerade;
mod node;
mod pod;
mod service;
mod snapshot;
mod snat;

pub use endpoint::{Endpoint, EndpointPort, EndpointSet, EndpointSlice, Hints, TargetPod};
pub use masquerade::Masquerade;
pub use node::{Node, NodeAddress, NodeAddressKind};
pub use pod::{HostPod, HostPort};
pub use service::{
    Balancing, Forwarding, IngressMode, LoadBalancerIngress, ParseProtocolError, Protocol, Service,
    ServiceKey, ServiceKind, ServicePort, TrafficDistribution, TrafficPolicy,
};
pub use snapshot::{Changes, Lookup, Snapshot};
pub use snat::{port_ranges, snat_ports};

/// The two address families. Dual stack is not two code paths: the family is data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `addr`.
    pub fn of(addr: std::net::IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}
