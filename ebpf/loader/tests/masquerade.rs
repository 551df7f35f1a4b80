//! What pods send to the world outside of the cluster, and what comes back, packet by packet. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/wire.rs"]
mod wire;

use std::collections::BTreeMap;

use node::{NODE_V4, NODE_V6, Node, external};
use outside::{
    ACK, DROP, FAMILIES, FIN_ACK, Family, PASS, SYN, UNTOUCHED, V4, V6, each_family_and_protocol, packet,
};
use seaway_ebpf_loader::{
    Counter, MasqueradeNet, MasqueradeSource, Masquerading, NodeConfig, Protocol, ServiceMaps,
};
use wire::{Read, TCP, UDP, frame, icmp, ip, ip_raw, read, read_headers, read_ip, tcp};

const SYN_ACK: u8 = SYN | ACK;

fn net(text: &str, pods: bool) -> MasqueradeNet {
    let (addr, prefix) = text.split_once('/').unwrap();
    MasqueradeNet { addr: addr.parse().unwrap(), prefix: prefix.parse().unwrap(), pods, kept: true }
}

/// A node whose pods are masqueraded, but not towards pods of another, the nodes, and one subnet outside.
fn masquerading() -> Node {
    let mut node = Node::new("masquerade").with_uplink();
    let pods = ["10.244.1.0/24", "fd00:244:1::/64"].map(|text| net(text, true));
    let kept = [
        "10.244.2.0/24",
        "192.168.0.0/24",
        "198.51.100.0/24",
        "fd00:244:2::/64",
        "fd01::/64",
        "2001:db8:9::/64",
    ];
    let kept = kept.map(|text| net(text, false));
    let source = MasqueradeSource { v4: Some(NODE_V4.parse().unwrap()), v6: Some(NODE_V6.parse().unwrap()) };
    let wanted = Masquerading {
        nets: pods.into_iter().chain(kept).collect(),
        sources: BTreeMap::from([(node.uplink(), source)]),
    };
    node.maps.set_masquerading(&wanted).unwrap();
    assert_eq!(node.maps.masquerading().unwrap(), wanted);
    node
}

fn segment(src: (&str, u16), dst: (&str, u16), flags: u8) -> Vec<u8> {
    frame(&ip(src.0, dst.0, TCP, tcp(src.1, dst.1, flags, 1, 1, b"")))
}

/// The pod's packet as it leaves; asserts that the node is its source.
fn sent(node: &Node, f: &Family, packet: &[u8]) -> Read {
    let (verdict, sent) = node.egress(packet);
    assert_eq!(verdict, PASS);
    let seen = read(&sent);
    assert_eq!((seen.src.to_string(), seen.ttl), (f.node.to_owned(), 64));
    seen
}

#[test]
fn the_world_sees_the_node_and_its_answers_reach_the_pod() {
    each_family_and_protocol(|f, protocol| {
        let node = masquerading();
        let seen = sent(&node, f, &packet(protocol, (f.local, 40_000), (f.client, 443)));
        assert_eq!((seen.dst.to_string(), seen.dst_port), (f.client.to_owned(), 443));
        assert!((1024..30_000).contains(&seen.src_port), "{}", seen.src_port);
        let answer = |flags| match protocol {
            Protocol::Tcp => segment((f.client, 443), (f.node, seen.src_port), flags),
            Protocol::Udp => packet(protocol, (f.client, 443), (f.node, seen.src_port)),
        };
        let (verdict, answered) = node.ingress(&answer(SYN_ACK));
        let back = format!("{} 443 > {} 40000", f.client, f.local);
        assert_eq!((verdict, read(&answered).ends()), (PASS, back));
        // The next ones go the same way.
        let next = match protocol {
            Protocol::Tcp => segment((f.local, 40_000), (f.client, 443), ACK),
            Protocol::Udp => packet(protocol, (f.local, 40_000), (f.client, 443)),
        };
        assert_eq!(sent(&node, f, &next).src_port, seen.src_port);
        // Nobody opens a connection from outside by it, and no other host or port answers.
        if protocol == Protocol::Tcp {
            assert_eq!(node.ingress(&answer(SYN)).0, UNTOUCHED);
        }
        assert_eq!(node.ingress(&packet(protocol, (f.client, 444), (f.node, seen.src_port))).0, UNTOUCHED);
        assert_eq!(node.counter(Counter::Masqueraded), 3);
        let flows = node.maps.connections().unwrap();
        assert!(flows.len() == 2 && flows.iter().all(|flow| flow.masqueraded && flow.service == 0));
    });
}

