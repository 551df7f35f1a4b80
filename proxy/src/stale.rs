//! UDP flows whose endpoint is gone. UDP knows no end of a connection: a client that goes on sending from one port
//! keeps its flow, and would send into nothing for as long as it does.
//!
//! **Invariant:** flows whose endpoint still serves are never touched, at a restart either. Terminating endpoints that
//! serve keep theirs.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use seaway_model::{Endpoint, EndpointPort, EndpointSet, Family, Protocol, Service, ServiceKey, Snapshot};

use crate::frontend::Group;

/// Endpoint addresses and ports, each for the Service port that it serves: an endpoint that left one Service may well
/// go on in another.
pub type Targets = HashSet<(Group, IpAddr, u16)>;

/// How many flows of each family were forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Flows to IPv4 backends.
    pub v4: usize,
    /// Flows to IPv6 backends.
    pub v6: usize,
}

impl Forgotten {
    /// Of one family.
    pub fn of(self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

impl FromIterator<IpAddr> for Forgotten {
    /// One flow for each backend that is named.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(backends: I) -> Self {
        backends.into_iter().fold(Self::default(), |counted, addr| match Family::of(addr) {
            Family::V4 => Self { v4: counted.v4 + 1, ..counted },
            Family::V6 => Self { v6: counted.v6 + 1, ..counted },
        })
    }
}

/// Everything that serves UDP.
pub fn serving_udp(snapshot: &Snapshot) -> Targets {
    let mut all = Targets::new();
    let is_udp = |service: &Service| service.ports.iter().any(|port| port.protocol == Protocol::Udp);
    // Few Services are.
    for (key, service) in snapshot.services.iter().filter(|(_, service)| is_udp(service)) {
        if let Some(set) = snapshot.endpoints.get(key) {
            extend(&mut all, service, set);
        }
    }
    all
}

/// Whether an endpoint that served UDP in `former` does so no more.
pub fn udp_vanished(former: &Snapshot, snapshot: &Snapshot) -> bool {
    udp_vanished_of(&snapshot.changes_since(former).services, former, snapshot)
}

/// As [`udp_vanished`], looking only at `services`.
pub fn udp_vanished_of(services: &BTreeSet<ServiceKey>, former: &Snapshot, snapshot: &Snapshot) -> bool {
    if former.services.is_empty() {
        return false;
    }
    let (mut before, mut now) = (Targets::new(), Targets::new());
    for service in services {
        extend_by(&mut before, former, service);
    }
    if before.is_empty() {
        return false;
    }
    for service in services {
        extend_by(&mut now, snapshot, service);
    }
    before.iter().any(|target| !now.contains(target))
}

/// Whether one of `services` lists an endpoint no more that it listed in `former`.
pub fn departed(services: &BTreeSet<ServiceKey>, former: &Snapshot, snapshot: &Snapshot) -> bool {
    let listed = |snapshot: &Snapshot, service| -> HashSet<(IpAddr, Arc<[EndpointPort]>)> {
        let set = snapshot.endpoints.get(service);
        let endpoints = set.into_iter().flat_map(|set| set.endpoints.iter());
        endpoints.map(|endpoint| (endpoint.addr, Arc::clone(&endpoint.ports))).collect()
    };
    services.iter().filter(|service| former.endpoints.contains_key(*service)).any(|service| {
        let (before, now) = (listed(former, service), listed(snapshot, service));
        !before.is_subset(&now)
    })
}

fn extend_by(targets: &mut Targets, snapshot: &Snapshot, service: &ServiceKey) {
    if let (Some(object), Some(set)) = (snapshot.services.get(service), snapshot.endpoints.get(service)) {
        extend(targets, object, set);
    }
}

fn extend(targets: &mut Targets, object: &Service, set: &EndpointSet) {
    for port in object.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let groups = Family::ALL.map(|family| Group::of(&object.key, &port.name, Protocol::Udp, family));
        for endpoint in set.endpoints.iter().filter(|endpoint| serves(object, endpoint)) {
            let group = groups[usize::from(endpoint.addr.is_ipv6())];
            let offers = endpoint.ports.iter().filter(|o| o.protocol == Protocol::Udp && o.name == port.name);
            targets.extend(offers.map(|offer| (group, endpoint.addr, offer.port)));
        }
    }
}

fn serves(service: &Service, endpoint: &Endpoint) -> bool {
    endpoint.ready || endpoint.serving || service.publish_not_ready
}

#[cfg(test)]
mod tests {
    use seaway_model::{EndpointSet, ServicePort};

    use super::*;

    fn snapshot(endpoints: &[(&str, bool, bool)]) -> Snapshot {
        let key = ServiceKey::new("default", "dns");
        let ports: Arc<[EndpointPort]> = [Protocol::Udp, Protocol::Tcp]
            .map(|protocol| EndpointPort { name: "".into(), protocol, port: 53 })
            .into();
        let endpoint = |(addr, ready, serving): &(&str, bool, bool)| Endpoint {
            ready: *ready,
            serving: *serving,
            terminating: !ready,
            ..Endpoint::new(addr.parse().unwrap(), Arc::clone(&ports))
        };
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        let mut service = Service::new(key.clone());
        service.ports = [Protocol::Udp, Protocol::Tcp]
            .map(|protocol| ServicePort {
                name: "".into(),
                protocol,
                port: 53,
                node_port: None,
                app_protocol: None,
            })
            .into();
        snapshot.services.insert(key.clone(), Arc::new(service));
        let endpoints = endpoints.iter().map(endpoint).collect();
        snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints }));
        snapshot
    }

    #[test]
    fn an_endpoint_has_vanished_when_it_no_longer_serves() {
        let both = snapshot(&[("10.0.0.1", true, true), ("10.0.0.2", true, true)]);
        let draining = snapshot(&[("10.0.0.1", true, true), ("10.0.0.2", false, true)]);
        let one = snapshot(&[("10.0.0.1", true, true), ("10.0.0.2", false, false)]);
        assert!(!udp_vanished(&both, &draining));
        assert!(udp_vanished(&draining, &one));
        assert!(udp_vanished(&one, &snapshot(&[])), "also when the last one goes");
        assert!(udp_vanished(&both, &Snapshot::default()));
        assert_eq!(serving_udp(&draining).len(), 2);
        let group = Group::of(&ServiceKey::new("default", "dns"), "", Protocol::Udp, Family::V4);
        assert_eq!(serving_udp(&one), Targets::from([(group, "10.0.0.1".parse().unwrap(), 53)]));
    }
}
