//! What the packet programs cost by themselves: nanoseconds per packet by BPF_PROG_TEST_RUN, few Services beside many.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use seaway_cni_network::netlink::Mac;
use seaway_ebpf_loader::{Capacities, Dataplane, Direction};
use seaway_lab::LabNode;

use super::bed::Bed;
use super::{BIG, Effort, GROWING, LARGE, SMALL};
use crate::cluster::{NODE_PORTS, Place};
use crate::row::{Report, Row, Target};
use crate::stats::{Pairs, median};

/// A packet that is not touched may be run many times at once. One that is translated is another packet afterwards.
const REPEAT: u32 = 20_000;
/// Single runs per block.
const SINGLE: u16 = 500;
/// As far as "flat" can be told from noise.
const FLAT: f64 = 1.10;

const UNTOUCHED: i32 = -1;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The programs of a node, loaded once more beside those that are attached, on the same maps.
struct Programs<'a> {
    node: &'a LabNode,
    dataplane: Dataplane,
    uplink: u32,
    /// The uplink's address: the programs leave alone what is for others.
    mac: Mac,
    place: Place,
}

impl<'a> Programs<'a> {
    fn open(bed: &'a Bed, place: Place) -> Result<Self> {
        let node = bed.node(place);
        let uplink = node.netlink()?.link("eth0")?.context("the uplink")?;
        let mac = uplink.mac.context("an uplink with a MAC address")?;
        let dataplane = Dataplane::open(node.bpffs(), &Capacities::default())?;
        Ok(Self { node, dataplane, uplink: uplink.index, mac, place })
    }

    /// Nanoseconds of a packet that addresses no Service.
    fn untouched(&self) -> Result<f64> {
        let packet = packet(self.mac, self.place.address(), 22, 4000, SYN);
        let dataplane = &self.dataplane;
        let run = self.node.run(|| dataplane.run_packet(Direction::Ingress, &packet, self.uplink, REPEAT))?;
        if run.verdict != UNTOUCHED {
            bail!("a packet to no Service was answered with {}", run.verdict);
        }
        Ok(f64::from(run.duration_ns))
    }

    /// Nanoseconds of packets to a NodePort, each run alone: the first ones of connections, or later ones.
    fn translated(&self, flags: u8, block: usize) -> Result<f64> {
        let dataplane = &self.dataplane;
        let first = 10_000 + (block as u16 % 40) * SINGLE;
        self.node.run(|| {
            let mut times = Vec::new();
            for port in first..first + SINGLE {
                let packet = packet(self.mac, self.place.address(), NODE_PORTS[0], port, flags);
                let run = dataplane.run_packet(Direction::Ingress, &packet, self.uplink, 1)?;
                if run.verdict == UNTOUCHED {
                    bail!("a packet to a NodePort was not translated");
                }
                times.push(f64::from(run.duration_ns));
            }
            Ok(median(&times))
        })
    }
}

/// Measures.
pub fn run(bed: &Bed, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("packets one by one through the programs");
    let (few, many) = (Programs::open(bed, GROWING)?, Programs::open(bed, BIG)?);
    let mut cases = [
        ("tc-lookup-none", Pairs::default()),
        ("tc-lookup-new", Pairs::default()),
        ("tc-lookup-known", Pairs::default()),
    ];
    for block in effort.blocks() {
        cases[0].1.push(many.untouched()?, few.untouched()?);
        cases[1].1.push(many.translated(SYN, block)?, few.translated(SYN, block)?);
        cases[2].1.push(many.translated(ACK, block)?, few.translated(ACK, block)?);
    }
    for (case, pairs) in &cases {
        let peer = format!("ourselves with {SMALL} Services");
        let row = Row::beside(case, LARGE, "ns", &peer, pairs.compared(), Target::RatioAtMost(FLAT));
        report.add(row.limited_by("the larger maps do not fit the cache"));
    }
    Ok(())
}

/// A frame with a TCP segment without payload from a client outside.
fn packet(mac: Mac, to: Ipv4Addr, to_port: u16, from_port: u16, flags: u8) -> Vec<u8> {
    let from = Ipv4Addr::new(172, 30, 0, 100);
    let mut ip = vec![0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = Vec::new();
    tcp.extend(from_port.to_be_bytes());
    tcp.extend(to_port.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo: Vec<u8> = [&ip[12..20], &[0, 6, 0, 20], &tcp[..]].concat();
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let rest = [2, 0, 0, 0, 0, 2, 0x08, 0];
    [&mac.0[..], &rest, &ip, &tcp].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_right_checksums() {
        let frame = packet(Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(172, 30, 0, 11), 30_080, 4000, SYN);
        assert_eq!(frame.len(), 54);
        assert_eq!(checksum(&frame[14..34]), 0);
        let pseudo = [&frame[26..34], &[0, 6, 0, 20], &frame[34..]].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
