//! The packet programs between real kernels: a client outside of the cluster, a node with a pod, and a second node,
//! each a network namespace. Nothing is simulated but the wire. Needs root and `ip`.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "setns(2)")]

#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use node::external;
use seaway_ebpf_loader::{ClusterNet, ClusterNetKind, Counter, NodeConfig, Protocol, Role, ServiceMaps};
use world::{FAMILIES, ask_tcp, ask_udp, at, ready};

#[test]
fn clients_outside_reach_pods_here_and_elsewhere() {
    let (world, mut node) = ready();
    for f in &FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            node.service(external(f.vip, 80, protocol), &[(f.pod, 8080, true)], |_| {});
            node.service(external(f.vip, 81, protocol), &[(f.other, 8080, false)], |_| {});
            node.service(external(f.own, 30_080, protocol), &[(f.other, 8080, false)], |entry| {
                entry.node_port = true;
            });
        }
        for (to, from, seen) in [
            (at(f.vip, 80), "pod", f.seen_by_pod),
            (at(f.vip, 81), "b", f.seen_by_other),
            (at(f.own, 30_080), "b", f.seen_by_other),
        ] {
            // A megabyte: segments larger than the wire, whose checksums are the device's.
            let said = world.inside("client", || ask_tcp(to, 1_000_000)).unwrap();
            assert_eq!(said, format!("{from} {seen} 1000000"), "TCP to {to}");
            let said = world.inside("client", || ask_udp(to, 100)).unwrap();
            assert_eq!(said, format!("{from} {seen} 100"), "UDP to {to}");
            let said = world.inside("client", || ask_udp(to, 4000)).unwrap();
            assert_eq!(said, format!("{from} {seen} 4000"), "fragmented UDP to {to}");
        }
    }
    assert!(node.counter(Counter::Forward) > 0);
}

/// Packets that this thread's network namespace has forwarded by its stack.
fn forwarded() -> u64 {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
    let v4 = read("snmp").lines().filter_map(|line| line.strip_prefix("Ip: ")).nth(1).unwrap().to_owned();
    // Forwarding, DefaultTTL, InReceives, InHdrErrors, InAddrErrors, ForwDatagrams
    let v4: u64 = v4.split(' ').nth(5).unwrap().parse().unwrap();
    let v6 = read("snmp6");
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")).unwrap().trim();
    v4 + v6.parse::<u64>().unwrap()
}

