//! The packet programs, packet by packet, through `BPF_PROG_TEST_RUN`: what goes in, what comes out, with every
//! checksum recomputed. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/wire.rs"]
mod wire;

use node::{Node, external};
use outside::{
    ACK, DROP, FIN_ACK, PASS, REDIRECT, RST, RST_ACK, SYN, UNTOUCHED, V4, V6, each_family_and_protocol,
    packet,
};
use seaway_ebpf_loader::{
    AffinityClient, Counter, Direction, Frontend, MaglevTable, NodeConfig, Protocol, ServiceEntry,
    ServiceMaps, SourceRange, Traffic, maglev, maglev_chunks,
};
use wire::{TCP, UDP, frame, ip, ip_raw, read, read_headers, read_ip, tcp, udp};

#[test]
fn packets_that_address_no_service_are_not_touched() {
    let node = Node::new("untouched").with_uplink();
    each_family_and_protocol(|f, protocol| {
        let sent = packet(protocol, (f.client, 4000), (f.node, 22));
        assert_eq!(node.ingress(&sent), (UNTOUCHED, sent.clone()));
        assert_eq!(node.egress(&sent), (UNTOUCHED, sent));
    });
    let mut arp = vec![0xff; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(node.ingress(&arp).0, UNTOUCHED);
    let garbage = frame(&[0x4f; 30]);
    assert_eq!(node.ingress(&garbage).0, UNTOUCHED);
}

#[test]
fn a_local_backend_sees_the_client_and_answers_as_the_frontend() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("local").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.local, 8080, true)], |_| {});
        let (verdict, packet_in) = node.ingress(&packet(protocol, (f.client, 4000), (f.vip, 80)));
        let seen = read(&packet_in);
        assert_eq!(verdict, PASS);
        assert_eq!(seen.ends(), format!("{} 4000 > {} 8080", f.client, f.local));
        assert_eq!(seen.ttl, 64, "the stack forwards and counts down");
        let (verdict, packet_out) = node.egress(&packet(protocol, (f.local, 8080), (f.client, 4000)));
        assert_eq!(verdict, PASS);
        assert_eq!(read(&packet_out).ends(), format!("{} 80 > {} 4000", f.vip, f.client));
        let connections = node.maps.connections().unwrap();
        assert_eq!(connections.len(), 2);
        assert!(connections.iter().all(|c| c.seen_reply && !c.snat && !c.closing), "{connections:?}");
        assert!(connections.iter().all(|c| c.backend() == (f.local.parse().unwrap(), 8080)));
    });
}

/// A connection of the mode that served until now is that one's, whatever of it comes first; a SYN is the programs'.
#[test]
fn while_another_mode_is_being_followed_only_what_begins_is_translated() {
    for f in [V4, V6] {
        for direction in [Direction::Ingress, Direction::PodIngress] {
            let mut node = Node::new("take-over").with_uplink();
            node.service(external(f.vip, 80, Protocol::Tcp), &[(f.remote, 8080, false)], |_| {});
            node.service(node::internal(f.vip, 80, Protocol::Tcp), &[(f.remote, 8080, false)], |_| {});
            let run = |node: &Node, port: u16, flags: u8| {
                let segment = frame(&ip(f.client, f.vip, TCP, tcp(port, 80, flags, 1000, 1, b"")));
                let done = node.dataplane.run_packet(direction, &segment, node.uplink(), 1).unwrap();
                (done.verdict, done.packet == segment)
            };
            let config = node.maps.config().unwrap();
            node.maps.set_config(&NodeConfig { taking_over: true, ..config.clone() }).unwrap();
            for flags in [ACK, FIN_ACK, RST, 0x12] {
                assert_eq!(run(&node, 4000, flags), (UNTOUCHED, true), "{direction:?} {flags:#x}");
            }
            assert!(node.maps.connections().unwrap().is_empty());
            for flags in [SYN, ACK] {
                assert!(!run(&node, 4001, flags).1, "{direction:?} {flags:#x}");
            }
            node.maps.set_config(&config).unwrap();
            assert!(!run(&node, 4000, ACK).1, "afterwards");
        }
    }
}