#[test]
fn two_pods_with_one_port_do_not_meet() {
    each_family_and_protocol(|f, protocol| {
        let node = masquerading();
        let other = if f.is_v4() { "10.244.1.6" } else { "fd00:244:1::6" };
        let ports = [f.local, other].map(|pod| {
            // Both would like to keep it: it is one of those of source NAT.
            let seen = sent(&node, f, &packet(protocol, (pod, 2000), (f.client, 53)));
            let answer = match protocol {
                Protocol::Tcp => segment((f.client, 53), (f.node, seen.src_port), SYN_ACK),
                Protocol::Udp => packet(protocol, (f.client, 53), (f.node, seen.src_port)),
            };
            assert_eq!(read(&node.ingress(&answer).1).ends(), format!("{} 53 > {pod} 2000", f.client));
            seen.src_port
        });
        assert_eq!(ports[0], 2000);
        assert_ne!(ports[0], ports[1]);
        assert_eq!(node.counter(Counter::SnatCollision), 1);
    });
}

#[test]
fn what_stays_in_the_cluster_or_is_left_out_or_is_no_pods_keeps_its_source() {
    each_family_and_protocol(|f, protocol| {
        let mut node = masquerading();
        let (left_out, neighbour, stranger) = if f.is_v4() {
            ("198.51.100.7", "192.168.0.2", "10.99.0.1")
        } else {
            ("2001:db8:9::7", "fd01::2", "fd00:99::1")
        };
        let cases = [
            (f.local, f.remote),
            (f.local, neighbour),
            (f.local, left_out),
            (f.node, f.client),
            (stranger, f.client),
        ];
        for (from, to) in cases {
            let packet = packet(protocol, (from, 40_000), (to, 443));
            assert_eq!(node.egress(&packet), (UNTOUCHED, packet), "{from} to {to}");
        }
        // At links that are not named nothing is masqueraded, known or not.
        let out = packet(protocol, (f.local, 40_000), (f.client, 443));
        node.maps.set_masquerading(&Masquerading::default()).unwrap();
        assert_eq!(node.egress(&out), (UNTOUCHED, out));
    });
}

#[test]
fn a_tcp_connection_without_its_beginning_keeps_its_addresses() {
    for f in &FAMILIES {
        let node = masquerading();
        for flags in [ACK, SYN_ACK, FIN_ACK] {
            let packet = segment((f.local, 40_000), (f.client, 443), flags);
            assert_eq!(node.egress(&packet), (UNTOUCHED, packet));
        }
    }
}

#[test]
fn who_is_asked_by_udp_answers_with_its_own_address() {
    for f in &FAMILIES {
        let node = masquerading();
        let question = packet(Protocol::Udp, (f.client, 5000), (f.local, 53));
        assert_eq!(node.ingress(&question), (UNTOUCHED, question));
        let answer = packet(Protocol::Udp, (f.local, 53), (f.client, 5000));
        assert_eq!(node.egress(&answer).1, answer);
        // What it asks by itself is masqueraded nevertheless.
        sent(&node, f, &packet(Protocol::Udp, (f.local, 53), (f.client, 5001)));
    }
}

