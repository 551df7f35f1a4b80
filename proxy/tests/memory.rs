//! The battery over the data planes that live in memory, and what the desired state must fulfil by itself.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "battery/world.rs"]
mod world;

use laws::dataplane_battery;
use proptest::prelude::*;
use seaway_ebpf_loader::Role;
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::ebpf::{Ebpf, Memory};
use seaway_proxy::dataplane::fake::Fake;
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::desired::{Computation, NodeView, desired};
use seaway_proxy::plan::{ClusterNets, Device, Host, Plan, diff, diff_of};

fn ebpf_in_memory() -> Ebpf<Memory> {
    // A few Maglev tables, old and new ones side by side, are more than the maps begin with.
    ebpf_with(Memory { grows: true, ..Memory::new(4096, 4096) })
}

fn ebpf_with(memory: Memory) -> Ebpf<Memory> {
    Ebpf::new(memory, 1024..=29_999, 1)
}

dataplane_battery!(fake, 48, Fake::default);
dataplane_battery!(ebpf_maps_in_memory, 48, ebpf_in_memory);

#[test]
fn faulty_fake_converges() {
    laws::it_converges(|| Faulty::new(Fake::default(), 30, 7), 48);
}

#[test]
fn faulty_ebpf_converges() {
    laws::it_converges(|| Faulty::new(ebpf_in_memory(), 10, 11), 48);
}

/// What the node is told to be is what is read back, and reaches the programs: which links hand packets over, and whether
/// pods' packets are.
#[test]
fn the_node_is_as_it_is_planned() {
    let mut dataplane = ebpf_in_memory();
    let device = |name: &str, index| Device { name: name.into(), index };
    let pod_links = [device("sw1", 3), device("sw2", 4)];
    let mut host = Host {
        uplinks: [device("eth0", 2)].into(),
        shaped_links: [pod_links[1].clone()].into(),
        pod_links: pod_links.into(),
        ..Host::default()
    };
    let named = |names: [(&str, Role); 3]| names.map(|(name, role)| (name.to_owned(), role)).into();
    for (hand_over, role) in [(true, Role::ShapedPod), (false, Role::ShapedPod), (true, Role::Pod)] {
        host.hand_over = hand_over;
        if role == Role::Pod {
            host.shaped_links.clear();
        }
        let plan = Plan { host: Some(host.clone()), ..Plan::default() };
        assert!(dataplane.apply(&plan).unwrap().failed.is_empty());
        assert_eq!(dataplane.read().unwrap().host, host);
        assert_eq!(dataplane.kernel().maps.config.hand_over, hand_over);
        let wanted = named([("eth0", Role::Uplink), ("sw1", Role::Pod), ("sw2", role)]);
        assert_eq!(dataplane.kernel().devices, wanted);
    }
}

/// The cluster's networks may be thousands, while a node's links come and go with its pods: they are set when they are others
/// or when nobody knows what the maps hold, and not with each change of a link.
#[test]
fn networks_are_not_set_with_each_change_of_a_link() {
    let mut dataplane = ebpf_in_memory();
    let nets = |number: u8| ClusterNets {
        pods: [format!("10.244.{number}.0/24").parse().unwrap()].into(),
        ..ClusterNets::default()
    };
    let device = |index: u32| Device { name: format!("sw{index}").into(), index };
    let host = |cluster, links: &[u32]| Host {
        cluster: std::sync::Arc::new(cluster),
        pod_links: links.iter().copied().map(device).collect(),
        ..Host::default()
    };
    let steps = [(host(nets(1), &[3]), true), (host(nets(1), &[3, 4]), false), (host(nets(2), &[4]), true)];
    for (host, are_set) in steps {
        let before = dataplane.kernel().maps.writes;
        dataplane.apply(&Plan { host: Some(host.clone()), ..Plan::default() }).unwrap();
        assert_eq!(dataplane.kernel().maps.writes != before, are_set, "{host:?}");
        assert_eq!(ebpf_with(dataplane.kernel().clone()).read().unwrap().host.cluster, host.cluster);
    }
    // Who has just come knows what is there once it has looked.
    let mut successor = ebpf_with(dataplane.kernel().clone());
    let found = successor.read().unwrap().host;
    let before = successor.kernel().maps.writes;
    let host = Host { pod_links: [device(5)].into(), ..found };
    successor.apply(&Plan { host: Some(host), ..Plan::default() }).unwrap();
    assert_eq!(successor.kernel().maps.writes, before);
}

