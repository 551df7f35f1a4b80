//! Fragments, options and extension headers: what stands between an IP header and ports, or is without ports, packet by
//! packet. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/wire.rs"]
mod wire;

use node::{Node, external};
use outside::{PASS, REDIRECT, SYN, UNTOUCHED, V4, V6};
use seaway_ebpf_loader::Protocol;
use wire::{Read, TCP, UDP, frame, ip_raw, read_headers, tcp, udp};

#[test]
fn ipv4_fragments_follow_their_first() {
    for (backend, local, verdict) in [(V4.local, true, PASS), (V4.remote, false, REDIRECT)] {
        let mut node = Node::new("fragments").with_uplink();
        node.service(external(V4.vip, 53, Protocol::Udp), &[(backend, 5353, local)], |_| {});
        let (src, dst) = (V4.client.parse().unwrap(), V4.vip.parse().unwrap());
        let datagram = wire::finish(src, dst, UDP, udp(4000, 53, &[9; 2000]));
        let first = frame(&ip_raw(src, dst, UDP, 64, 0x2000, &datagram[..1480]));
        let last = frame(&ip_raw(src, dst, UDP, 64, 1480 / 8, &datagram[1480..]));
        assert_eq!(node.ingress(&last).0, UNTOUCHED, "nothing is known yet");
        let (first_verdict, first) = node.ingress(&first);
        let (last_verdict, last) = node.ingress(&last);
        assert_eq!((first_verdict, last_verdict), (verdict, verdict));
        let (first, last) = (read_headers(&first), read_headers(&last));
        assert_eq!((first.src, first.dst, first.dst_port), (last.src, last.dst, 5353));
        assert_eq!(last.dst.to_string(), backend);
        assert_eq!(last.payload, datagram[1480..]);
        // Put together, the datagram has a right checksum.
        let payload = [first.payload.clone(), last.payload].concat();
        wire::assert_sum(&Read { payload, ..first });
    }
}

#[test]
fn ipv6_fragments_follow_their_first() {
    let mut node = Node::new("fragments6").with_uplink();
    node.service(external(V6.vip, 53, Protocol::Udp), &[(V6.local, 5353, true)], |_| {});
    let (src, dst) = (V6.client.parse().unwrap(), V6.vip.parse().unwrap());
    let datagram = wire::finish(src, dst, UDP, udp(4000, 53, &[9; 2000]));
    let piece = |offset: u16, more: u16, data: &[u8]| {
        let mut payload = vec![UDP, 0];
        payload.extend((offset | more).to_be_bytes());
        payload.extend([1, 2, 3, 4]);
        payload.extend(data);
        frame(&ip_raw(src, dst, 44, 64, 0, &payload))
    };
    let (first, last) = (piece(0, 1, &datagram[..1400]), piece(1400, 0, &datagram[1400..]));
    let (verdict, first) = node.ingress(&first);
    assert_eq!(verdict, PASS);
    let (verdict, last) = node.ingress(&last);
    assert_eq!(verdict, PASS);
    let (first, last) = (read_headers(&first), read_headers(&last));
    assert_eq!((first.dst.to_string(), last.dst.to_string()), (V6.local.into(), V6.local.into()));
    let payload = [&first.payload[8..], &last.payload[8..]].concat();
    wire::assert_sum(&Read { payload, proto: UDP, ..first });
}

#[test]
fn ipv6_extension_headers_are_passed_over() {
    let mut node = Node::new("extensions").with_uplink();
    node.service(external(V6.vip, 80, Protocol::Tcp), &[(V6.local, 8080, true)], |_| {});
    let (src, dst) = (V6.client.parse().unwrap(), V6.vip.parse().unwrap());
    let segment = wire::finish(src, dst, TCP, tcp(4000, 80, SYN, 1, 0, b""));
    let options =
        [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[TCP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    let sent = frame(&ip_raw(src, dst, 0, 64, 0, &[options.clone(), segment].concat()));
    let (verdict, seen) = node.ingress(&sent);
    assert_eq!(verdict, PASS);
    let seen = read_headers(&seen);
    assert_eq!(seen.dst.to_string(), V6.local);
    assert_eq!(seen.payload[..24], options);
    let tcp = Read { payload: seen.payload[24..].to_vec(), proto: TCP, ..seen };
    wire::assert_sum(&tcp);
    assert_eq!(tcp.payload[2..4], 8080_u16.to_be_bytes());
}

#[test]
fn ipv4_options_are_passed_over() {
    let mut node = Node::new("options").with_uplink();
    node.service(external(V4.vip, 80, Protocol::Tcp), &[(V4.local, 8080, true)], |_| {});
    let (src, dst) = (V4.client.parse().unwrap(), V4.vip.parse().unwrap());
    let segment = wire::finish(src, dst, TCP, tcp(4000, 80, SYN, 1, 0, b""));
    let mut bytes = ip_raw(src, dst, TCP, 64, 0, &segment);
    bytes.splice(20..20, [1, 1, 1, 1]);
    bytes[0] = 0x46;
    bytes[3] += 4;
    bytes[10..12].fill(0);
    let sum = wire::checksum(&[&bytes[..24]]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    let (verdict, seen) = node.ingress(&frame(&bytes));
    assert_eq!(verdict, PASS);
    let seen = &seen[14..];
    assert_eq!(wire::checksum(&[&seen[..24]]), 0);
    let tcp = Read {
        src,
        dst: V4.local.parse().unwrap(),
        ttl: 64,
        proto: TCP,
        src_port: 4000,
        dst_port: 8080,
        payload: seen[24..].to_vec(),
    };
    assert_eq!(seen[16..20], [10, 244, 1, 5]);
    wire::assert_sum(&tcp);
}