#[test]
fn a_remote_backend_sees_the_node_and_its_answer_finds_the_client() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("remote").with_uplink();
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        for client_port in [4000, 31_000, 45_000] {
            let (verdict, sent) = node.ingress(&packet(protocol, (f.client, client_port), (f.vip, 80)));
            let seen = read(&sent);
            assert_eq!(verdict, REDIRECT);
            assert_eq!((seen.src.to_string(), seen.dst.to_string()), (f.node.into(), f.remote.into()));
            assert_eq!((seen.dst_port, seen.ttl), (8080, 63));
            assert!((1024..30_000).contains(&seen.src_port), "{} is a NodePort", seen.src_port);
            if client_port == 4000 {
                assert_eq!(seen.src_port, 4000, "kept where it may be");
            }
            let answer = packet(protocol, (f.remote, 8080), (f.node, seen.src_port));
            assert_eq!(node.egress(&answer).0, UNTOUCHED);
            let (verdict, answered) = node.ingress(&answer);
            assert_eq!(verdict, REDIRECT);
            assert_eq!(read(&answered).ends(), format!("{} 80 > {} {client_port}", f.vip, f.client));
        }
        assert_eq!(node.counter(Counter::FlowCreated), 3);
        assert_eq!(node.counter(Counter::Forward), 3);
        assert_eq!(node.counter(Counter::Reply), 3);
    });
}

#[test]
fn a_retried_syn_goes_to_the_same_backend_when_the_service_has_changed() {
    let mut node = Node::new("retry").with_uplink();
    let frontend = external(V4.vip, 80, Protocol::Tcp);
    let entry = node.service(frontend, &[(V4.local, 8080, true)], |_| {});
    let syn = packet(Protocol::Tcp, (V4.client, 4000), (V4.vip, 80));
    let first = node.ingress(&syn);
    node.write(frontend, entry.id, &[("10.244.1.6", 8080, true)], |_| {});
    assert_eq!(node.ingress(&syn), first);
    let other = read(&node.ingress(&packet(Protocol::Tcp, (V4.client, 4001), (V4.vip, 80))).1);
    assert_eq!(other.dst.to_string(), "10.244.1.6");
    // After an end of the connection the port may be used again, and is balanced anew.
    let fin = frame(&ip(V4.client, V4.vip, TCP, tcp(4000, 80, FIN_ACK, 2000, 1, b"")));
    assert_eq!(read(&node.ingress(&fin).1).dst.to_string(), V4.local);
    assert_eq!(read(&node.ingress(&syn).1).dst.to_string(), "10.244.1.6");
}

#[test]
fn connections_spread_over_all_backends_and_stay_when_the_table_forgets_them() {
    let mut node = Node::new("spread").with_uplink();
    let backends = [("10.244.1.5", 80, true), ("10.244.1.6", 80, true), ("10.244.1.7", 80, true)];
    node.service(external(V4.vip, 80, Protocol::Udp), &backends, |_| {});
    let choose = |node: &Node, port| {
        read(&node.ingress(&packet(Protocol::Udp, (V4.client, port), (V4.vip, 80))).1).dst
    };
    let first: Vec<_> = (1..=60).map(|port| choose(&node, port)).collect();
    for backend in backends {
        let hits = first.iter().filter(|dst| dst.to_string() == backend.0).count();
        assert!((8..=35).contains(&hits), "{hits} of 60 for {backend:?}");
    }
    let connections = node.maps.connections().unwrap();
    node.maps.remove_connections(&connections).unwrap();
    assert!(node.maps.connections().unwrap().is_empty());
    let second: Vec<_> = (1..=60).map(|port| choose(&node, port)).collect();
    assert_eq!(first, second);
}

