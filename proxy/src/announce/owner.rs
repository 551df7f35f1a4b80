//! Which node answers for which address: the same pure choice on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use seaway_model::{Endpoint, IngressMode, Service, ServiceKind, Snapshot, TrafficPolicy};

use crate::desired::is_served;
use crate::frontend::StableHash;

/// The class of load balancers that are ours; Services without a class are, too.
const CLASS_PREFIX: &str = "seaway.dev/";

/// The node that answers for `addr`: the one with the highest hash of both (rendezvous hashing), so that a node that
/// goes or comes moves only its own addresses.
pub fn owner<'a>(addr: IpAddr, candidates: impl IntoIterator<Item = &'a Arc<str>>) -> Option<&'a Arc<str>> {
    let weight = |node: &str| {
        let mut hash = StableHash::default();
        match addr {
            IpAddr::V4(v4) => hash.write(&v4.octets()),
            IpAddr::V6(v6) => hash.write(&v6.octets()),
        }
        hash.write(b"/");
        hash.write(node.as_bytes());
        hash.finish()
    };
    candidates.into_iter().max_by_key(|node| (weight(node), Arc::clone(node)))
}

/// Every address that is to be answered for, with the nodes that may: Ready ones that are neither excluded nor about to go, and with
/// externalTrafficPolicy Local only those with a ready endpoint; where nobody has one, those with one that still serves
/// while it terminates; else all, so that clients are refused rather than left waiting. Services that share an address
/// must all agree.
pub fn candidates(snapshot: &Snapshot) -> BTreeMap<IpAddr, BTreeSet<Arc<str>>> {
    let nodes = snapshot.nodes.values();
    let able = nodes.filter(|node| node.ready && !node.excluded_from_load_balancers && !node.draining);
    let able: BTreeSet<Arc<str>> = able.map(|node| Arc::clone(&node.name)).collect();
    let mut all: BTreeMap<IpAddr, BTreeSet<Arc<str>>> = BTreeMap::new();
    for service in snapshot.services.values().filter(|service| is_announced(service)) {
        let nodes: BTreeSet<Arc<str>> = match service.external_policy {
            TrafficPolicy::Cluster => able.clone(),
            TrafficPolicy::Local => with_endpoints(snapshot, service, &able),
        };
        for ingress in service.load_balancer.iter().filter(|ingress| ingress.mode == IngressMode::Vip) {
            all.entry(ingress.addr)
                .and_modify(|held| held.retain(|node| nodes.contains(node)))
                .or_insert_with(|| nodes.clone());
        }
    }
    all
}

fn with_endpoints(snapshot: &Snapshot, service: &Service, able: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
    let endpoints = snapshot.endpoints.get(&service.key).map_or(&[][..], |set| &set.endpoints[..]);
    let nodes_of = |usable: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<Arc<str>> {
        let nodes = endpoints.iter().filter(|endpoint| usable(endpoint)).filter_map(|e| e.node.as_ref());
        nodes.filter(|node| able.contains(*node)).cloned().collect()
    };
    let ready = nodes_of(&|e| e.ready || service.publish_not_ready);
    let going = || nodes_of(&|e| e.serving && e.terminating);
    [ready, going()].into_iter().find(|nodes| !nodes.is_empty()).unwrap_or_else(|| able.clone())
}

/// The addresses that `node_name` answers for. An address of a node is that node's, whoever claims it.
pub fn owned(snapshot: &Snapshot, node_name: &str) -> BTreeSet<IpAddr> {
    let of_nodes: BTreeSet<IpAddr> =
        snapshot.nodes.values().flat_map(|node| &node.addresses).map(|address| address.addr).collect();
    candidates(snapshot)
        .into_iter()
        .filter(|(addr, nodes)| {
            !of_nodes.contains(addr) && owner(*addr, nodes).is_some_and(|owner| **owner == *node_name)
        })
        .map(|(addr, _)| addr)
        .collect()
}

fn is_announced(service: &Service) -> bool {
    let class = service.load_balancer_class.as_deref();
    is_served(service)
        && service.kind == ServiceKind::LoadBalancer
        && class.is_none_or(|class| class.starts_with(CLASS_PREFIX))
}

#[cfg(test)]
mod tests {
    use seaway_model::{LoadBalancerIngress, Node, ServiceKey};

    use super::*;

