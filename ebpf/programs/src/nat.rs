//! Rewriting of addresses and ports, with every checksum that covers them.

use seaway_ebpf_abi::packet::ETHERNET;
use seaway_ebpf_abi::{Addr, FlowTuple, TCP, checksum};

use crate::frame::{Dropped, Frame};
use crate::maps::config;
use crate::parse::Packet;
use crate::skb::{Skb, UDP_SUM, diff};

/// Checksum flags of the packet's family (see `Config::csum_flags_v6`).
#[inline(always)]
pub(crate) fn family_flags(v4: bool) -> u64 {
    if v4 { 0 } else { config().map_or(0, |config| config.csum_flags_v6 as u64) }
}

/// Rewrites the addresses of the IP header; returns the difference for the pseudo-header.
#[inline(always)]
pub(crate) fn rewrite_addresses(
    skb: Skb,
    v4: bool,
    from: (&Addr, &Addr),
    to: (&Addr, &Addr),
) -> Dropped<u64> {
    if v4 {
        let mut old = [from.0.v4_word(), from.1.v4_word()];
        let mut new = [to.0.v4_word(), to.1.v4_word()];
        let change = diff(&mut old, &mut new);
        skb.header_sum(ETHERNET + 10, change)?;
        skb.store(ETHERNET + 12, &new)?;
        return Ok(change);
    }
    let mut old = join(from);
    let mut new = join(to);
    let change = diff(&mut old, &mut new);
    skb.store(ETHERNET + 8, &new)?;
    Ok(change)
}

#[inline(always)]
fn join((a, b): (&Addr, &Addr)) -> [u32; 8] {
    [a.words[0], a.words[1], a.words[2], a.words[3], b.words[0], b.words[1], b.words[2], b.words[3]]
}

/// Makes the packet one of flow `to`; `hop`: and one that has come a hop further.
#[inline(always)]
pub(crate) fn rewrite<F: Frame>(frame: F, packet: &Packet, to: &FlowTuple, hop: bool) -> Dropped<()> {
    let from = &packet.flow;
    let v4 = packet.is_v4();
    if v4 {
        addresses_v4(frame, packet, to, hop)?;
    } else {
        addresses_v6(frame, packet, to, hop)?;
    }
    if !packet.has_ports() {
        return Ok(());
    }
    let (sum, flags) = if from.proto == TCP as u32 { (packet.l4 + 16, 0) } else { (packet.l4 + 6, UDP_SUM) };
    let (old, new) = (ports(from), ports(to));
    if old != new {
        frame.data_sum_32(sum, old, new, flags)?;
        frame.store(packet.l4, &new)?;
    }
    frame.pseudo_sum(sum, address_change(v4, from, to), flags | family_flags(v4))
}

/// Makes an ICMP echo, or a fragment of one, one of flow `to`, whose port on the pod's side is the identifier.
#[inline(always)]
pub(crate) fn rewrite_echo(skb: Skb, packet: &Packet, to: &FlowTuple) -> Dropped<()> {
    rewrite_addresses_of(skb, packet, to)?;
    if !packet.has_ports() {
        return Ok(());
    }
    // One of the two is 0 on both sides.
    let from = &packet.flow;
    let (old, new) = (from.src_port_be | from.dst_port_be, to.src_port_be | to.dst_port_be);
    let (sum, word) = (packet.l4 + 2, |id: u16| id as u32);
    if old != new {
        skb.data_sum_32(sum, word(old), word(new), 0)?;
        skb.store(packet.l4 + 4, &new)?;
    }
    let v4 = packet.is_v4();
    if v4 {
        return Ok(());
    }
    skb.pseudo_sum(sum, address_change(v4, from, to), family_flags(v4))
}

/// Makes a packet one of flow `to` whose transport knows nothing of addresses.
#[inline(always)]
pub(crate) fn rewrite_addresses_of(skb: Skb, packet: &Packet, to: &FlowTuple) -> Dropped<()> {
    if packet.is_v4() { addresses_v4(skb, packet, to, false) } else { addresses_v6(skb, packet, to, false) }
}

/// The rest of the header's third word, then both addresses: one write, checksum included.
#[inline(always)]
fn addresses_v4<F: Frame>(frame: F, packet: &Packet, to: &FlowTuple, hop: bool) -> Dropped<()> {
    let [ttl, proto, c, d] = packet.hop_word.to_ne_bytes();
    let new_ttl = if hop { ttl.wrapping_sub(1) } else { ttl };
    let covered = |ttl: u8, flow: &FlowTuple| {
        u32::from_ne_bytes([ttl, proto, 0, 0]) as u64 + flow.src.v4_word() as u64 + flow.dst.v4_word() as u64
    };
    let field =
        checksum::update(u16::from_ne_bytes([c, d]), covered(ttl, &packet.flow), covered(new_ttl, to));
    let [c, d] = field.to_ne_bytes();
    let words = [u32::from_ne_bytes([new_ttl, proto, c, d]), to.src.v4_word(), to.dst.v4_word()];
    frame.store(ETHERNET + 8, &words)
}

#[inline(always)]
fn addresses_v6<F: Frame>(frame: F, packet: &Packet, to: &FlowTuple, hop: bool) -> Dropped<()> {
    if hop {
        frame.store_covered(ETHERNET + 7, &(packet.ttl as u8).wrapping_sub(1))?;
    }
    frame.store(ETHERNET + 8, &join((&to.src, &to.dst)))
}

/// The difference that a pseudo-header makes when a packet becomes one of flow `to`.
#[inline(always)]
fn address_change(v4: bool, from: &FlowTuple, to: &FlowTuple) -> u64 {
    let add = |flow: &FlowTuple, invert: u32| {
        let word = |word: u32| (word ^ invert) as u64;
        let (src, dst) = (&flow.src.words, &flow.dst.words);
        let last = word(src[3]) + word(dst[3]);
        if v4 {
            return last;
        }
        last + word(src[0]) + word(src[1]) + word(src[2]) + word(dst[0]) + word(dst[1]) + word(dst[2])
    };
    let sum = add(from, u32::MAX) + add(to, 0);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Both ports as they lie in the header.
#[inline(always)]
fn ports(flow: &FlowTuple) -> u32 {
    let [a, b] = flow.src_port_be.to_ne_bytes();
    let [c, d] = flow.dst_port_be.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
