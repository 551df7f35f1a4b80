//! Packets of pods that the socket programs have not seen, packet by packet; and how many refusals are answered.
//! Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/wire.rs"]
mod wire;

use node::{NODE_V4, NODE_V6, Node, external, internal};
use seaway_ebpf_loader::{
    ClusterNet, ClusterNetKind, Counter, Direction, NodeConfig, Protocol, Role, ServiceMaps,
};
use wire::{TCP, UDP, frame, icmp, ip, read, read_ip, tcp, udp};

const UNTOUCHED: i32 = -1;
/// Translated, but other programs at the link have their turn.
const GO_ON: i32 = UNTOUCHED;
const PASS: i32 = 0;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;
const SYN: u8 = 0x02;
const RST_ACK: u8 = 0x14;

struct Family {
    v4: bool,
    /// An address in the network around all pods, but in no node's subnet.
    between: &'static str,
    pod: &'static str,
    vip: &'static str,
    local: &'static str,
    remote: &'static str,
    node: &'static str,
    client: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        v4: true,
        between: "10.244.9.9",
        pod: "10.244.1.4",
        vip: "10.96.0.1",
        local: "10.244.1.5",
        remote: "10.244.2.9",
        node: NODE_V4,
        client: "203.0.113.7",
    },
    Family {
        v4: false,
        between: "fd00:244:9::9",
        pod: "fd00:244:1::4",
        vip: "fd00:10:96::1",
        local: "fd00:244:1::5",
        remote: "fd00:244:2::9",
        node: NODE_V6,
        client: "2001:db8::7",
    },
];

fn run(node: &Node, direction: Direction, packet: &[u8]) -> (i32, Vec<u8>) {
    let run = node.dataplane.run_packet(direction, packet, node.uplink(), 1).unwrap();
    (run.verdict, run.packet)
}

fn packet(protocol: Protocol, src: (&str, u16), dst: (&str, u16)) -> Vec<u8> {
    let (proto, payload) = match protocol {
        Protocol::Tcp => (TCP, tcp(src.1, dst.1, SYN, 1000, 0, b"")),
        Protocol::Udp => (UDP, udp(src.1, dst.1, b"hello")),
    };
    frame(&ip(src.0, dst.0, proto, payload))
}

fn each(test: impl Fn(&Family, Protocol)) {
    for family in &FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            test(family, protocol);
        }
    }
}

fn with_pods(node: &mut Node) {
    let config = NodeConfig {
        pods_v4: Some(([10, 244, 0, 0].into(), 16)),
        pods_v6: Some(("fd00:244::".parse().unwrap(), 32)),
        ..node.maps.config().unwrap()
    };
    node.maps.set_config(&config).unwrap();
    // The second nodes' subnets of these, and this node's: not all that lies between is a pod's.
    let nets = [("10.244.1.0", 24), ("10.244.2.0", 24), ("fd00:244:1::", 64), ("fd00:244:2::", 64)];
    let nets = nets.map(|(addr, prefix)| ClusterNet {
        addr: addr.parse().unwrap(),
        prefix,
        kind: ClusterNetKind::Pods,
    });
    node.maps.put_cluster_nets(&nets).unwrap();
}

#[test]
fn a_pods_packet_reaches_a_backend_with_its_own_source_and_the_answer_is_the_services() {
    each(|f, protocol| {
        let mut node = Node::new("pod").with_uplink();
        with_pods(&mut node);
        for (port, backend, local) in [(80, f.local, true), (81, f.remote, false)] {
            node.service(internal(f.vip, port, protocol), &[(backend, 8080, local)], |_| {});
            let (verdict, sent) =
                run(&node, Direction::PodIngress, &packet(protocol, (f.pod, 4000), (f.vip, port)));
            let wanted = format!("{} 4000 > {backend} 8080", f.pod);
            assert_eq!((verdict, read(&sent).ends()), (GO_ON, wanted));
            let answer = packet(protocol, (backend, 8080), (f.pod, 4000));
            // On its way it passes the backend's link or the uplink, where it is left alone.
            for direction in [Direction::PodIngress, Direction::Ingress, Direction::Egress] {
                assert_eq!(run(&node, direction, &answer).0, UNTOUCHED, "{direction:?}");
            }
            let (verdict, answered) = run(&node, Direction::PodEgress, &answer);
            assert_eq!(
                (verdict, read(&answered).ends()),
                (PASS, format!("{} {port} > {} 4000", f.vip, f.pod))
            );
        }
        // Packets for pods, and those for nobody we know, pass.
        for to in [f.remote, f.client] {
            let direct = packet(protocol, (f.pod, 4001), (to, 80));
            assert_eq!(run(&node, Direction::PodIngress, &direct), (UNTOUCHED, direct));
        }
    });
}

