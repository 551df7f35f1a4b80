//! The XDP program: packet by packet through `BPF_PROG_TEST_RUN`, and between real kernels. What it sends on is what the
//! tc program would have sent; all else is passed on to that one, untouched. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/wire.rs"]
mod wire;

use node::{Node, batch, external};
use outside::{ACK, FAMILIES, FIN_ACK, Family, REDIRECT, SYN, V4, V6, each_family_and_protocol, packet};
use seaway_ebpf_loader::{Counter, Direction, NodeConfig, Protocol, Role, ServiceMaps, SourceRange, XdpMode};
use wire::{TCP, UDP, finish, frame, ip, ip_raw, read, tcp, udp};

const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const XDP_REDIRECT: i32 = 4;

/// The MAC addresses of the uplink, and of the neighbours that lead to the other node and to clients.
const UPLINK: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_NODE: [u8; 6] = [2, 0, 0, 0, 2, 2];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 2, 0xfe];

impl Node {
    /// A node whose uplink runs the program, and whose neighbours are known.
    fn with_xdp(name: &str) -> Self {
        let mut node = Self::new(name).with_uplink();
        batch(&[
            "neigh add 192.168.0.2 lladdr 02:00:00:00:02:02 dev up0",
            "neigh add 192.168.0.254 lladdr 02:00:00:00:02:fe dev up0",
            "neigh add fd01::2 lladdr 02:00:00:00:02:02 dev up0",
            "neigh add fd01::fe lladdr 02:00:00:00:02:fe dev up0",
        ]);
        // The far end of a virtual link takes frames when it has GRO.
        node::offload("wire0", node::GRO, true);
        node.attach(XdpMode::Native);
        node
    }

    fn attach(&mut self, mode: XdpMode) {
        self.dataplane.set_xdp(mode);
        let uplink = [("up0".to_owned(), Role::Uplink)];
        assert!(self.dataplane.attach_devices(&uplink).unwrap().is_empty());
    }

    fn xdp(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        let run = self.dataplane.run_packet(Direction::Xdp, packet, self.uplink(), 1).unwrap();
        (run.verdict, run.packet)
    }

    /// Asserts that the program leaves a packet alone, and remembers nothing of it.
    fn passes(&self, packet: &[u8], why: &str) {
        let before = self.maps.connections().unwrap().len();
        assert_eq!(self.xdp(packet), (XDP_PASS, packet.to_vec()), "{why}");
        assert_eq!(self.maps.connections().unwrap().len(), before, "{why}");
    }

    /// The first client port from `from` on whose flow is not one of those that go the long way.
    fn first(&self, protocol: Protocol, f: &Family, from: u16) -> (u16, Vec<u8>) {
        let mut runs =
            (from..from + 64).map(|port| (port, self.xdp(&packet(protocol, (f.client, port), (f.vip, 80)))));
        let (port, (_, sent)) = runs.find(|(_, (verdict, _))| *verdict == XDP_TX).expect("a flow of its own");
        (port, sent)
    }
}

fn segment(f: &Family, from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    assert_eq!(f.is_v4(), from.0.contains('.'));
    frame(&ip(from.0, to.0, TCP, tcp(from.1, to.1, flags, 1000, 1, b"some data")))
}

#[test]
fn a_remote_backend_sees_the_node_and_its_answer_finds_the_client() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::with_xdp("xdp-remote");
        assert_eq!(node.dataplane.xdp()[0].note, None);
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        for from in [4000, 31_000, 45_000] {
            let (port, sent) = node.first(protocol, f, from);
            let seen = read(&sent);
            assert_eq!([&sent[..6], &sent[6..12]], [OTHER_NODE, UPLINK]);
            assert_eq!((seen.src.to_string(), seen.dst.to_string()), (f.node.into(), f.remote.into()));
            assert_eq!((seen.dst_port, seen.ttl), (8080, 63));
            assert!((1024..30_000).contains(&seen.src_port), "{} is a NodePort", seen.src_port);
            let answer = packet(protocol, (f.remote, 8080), (f.node, seen.src_port));
            // A SYN of the backend would begin something.
            let answer = match protocol {
                Protocol::Tcp => segment(f, (f.remote, 8080), (f.node, seen.src_port), SYN | ACK),
                Protocol::Udp => answer,
            };
            let (verdict, answered) = node.xdp(&answer);
            assert_eq!((verdict, &answered[..6]), (XDP_TX, &GATEWAY[..]));
            let answered = read(&answered);
            assert_eq!(answered.ends(), format!("{} 80 > {} {port}", f.vip, f.client));
            assert_eq!(answered.ttl, 63);
        }
        assert_eq!(node.counter(Counter::FlowCreated), 3);
        assert_eq!(node.counter(Counter::Forward), 3);
        assert_eq!(node.counter(Counter::Reply), 3);
        assert_eq!(node.counter(Counter::XdpForwarded), 6);
        let connections = node.maps.connections().unwrap();
        assert!(connections.iter().all(|c| c.snat && c.seen_reply && !c.closing), "{connections:?}");
    });
}

