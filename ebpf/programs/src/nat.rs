//! Rewriting of addresses and ports, with every checksum that covers them.

use seaway_ebpf_abi::packet::ETHERNET;
use seaway_ebpf_abi::{Addr, FlowTuple, TCP};

use crate::maps::config;
use crate::parse::Packet;
use crate::skb::{Dropped, Skb, UDP_SUM, diff};

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

/// Makes the packet one of flow `to`.
#[inline(always)]
pub(crate) fn rewrite(skb: Skb, packet: &Packet, to: &FlowTuple) -> Dropped<()> {
    let from = &packet.flow;
    let v4 = packet.is_v4();
    let change = rewrite_addresses(skb, v4, (&from.src, &from.dst), (&to.src, &to.dst))?;
    if !packet.has_ports() {
        return Ok(());
    }
    let (sum, flags) = if from.proto == TCP as u32 { (packet.l4 + 16, 0) } else { (packet.l4 + 6, UDP_SUM) };
    let mut old = [ports(from)];
    let mut new = [ports(to)];
    if old[0] != new[0] {
        skb.data_sum(sum, diff(&mut old, &mut new), flags)?;
        skb.store(packet.l4, &new)?;
    }
    skb.pseudo_sum(sum, change, flags | family_flags(v4))
}

/// Both ports as they lie in the header.
#[inline(always)]
fn ports(flow: &FlowTuple) -> u32 {
    let [a, b] = flow.src_port_be.to_ne_bytes();
    let [c, d] = flow.dst_port_be.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