#[test]
fn a_pod_that_is_given_itself_sees_the_node() {
    each(|f, protocol| {
        let mut node = Node::new("hairpin").with_uplink();
        node::run("ip link add pod0 type veth peer name pod1");
        node::run("ip link set pod0 up");
        node::run("ip link set pod1 up");
        node::run(&format!("ip route add {} dev pod0", f.pod));
        node.service(internal(f.vip, 80, protocol), &[(f.pod, 8080, true)], |_| {});
        let (verdict, sent) =
            run(&node, Direction::PodIngress, &packet(protocol, (f.pod, 4000), (f.vip, 80)));
        let seen = read(&sent);
        assert_eq!((verdict, seen.ends()), (REDIRECT, format!("{} 4000 > {} 8080", f.node, f.pod)));
        let answer = packet(protocol, (f.pod, 8080), (f.node, seen.src_port));
        let (verdict, answered) = run(&node, Direction::PodIngress, &answer);
        assert_eq!((verdict, read(&answered).ends()), (REDIRECT, format!("{} 80 > {} 4000", f.vip, f.pod)));
    });
}

#[test]
fn a_pod_is_refused_at_once_and_its_icmp_errors_are_translated() {
    for f in &FAMILIES {
        let mut node = Node::new("pod-refused").with_uplink();
        node.service(internal(f.vip, 80, Protocol::Tcp), &[], |_| {});
        node.service(internal(f.vip, 53, Protocol::Udp), &[(f.local, 5353, true)], |_| {});
        let (verdict, answer) =
            run(&node, Direction::PodIngress, &packet(Protocol::Tcp, (f.pod, 4000), (f.vip, 80)));
        assert_eq!((verdict, read(&answer).payload[13]), (REDIRECT, RST_ACK));
        let (_, sent) = run(&node, Direction::PodIngress, &packet(Protocol::Udp, (f.pod, 4000), (f.vip, 53)));
        let (proto, kind, code) = if f.v4 { (1, 3, 3) } else { (58, 1, 4) };
        let quoted = &sent[14..14 + if f.v4 { 28 } else { 48 }];
        let error = frame(&ip(f.local, f.pod, proto, icmp(kind, code, 0, quoted)));
        let (verdict, error) = run(&node, Direction::PodEgress, &error);
        assert_eq!(verdict, PASS);
        let error = read(&error);
        assert_eq!(error.src.to_string(), f.vip);
        assert_eq!(read_ip(&error.payload[8..]).ends(), format!("{} 4000 > {} 53", f.pod, f.vip));
    }
}

#[test]
fn refusals_are_limited_per_second() {
    let f = &FAMILIES[0];
    let mut node = Node::new("limit").with_uplink();
    let config = NodeConfig { rejects_per_s: 5, ..node.maps.config().unwrap() };
    node.maps.set_config(&config).unwrap();
    node.service(external(f.vip, 80, Protocol::Tcp), &[], |_| {});
    let syn = packet(Protocol::Tcp, (f.client, 4000), (f.vip, 80));
    let verdicts: Vec<i32> = (0..100).map(|_| run(&node, Direction::Ingress, &syn).0).collect();
    assert!(verdicts.iter().all(|verdict| [REDIRECT, DROP].contains(verdict)));
    let answered = verdicts.iter().filter(|verdict| **verdict == REDIRECT).count();
    // Two CPUs at most take part in this thread's run, over two seconds at most.
    assert!((5..=20).contains(&answered), "{answered}");
    assert_eq!(node.counter(Counter::RejectLimited), 100 - answered as u64);
}