/// Flows whose endpoint serves are left alone; of the others, UDP goes.
#[test]
fn stale_udp_flows_are_forgotten_by_address_and_port() {
    let mut snapshot = seaway_model::Snapshot { synced: true, ..seaway_model::Snapshot::default() };
    let key = seaway_model::ServiceKey::new("default", "dns");
    let mut service = seaway_model::Service::new(key.clone());
    service.cluster_ips = vec!["10.96.0.10".parse().unwrap()];
    service.ports = vec![port(seaway_model::Protocol::Udp)];
    snapshot.services.insert(key.clone(), std::sync::Arc::new(service));
    let mut endpoints = one_endpoint([10, 244, 1, 1]);
    let mut endpoint = endpoints.endpoints[0].clone();
    endpoint.ports =
        [seaway_model::EndpointPort { name: "".into(), protocol: seaway_model::Protocol::Udp, port: 53 }]
            .into();
    endpoints.endpoints = [endpoint].into();
    snapshot.endpoints.insert(key, std::sync::Arc::new(endpoints));

    let mut dataplane = ebpf_in_memory();
    let plan = diff(&desired(&snapshot, &view()), &Host::default(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    let id = dataplane.kernel().maps.services.values().map(|entry| entry.id).max().unwrap();
    let connection = |protocol, client, port, service| seaway_ebpf_loader::Connection {
        protocol,
        from: (("192.0.2.100".parse().unwrap(), client), ("10.96.0.10".parse().unwrap(), 80)),
        to: (("192.0.2.100".parse().unwrap(), client), ("10.244.1.1".parse().unwrap(), port)),
        reply: false,
        snat: false,
        masqueraded: false,
        seen_reply: true,
        closing: false,
        service,
        idle: std::time::Duration::ZERO,
    };
    let (tcp, udp) = (seaway_ebpf_loader::Protocol::Tcp, seaway_ebpf_loader::Protocol::Udp);
    let (live, of_tcp) = (connection(udp, 4000, 53, id), connection(tcp, 4001, 5353, id));
    let mut memory = dataplane.kernel().clone();
    memory.maps.connections =
        vec![live, of_tcp, connection(udp, 4002, 5353, id), connection(udp, 4003, 53, id.wrapping_add(1))];
    let mut dataplane = ebpf_with(memory);
    let forgotten = dataplane.forget_udp(&seaway_proxy::stale::serving_udp(&snapshot)).unwrap();
    assert_eq!((forgotten.v4, forgotten.v6), (2, 0));
    assert_eq!(dataplane.kernel().maps.connections, [live, of_tcp]);
}

/// Connections of a former mode are left to it: while the first Services are written those whose beginning was not
/// seen, then those that are known. A successor in the same mode has nobody to take over from.
#[test]
fn connections_of_a_former_mode_are_passed_by() {
    let mut memory = Memory::new(64, 64);
    let ends = |port: u16| (std::net::IpAddr::from([172, 30, 0, 100]), port);
    let untouched = |port, to| {
        seaway_ebpf_loader::Connection::untouched(seaway_ebpf_loader::Protocol::Tcp, ends(port), to)
    };
    let service: std::net::IpAddr = [10, 96, 0, 10].into();
    let open = seaway_nft::conntrack::Flow {
        protocol: 6,
        zone: 0,
        original: seaway_nft::conntrack::Tuple {
            source: ends(4000).into(),
            destination: ends(30_001).into(),
        },
        reply: seaway_nft::conntrack::Tuple {
            source: (service, 8080).into(),
            destination: ends(4000).into(),
        },
        id: None,
        tcp_state: Some(3),
    };
    let ended = seaway_nft::conntrack::Flow { tcp_state: Some(7), ..open };
    let elsewhere = seaway_nft::conntrack::Flow { zone: 1, ..open };
    memory.tracked = vec![open, ended, elsewhere];
    memory.accepted = vec![untouched(4001, (service, 80)), untouched(4002, ends(22))];
    let mut snapshot = seaway_model::Snapshot { synced: true, ..seaway_model::Snapshot::default() };
    let key = seaway_model::ServiceKey::new("default", "web");
    let mut web = seaway_model::Service::new(key.clone());
    web.cluster_ips = vec![service];
    web.ports = vec![port(seaway_model::Protocol::Tcp)];
    snapshot.services.insert(key.clone(), std::sync::Arc::new(web));
    snapshot.endpoints.insert(key.clone(), std::sync::Arc::new(one_endpoint([10, 244, 1, 1])));
    let mut dataplane = ebpf_with(memory);
    let plan = diff(&desired(&snapshot, &view()), &Host::default(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    let kernel = dataplane.kernel();
    assert_eq!(kernel.maps.connections, [untouched(4001, (service, 80)), untouched(4000, ends(30_001))]);
    assert_eq!(kernel.settled_while_taking_over.get(), Some(true));
    assert!(kernel.forgotten.get() > 0, "ports of ended connections are not given back");
    assert!(!kernel.maps.config.taking_over);

    let mut memory = kernel.clone();
    (memory.tracked, memory.accepted) = (Vec::new(), Vec::new());
    memory.settled_while_taking_over.set(None);
    // The former process may have ended in the middle.
    memory.maps.config.taking_over = true;
    let mut successor = Ebpf::new(memory, 1024..=29_999, 1);
    snapshot.endpoints.insert(key, std::sync::Arc::new(one_endpoint([10, 244, 1, 2])));
    let plan = diff(&desired(&snapshot, &view()), &Host::default(), &successor.read().unwrap());
    assert!(!successor.kernel().maps.config.taking_over);
    successor.apply(&plan).unwrap();
    assert_eq!(successor.kernel().settled_while_taking_over.get(), None);
}

/// What is counted for a backend that is gone is given back, and all of it once nobody counts any more.
#[test]
fn what_was_counted_goes_with_its_backend() {
    let mut snapshot = seaway_model::Snapshot { synced: true, ..seaway_model::Snapshot::default() };
    let key = seaway_model::ServiceKey::new("default", "web");
    let mut service = seaway_model::Service::new(key.clone());
    service.cluster_ips = vec!["10.96.0.10".parse().unwrap()];
    service.ports = vec![port(seaway_model::Protocol::Tcp)];
    snapshot.services.insert(key.clone(), std::sync::Arc::new(service));
    snapshot.endpoints.insert(key.clone(), std::sync::Arc::new(one_endpoint([10, 244, 1, 1])));
    let mut dataplane = ebpf_in_memory();
    assert!(dataplane.count_traffic().is_some());
    let plan = diff(&desired(&snapshot, &view()), &Host::default(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    let id = dataplane.kernel().maps.services.values().map(|entry| entry.id).max().unwrap();
    let counted = |last: u8| seaway_ebpf_loader::Traffic {
        service: id,
        backend: ([10, 244, 1, last].into(), 8080),
        connections: 1,
        packets_in: 0,
        bytes_in: 0,
        packets_out: 0,
        bytes_out: 0,
    };
    let mut memory = dataplane.kernel().clone();
    memory.maps.traffic = vec![counted(1), counted(2)];
    let mut dataplane = ebpf_with(memory);
    let table = dataplane.count_traffic().unwrap();
    dataplane.read().unwrap();
    assert_eq!(dataplane.kernel().maps.traffic, [counted(1)]);
    assert!(dataplane.kernel().maps.config.stats);
    let named = table.traffic().unwrap();
    let group =
        seaway_proxy::frontend::Group::of(&key, "", seaway_model::Protocol::Tcp, seaway_model::Family::V4);
    assert!(
        named.iter().all(|traffic| traffic.group == group) && named.len() == 2,
        "as of when it was taken"
    );
    let mut silent = Ebpf::new(dataplane.kernel().clone(), 1024..=29_999, 1);
    silent.read().unwrap();
    assert!(silent.kernel().maps.traffic.is_empty() && !silent.kernel().maps.config.stats);
}

fn port(protocol: seaway_model::Protocol) -> seaway_model::ServicePort {
    seaway_model::ServicePort { name: "".into(), protocol, port: 80, node_port: None, app_protocol: None }
}

/// What one endpoint's change costs does not depend on how much there is.
#[test]
fn one_change_among_many_is_two_writes() {
    let mut snapshot = seaway_model::Snapshot { synced: true, ..seaway_model::Snapshot::default() };
    for index in 0..1000_u16 {
        let key = seaway_model::ServiceKey::new("default", &format!("web-{index}"));
        let mut service = seaway_model::Service::new(key.clone());
        let [high, low] = index.to_be_bytes();
        service.cluster_ips = vec![std::net::IpAddr::from([10, 96, high, low])];
        service.ports = vec![port(seaway_model::Protocol::Tcp)];
        snapshot.services.insert(key.clone(), std::sync::Arc::new(service));
        snapshot.endpoints.insert(key, std::sync::Arc::new(one_endpoint([10, 244, high, low])));
    }
    let mut computation = Computation::default();
    let mut dataplane = Ebpf::new(Memory::new(8192, 8192), 1024..=29_999, 1);
    let mut actual = dataplane.read().unwrap();
    let changed = computation.update(&snapshot, &view());
    let plan = diff_of(&changed, computation.desired(), &Host::default(), &actual);
    dataplane.apply(&plan).unwrap();
    actual = actual.after(&plan);
    let writes = dataplane.kernel().maps.writes;
    let mut next = snapshot.clone();
    let key = seaway_model::ServiceKey::new("default", "web-500");
    next.endpoints.insert(key, std::sync::Arc::new(one_endpoint([10, 245, 0, 1])));
    let changed = computation.update(&next, &view());
    let plan = diff_of(&changed, computation.desired(), &Host::default(), &actual);
    assert_eq!((changed.len(), plan.len()), (2, 2), "the frontend of either scope");
    dataplane.apply(&plan).unwrap();
    assert!(dataplane.kernel().maps.writes - writes <= 3, "one slice, two services");
}

fn one_endpoint(addr: [u8; 4]) -> seaway_model::EndpointSet {
    let port =
        seaway_model::EndpointPort { name: "".into(), protocol: seaway_model::Protocol::Tcp, port: 8080 };
    let endpoint = seaway_model::Endpoint::new(addr.into(), [port].into());
    seaway_model::EndpointSet { endpoints: [endpoint].into() }
}

fn view() -> NodeView {
    NodeView {
        name: world::NODE.into(),
        zone: Some("z1".into()),
        node_port_addresses: vec!["172.30.0.11".parse().unwrap(), "fd00:10:30::11".parse().unwrap()],
        node_port_loopback: true,
        maglev_offered: true,
        dsr_offered: true,
        ..NodeView::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The desired state depends on the last snapshot only: not on the order of events, not on what was before.
    #[test]
    fn the_past_does_not_matter(past in prop::collection::vec(world::snapshot(), 0..4), now in world::snapshot()) {
        let mut computation = Computation::default();
        for snapshot in past.iter().chain([&now]) {
            computation.update(snapshot, &view());
        }
        let fresh = desired(&now, &view());
        prop_assert_eq!(&computation.desired().frontends, &fresh.frontends);
        prop_assert_eq!(computation.desired().conflicts(), fresh.conflicts());
        prop_assert_eq!(computation.desired().backend_count(), fresh.backend_count());
        prop_assert_eq!(computation.desired().service_count(), fresh.service_count());
        for family in seaway_model::Family::ALL {
            let (held, wanted) = (computation.desired().no_local_endpoints(family), fresh.no_local_endpoints(family));
            prop_assert_eq!(held, wanted);
        }
    }

    /// Backends are ordered, without copies, of the frontend's family; a frontend that says "elsewhere" has none.
    #[test]
    fn frontends_are_well_formed(snapshot in world::snapshot()) {
        for (key, entry) in &desired(&snapshot, &view()).frontends {
            let backends = &entry.frontend.backends;
            prop_assert!(backends.windows(2).all(|pair| (pair[0].addr, pair[0].port) < (pair[1].addr, pair[1].port)));
            prop_assert!(backends.iter().all(|b| b.addr.is_ipv4() == key.addr.is_ipv4()));
            prop_assert!(!entry.frontend.elsewhere || backends.is_empty());
            if entry.frontend.preserve_source {
                prop_assert!(backends.iter().all(|b| b.local));
            }
        }
    }

    /// A process that starts anew finds what the former one left, and has nothing to do.
    #[test]
    fn a_restart_adopts(snapshot in world::snapshot(), next in world::snapshot()) {
        let mut former = ebpf_in_memory();
        let wanted = desired(&snapshot, &view());
        let plan = diff(&wanted, &Host::default(), &former.read().unwrap());
        former.apply(&plan).unwrap();
        let mut successor = Ebpf::new(former.kernel().clone(), 1024..=29_999, 1);
        let actual = successor.read().unwrap();
        prop_assert!(diff(&wanted, &Host::default(), &actual).is_empty());
        let writes = successor.kernel().maps.writes;
        prop_assert_eq!(writes, former.kernel().maps.writes, "reading writes nothing");
        let changed = desired(&next, &view());
        successor.apply(&diff(&changed, &Host::default(), &actual)).unwrap();
        prop_assert!(diff(&changed, &Host::default(), &successor.read().unwrap()).is_empty());
    }
}
