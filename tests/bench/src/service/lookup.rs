//! What the packet programs cost by themselves: nanoseconds per packet by BPF_PROG_TEST_RUN, few Services beside many.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use seaway_cni_network::netlink::{Mac, Neighbour, NeighbourKind, Route};
use seaway_ebpf_loader::{Capacities, Dataplane, Direction, XdpMode};
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

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// A NodePort of a Service whose endpoints are elsewhere.
const ELSEWHERE: u16 = 31_001;
/// The neighbour that leads there: nobody, but with an address.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 250);

/// A program, and what it says of packets that it leaves to others, and of those that it sends on.
struct Hook {
    direction: Direction,
    left: i32,
    sent: i32,
}

const TC: Hook = Hook { direction: Direction::Ingress, left: -1, sent: 7 };
const XDP: Hook = Hook { direction: Direction::Xdp, left: 2, sent: 3 };

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
        let mut netlink = node.netlink()?;
        let uplink = netlink.link("eth0")?.context("the uplink")?;
        let mac = uplink.mac.context("an uplink with a MAC address")?;
        let (link, addr) = (uplink.index, NEXT_HOP.into());
        let known = Neighbour { link, addr, mac: Some(mac), kind: NeighbourKind::Permanent };
        netlink.set_neighbour(&known)?;
        let net = Ipv4Net::new(Ipv4Addr::new(10, 200, 0, 0), 15)?;
        netlink.replace_route(&Route::to(net.into()).via(addr).on(link))?;
        let dataplane = Dataplane::open(node.bpffs(), &Capacities::default())?;
        Ok(Self { node, dataplane, uplink: uplink.index, mac, place })
    }

    /// Lets the XDP program run at the uplink, or not. In the generic form, in which every link takes frames; the program
    /// is the same. The node's proxy, which has it switched off, takes it away now and then.
    fn run_xdp(&mut self, mode: XdpMode) -> Result<()> {
        let dataplane = &mut self.dataplane;
        dataplane.set_xdp(mode);
        Ok(self.node.run(|| dataplane.attach_xdp(&["eth0".to_owned()]))?)
    }

    /// Nanoseconds of a packet that addresses no Service.
    fn untouched(&self, hook: &Hook, block: usize) -> Result<f64> {
        let packet = packet(self.mac, self.place.address(), 22, 4000 + block as u16, SYN);
        let dataplane = &self.dataplane;
        let run = self.node.run(|| dataplane.run_packet(hook.direction, &packet, self.uplink, REPEAT))?;
        if run.verdict != hook.left {
            bail!("a packet to no Service was answered with {}", run.verdict);
        }
        Ok(f64::from(run.duration_ns))
    }

    /// Nanoseconds of packets to a NodePort, each run alone: the first ones of connections, or later ones. Some new
    /// connections XDP leaves to tc: those do not count, and they have to be few.
    fn translated(&self, hook: &Hook, to_port: u16, flags: u8, block: usize) -> Result<f64> {
        let dataplane = &self.dataplane;
        let first = 10_000 + (block as u16 % 40) * SINGLE;
        self.node.run(|| {
            let mut times = Vec::new();
            for port in first..first + SINGLE {
                let packet = packet(self.mac, self.place.address(), to_port, port, flags);
                let run = dataplane.run_packet(hook.direction, &packet, self.uplink, 1)?;
                if run.verdict != hook.left {
                    times.push(f64::from(run.duration_ns));
                }
                if to_port == ELSEWHERE && ![hook.left, hook.sent].contains(&run.verdict) {
                    bail!("a packet to an endpoint elsewhere was answered with {}", run.verdict);
                }
            }
            if times.len() < usize::from(SINGLE) * 4 / 5 {
                bail!("{} of {SINGLE} packets to a NodePort were translated", times.len());
            }
            Ok(median(&times))
        })
    }
}

/// Measures.
pub fn run(bed: &Bed, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("packets one by one through the programs");
    let (mut few, mut many) = (Programs::open(bed, GROWING)?, Programs::open(bed, BIG)?);
    let cases = ["tc-lookup-none", "tc-lookup-new", "tc-lookup-known"];
    let mut cases = cases.map(|case| (case, Pairs::default()));
    for block in effort.blocks() {
        cases[0].1.push(many.untouched(&TC, block)?, few.untouched(&TC, block)?);
        for (case, flags) in cases[1..].iter_mut().zip([SYN, ACK]) {
            let run = |programs: &Programs<'_>| programs.translated(&TC, NODE_PORTS[0], flags, block);
            case.1.push(run(&many)?, run(&few)?);
        }
    }
    let cases_xdp = ["xdp-lookup-none", "xdp-lookup-new", "xdp-lookup-known"];
    let mut cases_xdp = cases_xdp.map(|case| (case, Pairs::default()));
    let mut against_tc = Pairs::default();
    for block in effort.blocks() {
        many.run_xdp(XdpMode::Generic)?;
        few.run_xdp(XdpMode::Generic)?;
        cases_xdp[0].1.push(many.untouched(&XDP, block)?, few.untouched(&XDP, block)?);
        let run = |programs: &Programs<'_>, flags| programs.translated(&XDP, ELSEWHERE, flags, block);
        cases_xdp[1].1.push(run(&many, SYN)?, run(&few, SYN)?);
        let known = run(&many, ACK)?;
        cases_xdp[2].1.push(known, run(&few, ACK)?);
        against_tc.push(known, many.translated(&TC, ELSEWHERE, ACK, block)?);
    }
    many.run_xdp(XdpMode::Off)?;
    few.run_xdp(XdpMode::Off)?;
    for (case, pairs) in cases.iter().chain(&cases_xdp) {
        let peer = format!("ourselves with {SMALL} Services");
        let row = Row::beside(case, LARGE, "ns", &peer, pairs.compared(), Target::RatioAtMost(FLAT));
        report.add(row.limited_by("the larger maps do not fit the cache"));
    }
    let row = Row::beside("xdp-lookup-known", LARGE, "ns", "tc", against_tc.compared(), Target::None);
    report
        .add(row.with_note("the same packets; what XDP saves is the buffer, which is not in these figures"));
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