/// A node with links `pod0` and `pod2` of two pods, where packets between pods are handed over.
fn with_pod_links(f: &Family) -> (Node, [u32; 2]) {
    let mut node = Node::new("between").with_uplink();
    with_pods(&mut node);
    for (link, addr) in [("pod0", f.pod), ("pod2", f.local)] {
        node::batch(&[
            &format!("link add {link} address 02:00:00:00:00:01 type veth peer name {link}e"),
            &format!("link set {link} up"),
            &format!("link set {link}e up"),
            &format!("route add {addr} dev {link}"),
        ]);
    }
    let roles = [("up0", Role::Uplink), ("pod0", Role::Pod), ("pod2", Role::Pod)];
    let roles = roles.map(|(name, role)| (name.to_owned(), role));
    assert!(node.dataplane.attach_devices(&roles).unwrap().is_empty());
    hand_over(&mut node, true);
    // SAFETY: C strings.
    let links = [c"pod0", c"pod2"].map(|name| unsafe { libc::if_nametoindex(name.as_ptr()) });
    assert!(!links.contains(&0));
    (node, links)
}

fn hand_over(node: &mut Node, on: bool) {
    let config = NodeConfig { hand_over: on, ..node.maps.config().unwrap() };
    node.maps.set_config(&config).unwrap();
}

#[test]
fn packets_between_pods_pass_the_stack_by_where_that_is_asked_for() {
    each(|f, protocol| {
        let (mut node, [pod, local]) = with_pod_links(f);
        let uplink = node.uplink();
        let at = |node: &Node, direction, ifindex, packet: &[u8]| {
            let run = node.dataplane.run_packet(direction, packet, ifindex, 1).unwrap();
            (run.verdict, run.packet)
        };
        let ways = [
            (Direction::PodIngress, pod, f.pod, f.local),
            (Direction::PodIngress, local, f.local, f.remote),
            (Direction::Ingress, uplink, f.remote, f.local),
        ];
        for (direction, ifindex, from, to) in ways {
            let sent = packet(protocol, (from, 4000), (to, 80));
            let (verdict, seen) = at(&node, direction, ifindex, &sent);
            let seen = read(&seen);
            assert_eq!((verdict, seen.ttl, seen.ends()), (REDIRECT, 63, format!("{from} 4000 > {to} 80")));
        }
        assert_eq!(node.counter(Counter::HandedOver), 3);
        let left_alone = [
            (Direction::Ingress, uplink, f.remote, f.remote, "it goes on to another node"),
            (Direction::Ingress, uplink, f.client, f.local, "its source is outside"),
            (Direction::PodIngress, pod, f.client, f.local, "its source is no pod"),
            (Direction::PodIngress, pod, f.pod, f.between, "its destination is no node's pod"),
            (Direction::Ingress, uplink, f.between, f.local, "its source is no node's pod"),
            (Direction::PodIngress, uplink, f.pod, f.local, "it comes by a link without programs"),
        ];
        for (direction, ifindex, from, to, why) in left_alone {
            let sent = packet(protocol, (from, 4000), (to, 80));
            assert_eq!(at(&node, direction, ifindex, &sent), (UNTOUCHED, sent), "{why}");
        }
        let mut last_hop = packet(protocol, (f.pod, 4000), (f.local, 80));
        let sent = packet(protocol, (f.pod, 4000), (f.local, 80));
        last_hop[if f.v4 { 22 } else { 21 }] = 1;
        assert_eq!(at(&node, Direction::PodIngress, pod, &last_hop), (UNTOUCHED, last_hop));
        hand_over(&mut node, false);
        assert_eq!(at(&node, Direction::PodIngress, pod, &sent), (UNTOUCHED, sent.clone()));
        hand_over(&mut node, true);
        // What is translated at the pod's link has to pass there.
        node.service(internal(f.vip, 80, protocol), &[(f.local, 8080, true)], |_| {});
        at(&node, Direction::PodIngress, pod, &packet(protocol, (f.pod, 4001), (f.vip, 80)));
        let answer = packet(protocol, (f.local, 8080), (f.pod, 4001));
        assert_eq!(at(&node, Direction::PodIngress, local, &answer), (UNTOUCHED, answer));
        let sent = packet(protocol, (f.pod, 4000), (f.local, 80));
        assert_eq!(at(&node, Direction::PodIngress, pod, &sent).0, REDIRECT);
    });
}