#[test]
fn packets_of_clients_and_pods_with_programs_at_their_links_pass_the_stack_by() {
    let (world, mut node) = ready();
    let devices = |with_pod: bool| -> Vec<(String, Role)> {
        let pod = with_pod.then_some(("pod0", Role::Pod));
        let all = [("up0", Role::Uplink), ("ab0", Role::Uplink)].into_iter().chain(pod);
        all.map(|(name, role)| (name.to_owned(), role)).collect()
    };
    assert!(node.dataplane.attach_devices(&devices(true)).unwrap().is_empty());
    for f in &FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            node.service(external(f.vip, 80, protocol), &[(f.pod, 8080, true)], |_| {});
            node.service(external(f.own, 30_080, protocol), &[(f.pod, 8080, true)], |_| {});
            node.service(external(f.vip, 91, protocol), &[(f.pod, 9, true)], |_| {});
        }
    }
    // A datagram of 4,000 bytes comes in fragments, which go through the stack.
    let ask = |sizes: &[usize]| {
        for f in &FAMILIES {
            for to in [at(f.vip, 80), at(f.own, 30_080)] {
                let said = world.inside("client", || ask_tcp(to, 1_000_000)).unwrap();
                assert_eq!(said, format!("pod {} 1000000", f.seen_by_pod), "TCP to {to}");
                for &bytes in sizes {
                    let said = world.inside("client", || ask_udp(to, bytes)).unwrap();
                    assert_eq!(said, format!("pod {} {bytes}", f.seen_by_pod), "UDP to {to}");
                }
            }
        }
    };
    let mut hand_over = |on: bool| {
        let config = NodeConfig { hand_over: on, ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
    };
    let before = forwarded();
    ask(&[100, 4000]);
    assert!(forwarded() > before + 20, "a firewall of the node has its say");
    hand_over(true);
    let before = forwarded();
    ask(&[100, 1400]);
    assert_eq!(forwarded(), before, "straight to the pod and straight back");
    ask(&[4000]);
    assert!(forwarded() > before, "all fragments go the same way");
    for f in &FAMILIES {
        for ask in [ask_tcp, ask_udp] {
            let refused = world.inside("client", || ask(at(f.vip, 91), 10)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        }
    }
    assert!(node.dataplane.attach_devices(&devices(false)).unwrap().is_empty());
    let before = forwarded();
    ask(&[100, 4000]);
    assert!(forwarded() > before + 20, "without programs at the pod's link, through the stack");
}

#[test]
fn pods_talk_past_the_stack_of_their_node() {
    let (mut world, mut node) = ready();
    world.add("peer");
    world.wire(("a", "pod1"), ("peer", "eth0"));
    for (name, command) in [
        ("a", "addr add 169.254.1.1/32 dev pod1"),
        ("a", "route add 10.244.1.6/32 dev pod1"),
        ("a", "route add fd00:244:1::6/128 dev pod1"),
        ("a", "addr add fe80::1/64 dev pod1 nodad"),
        ("peer", "addr add 10.244.1.6/32 dev eth0"),
        ("peer", "addr add fd00:244:1::6/128 dev eth0 nodad"),
        ("peer", "route add default via 169.254.1.1 dev eth0 onlink"),
        ("peer", "route add default via fe80::1 dev eth0"),
        // The other pod's network is its own link's, where nobody but the node answers.
        ("pod", "route add 10.244.1.6/32 via 10.244.1.1"),
        ("pod", "route add fd00:244:1::6/128 via fd00:244:1::1"),
        // Answers of the pods behind the other node have these as their source.
        ("b", "route add 10.244.1.0/24 via 192.168.0.1 src 10.244.2.9"),
        ("b", "route add fd00:244:1::/64 via fd01::1 src fd00:244:2::9"),
    ] {
        world.ip(name, command);
    }
    let devices = [("up0", Role::Uplink), ("ab0", Role::Uplink), ("pod0", Role::Pod), ("pod1", Role::Pod)];
    node.dataplane.attach_devices(&devices.map(|(name, role)| (name.to_owned(), role))).unwrap();
    let mut set = |on: bool| {
        let (v4, v6) = (([10, 244, 0, 0].into(), 16), ("fd00:244::".parse().unwrap(), 32));
        let config =
            NodeConfig { pods_v4: Some(v4), pods_v6: Some(v6), hand_over: on, ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
        let nets = [("10.244.1.0", 24), ("10.244.2.0", 24), ("fd00:244:1::", 64), ("fd00:244:2::", 64)];
        let nets = nets.map(|(addr, prefix)| ClusterNet {
            addr: addr.parse().unwrap(),
            prefix,
            kind: ClusterNetKind::Pods,
        });
        node.maps.put_cluster_nets(&nets).unwrap();
    };
    let ask = || {
        for (f, own) in FAMILIES.iter().zip(["10.244.1.6", "fd00:244:1::6"]) {
            for (server, addr) in [("pod", f.pod), ("b", f.other)] {
                let said = world.inside("peer", || ask_tcp(at(addr, 8080), 1_000_000)).unwrap();
                assert_eq!(said, format!("{server} {own} 1000000"), "TCP to {addr}");
                for bytes in [100, 4000] {
                    let said = world.inside("peer", || ask_udp(at(addr, 8080), bytes)).unwrap();
                    assert_eq!(said, format!("{server} {own} {bytes}"), "UDP to {addr}");
                }
            }
        }
    };
    set(true);
    let before = forwarded();
    ask();
    assert_eq!(forwarded(), before, "past the stack, there and back");
    set(false);
    let before = forwarded();
    ask();
    assert!(forwarded() > before + 20, "through the stack");
}

#[test]
fn a_narrow_way_back_to_the_client_is_found_out_by_the_pod() {
    let (world, mut node) = ready();
    let devices = [("up0", Role::Uplink), ("ab0", Role::Uplink), ("pod0", Role::Pod)];
    node.dataplane.attach_devices(&devices.map(|(name, role)| (name.to_owned(), role))).unwrap();
    world.ip("a", "link set up0 mtu 1400");
    world.ip("client", "link set c0 mtu 1400");
    let config = NodeConfig { hand_over: true, ..node.maps.config().unwrap() };
    node.maps.set_config(&config).unwrap();
    for f in &FAMILIES {
        node.service(external(f.vip, 80, Protocol::Udp), &[(f.pod, 8080, true)], |_| {});
        // As much as the pod's link takes, but not the client's: it is told, and fragments the answer to the next.
        let bytes = 1420;
        let said = world.inside("client", || ask_udp(at(f.vip, 80), bytes)).unwrap();
        assert_eq!(said, format!("pod {} {bytes}", f.seen_by_pod));
    }
    assert!(node.counter(Counter::TooBig) >= 2);
}

#[test]
fn clients_outside_are_refused_at_once_by_services_and_pods_that_do_not_listen() {
    let (world, mut node) = ready();
    // What the client sends has no checksum yet: the answers made from it must get theirs right all the same.
    node::offload("up0", node::TX_CHECKSUM, false);
    for f in &FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            node.service(external(f.vip, 90, protocol), &[], |_| {});
            node.service(external(f.own, 30_090, protocol), &[], |_| {});
            node.service(external(f.vip, 91, protocol), &[(f.pod, 9, true)], |_| {});
            node.service(external(f.vip, 92, protocol), &[(f.other, 9, false)], |_| {});
        }
        for to in [at(f.vip, 90), at(f.own, 30_090), at(f.vip, 91), at(f.vip, 92)] {
            for ask in [ask_tcp, ask_udp] {
                let refused = world.inside("client", || ask(to, 10)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}: {refused}");
            }
        }
    }
    assert_eq!(node.counter(Counter::NoBackend), 8);
}

