//! Endpoints: where the packets of a Service end. They arrive as EndpointSlices, several per Service, and are
//! joined here into one [`EndpointSet`] per Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Family, Protocol, ServiceKey};

/// The pod behind an endpoint (`targetRef`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPod {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
}

/// A port of an EndpointSlice. `name` joins it with the Service port of the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointPort {
    /// The Service port's name; empty where it has none.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port that the pod listens on.
    pub port: u16,
}

/// One address that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address. (A slice's `addresses` beyond the first have no defined meaning and are not read.)
    pub addr: IpAddr,
    /// `hostname`, for DNS names below a headless Service.
    pub hostname: Option<Arc<str>>,
    /// The node that it runs on.
    pub node: Option<Arc<str>>,
    /// The zone that it runs in.
    pub zone: Option<Arc<str>>,
    /// `conditions.ready`; absent means ready.
    pub ready: bool,
    /// `conditions.serving`: as ready, but also told while terminating.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `hints`. Few endpoints have them.
    pub hints: Option<Arc<Hints>>,
    /// Its ports. Endpoints of one slice share the allocation.
    pub ports: Arc<[EndpointPort]>,
}

/// Whose clients an endpoint is meant for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hints {
    /// `forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes`.
    pub nodes: Box<[Arc<str>]>,
}

impl Endpoint {
    /// One that is ready, and of which nothing else is known.
    pub fn new(addr: IpAddr, ports: Arc<[EndpointPort]>) -> Self {
        Self {
            addr,
            hostname: None,
            node: None,
            zone: None,
            ready: true,
            serving: true,
            terminating: false,
            hints: None,
            ports,
        }
    }

    /// The zones that it is meant for; none: nobody said.
    pub fn zone_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    /// The nodes that it is meant for; none: nobody said.
    pub fn node_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}

/// One EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace, which is also its Service's.
    pub namespace: Arc<str>,
    /// Its own name.
    pub name: Arc<str>,
    /// The Service that it belongs to (label `kubernetes.io/service-name`).
    pub service: ServiceKey,
    /// Its address family.
    pub family: Family,
    /// Its endpoints.
    pub endpoints: Arc<[Endpoint]>,
}

/// All endpoints of a Service, slices joined, ordered by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSet {
    /// The endpoints, at most one per address and ports. Those of a Service that has one slice are the slice's own
    /// allocation.
    pub endpoints: Arc<[Endpoint]>,
}

impl Default for EndpointSet {
    fn default() -> Self {
        Self { endpoints: Arc::from([]) }
    }
}

impl EndpointSet {
    /// Joins slices. While an endpoint moves from one slice to another it may stand in both: the copy that is
    /// further on (ready before serving before neither) wins, so that a stale copy does not take it out of service.
    pub fn join<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Self {
        let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
        if let [only] = slices[..]
            && only.endpoints.is_sorted_by(|a, b| place(a) < place(b))
        {
            return Self { endpoints: Arc::clone(&only.endpoints) };
        }
        let mut joined: BTreeMap<(IpAddr, &[EndpointPort]), &Endpoint> = BTreeMap::new();
        for endpoint in slices.into_iter().flat_map(|slice| &*slice.endpoints) {
            joined
                .entry(place(endpoint))
                .and_modify(|held| {
                    if rank(endpoint) > rank(held) {
                        *held = endpoint;
                    }
                })
                .or_insert(endpoint);
        }
        Self { endpoints: joined.into_values().cloned().collect() }
    }
}

/// What endpoints are ordered by, and what only one of a Service has.
fn place(endpoint: &Endpoint) -> (IpAddr, &[EndpointPort]) {
    (endpoint.addr, &endpoint.ports)
}

fn rank(endpoint: &Endpoint) -> u8 {
    if endpoint.ready { 2 } else { u8::from(endpoint.serving) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, endpoints: &[(&str, bool)]) -> EndpointSlice {
        let ports: Arc<[EndpointPort]> =
            vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into();
        EndpointSlice {
            namespace: "default".into(),
            name: name.into(),
            service: ServiceKey::new("default", "web"),
            family: Family::V4,
            endpoints: endpoints
                .iter()
                .map(|(addr, ready)| Endpoint {
                    ready: *ready,
                    serving: *ready,
                    ..Endpoint::new(addr.parse().unwrap(), Arc::clone(&ports))
                })
                .collect(),
        }
    }

    #[test]
    fn join_orders_by_address_and_drops_copies() {
        let a = slice("a", &[("10.0.0.2", true), ("10.0.0.1", true)]);
        let b = slice("b", &[("10.0.0.2", true), ("10.0.0.3", true)]);
        let joined = EndpointSet::join([&a, &b]);
        let addrs: Vec<String> = joined.endpoints.iter().map(|e| e.addr.to_string()).collect();
        assert_eq!(addrs, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn a_service_with_one_slice_shares_its_endpoints() {
        let ordered = slice("a", &[("10.0.0.1", true), ("10.0.0.2", true)]);
        assert!(Arc::ptr_eq(&EndpointSet::join([&ordered]).endpoints, &ordered.endpoints));
        let twice = slice("a", &[("10.0.0.1", false), ("10.0.0.1", true)]);
        let joined = EndpointSet::join([&twice]);
        assert!(joined.endpoints.len() == 1 && joined.endpoints[0].ready);
    }

    #[test]
    fn join_prefers_the_ready_copy_whatever_the_order() {
        let stale = slice("a", &[("10.0.0.1", false)]);
        let fresh = slice("b", &[("10.0.0.1", true)]);
        assert!(EndpointSet::join([&stale, &fresh]).endpoints[0].ready);
        assert!(EndpointSet::join([&fresh, &stale]).endpoints[0].ready);
    }
}
