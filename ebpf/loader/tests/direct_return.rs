//! Direct server return: what the node that a client reaches makes of a packet, what the backend's node makes of that,
//! packet by packet, and both between real kernels. Needs root and `ip`.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespaces")]

#[path = "support/node.rs"]
mod node;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/wire.rs"]
mod wire;
#[path = "support/world.rs"]
mod world;

use node::{Node, external};
use outside::{ACK, FAMILIES, Family, PASS, REDIRECT, UNTOUCHED, each_family_and_protocol, packet};
use seaway_ebpf_loader::{Counter, Direction, NodeConfig, Protocol, Role, ServiceEntry, ServiceMaps};
use wire::{TCP, UDP, frame, icmp, ip, read, tcp, udp};
use world::{ask_tcp, ask_udp, at, ready};

/// Bytes of the option.
fn option_bytes(f: &Family) -> usize {
    if f.is_v4() { 8 } else { 24 }
}

fn run(node: &Node, direction: Direction, packet: &[u8]) -> (i32, Vec<u8>) {
    let run = node.dataplane.run_packet(direction, packet, node.uplink(), 1).unwrap();
    (run.verdict, run.packet)
}

fn dsr(entry: &mut ServiceEntry) {
    entry.dsr = true;
}

/// Takes the option out of a frame, by the specification alone, having checked every length and the header's checksum.
fn without_option(f: &Family, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = bytes.to_vec();
    let be = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let start = if f.is_v4() {
        assert_eq!(bytes[14], 0x47, "header of 28 bytes");
        assert_eq!(wire::checksum(&[&bytes[14..42]]), 0, "header checksum with options");
        assert_eq!(usize::from(be(&bytes, 16)), bytes.len() - 14);
        34
    } else {
        assert_eq!(bytes[20], 60, "destination options");
        assert_eq!(usize::from(be(&bytes, 18)), bytes.len() - 54);
        bytes[20] = bytes[54];
        54
    };
    let option: Vec<u8> = bytes.drain(start..start + option_bytes(f)).collect();
    let len = u16::try_from(bytes.len() - if f.is_v4() { 14 } else { 54 }).unwrap().to_be_bytes();
    if f.is_v4() {
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&len);
        bytes[24..26].fill(0);
        let sum = wire::checksum(&[&bytes[14..34]]).to_be_bytes();
        bytes[24..26].copy_from_slice(&sum);
    } else {
        bytes[18..20].copy_from_slice(&len);
    }
    (bytes, option)
}

/// The option, by the specification alone.
fn option(f: &Family, next: u8, frontend: (&str, u16)) -> Vec<u8> {
    let port = frontend.1.to_be_bytes();
    match frontend.0.parse().unwrap() {
        std::net::IpAddr::V4(addr) => [&[0x9a, 8][..], &port, &addr.octets()].concat(),
        std::net::IpAddr::V6(addr) => {
            assert!(!f.is_v4());
            [&[next, 2, 0x1b, 20][..], &addr.octets(), &port, &[0, 0]].concat()
        }
    }
}

#[test]
fn a_remote_backend_sees_the_client_and_its_node_is_told_the_frontend() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], dsr);
        let (verdict, sent) =
            run(&node, Direction::Ingress, &packet(protocol, (f.client, 4000), (f.vip, 80)));
        assert_eq!(verdict, REDIRECT);
        let (plain, told) = without_option(f, &sent);
        let seen = read(&plain);
        assert_eq!((seen.ends(), seen.ttl), (format!("{} 4000 > {} 8080", f.client, f.remote), 63));
        let proto = if protocol == Protocol::Tcp { TCP } else { UDP };
        assert_eq!(told, option(f, proto, (f.vip, 80)));
        // A reply that comes by here is not this node's.
        let reply = packet(protocol, (f.remote, 8080), (f.client, 4000));
        for direction in [Direction::Ingress, Direction::Egress] {
            assert_eq!(run(&node, direction, &reply).0, UNTOUCHED, "{direction:?}");
        }
        if protocol == Protocol::Tcp {
            let later = frame(&ip(f.client, f.vip, TCP, tcp(4000, 80, ACK, 1001, 1, b"")));
            let (verdict, sent) = run(&node, Direction::Ingress, &later);
            let ends = format!("{} 4000 > {} 8080", f.client, f.remote);
            assert_eq!((verdict, read(&sent).ends()), (REDIRECT, ends), "only the first segment tells");
        }
    });
}