/// Gives a service a Maglev table; returns its entry.
fn with_maglev(node: &mut Node, entry: ServiceEntry, backends: &[(&str, u16, bool)]) -> ServiceEntry {
    let mut slice: Vec<_> = backends.iter().map(|b| (b.0.parse().unwrap(), b.1)).collect();
    slice.sort_unstable();
    let slots = maglev::table(&slice);
    let size = u32::try_from(slots.len()).unwrap();
    // The second table goes beside the first.
    let base = if entry.maglev_base == 0 { maglev_chunks(size) } else { 0 };
    node.maps.put_maglev(&[MaglevTable { base, slots }]).unwrap();
    ServiceEntry { maglev_base: base, maglev_size: size, ..entry }
}

#[test]
fn maglev_keeps_the_flows_of_those_that_stay() {
    let mut node = Node::new("maglev").with_uplink();
    let frontend = external(V4.vip, 80, Protocol::Udp);
    let addrs: Vec<String> = (1..=20).map(|n| format!("10.244.1.{n}")).collect();
    let all: Vec<(&str, u16, bool)> = addrs.iter().map(|addr| (addr.as_str(), 80, true)).collect();
    let entry = node.service(frontend, &all, |_| {});
    let first = with_maglev(&mut node, entry, &all);
    node.maps.put_services(&[(frontend, first)]).unwrap();
    let choose = |node: &mut Node| -> Vec<String> {
        let chosen = (1..=1000)
            .map(|port| read(&node.ingress(&packet(Protocol::Udp, (V4.client, port), (V4.vip, 80))).1).dst)
            .map(|dst| dst.to_string())
            .collect();
        let connections = node.maps.connections().unwrap();
        node.maps.remove_connections(&connections).unwrap();
        chosen
    };
    let before = choose(&mut node);
    for addr in &addrs {
        let hits = before.iter().filter(|chosen| *chosen == addr).count();
        assert!((15..=100).contains(&hits), "{hits} of 1000 for {addr}");
    }
    let without: Vec<_> = all.iter().copied().filter(|b| b.0 != "10.244.1.7").collect();
    let entry = node.write(frontend, entry.id, &without, |entry| entry.count = 0);
    let entry = ServiceEntry { count: 19, maglev_base: first.maglev_base, ..entry };
    let second = with_maglev(&mut node, entry, &without);
    node.maps.put_services(&[(frontend, second)]).unwrap();
    let after = choose(&mut node);
    let moved = before.iter().zip(&after).filter(|(b, a)| *b != "10.244.1.7" && b != a).count();
    assert!(moved <= 20, "{moved} of 1000 moved");
    assert!(after.iter().all(|chosen| chosen != "10.244.1.7"));
    // A slot that is none of the slice's is noticed.
    let foreign = MaglevTable { base: second.maglev_base, slots: vec![19; 16_381] };
    node.maps.put_maglev(&[foreign]).unwrap();
    assert_eq!(node.ingress(&packet(Protocol::Udp, (V4.client, 5), (V4.vip, 80))).0, DROP);
    assert_eq!(node.counter(Counter::StaleSlice), 1);
}

#[test]
fn traffic_is_counted_per_service_and_backend_when_wanted() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("traffic").with_uplink();
        let entry = node.service(external(f.vip, 80, protocol), &[(f.local, 8080, true)], |_| {});
        let sent = packet(protocol, (f.client, 4000), (f.vip, 80));
        let answer = packet(protocol, (f.local, 8080), (f.client, 4000));
        node.ingress(&sent);
        assert_eq!(node.maps.traffic().unwrap(), [], "not wanted");
        let config = NodeConfig { stats: true, ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
        let connections = node.maps.connections().unwrap();
        node.maps.remove_connections(&connections).unwrap();
        for _ in 0..3 {
            node.ingress(&sent);
        }
        node.egress(&answer);
        let expected = Traffic {
            service: entry.id,
            backend: (f.local.parse().unwrap(), 8080),
            connections: 1,
            packets_in: 3,
            bytes_in: 3 * (sent.len() - 14) as u64,
            packets_out: 1,
            bytes_out: (answer.len() - 14) as u64,
        };
        let counted = node.maps.traffic().unwrap();
        assert_eq!(counted, [expected]);
        node.maps.remove_traffic(&counted).unwrap();
        assert_eq!(node.maps.traffic().unwrap(), []);
    });
}