/// Both programs have the same maps: it makes no difference which of them a packet meets, but for where it leaves.
#[test]
fn what_it_does_is_what_the_tc_program_does() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::with_xdp("xdp-same");
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        for port in 4000..4040 {
            let opening = packet(protocol, (f.client, port), (f.vip, 80));
            // The one that begins it is the other's.
            let begun = if port % 2 == 0 { node.ingress(&opening) } else { node.xdp(&opening) };
            if begun.0 == XDP_PASS {
                continue;
            }
            assert!([REDIRECT, XDP_TX].contains(&begun.0));
            let later = match protocol {
                Protocol::Tcp => segment(f, (f.client, port), (f.vip, 80), ACK),
                Protocol::Udp => opening,
            };
            let (by_tc, by_xdp) = (node.ingress(&later), node.xdp(&later));
            assert_eq!((by_tc.0, by_xdp.0), (REDIRECT, XDP_TX));
            assert_eq!(by_tc.1[14..], by_xdp.1[14..]);
            let source = read(&by_xdp.1).src_port;
            assert_eq!(read(&begun.1).src_port, source);
            let answer = match protocol {
                Protocol::Tcp => segment(f, (f.remote, 8080), (f.node, source), FIN_ACK),
                Protocol::Udp => packet(protocol, (f.remote, 8080), (f.node, source)),
            };
            let (by_tc, by_xdp) = (node.ingress(&answer), node.xdp(&answer));
            assert_eq!((by_tc.0, by_xdp.0), (REDIRECT, XDP_TX));
            assert_eq!(by_tc.1[14..], by_xdp.1[14..]);
        }
        assert!(node.counter(Counter::FlowCreated) >= 30);
    });
}

#[test]
fn what_it_cannot_do_to_the_end_is_passed_on_untouched() {
    for f in FAMILIES {
        let mut node = Node::with_xdp("xdp-passes");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
            node.service(external(f.vip, 81, protocol), &[(f.local, 8080, true)], |_| {});
            node.service(external(f.vip, 82, protocol), &[], |_| {});
            node.service(external(f.vip, 83, protocol), &[(f.remote, 8080, false)], |entry| {
                entry.source_ranges = true;
            });
            node.service(external(f.vip, 84, protocol), &[(f.remote, 8080, false)], |entry| entry.dsr = true);
        }
        // Every client port, so that none is passed on by chance.
        for port in 4000..4040 {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for (to, why) in [
                    (81, "a backend here"),
                    (82, "no backend"),
                    (83, "a source that is not admitted"),
                    (84, "direct server return has to tell"),
                    (90, "no service"),
                ] {
                    node.passes(&packet(protocol, (f.client, port), (f.vip, to)), why);
                }
            }
            node.passes(
                &segment(&f, (f.client, port), (f.vip, 80), ACK),
                "the middle of an unknown connection",
            );
        }
        let (src, dst) = (f.client.parse().unwrap(), f.vip.parse().unwrap());
        for port in 4000..4040 {
            let datagram = finish(src, dst, UDP, udp(port, 80, b"hello"));
            node.passes(&frame(&ip_raw(src, dst, UDP, 1, 0x4000, &datagram)), "it ends here");
            if f.is_v4() {
                node.passes(&frame(&ip_raw(src, dst, UDP, 64, 0x2000, &datagram)), "a fragment");
            }
            let large = finish(src, dst, UDP, udp(port, 80, &[7; 1500]));
            node.passes(&frame(&ip_raw(src, dst, UDP, 64, 0x4000, &large)), "too large for the way");
            let mut others = packet(Protocol::Udp, (f.client, port), (f.vip, 80));
            others[5] = 9;
            node.passes(&others, "another's frame");
            let mut short = packet(Protocol::Udp, (f.client, port), (f.vip, 80));
            short.truncate(short.len() - 2);
            node.passes(&short, "it ends early");
        }
        node.passes(&frame(&ip(f.client, f.vip, f.icmp, vec![8, 0, 0, 0, 1, 2, 3, 4])), "ICMP");
        assert_eq!(node.counter(Counter::XdpForwarded), 0);
    }
}