/// Who is in the cluster may be on the backend's node, whose stack answers it then and does not ask the programs.
#[test]
fn a_client_in_the_cluster_is_answered_the_way_it_came() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr-inside").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], dsr);
        let other = if f.is_v4() { "192.168.0.2" } else { "fd01::2" };
        let (verdict, sent) = run(&node, Direction::Ingress, &packet(protocol, (other, 4000), (f.vip, 80)));
        let seen = read(&sent);
        assert_eq!((verdict, seen.src.to_string().as_str()), (REDIRECT, f.node));
        assert_eq!(seen.dst.to_string(), f.remote);
    });
}

/// The backend's node would not believe it.
#[test]
fn a_node_port_at_an_address_that_is_not_known_for_a_nodes_is_answered_the_way_it_came() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr-unlisted").with_uplink();
        let direct = |entry: &mut ServiceEntry| (entry.dsr, entry.node_port) = (true, true);
        for (addr, seen_by_backend) in [(f.node, f.client), (f.vip, f.node)] {
            node.service(external(addr, 30_080, protocol), &[(f.remote, 8080, false)], direct);
            let (verdict, sent) =
                run(&node, Direction::Ingress, &packet(protocol, (f.client, 4000), (addr, 30_080)));
            let sent = if addr == f.node { without_option(f, &sent).0 } else { sent };
            assert_eq!((verdict, read(&sent).src.to_string().as_str()), (REDIRECT, seen_by_backend));
        }
    });
}

#[test]
fn one_client_port_to_two_frontends_of_one_backend_gets_another_source_for_the_second() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr-collision").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], dsr);
        node.service(external(f.other_vip, 80, protocol), &[(f.remote, 8080, false)], dsr);
        let (_, sent) = run(&node, Direction::Ingress, &packet(protocol, (f.client, 4000), (f.vip, 80)));
        without_option(f, &sent);
        let (verdict, sent) =
            run(&node, Direction::Ingress, &packet(protocol, (f.client, 4000), (f.other_vip, 80)));
        let seen = read(&sent);
        assert_eq!((verdict, seen.src.to_string().as_str()), (REDIRECT, f.node));
        assert!(node.counter(Counter::SnatCollision) >= 1);
        let reply = packet(protocol, (f.remote, 8080), (f.node, seen.src_port));
        let (verdict, answered) = run(&node, Direction::Ingress, &reply);
        assert_eq!(
            (verdict, read(&answered).ends()),
            (REDIRECT, format!("{} 80 > {} 4000", f.other_vip, f.client))
        );
    });
}

/// What the backend's node gets from the other one.
fn told(f: &Family, protocol: Protocol, backend: (&str, u16), frontend: (&str, u16)) -> Vec<u8> {
    let mut bytes = packet(protocol, (f.client, 4000), backend);
    let proto = if protocol == Protocol::Tcp { TCP } else { UDP };
    let (start, option) = (if f.is_v4() { 34 } else { 54 }, option(f, proto, frontend));
    bytes.splice(start..start, option);
    if f.is_v4() {
        let len = u16::try_from(bytes.len() - 14).unwrap().to_be_bytes();
        bytes[14] = 0x47;
        bytes[16..18].copy_from_slice(&len);
        bytes[24..26].fill(0);
        let sum = wire::checksum(&[&bytes[14..42]]).to_be_bytes();
        bytes[24..26].copy_from_slice(&sum);
    } else {
        let len = u16::try_from(bytes.len() - 54).unwrap().to_be_bytes();
        bytes[18..20].copy_from_slice(&len);
        bytes[20] = 60;
    }
    bytes
}

#[test]
fn the_backends_node_takes_the_option_out_and_answers_as_the_frontend() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr-backend").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.local, 8080, true), (f.remote, 8080, false)], dsr);
        let (verdict, given) =
            run(&node, Direction::Ingress, &told(f, protocol, (f.local, 8080), (f.vip, 80)));
        let plain = packet(protocol, (f.client, 4000), (f.local, 8080));
        assert_eq!((verdict, given), (PASS, plain), "the packet as it would be without any option");
        // At the link of a pod that may answer past the stack, too.
        let link = [("up0".to_owned(), Role::Pod)];
        assert!(node.dataplane.attach_devices(&link).unwrap().is_empty());
        let config = NodeConfig { hand_over: true, ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
        for direction in [Direction::Egress, Direction::PodIngress] {
            let reply = packet(protocol, (f.local, 8080), (f.client, 4000));
            let (verdict, answered) = run(&node, direction, &reply);
            assert_ne!(verdict, UNTOUCHED, "{direction:?}");
            assert_eq!(read(&answered).ends(), format!("{} 80 > {} 4000", f.vip, f.client), "{direction:?}");
        }
        node.dataplane.attach_devices(&[]).unwrap();
        // Later packets carry no option.
        let later = frame(&match protocol {
            Protocol::Tcp => ip(f.client, f.local, TCP, tcp(4000, 8080, ACK, 1001, 1, b"x")),
            Protocol::Udp => ip(f.client, f.local, UDP, udp(4000, 8080, b"more")),
        });
        assert_eq!(run(&node, Direction::Ingress, &later), (PASS, later));
    });
}