#[test]
fn session_affinity_keeps_a_client_at_its_backend_while_that_serves() {
    let mut node = Node::new("affinity").with_uplink();
    let frontend = external(V4.vip, 80, Protocol::Tcp);
    let backends = [("10.244.1.5", 80, true), ("10.244.1.6", 80, true), ("10.244.1.7", 80, true)];
    let affinity = Some(std::time::Duration::from_secs(60));
    let entry = node.service(frontend, &backends, |entry| entry.affinity = affinity);
    let choose = |node: &Node, port| {
        read(&node.ingress(&packet(Protocol::Tcp, (V4.client, port), (V4.vip, 80))).1).dst
    };
    let chosen = choose(&node, 1);
    assert!((2..40).all(|port| choose(&node, port) == chosen));
    let affinities = node.maps.affinities().unwrap();
    assert_eq!(affinities.len(), 1);
    assert_eq!(affinities[0].client, AffinityClient::Address(V4.client.parse().unwrap()));
    assert_eq!(affinities[0].backend, (chosen, 80));
    // Another backend goes: nothing changes. Its own goes: another one is chosen, and kept.
    let without = |gone: &str| backends.iter().copied().filter(|b| b.0 != gone).collect::<Vec<_>>();
    let other = backends.iter().find(|b| b.0 != chosen.to_string()).unwrap().0;
    node.write(frontend, entry.id, &without(other), |entry| entry.affinity = affinity);
    assert!((50..70).all(|port| choose(&node, port) == chosen));
    node.write(frontend, entry.id, &without(&chosen.to_string()), |entry| entry.affinity = affinity);
    let next = choose(&node, 100);
    assert_ne!(next, chosen);
    assert!((101..130).all(|port| choose(&node, port) == next));
}

#[test]
fn source_ranges_admit_only_what_they_cover() {
    for (f, range, prefix, outside) in
        [(V4, "203.0.113.0", 24, "203.0.114.1"), (V6, "2001:db8::", 64, "2001:db8:1::1")]
    {
        let mut node = Node::new("ranges").with_uplink();
        let entry = node.service(external(f.vip, 80, Protocol::Tcp), &[(f.local, 8080, true)], |entry| {
            entry.source_ranges = true;
        });
        let range = SourceRange { service: entry.id, addr: range.parse().unwrap(), prefix };
        let foreign = SourceRange { service: entry.id + 1, addr: outside.parse().unwrap(), prefix };
        node.maps.put_source_ranges(&[range, foreign]).unwrap();
        assert_eq!(node.maps.source_ranges().unwrap().len(), 2);
        assert_eq!(node.ingress(&packet(Protocol::Tcp, (f.client, 1), (f.vip, 80))).0, PASS);
        assert_eq!(node.ingress(&packet(Protocol::Tcp, (outside, 1), (f.vip, 80))).0, DROP);
        assert_eq!(node.counter(Counter::SourceRange), 1);
        node.maps.remove_source_ranges(&[range, range]).unwrap();
        assert_eq!(node.ingress(&packet(Protocol::Tcp, (f.client, 2), (f.vip, 80))).0, DROP);
    }
}

#[test]
fn a_service_without_backends_rejects_tcp_with_rst() {
    for f in [V4, V6] {
        let mut node = Node::new("rst").with_uplink();
        node.service(external(f.vip, 80, Protocol::Tcp), &[], |_| {});
        let syn = frame(&ip(f.client, f.vip, TCP, tcp(4000, 80, SYN, 1000, 0, b"early data")));
        let (verdict, answer) = node.ingress(&syn);
        assert_eq!(verdict, REDIRECT);
        assert_eq!((&answer[..6], &answer[6..12]), (&syn[6..12], &syn[..6]));
        let rst = read(&answer);
        assert_eq!(rst.ends(), format!("{} 80 > {} 4000", f.vip, f.client));
        assert_eq!(rst.payload[13], RST_ACK);
        assert_eq!(rst.payload[8..12], 1011_u32.to_be_bytes(), "acknowledges SYN and data");
        assert_eq!(rst.payload.len(), 20);
        let ack = frame(&ip(f.client, f.vip, TCP, tcp(4000, 80, ACK, 1000, 77, b"x")));
        let rst = read(&node.ingress(&ack).1);
        assert_eq!((rst.payload[13], &rst.payload[4..8]), (RST, &77_u32.to_be_bytes()[..]));
        let reset = frame(&ip(f.client, f.vip, TCP, tcp(4000, 80, RST, 1000, 0, b"")));
        assert_eq!(node.ingress(&reset).0, DROP, "no answer to a reset");
        assert_eq!(node.counter(Counter::NoBackend), 3);
        assert!(node.maps.connections().unwrap().is_empty());
    }
}