#[test]
fn headers_with_options_are_the_stacks_to_read() {
    let (f4, f6) = (&FAMILIES[0], &FAMILIES[1]);
    let (node, [pod, _]) = with_pod_links(f4);
    let mut options = packet(Protocol::Udp, (f4.pod, 4000), (f4.local, 80));
    options[14] = 0x46;
    assert_eq!(
        node.dataplane.run_packet(Direction::PodIngress, &options, pod, 1).unwrap().verdict,
        UNTOUCHED
    );
    let (node, [pod, _]) = with_pod_links(f6);
    let mut options = packet(Protocol::Udp, (f6.pod, 4000), (f6.local, 80));
    for header in [0, 60] {
        options[20] = header;
        let run = node.dataplane.run_packet(Direction::PodIngress, &options, pod, 1).unwrap();
        assert_eq!((run.verdict, run.packet), (UNTOUCHED, options.clone()));
    }
}

#[test]
fn masqueraded_services_show_their_backends_the_node() {
    each(|f, protocol| {
        let mut node = Node::new("masquerade").with_uplink();
        with_pods(&mut node);
        node::batch(&[
            "link add pod0 type veth peer name pod1",
            "link set pod0 up",
            "link set pod1 up",
            &format!("route add {} dev pod0", f.pod),
            &format!("route add {} dev pod0", f.local),
        ]);
        for (port, backend) in [(80, f.local), (81, f.remote)] {
            let service = internal(f.vip, port, protocol);
            node.service(service, &[(backend, 8080, port == 80)], |entry| entry.masquerade = true);
            let (verdict, sent) =
                run(&node, Direction::PodIngress, &packet(protocol, (f.pod, 4000), (f.vip, port)));
            let seen = read(&sent);
            assert_eq!((verdict, seen.ends()), (REDIRECT, format!("{} 4000 > {backend} 8080", f.node)));
            let answer = packet(protocol, (backend, 8080), (f.node, seen.src_port));
            let direction = if port == 80 { Direction::PodIngress } else { Direction::Ingress };
            let (verdict, answered) = run(&node, direction, &answer);
            let wanted = format!("{} {port} > {} 4000", f.vip, f.pod);
            assert_eq!((verdict, read(&answered).ends()), (REDIRECT, wanted));
        }
    });
}

#[test]
fn what_nodes_send_each_other_through_a_tunnel_is_the_tunnels() {
    for f in &FAMILIES {
        let mut node = Node::new("tunnel").with_uplink();
        for addr in [f.node, f.vip] {
            node.service(external(addr, 8472, Protocol::Udp), &[(f.local, 8080, true)], |_| {});
        }
        let outer = |to: &str| packet(Protocol::Udp, (f.client, 4000), (to, 8472));
        let verdict = |node: &Node, to: &str| run(node, Direction::Ingress, &outer(to)).0;
        assert_eq!(verdict(&node, f.node), PASS);
        let config = NodeConfig { tunnel_port: Some(8472), ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
        assert_eq!(verdict(&node, f.node), UNTOUCHED);
        // At other addresses the port is anybody's, and TCP has ports of its own.
        assert_eq!(verdict(&node, f.vip), PASS);
        node.service(external(f.node, 8472, Protocol::Tcp), &[(f.local, 8080, true)], |_| {});
        let tcp = packet(Protocol::Tcp, (f.client, 4000), (f.node, 8472));
        assert_eq!(run(&node, Direction::Ingress, &tcp).0, PASS);
        // What leaves: an answer of a backend has the node's address only once it is translated.
        let sent = packet(Protocol::Udp, (f.node, 4000), (f.remote, 8472));
        assert_eq!(run(&node, Direction::Egress, &sent).0, UNTOUCHED);
    }
}