/// A NodePort is the same at every node: the address that the client reached is another's.
#[test]
fn a_node_port_at_another_node_is_known_by_its_number() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr-node-port").with_uplink();
        let direct = |entry: &mut ServiceEntry| (entry.dsr, entry.node_port) = (true, true);
        node.service(external(f.node, 30_080, protocol), &[(f.local, 8080, true)], direct);
        node.service(external(f.node, 81, protocol), &[(f.local, 8080, true)], dsr);
        let elsewhere = if f.is_v4() { "192.168.0.2" } else { "fd01::2" };
        let other = told(f, protocol, (f.local, 8080), (elsewhere, 81));
        assert_eq!(run(&node, Direction::Ingress, &other), (UNTOUCHED, other), "no NodePort");
        let (verdict, given) =
            run(&node, Direction::Ingress, &told(f, protocol, (f.local, 8080), (elsewhere, 30_080)));
        assert_eq!((verdict, given), (PASS, packet(protocol, (f.client, 4000), (f.local, 8080))));
        let (_, answered) =
            run(&node, Direction::Egress, &packet(protocol, (f.local, 8080), (f.client, 4000)));
        assert_eq!(read(&answered).ends(), format!("{elsewhere} 30080 > {} 4000", f.client));
    });
}

#[test]
fn an_option_that_this_node_would_not_have_written_is_not_believed() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("dsr-forged").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.local, 8080, true), (f.remote, 8080, false)], dsr);
        node.service(external(f.vip, 81, protocol), &[(f.local, 8080, true)], |_| {});
        let node_port = |entry: &mut ServiceEntry| (entry.dsr, entry.node_port) = (true, true);
        node.service(external(f.node, 30_080, protocol), &[(f.local, 8080, true)], node_port);
        for (backend, frontend) in [
            ((f.local, 8080), (f.vip, 81)),        // without direct return
            ((f.local, 8081), (f.vip, 80)),        // no backend of it
            ((f.remote, 8080), (f.vip, 80)),       // not here
            ((f.local, 8080), (f.other_vip, 80)),  // no frontend
            ((f.local, 8080), (f.client, 30_080)), // at no node
        ] {
            let packet = told(f, protocol, backend, frontend);
            assert_eq!(
                run(&node, Direction::Ingress, &packet),
                (UNTOUCHED, packet),
                "{backend:?} {frontend:?}"
            );
        }
        assert!(node.maps.connections().unwrap().is_empty());
    });
}

#[test]
fn a_datagram_that_has_no_room_for_the_option_is_answered_with_the_mtu_less_the_option() {
    for f in &FAMILIES {
        let mut node = Node::new("dsr-mtu").with_uplink();
        node.service(external(f.vip, 80, Protocol::Udp), &[(f.remote, 8080, false)], dsr);
        let datagram = |len: usize| frame(&ip(f.client, f.vip, UDP, udp(4000, 80, &vec![7; len])));
        let headers = if f.is_v4() { 28 } else { 48 };
        let room = 1500 - headers - option_bytes(f);
        let (verdict, answer) = run(&node, Direction::Ingress, &datagram(room + 1));
        let answer = read(&answer);
        assert_eq!((verdict, answer.dst.to_string().as_str()), (REDIRECT, f.client));
        let mtu = u32::from_be_bytes(answer.payload[4..8].try_into().unwrap());
        assert_eq!(
            (answer.payload[0], mtu as usize),
            (if f.is_v4() { 3 } else { 2 }, 1500 - option_bytes(f))
        );
        let (_, sent) = run(&node, Direction::Ingress, &datagram(room));
        assert_eq!(sent.len(), 1514);
        without_option(f, &sent);
        // Now that the backend's node knows, the option is left out where it does not fit.
        let (verdict, sent) = run(&node, Direction::Ingress, &datagram(1500 - headers));
        assert_eq!((verdict, read(&sent).dst.to_string().as_str()), (REDIRECT, f.remote));
    }
}

