//! What a foreign API server may come up with, over every data plane in memory: what cannot be served keeps nothing else
//! from being served.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Protocol, Service, ServiceKey, ServiceKind, ServicePort, Snapshot,
};
use seaway_proxy::dataplane::fake::Fake;
use seaway_proxy::dataplane::{Dataplane, Subject, ebpf, iptables, nftables, userspace};
use seaway_proxy::desired::{Desired, NodeView, desired};
use seaway_proxy::frontend::{Frontend, FrontendKey, Scope};
use seaway_proxy::plan::{Host, diff};

const MANY: u16 = 10_000;
const NODE_ADDR: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 11));

fn dataplanes() -> Vec<Box<dyn Dataplane>> {
    vec![
        Box::new(Fake::default()),
        Box::new(ebpf::Ebpf::new(ebpf::Memory::new(4096, 32_768), 1024..=29_999, 1)),
        Box::new(nftables::Nftables::new(nftables::Memory::default())),
        Box::new(iptables::Iptables::new(iptables::Memory::new()).unwrap()),
        Box::new(userspace::Userspace::new(userspace::Memory::default())),
    ]
}

fn cluster_ip(last: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, last])
}

fn endpoint(addr: IpAddr) -> Endpoint {
    Endpoint::new(addr, [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into())
}

fn add(
    snapshot: &mut Snapshot,
    name: &str,
    last: u8,
    endpoints: Vec<Endpoint>,
    change: impl FnOnce(&mut Service),
) {
    let key = ServiceKey::new("default", name);
    let mut service = Service::new(key.clone());
    service.cluster_ips = vec![cluster_ip(last)];
    service.ports = vec![ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        app_protocol: None,
    }];
    change(&mut service);
    snapshot.services.insert(key.clone(), Arc::new(service));
    snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints: endpoints.into() }));
}

fn node_port(service: &mut Service) {
    service.kind = ServiceKind::NodePort;
    service.ports[0].node_port = Some(30_000);
}

fn cluster(change_many: impl FnOnce(&mut Service)) -> Desired {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    let v4 = |last| vec![endpoint(IpAddr::from([10, 244, 0, last]))];
    let many = (0..MANY).map(|number| {
        let [high, low] = number.to_be_bytes();
        endpoint(IpAddr::from([10, 245, high, low]))
    });
    add(&mut snapshot, "web", 1, v4(1), |_| {});
    add(&mut snapshot, "many", 2, many.collect(), change_many);
    add(&mut snapshot, "twin-a", 3, v4(3), node_port);
    add(&mut snapshot, "twin-b", 4, v4(4), node_port);
    add(&mut snapshot, "other-family", 5, vec![endpoint("fd00::5".parse().unwrap())], |_| {});
    // Endpoints of a Service that does not exist.
    snapshot
        .endpoints
        .insert(ServiceKey::new("default", "nobody"), Arc::new(EndpointSet { endpoints: v4(6).into() }));
    let view = NodeView { name: "node".into(), node_port_addresses: vec![NODE_ADDR], ..NodeView::default() };
    desired(&snapshot, &view)
}

/// What `dataplane` holds once it has been told everything, and the addresses that it refused.
fn applied(
    dataplane: &mut dyn Dataplane,
    wanted: &Desired,
) -> (imbl::OrdMap<FrontendKey, Arc<Frontend>>, Vec<IpAddr>) {
    let plan = diff(wanted, &Host::default(), &dataplane.read().unwrap());
    let failed = dataplane.apply(&plan).unwrap().failed;
    let refused = failed.iter().map(|failure| match failure.subject {
        Subject::Frontend(key) => key.addr,
        other => panic!("{}: {other:?} failed", dataplane.name()),
    });
    let refused = refused.collect();
    (dataplane.read().unwrap().frontends, refused)
}

fn at(addr: IpAddr, port: u16) -> FrontendKey {
    FrontendKey { addr, port, protocol: Protocol::Tcp, scope: Scope::Internal }
}

#[test]
fn every_data_plane_serves_what_makes_sense() {
    let wanted = cluster(|_| {});
    for mut dataplane in dataplanes() {
        let name = dataplane.name();
        let (held, refused) = applied(dataplane.as_mut(), &wanted);
        assert_eq!(refused, [] as [IpAddr; 0], "{name}");
        let backends = |addr, port| held[&at(addr, port)].backends.iter().map(|b| b.addr).collect::<Vec<_>>();
        assert_eq!(backends(cluster_ip(1), 80), [IpAddr::from([10, 244, 0, 1])], "{name}");
        assert_eq!(backends(cluster_ip(2), 80).len(), usize::from(MANY), "{name}");
        assert_eq!(
            backends(cluster_ip(4), 80),
            [IpAddr::from([10, 244, 0, 4])],
            "{name}: only its NodePort is taken"
        );
        assert_eq!(backends(NODE_ADDR, 30_000), [IpAddr::from([10, 244, 0, 3])], "{name}: the first by name");
        assert!(backends(cluster_ip(5), 80).is_empty(), "{name}: an address of another family is no backend");
        assert_eq!(held.len(), wanted.frontends.len(), "{name}: and nothing else");
    }
    assert_eq!(wanted.conflicts().len(), 1);
    assert_eq!(wanted.conflicts()[0].losers, ["default/twin-b"]);
}

/// Where ten thousand endpoints are more than a data plane can take, that one Service is refused.
#[test]
fn one_service_too_large_is_refused_alone() {
    let wanted = cluster(|service| service.session_affinity = Some(Duration::from_secs(60)));
    let dataplanes: [Box<dyn Dataplane>; 2] = [
        Box::new(ebpf::Ebpf::new(ebpf::Memory::new(4096, 4096), 1024..=29_999, 1)),
        Box::new(nftables::Nftables::new(nftables::Memory::default())),
    ];
    for mut dataplane in dataplanes {
        let name = dataplane.name();
        let (held, refused) = applied(dataplane.as_mut(), &wanted);
        assert!(
            !refused.is_empty() && refused.iter().all(|addr| *addr == cluster_ip(2)),
            "{name}: {refused:?}"
        );
        assert!(!held.contains_key(&at(cluster_ip(2), 80)), "{name}");
        assert!(
            held.contains_key(&at(cluster_ip(1), 80)) && held.contains_key(&at(NODE_ADDR, 30_000)),
            "{name}"
        );
    }
}