#[test]
fn a_service_without_backends_rejects_udp_with_port_unreachable() {
    for (f, kind, code) in [(V4, 3, 3), (V6, 1, 4)] {
        for data in [&b""[..], &[7; 900]] {
            let mut node = Node::new("unreachable").with_uplink();
            node.service(external(f.vip, 53, Protocol::Udp), &[], |_| {});
            let sent = frame(&ip(f.client, f.vip, UDP, udp(4000, 53, data)));
            let (verdict, answer) = node.ingress(&sent);
            assert_eq!(verdict, REDIRECT);
            let error = read(&answer);
            assert_eq!((error.src.to_string(), error.dst.to_string()), (f.vip.into(), f.client.into()));
            assert_eq!((error.proto, error.payload[0], error.payload[1]), (f.icmp, kind, code));
            let quoted = read_ip(&error.payload[8..]);
            assert_eq!(quoted.ends(), format!("{} 4000 > {} 53", f.client, f.vip));
        }
    }
}

#[test]
fn a_local_policy_without_local_backends_drops() {
    let mut node = Node::new("local-policy").with_uplink();
    node.service(external(V4.vip, 80, Protocol::Tcp), &[], |entry| entry.drop_when_empty = true);
    assert_eq!(node.ingress(&packet(Protocol::Tcp, (V4.client, 1), (V4.vip, 80))).0, DROP);
    assert_eq!(node.counter(Counter::NoLocalBackend), 1);
}

#[test]
fn what_cannot_be_forwarded_is_dropped_by_name() {
    let mut node = Node::new("drops").with_uplink();
    node.service(external(V4.vip, 80, Protocol::Tcp), &[(V4.remote, 8080, false)], |_| {});
    node.service(external(V4.vip, 81, Protocol::Tcp), &[("198.51.100.1", 8080, false)], |_| {});
    let syn = |port| packet(Protocol::Tcp, (V4.client, 4000), (V4.vip, port));
    assert_eq!(node.ingress(&syn(81)).0, DROP);
    assert_eq!(node.counter(Counter::NoRoute), 1);
    let (src, dst) = (V4.client.parse().unwrap(), V4.vip.parse().unwrap());
    let dying = ip_raw(src, dst, TCP, 1, 0, &wire::finish(src, dst, TCP, tcp(4001, 80, SYN, 1, 0, b"")));
    assert_eq!(node.ingress(&frame(&dying)).0, DROP);
    assert_eq!(node.counter(Counter::TtlExceeded), 1);
    node.maps.set_config(&NodeConfig::default()).unwrap();
    let fresh = packet(Protocol::Tcp, (V4.client, 4002), (V4.vip, 80));
    assert_eq!(node.ingress(&fresh).0, DROP);
    assert_eq!(node.counter(Counter::NoNodeAddress), 1);
}