#[test]
fn a_port_that_is_used_again_begins_a_new_connection() {
    for f in &FAMILIES {
        let mut node = masquerading();
        let (pod, there) = ((f.local, 40_000), (f.client, 443));
        let first = sent(&node, f, &segment(pod, there, SYN));
        sent(&node, f, &segment(pod, there, FIN_ACK));
        let again = sent(&node, f, &segment(pod, there, SYN));
        let answer = segment(there, (f.node, again.src_port), SYN_ACK);
        assert_eq!(read(&node.ingress(&answer).1).ends(), format!("{} 443 > {} 40000", f.client, f.local));
        assert_eq!(first.src_port, again.src_port, "nobody else wants it");
        let udp = packet(Protocol::Udp, (f.local, 40_000), (f.client, 53));
        sent(&node, f, &udp);
        sent(&node, f, &echo(f, f.local, f.client, true, 77));
        // The node has another address: what begins now has that one, what is open keeps the former.
        let mut moved = node.maps.masquerading().unwrap();
        let source = MasqueradeSource {
            v4: Some("192.168.0.77".parse().unwrap()),
            v6: Some("fd01::77".parse().unwrap()),
        };
        moved.sources.insert(node.uplink(), source);
        node.maps.set_masquerading(&moved).unwrap();
        sent(&node, f, &segment(pod, there, ACK));
        let seen = read(&node.egress(&segment(pod, there, SYN)).1);
        assert!(seen.src.to_string().ends_with("77"), "{seen:?}");
        // Without a beginning, everything does: nobody would end it.
        for packet in [udp, echo(f, f.local, f.client, true, 77)] {
            let seen = read(&node.egress(&packet).1);
            assert!(seen.src.to_string().ends_with("77"), "{seen:?}");
        }
    }
}

