//! Random clusters, small enough that names, addresses and ports meet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use seaway_model::{
    Balancing, Endpoint, EndpointPort, EndpointSet, Forwarding, IngressMode, LoadBalancerIngress, Node,
    NodeAddress, Protocol, Service, ServiceKey, ServiceKind, ServicePort, Snapshot, TrafficDistribution,
    TrafficPolicy,
};

/// The node that states are computed for.
pub(crate) const NODE: &str = "node-a";

const NAMES: [&str; 4] = ["web", "api", "db", "dns"];
const NODES: [&str; 3] = [NODE, "node-b", "node-c"];
const ENDPOINT_ADDRS: [&str; 6] =
    ["10.244.1.1", "10.244.1.2", "10.244.2.1", "fd00:10:244:1::1", "fd00:10:244:1::2", "fd00:10:244:2::1"];
const CLUSTER_IPS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd00:10:96::1", "fd00:10:96::2"];
const VIPS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
const RANGES: [&str; 3] = ["203.0.113.0/24", "198.51.100.0/25", "2001:db8:1::/48"];

fn protocol() -> impl Strategy<Value = Protocol> {
    // The eBPF data plane refuses SCTP, so it is not a part of the worlds that every data plane must hold.
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn addrs(pool: &'static [&'static str], max: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(pool.to_vec(), 0..=max).prop_map(|texts| texts.iter().map(|t| t.parse().unwrap()).collect())
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port =
        (select(vec!["a", "b"]), protocol(), select(vec![80_u16, 443]), prop::option::of(30_000..30_003_u16));
    prop::collection::vec(port, 1..3).prop_map(|ports| {
        let port = |(name, protocol, port, node_port): (&str, Protocol, u16, Option<u16>)| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port,
            app_protocol: None,
        };
        ports.into_iter().map(port).collect()
    })
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn service() -> impl Strategy<Value = Service> {
    let addresses = (addrs(&CLUSTER_IPS, 3), addrs(&VIPS, 2), addrs(&VIPS, 2), any::<bool>());
    let switches =
        (policy(), policy(), any::<bool>(), select(vec![None, Some(60_u64)]), select(vec![0, 1, 2, 3]));
    let ranges = subsequence(RANGES.to_vec(), 0..=2);
    (select(NAMES.to_vec()), ports(), addresses, switches, ranges).prop_map(
        |(name, ports, (cluster_ips, vips, external_ips, proxied), switches, ranges)| {
            let (external_policy, internal_policy, publish_not_ready, affinity_s, distribution) = switches;
            let mode = if proxied { IngressMode::Proxy } else { IngressMode::Vip };
            let mut service = Service::new(ServiceKey::new("default", name));
            service.kind = ServiceKind::LoadBalancer;
            service.ports = ports;
            service.cluster_ips = cluster_ips;
            service.external_ips = external_ips;
            service.load_balancer = vips.into_iter().map(|addr| LoadBalancerIngress { addr, mode }).collect();
            service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            service.session_affinity = affinity_s.map(Duration::from_secs);
            service.external_policy = external_policy;
            service.internal_policy = internal_policy;
            service.publish_not_ready = publish_not_ready;
            service.traffic_distribution = match distribution {
                0 => None,
                1 => Some(TrafficDistribution::PreferSameNode),
                _ => Some(TrafficDistribution::PreferSameZone),
            };
            service.balancing = (distribution == 3).then_some(Balancing::Maglev);
            service.forwarding = (distribution == 1).then_some(Forwarding::Dsr);
            service
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let ports = prop::collection::vec((select(vec!["a", "b"]), protocol(), 8080..8083_u16), 1..4);
    let state = select(vec![(true, true, false), (false, false, false), (false, true, true)]);
    (select(ENDPOINT_ADDRS.to_vec()), select(NODES.to_vec()), state, ports).prop_map(
        |(addr, node, (ready, serving, terminating), ports)| {
            let port =
                |(name, protocol, port): (&str, _, _)| EndpointPort { name: name.into(), protocol, port };
            let ports = ports.into_iter().map(port).collect();
            Endpoint {
                node: Some(node.into()),
                zone: Some(if node == "node-c" { "z2" } else { "z1" }.into()),
                ready,
                serving,
                terminating,
                ..Endpoint::new(addr.parse().unwrap(), ports)
            }
        },
    )
}

/// A cluster of a few Services that quarrel about addresses.
pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let services = prop::collection::vec(service(), 0..5);
    let endpoints =
        prop::collection::vec((select(NAMES.to_vec()), prop::collection::vec(endpoint(), 0..6)), 0..5);
    (services, endpoints, any::<bool>()).prop_map(|(services, endpoints, other_address)| {
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        for service in services {
            snapshot.services.insert(service.key.clone(), Arc::new(service));
        }
        for (name, endpoints) in endpoints {
            let key = ServiceKey::new("default", name);
            snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints: endpoints.into() }));
        }
        let addr = if other_address { "172.30.0.99" } else { "172.30.0.11" };
        snapshot.nodes.insert(NODE.into(), Arc::new(node(&[addr, "fd00:10:30::11"])));
        snapshot
    })
}

/// The node that states are computed for, with these addresses.
pub(crate) fn node(addrs: &[&str]) -> Node {
    let address = |text: &&str| NodeAddress::internal(text.parse().unwrap());
    Node { addresses: addrs.iter().map(address).collect(), zone: Some("z1".into()), ..Node::named(NODE) }
}