#[test]
fn a_narrow_way_to_the_other_node_is_found_out() {
    let (world, mut node) = ready();
    world.ip("a", "link set ab0 mtu 1400");
    world.ip("b", "link set ba0 mtu 1400");
    // The other node claims that it can take more than the wire: only ICMP can tell the client.
    world.ip("b", "route add 192.168.0.1/32 dev ba0 advmss 1460");
    world.ip("b", "route add fd01::1/128 dev ba0 advmss 1440");
    for f in &FAMILIES {
        node.service(external(f.vip, 81, Protocol::Tcp), &[(f.other, 8080, false)], |_| {});
        let said = world.inside("client", || ask_tcp(at(f.vip, 81), 300_000)).unwrap();
        assert_eq!(said, format!("b {} 300000", f.seen_by_other));
    }
}

/// As the node's overlay is: packets to the other node's pods go through VXLAN, answers to the node's address do not.
#[test]
fn pods_behind_an_overlay_are_reached() {
    let (world, mut node) = ready();
    for (name, own, other, number) in
        [("a", "192.168.0.1", "192.168.0.2", "0a"), ("b", "192.168.0.2", "192.168.0.1", "0b")]
    {
        let vxlan = format!("vxlan id 7 dstport 8472 local {own} nolearning");
        world.ip(name, &format!("link add vx0 mtu 1450 address 02:00:00:00:00:{number} type {vxlan}"));
        world.ip(name, "link set vx0 up");
        let peer = if number == "0a" { "0b" } else { "0a" };
        let entry = format!("fdb append 02:00:00:00:00:{peer} dev vx0 dst {other}");
        node::run(&format!("bridge -n {} {entry}", world.full(name)));
    }
    world.ip("a", "route add 10.244.3.0/24 via 10.244.3.0 dev vx0 onlink");
    world.ip("a", "neigh add 10.244.3.0 lladdr 02:00:00:00:00:0b dev vx0");
    world.ip("b", "addr add 10.244.3.9/32 dev lo");
    // The node's address is reached by another way than it comes from.
    world.inside("b", || {
        for device in ["all", "vx0", "ba0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0").unwrap();
        }
    });
    world.tcp_server("b", "10.244.3.9:8080", "b");
    world.udp_server("b", "10.244.3.9:8080", "b");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        node.service(external("172.30.0.200", 80, protocol), &[("10.244.3.9", 8080, false)], |_| {});
    }
    let to = at("172.30.0.200", 80);
    assert_eq!(world.inside("client", || ask_tcp(to, 300_000)).unwrap(), "b 192.168.0.1 300000");
    for bytes in [100, 1460, 4000] {
        assert_eq!(world.inside("client", || ask_udp(to, bytes)).unwrap(), format!("b 192.168.0.1 {bytes}"));
    }
    assert!(node.counter(Counter::TooBig) > 0, "the overlay is narrower than the wire");
}

#[test]
fn many_connections_go_on_while_the_programs_are_replaced() {
    let (world, mut node) = ready();
    for (port, backend, local) in [(80, "10.244.1.5", true), (81, "10.244.2.9", false)] {
        node.service(external("172.30.0.200", port, Protocol::Tcp), &[(backend, 8080, local)], |_| {});
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let connections = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            world.enter("client");
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                for port in [80, 81] {
                    ask_tcp(at("172.30.0.200", port), 2000).unwrap();
                    connections += 1;
                }
            }
            connections
        });
        for _ in 0..5 {
            let mut restarted = node::open(&node.bpffs);
            restarted.attach_devices(&["up0", "ab0"].map(|name| (name.to_owned(), Role::Uplink))).unwrap();
            node.maps = restarted.maps();
            node.dataplane = restarted;
        }
        stop.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    assert!(connections > 0);
    assert_eq!(node.counter(Counter::FlowCreated), connections);
}