#[test]
fn one_client_port_to_two_frontends_of_one_backend_stays_two_connections() {
    each_family_and_protocol(|f, protocol| {
        for (backend, local) in [(f.local, true), (f.remote, false)] {
            let mut node = Node::new("collision").with_uplink();
            for vip in [f.vip, f.other_vip] {
                node.service(external(vip, 80, protocol), &[(backend, 8080, local)], |_| {});
            }
            let mut ports = Vec::new();
            for vip in [f.vip, f.other_vip] {
                let seen = read(&node.ingress(&packet(protocol, (f.client, 4000), (vip, 80))).1);
                ports.push(seen.src_port);
                let answer = packet(protocol, (backend, 8080), (&seen.src.to_string(), seen.src_port));
                let answered = if local { node.egress(&answer).1 } else { node.ingress(&answer).1 };
                assert_eq!(read(&answered).ends(), format!("{vip} 80 > {} 4000", f.client));
            }
            assert_ne!(ports[0], ports[1]);
            assert_eq!(node.counter(Counter::SnatCollision), 1);
        }
    });
}

#[test]
fn source_ports_run_out_by_name() {
    let mut node = Node::new("exhausted").with_uplink();
    let config = NodeConfig { snat_ports: 5000..=5002, ..node.maps.config().unwrap() };
    node.maps.set_config(&config).unwrap();
    assert_eq!(node.maps.config().unwrap(), config);
    node.service(external(V4.vip, 80, Protocol::Tcp), &[(V4.remote, 8080, false)], |_| {});
    let verdicts: Vec<_> =
        (1..=5).map(|port| node.ingress(&packet(Protocol::Tcp, (V4.client, port), (V4.vip, 80))).0).collect();
    assert_eq!(verdicts, [REDIRECT, REDIRECT, REDIRECT, DROP, DROP]);
    assert_eq!(node.counter(Counter::SnatExhausted), 2);
    assert!(node.counter(Counter::SnatCollision) >= 48);
}

#[test]
fn source_nat_keeps_off_node_ports_that_lie_in_its_range() {
    each_family_and_protocol(|f, protocol| {
        let mut node = Node::new("snat-node-port").with_uplink();
        let config = NodeConfig { snat_ports: 5000..=5002, ..node.maps.config().unwrap() };
        node.maps.set_config(&config).unwrap();
        node.service(external(f.vip, 80, protocol), &[(f.remote, 8080, false)], |_| {});
        for port in [5000, 5002] {
            let guard = Frontend::node_port_guard(f.icmp == 1, port, protocol);
            node.service(guard, &[], |entry| entry.node_port = true);
        }
        // Not even the client's own, which is kept otherwise.
        let (verdict, sent) = node.ingress(&packet(protocol, (f.client, 5000), (f.vip, 80)));
        assert_eq!((verdict, read(&sent).src_port), (REDIRECT, 5001));
        assert_eq!(node.ingress(&packet(protocol, (f.client, 5002), (f.vip, 80))).0, DROP);
        assert_eq!(node.counter(Counter::SnatExhausted), 1);
    });
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut node = Node::new("no-checksum").with_uplink();
    node.service(external(V4.vip, 53, Protocol::Udp), &[(V4.local, 5353, true)], |_| {});
    let (src, dst) = (V4.client.parse().unwrap(), V4.vip.parse().unwrap());
    let sent = frame(&ip_raw(src, dst, UDP, 64, 0, &udp(4000, 53, b"data")));
    let seen = read_headers(&node.ingress(&sent).1);
    assert_eq!(seen.ends(), format!("{} 4000 > {} 5353", V4.client, V4.local));
    assert_eq!(seen.payload[6..8], [0, 0]);
}

#[test]
fn an_old_slice_that_is_being_replaced_is_noticed() {
    let mut node = Node::new("stale").with_uplink();
    let frontend = external(V4.vip, 80, Protocol::Tcp);
    let entry = node.service(frontend, &[(V4.local, 8080, true)], |_| {});
    // Another service has taken the place, and the service still points there.
    let foreign = seaway_ebpf_loader::BackendEntry {
        addr: "10.244.1.99".parse().unwrap(),
        port: 1,
        service: entry.id + 7,
        local: true,
    };
    node.maps.put_backends(&[(entry.base, vec![foreign])]).unwrap();
    assert_eq!(node.ingress(&packet(Protocol::Tcp, (V4.client, 1), (V4.vip, 80))).0, DROP);
    assert_eq!(node.counter(Counter::StaleSlice), 1);
}