/// An echo of `ping`: a request or an answer to one.
fn echo(f: &Family, from: &str, to: &str, request: bool, id: u16) -> Vec<u8> {
    let kind = match (f.is_v4(), request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    frame(&ip(from, to, f.icmp, icmp(kind, 0, u32::from(id) << 16 | 7, b"data")))
}

fn id(packet: &Read) -> u16 {
    u16::from_be_bytes([packet.payload[4], packet.payload[5]])
}

#[test]
fn echoes_of_two_pods_with_one_identifier_find_back() {
    for f in &FAMILIES {
        let node = masquerading();
        let other = if f.is_v4() { "10.244.1.6" } else { "fd00:244:1::6" };
        let ids = [f.local, other].map(|pod| {
            let seen = sent(&node, f, &echo(f, pod, f.client, true, 77));
            let (verdict, answered) = node.ingress(&echo(f, f.client, f.node, false, id(&seen)));
            let back = read(&answered);
            assert_eq!((verdict, back.dst.to_string(), id(&back)), (PASS, pod.to_owned(), 77));
            id(&seen)
        });
        assert_eq!(ids[0], 77);
        assert_ne!(ids[0], ids[1]);
        // The node's own, and what pods answer to somebody who asks them directly, stay as they are.
        for own in [echo(f, f.client, f.node, false, 5), echo(f, f.client, f.local, true, 5)] {
            assert_eq!(node.ingress(&own), (UNTOUCHED, own));
        }
        for own in [echo(f, f.node, f.client, true, 5), echo(f, f.local, f.client, false, 5)] {
            assert_eq!(node.egress(&own), (UNTOUCHED, own));
        }
    }
}

#[test]
fn icmp_errors_of_the_world_and_of_pods_are_translated() {
    for f in &FAMILIES {
        let node = masquerading();
        let (kind, code) = if f.is_v4() { (3, 4) } else { (2, 0) };
        let quoted = if f.is_v4() { 28 } else { 48 };
        let router = if f.is_v4() { "203.0.113.1" } else { "2001:db8::1" };
        let error = |from: &str, to: &str, about: &[u8]| {
            frame(&ip(from, to, f.icmp, icmp(kind, code, 1300, &about[14..14 + quoted])))
        };
        for question in [
            packet(Protocol::Udp, (f.local, 40_000), (f.client, 53)),
            segment((f.local, 40_000), (f.client, 443), SYN),
            echo(f, f.local, f.client, true, 77),
            // Under another identifier than its own.
            echo(f, if f.is_v4() { "10.244.1.6" } else { "fd00:244:1::6" }, f.client, true, 77),
        ] {
            let asked = read(&question);
            let out = node.egress(&question).1;
            let (verdict, told) = node.ingress(&error(router, f.node, &out));
            let told = read(&told);
            assert_eq!((verdict, told.dst, told.src.to_string()), (PASS, asked.src, router.to_owned()));
            let inner = read_ip(&told.payload[8..]);
            assert_eq!(inner.ends(), asked.ends());
            // For TCP the checksum is beyond what is quoted.
            if asked.proto != TCP {
                assert_eq!(inner.payload[..8], asked.payload[..8]);
            }
        }
        // The pod's own, about an answer.
        let seen = read(&node.egress(&packet(Protocol::Udp, (f.local, 40_000), (f.client, 53))).1);
        let answer = node.ingress(&packet(Protocol::Udp, (f.client, 53), (f.node, seen.src_port))).1;
        for from in [f.local, f.node] {
            let (verdict, told) = node.egress(&error(from, f.client, &answer));
            let told = read(&told);
            assert_eq!((verdict, told.src.to_string()), (PASS, f.node.to_owned()));
            assert_eq!(
                read_ip(&told.payload[8..]).ends(),
                format!("{} 53 > {} {}", f.client, f.node, seen.src_port)
            );
        }
    }
}

#[test]
fn fragments_follow_their_first_and_what_is_lost_does_not_leave() {
    let node = masquerading();
    let (src, dst) = (V4.local.parse().unwrap(), V4.client.parse().unwrap());
    let datagrams = [
        (UDP, wire::finish(src, dst, UDP, wire::udp(40_000, 53, &[9; 2000]))),
        (1, wire::finish(src, dst, 1, icmp(8, 0, 77 << 16 | 7, &[9; 2000]))),
    ];
    for (proto, datagram) in datagrams {
        let first = frame(&ip_raw(src, dst, proto, 64, 0x2000, &datagram[..1480]));
        let last = frame(&ip_raw(src, dst, proto, 64, 1480 / 8, &datagram[1480..]));
        assert_eq!(node.egress(&last).0, DROP);
        let parts = [first, last].map(|part| {
            let (verdict, part) = node.egress(&part);
            assert_eq!(verdict, PASS);
            read_headers(&part)
        });
        let [first, last] = parts;
        assert_eq!((first.src.to_string(), last.src.to_string()), (NODE_V4.to_owned(), NODE_V4.to_owned()));
        let payload = [first.payload.clone(), last.payload].concat();
        wire::assert_sum(&Read { payload: payload.clone(), ..first });
        // An answer that is as long.
        let (from, to) = (V4.client.parse().unwrap(), NODE_V4.parse().unwrap());
        let answer = if proto == UDP {
            wire::finish(from, to, UDP, wire::udp(53, first.src_port, &[8; 2000]))
        } else {
            let id = u32::from(u16::from_be_bytes([payload[4], payload[5]]));
            wire::finish(from, to, 1, icmp(0, 0, id << 16 | 7, &[8; 2000]))
        };
        let parts = [(0x2000, &answer[..1480]), (1480 / 8, &answer[1480..])].map(|(fragment, part)| {
            let (verdict, part) = node.ingress(&frame(&ip_raw(from, to, proto, 64, fragment, part)));
            assert_eq!(verdict, PASS);
            read_headers(&part)
        });
        let [first, last] = parts;
        assert_eq!((first.dst, last.dst), (src, src));
        wire::assert_sum(&Read { payload: [first.payload.clone(), last.payload].concat(), ..first });
    }
    assert_eq!(node.counter(Counter::FragmentUnknown), 2);
}

#[test]
fn of_other_protocols_one_pod_at_a_time_is_masqueraded() {
    const GRE: u8 = 47;
    for f in &FAMILIES {
        let node = masquerading();
        let other = if f.is_v4() { "10.244.1.6" } else { "fd00:244:1::6" };
        let gre = |from: &str, to: &str| {
            frame(&ip_raw(
                from.parse().unwrap(),
                to.parse().unwrap(),
                GRE,
                64,
                0x4000,
                &[0, 0, 8, 0, 1, 2, 3, 4],
            ))
        };
        let (verdict, out) = node.egress(&gre(f.local, f.client));
        assert_eq!((verdict, read_headers(&out).src.to_string()), (PASS, f.node.to_owned()));
        let (verdict, back) = node.ingress(&gre(f.client, f.node));
        assert_eq!((verdict, read_headers(&back).dst.to_string()), (PASS, f.local.to_owned()));
        // Whose the answers would be nobody could tell.
        assert_eq!(node.egress(&gre(other, f.client)).0, DROP);
        assert_eq!(node.counter(Counter::SnatExhausted), 1);
    }
}

#[test]
fn what_is_no_ip_is_let_through() {
    let node = masquerading();
    // A packet of a pod to the world first: nothing of it is remembered for the next.
    sent(&node, &V4, &packet(Protocol::Udp, (V4.local, 40_000), (V4.client, 53)));
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.extend([0; 46]);
    assert_eq!(node.egress(&arp), (UNTOUCHED, arp.clone()));
    assert_eq!(node.ingress(&arp).0, UNTOUCHED);
}

#[test]
fn services_go_before_the_masquerade() {
    each_family_and_protocol(|f, protocol| {
        let mut node = masquerading();
        node.service(external(f.vip, 80, protocol), &[(f.local, 8080, true)], |_| {});
        node.ingress(&packet(protocol, (f.client, 4000), (f.vip, 80)));
        let answer = match protocol {
            Protocol::Tcp => segment((f.local, 8080), (f.client, 4000), SYN_ACK),
            Protocol::Udp => packet(protocol, (f.local, 8080), (f.client, 4000)),
        };
        let (verdict, answered) = node.egress(&answer);
        assert_eq!((verdict, read(&answered).ends()), (PASS, format!("{} 80 > {} 4000", f.vip, f.client)));
    });
}

/// In IPv6 nobody on the way cuts a packet: who sends fragments has to learn that they are too large.
#[test]
fn an_error_about_a_fragment_is_translated() {
    let node = masquerading();
    let seen = sent(&node, &V6, &packet(Protocol::Udp, (V6.local, 40_000), (V6.client, 53)));
    let (from, pod) = (V6.client.parse().unwrap(), V6.local.parse().unwrap());
    let datagram = wire::finish(from, pod, UDP, wire::udp(53, 40_000, &[8; 2000]));
    let quoted = |offset: u16, part: &[u8]| {
        let mut fragment = vec![UDP, 0];
        fragment.extend((offset | 1).to_be_bytes());
        fragment.extend([0, 0, 0, 9]);
        fragment.extend(part);
        ip_raw(from, pod, 44, 64, 0, &fragment)
    };
    let about = |quoted: &[u8]| frame(&ip(V6.node, V6.client, V6.icmp, icmp(2, 0, 1400, &quoted[..64])));
    let (verdict, told) = node.egress(&about(&quoted(0, &datagram[..1448])));
    assert_eq!(verdict, PASS);
    let inner = read_ip(&read(&told).payload[8..]);
    assert_eq!((inner.src.to_string(), inner.dst.to_string()), (V6.client.to_owned(), V6.node.to_owned()));
    assert_eq!(inner.payload[8..12], [53_u16.to_be_bytes(), seen.src_port.to_be_bytes()].concat());
    // Of a later one it is not known whose it was.
    assert_eq!(node.egress(&about(&quoted(1448, &datagram[1448..]))).0, UNTOUCHED);
}

#[test]
fn nobody_gets_the_tunnels_port() {
    for f in &FAMILIES {
        let mut node = masquerading();
        let config = NodeConfig { tunnel_port: Some(8472), ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
        let seen = sent(&node, f, &packet(Protocol::Udp, (f.local, 8472), (f.client, 53)));
        assert_ne!(seen.src_port, 8472);
        assert_eq!(sent(&node, f, &segment((f.local, 8472), (f.client, 53), SYN)).src_port, 8472);
    }
}