#[test]
fn admitted_sources_are_served() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::with_xdp("xdp-ranges");
        let frontend = external(f.vip, 80, protocol);
        let entry = node.service(frontend, &[(f.remote, 8080, false)], |entry| entry.source_ranges = true);
        let admitted = SourceRange { service: entry.id, addr: f.client.parse().unwrap(), prefix: 24 };
        node.maps.put_source_ranges(&[admitted]).unwrap();
        assert_eq!(read(&node.first(protocol, f, 4000).1).dst.to_string(), f.remote);
    });
}

#[test]
fn what_its_neighbour_or_link_does_not_take_goes_the_long_way() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::with_xdp("xdp-neighbour");
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        let (port, _) = node.first(protocol, f, 4000);
        let later = match protocol {
            Protocol::Tcp => segment(f, (f.client, port), (f.vip, 80), ACK),
            Protocol::Udp => packet(protocol, (f.client, port), (f.vip, 80)),
        };
        assert_eq!(node.xdp(&later).0, XDP_TX);
        let next_hop = if f.is_v4() { "192.168.0.2" } else { "fd01::2" };
        batch(&[&format!("neigh del {next_hop} dev up0")]);
        node.passes(&later, "no neighbour");
        batch(&[&format!("neigh add {next_hop} lladdr 02:00:00:00:02:02 dev up0")]);
        assert_eq!(node.xdp(&later).0, XDP_TX);
        node::offload("wire0", node::GRO, false);
        node.dataplane.renew_xdp().unwrap();
        assert!(node.dataplane.xdp()[0].note.as_ref().unwrap().contains("far end"));
        assert_eq!(node.dataplane.xdp()[0].mode, XdpMode::Native);
        node.passes(&later, "nobody would get it");
    });
}

/// Between virtual devices checksums are not computed: what stands in their place is known.
#[test]
fn a_checksum_that_was_left_to_a_device_is_left_to_the_stack() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::with_xdp("xdp-partial");
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        for port in 4000..4040 {
            let mut sent = packet(protocol, (f.client, port), (f.vip, 80));
            let l4 = if f.is_v4() { 34 } else { 54 };
            let (proto, at) = if protocol == Protocol::Tcp { (TCP, l4 + 16) } else { (UDP, l4 + 6) };
            let (src, dst) = (f.client.parse().unwrap(), f.vip.parse().unwrap());
            let sum = !wire::checksum(&[&wire::pseudo(src, dst, proto, sent.len() - l4)]);
            sent[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            node.passes(&sent, "a partial checksum");
        }
    });
}

#[test]
fn a_datagram_without_checksum_has_none_afterwards() {
    let mut node = Node::with_xdp("xdp-no-sum");
    node.service(external(V4.vip, 80, Protocol::Udp), &[(V4.remote, 8080, false)], |_| {});
    let sent = (4000..4064).find_map(|port| {
        let mut sent = packet(Protocol::Udp, (V4.client, port), (V4.vip, 80));
        sent[40..42].fill(0);
        Some(node.xdp(&sent)).filter(|(verdict, _)| *verdict == XDP_TX)
    });
    let (_, sent) = sent.unwrap();
    assert_eq!(sent[40..42], [0, 0]);
    assert_eq!(read(&sent).dst.to_string(), V4.remote);
}

/// The kernel sees openings that are repeated, so that it finds out when a neighbour has moved.
#[test]
fn a_repeated_opening_and_some_new_flows_go_the_long_way() {
    for f in [V4, V6] {
        let mut node = Node::with_xdp("xdp-long-way");
        node.service(external(f.vip, 80, Protocol::Tcp), &[(f.remote, 8080, false)], |_| {});
        let openings: Vec<_> =
            (4000..5600).map(|port| packet(Protocol::Tcp, (f.client, port), (f.vip, 80))).collect();
        let passed = openings.iter().filter(|opening| node.xdp(opening).0 == XDP_PASS).count();
        assert!((50..200).contains(&passed), "about a sixteenth of 1600: {passed}");
        for opening in openings.iter().take(50) {
            node.passes(opening, "again");
        }
    }
}

