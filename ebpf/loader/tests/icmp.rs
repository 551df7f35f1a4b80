//! ICMP errors about packets that the programs have translated, and those that they send themselves, packet by packet.
//! Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/wire.rs"]
mod wire;

use node::{Node, external};
use outside::{Family, PASS, REDIRECT, UNTOUCHED, V4, V6, each_family_and_protocol, packet};
use seaway_ebpf_loader::{Counter, Protocol};
use wire::{Read, UDP, frame, icmp, ip, read, read_ip, udp};

/// An ICMP error about `quoted`, as `from` would send it to `to`.
fn error(f: &Family, from: &str, to: &str, about: (u8, u8, u32), quoted: &[u8]) -> Vec<u8> {
    let quoted = &quoted[..quoted.len().min(if f.is_v4() { 28 } else { 48 })];
    frame(&ip(from, to, f.icmp, icmp(about.0, about.1, about.2, quoted)))
}

fn assert_error(packet: &[u8], ends: (&str, &str), quoted: &str) -> Read {
    let outer = read(packet);
    assert_eq!((outer.src.to_string(), outer.dst.to_string()), (ends.0.to_owned(), ends.1.to_owned()));
    let inner = read_ip(&outer.payload[8..]);
    assert_eq!(inner.ends(), quoted);
    inner
}

#[test]
fn icmp_errors_of_a_local_backend_reach_the_client_as_the_frontends() {
    each_family_and_protocol(|f, protocol| {
        let about = if f.is_v4() { (3, 3, 0) } else { (1, 4, 0) };
        let mut node = Node::new("icmp-local").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.local, 8080, true)], |_| {});
        let seen = node.ingress(&packet(protocol, (f.client, 4000), (f.vip, 80))).1;
        let (verdict, sent) = node.egress(&error(f, f.local, f.client, about, &seen[14..]));
        assert_eq!(verdict, PASS);
        let inner = assert_error(&sent, (f.vip, f.client), &format!("{} 4000 > {} 80", f.client, f.vip));
        if protocol == Protocol::Udp {
            // The quoted checksum is that of the datagram as the client sent it.
            let original = read(&packet(protocol, (f.client, 4000), (f.vip, 80)));
            assert_eq!(inner.payload[..8], original.payload[..8]);
        }
        // From a router on the way, with its own address.
        let router = if f.is_v4() { "10.244.1.1" } else { "fd00:244:1::1" };
        let (_, sent) = node.egress(&error(f, router, f.client, about, &seen[14..]));
        assert_error(&sent, (router, f.client), &format!("{} 4000 > {} 80", f.client, f.vip));
        assert_eq!(node.counter(Counter::IcmpTranslated), 2);
    });
}

#[test]
fn icmp_errors_on_the_way_to_the_client_reach_the_backend() {
    each_family_and_protocol(|f, protocol| {
        let about = if f.is_v4() { (3, 4, 1300) } else { (2, 0, 1300) };
        let router = if f.is_v4() { "203.0.113.1" } else { "2001:db8::1" };
        for (backend, local) in [(f.local, true), (f.remote, false)] {
            let mut node = Node::new("icmp-client").with_uplink();
            node.service(external(f.vip, 80, protocol), &[(backend, 8080, local)], |_| {});
            let seen = read(&node.ingress(&packet(protocol, (f.client, 4000), (f.vip, 80))).1);
            let answer = packet(protocol, (backend, 8080), (&seen.src.to_string(), seen.src_port));
            let answered = if local { node.egress(&answer).1 } else { node.ingress(&answer).1 };
            let (verdict, sent) = node.ingress(&error(f, router, f.vip, about, &answered[14..]));
            assert_eq!(verdict, if local { PASS } else { REDIRECT });
            let quoted = format!("{backend} 8080 > {} {}", seen.src, seen.src_port);
            assert_error(&sent, (router, backend), &quoted);
        }
    });
}

#[test]
fn icmp_errors_on_the_way_to_a_remote_backend_reach_the_client() {
    each_family_and_protocol(|f, protocol| {
        let about = if f.is_v4() { (3, 1, 0) } else { (1, 3, 0) };
        let mut node = Node::new("icmp-remote").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        let seen = node.ingress(&packet(protocol, (f.client, 4000), (f.vip, 80))).1;
        let (verdict, sent) = node.ingress(&error(f, f.remote, f.node, about, &seen[14..]));
        assert_eq!(verdict, REDIRECT);
        assert_error(&sent, (f.vip, f.client), &format!("{} 4000 > {} 80", f.client, f.vip));
        // One that belongs to nothing here is the stack's.
        let foreign = packet(protocol, (f.node, 1), (f.remote, 2));
        assert_eq!(node.ingress(&error(f, f.remote, f.node, about, &foreign[14..])).0, UNTOUCHED);
    });
}

#[test]
fn what_is_too_large_for_the_way_is_answered_with_the_mtu() {
    let mut node = Node::new("mtu").with_uplink();
    for command in
        ["ip link add tun0 mtu 1400 type veth peer name tun1", "ip link set tun0 up", "ip link set tun1 up"]
    {
        node::run(command);
    }
    node::run("ip route add 10.244.3.0/24 dev tun0");
    node::run("ip -6 route add fd00:244:3::/64 dev tun0");
    for (f, backend, kind, code) in [(V4, "10.244.3.1", 3, 4), (V6, "fd00:244:3::1", 2, 0)] {
        node.service(external(f.vip, 53, Protocol::Udp), &[(backend, 5353, false)], |_| {});
        let (verdict, answer) = node.ingress(&frame(&ip(f.client, f.vip, UDP, udp(4000, 53, &[1; 1420]))));
        assert_eq!(verdict, REDIRECT);
        let error = read(&answer);
        assert_eq!((error.src.to_string(), error.dst.to_string()), (f.vip.into(), f.client.into()));
        assert_eq!((error.payload[0], error.payload[1]), (kind, code));
        assert_eq!(u32::from_be_bytes(error.payload[4..8].try_into().unwrap()), 1400);
        let small = node.ingress(&frame(&ip(f.client, f.vip, UDP, udp(4000, 53, &[1; 1000])))).1;
        assert_eq!(read(&small).dst.to_string(), backend);
    }
    assert_eq!(node.counter(Counter::TooBig), 2);
}
