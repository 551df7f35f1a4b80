//! Connections that have ended leave entries behind: they must not be in the way of new ones. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use node::{Node, external};
use seaway_ebpf_loader::{Direction, Protocol, ServiceMaps};
use wire::{TCP, frame, ip, read, tcp};

const UNTOUCHED: i32 = -1;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;

/// A client, a load balancer's address and a backend, of each family.
const ENDS: [(&str, &str, &str); 2] =
    [("203.0.113.7", "172.30.0.200", "10.244.1.5"), ("2001:db8::7", "fd00:10:30::c0", "fd00:244:1::5")];

fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    frame(&ip(from.0, to.0, TCP, tcp(from.1, to.1, flags, 1000, 0, b"")))
}

fn run(node: &Node, direction: Direction, packet: &[u8]) -> (i32, Vec<u8>) {
    let run = node.dataplane.run_packet(direction, packet, node.uplink(), 1).unwrap();
    (run.verdict, run.packet)
}

#[test]
fn a_client_that_reaches_a_backend_directly_under_the_port_of_an_ended_connection_is_answered_by_it() {
    for (client, vip, backend) in ENDS {
        let mut node = Node::new("ended").with_uplink();
        node.service(external(vip, 80, Protocol::Tcp), &[(backend, 8080, true)], |_| {});
        let answer = segment((backend, 8080), (client, 4000), SYN_ACK);
        let ends = |frame: &[u8]| read(frame).ends();
        for _ in 0..2 {
            run(&node, Direction::Ingress, &segment((client, 4000), (vip, 80), SYN));
            let (_, answered) = run(&node, Direction::Egress, &answer);
            assert_eq!(ends(&answered), format!("{vip} 80 > {client} 4000"));
            run(&node, Direction::Ingress, &segment((client, 4000), (vip, 80), RST));
        }
        // A straggler that marks a connection as ended right after it began does not cost it its answer.
        run(&node, Direction::Ingress, &segment((client, 4000), (vip, 80), SYN));
        run(&node, Direction::Ingress, &segment((client, 4000), (vip, 80), RST));
        let (_, answered) = run(&node, Direction::Egress, &answer);
        assert_eq!(ends(&answered), format!("{vip} 80 > {client} 4000"));
        // The client has connected to the backend itself, by a way that is not seen here; the backend repeats its answer
        // as long as nothing comes of it.
        let begun = Instant::now();
        while run(&node, Direction::Egress, &answer).0 != UNTOUCHED {
            assert!(begun.elapsed() < Duration::from_secs(20), "translated for a connection that is no more");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(node.maps.connections().unwrap().is_empty());
    }
}

#[test]
fn a_client_that_is_seen_to_turn_to_the_backend_itself_is_answered_by_it_at_once() {
    for (client, vip, backend) in ENDS {
        let mut node = Node::new("direct").with_uplink();
        node.service(external(vip, 80, Protocol::Tcp), &[(backend, 8080, true)], |_| {});
        let answer = segment((backend, 8080), (client, 4000), SYN_ACK);
        let opens = segment((client, 4000), (backend, 8080), SYN);
        run(&node, Direction::Ingress, &segment((client, 4000), (vip, 80), SYN));
        // As long as the connection to the service lives, its entry stays.
        assert_eq!(run(&node, Direction::Ingress, &opens).0, UNTOUCHED);
        assert_eq!(
            read(&run(&node, Direction::Egress, &answer).1).ends(),
            format!("{vip} 80 > {client} 4000")
        );
        run(&node, Direction::Ingress, &segment((client, 4000), (vip, 80), RST));
        assert_eq!(run(&node, Direction::Ingress, &opens).0, UNTOUCHED);
        assert_eq!(run(&node, Direction::Egress, &answer), (UNTOUCHED, answer));
        assert!(node.maps.connections().unwrap().is_empty());
    }
}