#[test]
fn the_end_of_a_connection_is_noted_and_its_port_is_free_again() {
    let mut node = Node::with_xdp("xdp-end");
    let frontend = external(V4.vip, 80, Protocol::Tcp);
    let entry = node.service(frontend, &[(V4.remote, 8080, false)], |_| {});
    let (port, _) = node.first(Protocol::Tcp, &V4, 4000);
    let fin = segment(&V4, (V4.client, port), (V4.vip, 80), FIN_ACK);
    assert_eq!(node.xdp(&fin).0, XDP_TX);
    assert!(node.maps.connections().unwrap().iter().all(|connection| connection.closing));
    // The service changes; what comes anew from the port is for the tc program, which balances it anew.
    node.write(frontend, entry.id, &[("10.244.2.7", 8080, false)], |_| {});
    assert_eq!(read(&node.xdp(&fin).1).dst.to_string(), V4.remote);
    let syn = packet(Protocol::Tcp, (V4.client, port), (V4.vip, 80));
    node.passes(&syn, "a new connection of a known flow");
    assert_eq!(read(&node.ingress(&syn).1).dst.to_string(), "10.244.2.7");
}

#[test]
fn direct_return_passes_by_once_the_backends_node_was_told() {
    for f in FAMILIES {
        let mut node = Node::with_xdp("xdp-dsr");
        node.service(external(f.vip, 80, Protocol::Tcp), &[(f.remote, 8080, false)], |entry| {
            entry.dsr = true;
        });
        let (verdict, told) = node.ingress(&packet(Protocol::Tcp, (f.client, 4000), (f.vip, 80)));
        assert_eq!(verdict, REDIRECT);
        assert!(told.len() > packet(Protocol::Tcp, (f.client, 4000), (f.vip, 80)).len());
        let (verdict, sent) = node.xdp(&segment(&f, (f.client, 4000), (f.vip, 80), ACK));
        assert_eq!((verdict, &sent[..6]), (XDP_TX, &OTHER_NODE[..]));
        assert_eq!(read(&sent).ends(), format!("{} 4000 > {} 8080", f.client, f.remote));
        assert_eq!(read(&sent).ttl, 63);
    }
}

#[test]
fn what_another_mode_translates_is_not_begun() {
    let mut node = Node::with_xdp("xdp-take-over");
    node.service(external(V4.vip, 80, Protocol::Tcp), &[(V4.remote, 8080, false)], |_| {});
    let config = node.maps.config().unwrap();
    node.maps.set_config(&NodeConfig { taking_over: true, ..config }).unwrap();
    for port in 4000..4040 {
        node.passes(&segment(&V4, (V4.client, port), (V4.vip, 80), ACK), "another mode's");
    }
}

#[test]
fn a_frame_leaves_by_another_link_that_takes_frames() {
    let mut node = Node::with_xdp("xdp-redirect");
    batch(&[
        "link add up1 type veth peer name wire1",
        "link set up1 up",
        "link set wire1 up",
        "addr add 192.168.7.1/24 dev up1",
        "addr add fd07::1/64 dev up1 nodad",
        "route add 10.244.7.0/24 via 192.168.7.2",
        "route add fd00:244:7::/64 via fd07::2",
        "neigh add 192.168.7.2 lladdr 02:00:00:00:07:02 dev up1",
        "neigh add fd07::2 lladdr 02:00:00:00:07:02 dev up1",
    ]);
    for (f, backend) in [(V4, "10.244.7.9"), (V6, "fd00:244:7::9")] {
        node.service(external(f.vip, 80, Protocol::Udp), &[(backend, 8080, false)], |_| {});
    }
    let attach = |node: &mut Node, links: &[&str]| {
        let links: Vec<_> = links.iter().map(|name| ((*name).to_owned(), Role::Uplink)).collect();
        node.dataplane.attach_devices(&links).unwrap();
    };
    let verdicts = |node: &Node, f: &Family| {
        let runs = (4000..4040).map(|port| node.xdp(&packet(Protocol::Udp, (f.client, port), (f.vip, 80))));
        runs.filter(|(verdict, _)| *verdict != XDP_PASS).collect::<Vec<_>>()
    };
    for links in [&["up0"][..], &["up0", "up1"]] {
        attach(&mut node, links);
        for f in FAMILIES {
            assert_eq!(verdicts(&node, &f), [], "nobody at {links:?} would get it");
        }
    }
    node::offload("wire1", node::GRO, true);
    node.dataplane.renew_xdp().unwrap();
    for (f, backend) in [(V4, "10.244.7.9"), (V6, "fd00:244:7::9")] {
        let sent = verdicts(&node, &f);
        assert!(sent.len() > 20);
        for (verdict, sent) in sent {
            assert_eq!((verdict, &sent[..6]), (XDP_REDIRECT, &[2, 0, 0, 0, 7, 2][..]));
            assert_eq!(read(&sent).dst.to_string(), backend);
        }
    }
}
