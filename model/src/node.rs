//! A node of the cluster: its addresses, its pod subnets, its place.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::Family;

/// What an address of a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeAddressKind {
    /// Reached from other nodes.
    Internal,
    /// Reached from outside of the cluster.
    External,
}

/// An address of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// The address.
    pub addr: IpAddr,
    /// What it is for.
    pub kind: NodeAddressKind,
}

impl NodeAddress {
    /// One that other nodes reach it by.
    pub const fn internal(addr: IpAddr) -> Self {
        Self { addr, kind: NodeAddressKind::Internal }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses, in the order of `status.addresses`.
    pub addresses: Vec<NodeAddress>,
    /// `spec.podCIDRs`, at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The condition Ready is True.
    pub ready: bool,
    /// The condition Ready is Unknown: nobody has heard of the node for longer than its Lease allows.
    pub unreachable: bool,
    /// The label `node.kubernetes.io/exclude-from-external-load-balancers` is present, or the node is being deleted.
    pub excluded_from_load_balancers: bool,
    /// The node is about to go: it is being deleted, or has the taint `ToBeDeletedByClusterAutoscaler`. Load balancers
    /// should send no new connections (KEP-3836).
    pub draining: bool,
    /// The MAC address of the node's VXLAN device (annotation `seaway.dev/vtep-mac`), where it has one.
    pub vtep_mac: Option<[u8; 6]>,
}

impl Node {
    /// One that is ready, and of which nothing else is known.
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
            ready: true,
            unreachable: false,
            excluded_from_load_balancers: false,
            draining: false,
            vtep_mac: None,
        }
    }

    /// The first internal address of `family`, else the first external one.
    pub fn addr(&self, family: Family) -> Option<IpAddr> {
        let of = |kind| {
            self.addresses.iter().find(|a| a.kind == kind && Family::of(a.addr) == family).map(|a| a.addr)
        };
        of(NodeAddressKind::Internal).or_else(|| of(NodeAddressKind::External))
    }

    /// The pod subnet of `family`.
    pub fn pod_cidr(&self, family: Family) -> Option<IpNet> {
        self.pod_cidrs.iter().copied().find(|cidr| Family::of(cidr.addr()) == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_address_comes_before_external() {
        let node = Node {
            addresses: vec![
                NodeAddress { addr: "203.0.113.1".parse().unwrap(), kind: NodeAddressKind::External },
                NodeAddress::internal("192.0.2.1".parse().unwrap()),
            ],
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            ..Node::named("a")
        };
        assert_eq!(node.addr(Family::V4), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(node.addr(Family::V6), None);
        assert_eq!(node.pod_cidr(Family::V6), Some("fd00:1::/64".parse().unwrap()));
    }
}
