//! Clients outside of the cluster, what they reach, and one pass of their packets through the programs at an uplink.

use seaway_ebpf_loader::{Direction, Protocol};

use crate::node::{NODE_V4, NODE_V6, Node};
use crate::wire::{TCP, UDP, frame, ip, tcp, udp};

pub const UNTOUCHED: i32 = -1;
pub const PASS: i32 = 0;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const RST_ACK: u8 = 0x14;
pub const ACK: u8 = 0x10;
pub const FIN_ACK: u8 = 0x11;

/// The addresses of a test, per family.
#[derive(Clone, Copy)]
pub struct Family {
    pub client: &'static str,
    pub vip: &'static str,
    pub other_vip: &'static str,
    pub local: &'static str,
    pub remote: &'static str,
    pub node: &'static str,
    pub icmp: u8,
}

pub const V4: Family = Family {
    client: "203.0.113.7",
    vip: "172.30.0.200",
    other_vip: "172.30.0.201",
    local: "10.244.1.5",
    remote: "10.244.2.9",
    node: NODE_V4,
    icmp: 1,
};
pub const V6: Family = Family {
    client: "2001:db8::7",
    vip: "fd00:10:30::c0",
    other_vip: "fd00:10:30::c1",
    local: "fd00:244:1::5",
    remote: "fd00:244:2::9",
    node: NODE_V6,
    icmp: 58,
};

pub const FAMILIES: [Family; 2] = [V4, V6];

impl Family {
    pub fn is_v4(&self) -> bool {
        self.icmp == 1
    }
}

pub fn transport(protocol: Protocol, src: u16, dst: u16) -> (u8, Vec<u8>) {
    match protocol {
        Protocol::Tcp => (TCP, tcp(src, dst, SYN, 1000, 0, b"")),
        Protocol::Udp => (UDP, udp(src, dst, b"hello")),
    }
}

pub fn packet(protocol: Protocol, src: (&str, u16), dst: (&str, u16)) -> Vec<u8> {
    let (proto, payload) = transport(protocol, src.1, dst.1);
    frame(&ip(src.0, dst.0, proto, payload))
}

impl Node {
    pub fn ingress(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        let run = self.dataplane.run_packet(Direction::Ingress, packet, self.uplink(), 1).unwrap();
        (run.verdict, run.packet)
    }

    pub fn egress(&self, packet: &[u8]) -> (i32, Vec<u8>) {
        let run = self.dataplane.run_packet(Direction::Egress, packet, self.uplink(), 1).unwrap();
        (run.verdict, run.packet)
    }
}

pub fn each_family_and_protocol(test: impl Fn(&Family, Protocol)) {
    for family in &FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            test(family, protocol);
        }
    }
}