    fn cluster(nodes: &[Node], vips: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        for node in nodes {
            snapshot.nodes.insert(Arc::clone(&node.name), Arc::new(node.clone()));
        }
        for (index, vip) in vips.iter().enumerate() {
            let mut service = Service::new(ServiceKey::new("default", &format!("web-{index}")));
            service.kind = ServiceKind::LoadBalancer;
            service.load_balancer =
                vec![LoadBalancerIngress { addr: vip.parse().unwrap(), mode: IngressMode::Vip }];
            snapshot.services.insert(service.key.clone(), Arc::new(service));
        }
        snapshot
    }

    fn owners(snapshot: &Snapshot) -> BTreeMap<IpAddr, String> {
        let nodes: Vec<String> = snapshot.nodes.keys().map(ToString::to_string).collect();
        let pairs =
            nodes.iter().flat_map(|node| owned(snapshot, node).into_iter().map(|a| (a, node.clone())));
        let all: Vec<(IpAddr, String)> = pairs.collect();
        let map: BTreeMap<IpAddr, String> = all.iter().cloned().collect();
        assert_eq!(map.len(), all.len(), "an address has two owners");
        map
    }

    #[test]
    fn every_address_has_one_owner_and_only_those_of_a_lost_node_move() {
        let vips: Vec<String> = (1..100).map(|i| format!("192.0.2.{i}")).collect();
        let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
        let before = owners(&cluster(&[Node::named("a"), Node::named("b"), Node::named("c")], &vips));
        assert_eq!(before.len(), vips.len());
        for name in ["a", "b", "c"] {
            assert!(before.values().filter(|owner| *owner == name).count() > 15, "{name} has too few");
        }
        let mut lost = Node::named("b");
        lost.ready = false;
        let after = owners(&cluster(&[Node::named("a"), lost, Node::named("c")], &vips));
        assert_eq!(after.len(), vips.len());
        for (addr, owner) in before.iter().filter(|(_, owner)| *owner != "b") {
            assert_eq!(after[addr], *owner);
        }
    }

    #[test]
    fn excluded_nodes_and_foreign_classes_answer_for_nothing() {
        let mut excluded = Node::named("a");
        excluded.excluded_from_load_balancers = true;
        assert!(owners(&cluster(&[excluded], &["192.0.2.1"])).is_empty());
        let mut snapshot = cluster(&[Node::named("a")], &["192.0.2.1"]);
        let mut service = (**snapshot.services.values().next().unwrap()).clone();
        service.load_balancer_class = Some("example.org/other".into());
        snapshot.services.insert(service.key.clone(), Arc::new(service));
        assert!(owners(&snapshot).is_empty());
    }

    #[test]
    fn policy_local_is_answered_for_where_the_endpoints_are() {
        let mut snapshot = cluster(&[Node::named("a"), Node::named("b"), Node::named("c")], &["192.0.2.1"]);
        let mut service = (**snapshot.services.values().next().unwrap()).clone();
        service.external_policy = TrafficPolicy::Local;
        let key = service.key.clone();
        snapshot.services.insert(key.clone(), Arc::new(service));
        let endpoint = |on: &str, ready: bool| Endpoint {
            node: Some(on.into()),
            ready,
            terminating: !ready,
            ..Endpoint::new("10.244.0.1".parse().unwrap(), [].into())
        };
        let mut owner_with = |endpoints: Vec<Endpoint>| {
            let set = seaway_model::EndpointSet { endpoints: endpoints.into() };
            snapshot.endpoints.insert(key.clone(), Arc::new(set));
            owners(&snapshot).into_values().next()
        };
        for name in ["a", "b", "c"] {
            assert_eq!(owner_with(vec![endpoint(name, true)]).as_deref(), Some(name));
            assert_eq!(owner_with(vec![endpoint(name, false)]).as_deref(), Some(name), "the last ones to go");
        }
        assert_eq!(owner_with(vec![endpoint("a", false), endpoint("b", true)]).as_deref(), Some("b"));
        assert!(owner_with(Vec::new()).is_some(), "somebody has to refuse");
    }

    #[test]
    fn an_address_of_a_node_is_never_answered_for() {
        let mut with_address = Node::named("a");
        let addr = "192.0.2.1".parse().unwrap();
        with_address.addresses =
            vec![seaway_model::NodeAddress { addr, kind: seaway_model::NodeAddressKind::Internal }];
        assert!(owners(&cluster(&[with_address, Node::named("b")], &["192.0.2.1"])).is_empty());
    }
}