#[test]
fn icmp_errors_about_what_was_answered_directly_reach_the_backend() {
    for f in &FAMILIES {
        let mut node = Node::new("dsr-icmp").with_uplink();
        node.service(external(f.vip, 80, Protocol::Tcp), &[(f.remote, 8080, false)], dsr);
        run(&node, Direction::Ingress, &packet(Protocol::Tcp, (f.client, 4000), (f.vip, 80)));
        // A router near the client, about a segment from the frontend.
        let about = ip(f.vip, f.client, TCP, tcp(80, 4000, ACK, 1, 1, b""));
        let quoted = &about[..if f.is_v4() { 28 } else { 48 }];
        let (proto, kind, code) = if f.is_v4() { (1, 3, 4) } else { (58, 2, 0) };
        let router = if f.is_v4() { "203.0.113.1" } else { "2001:db8::1" };
        let error = frame(&ip(router, f.vip, proto, icmp(kind, code, 1280, quoted)));
        let (verdict, sent) = run(&node, Direction::Ingress, &error);
        let seen = read(&sent);
        assert_eq!((verdict, seen.dst.to_string().as_str()), (REDIRECT, f.remote));
        let inner = wire::read_ip(&seen.payload[8..]);
        assert_eq!(inner.ends(), format!("{} 8080 > {} 4000", f.remote, f.client));
    }
}

/// The client has a second wire, to the other node, over which only answers come:
/// ```text
/// client c0 ──── up0 a ab0 ──── ba0 b pods 10.244.2.9, fd00:244:2::9; bp0 ── 10.244.3.9, fd00:244:3::9
///        c1 ────────────────── bc0 b
/// ```
#[test]
fn a_backend_elsewhere_answers_the_client_by_the_way_that_is_its_own() {
    let (mut world, mut entry) = ready();
    world.add("bpod");
    world.wire(("client", "c1"), ("b", "bc0"));
    world.wire(("b", "bp0"), ("bpod", "eth0"));
    for (name, command) in [
        ("client", "addr add 198.51.100.7/24 dev c1"),
        ("client", "addr add fd02::7/64 dev c1 nodad"),
        ("b", "addr add 198.51.100.1/24 dev bc0"),
        ("b", "addr add fd02::1/64 dev bc0 nodad"),
        ("b", "route add 203.0.113.0/24 via 198.51.100.7"),
        ("b", "route add 2001:db8::/64 via fd02::7"),
        ("b", "addr add 10.244.3.1/24 dev bp0"),
        ("b", "addr add fd00:244:3::1/64 dev bp0 nodad"),
        ("bpod", "addr add 10.244.3.9/24 dev eth0"),
        ("bpod", "addr add fd00:244:3::9/64 dev eth0 nodad"),
        ("bpod", "route add default via 10.244.3.1"),
        ("bpod", "route add default via fd00:244:3::1"),
        ("a", "route add 10.244.3.0/24 via 192.168.0.2"),
        ("a", "route add fd00:244:3::/64 via fd01::2"),
    ] {
        world.ip(name, command);
    }
    world.inside("b", || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    for addr in ["10.244.3.9:8080", "[fd00:244:3::9]:8080"] {
        world.tcp_server("bpod", addr, "bpod");
        world.udp_server("bpod", addr, "bpod");
    }
    let mut other = Node::new("dsr-other");
    world.enter("b");
    let devices = [("ba0", Role::Uplink), ("bc0", Role::Uplink), ("bp0", Role::Pod)];
    let devices = devices.map(|(name, role)| (name.to_owned(), role));
    assert!(other.dataplane.attach_devices(&devices).unwrap().is_empty());
    world.enter("a");
    for f in &world::FAMILIES {
        let pod = if f.other.contains(':') { "fd00:244:3::9" } else { "10.244.3.9" };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (port, backend) in [(80, f.other), (81, pod)] {
                entry.service(external(f.vip, port, protocol), &[(backend, 8080, false)], dsr);
                other.service(external(f.vip, port, protocol), &[(backend, 8080, true)], dsr);
                entry.service(external(f.own, 30_000 + port, protocol), &[(backend, 8080, false)], dsr);
                other.service(external(f.own, 30_000 + port, protocol), &[(backend, 8080, true)], dsr);
            }
        }
        for (to, from) in [
            (at(f.vip, 80), "b"),
            (at(f.vip, 81), "bpod"),
            (at(f.own, 30_080), "b"),
            (at(f.own, 30_081), "bpod"),
        ] {
            let said = world.inside("client", || ask_tcp(to, 300_000)).unwrap();
            assert_eq!(said, format!("{from} {} 300000", f.seen_by_pod), "TCP to {to}");
            let said = world.inside("client", || ask_udp(to, 100)).unwrap();
            assert_eq!(said, format!("{from} {} 100", f.seen_by_pod), "UDP to {to}");
        }
    }
    assert!(entry.counter(Counter::Forward) > 0);
    assert_eq!(entry.counter(Counter::Reply), 0, "no answer came by the node that the client asked");
    assert!(other.counter(Counter::Reply) > 0);
    // More than fits with the option: the sender is told, and sends fragments, for which there is source NAT.
    for f in &world::FAMILIES {
        let said = world.inside("client", || ask_udp(at(f.vip, 80), 1470)).unwrap();
        assert_eq!(said, format!("b {} 1470", f.seen_by_other));
    }
}
