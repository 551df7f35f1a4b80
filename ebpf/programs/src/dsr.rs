//! Direct server return: the node that a client reaches tells the backend's node, in the packet, what the client asked
//! for; that node answers the client itself.

use aya_ebpf::bindings::{BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET};
use aya_ebpf::helpers::generated::bpf_skb_adjust_room;
use seaway_ebpf_abi::packet::{DESTINATION_OPTIONS, ETHERNET, Position, TCP_ACK, TCP_SYN};
use seaway_ebpf_abi::{
    Addr, BACKEND_LOCAL, CLUSTER_NET_NODE, Counter, FLOW_REPLY, FLOW_TRANSPARENT, FlowTuple, FlowValue,
    SCOPE_EXTERNAL, SERVICE_DSR, SERVICE_NODE_PORT, Service, TCP, checksum, dsr,
};

use crate::balance::{member, service};
use crate::frame::{Dropped, Frame};
use crate::maps::{FLOWS, Scratch, cluster_net, config, now_s};
use crate::parse::Packet;
use crate::skb::Skb;

pub(crate) use seaway_ebpf_abi::dsr::{FITS, length};

/// `BPF_ADJ_ROOM_NET`: between the IP header, as far as it is fixed, and what follows.
const AFTER_IP: u32 = 0;
const SPACE_FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;

/// Whether a packet can carry what the client asked for: the first segment of a TCP connection, any UDP datagram, if
/// there is nothing between its IP and transport headers.
#[inline(always)]
pub(crate) fn can_tell(packet: &Packet) -> bool {
    let plain = packet.l4 == ETHERNET + if packet.is_v4() { 20 } else { 40 };
    let tcp = packet.flow.proto == TCP as u32;
    plain
        && packet.position == Position::Whole as u32
        && (!tcp || packet.kind as u8 & (TCP_SYN | TCP_ACK) == TCP_SYN)
}

/// Puts the frontend into a packet that is translated otherwise.
#[inline(always)]
pub(crate) fn tell(skb: Skb, v4: bool, words: &mut [u32; 32], addr: &Addr, port_be: u16) -> Dropped<()> {
    adjust(skb, length(v4) as i32)?;
    if v4 {
        let Some(header) = words.first_chunk_mut::<7>() else { return Err(Counter::RewriteFailed) };
        if !skb.load(ETHERNET, header) {
            return Err(Counter::RewriteFailed);
        }
        [header[5], header[6]] = dsr::option_v4(addr, port_be);
        lengthen_v4(header, dsr::LENGTH_V4 as u16);
        return skb.store(ETHERNET, header);
    }
    let mut word = 0_u32;
    if !skb.load(ETHERNET + 4, &mut word) {
        return Err(Counter::RewriteFailed);
    }
    let [a, b, next, hops] = word.to_ne_bytes();
    let [a, b] = u16::from_be_bytes([a, b]).wrapping_add(dsr::LENGTH_V6 as u16).to_be_bytes();
    skb.store_covered(ETHERNET + 4, &u32::from_ne_bytes([a, b, DESTINATION_OPTIONS, hops]))?;
    skb.store_covered(ETHERNET + 40, &dsr::option_v6(next, addr, port_be))
}

/// Changes the length of an IPv4 header in its own fields. The words beyond the fixed ones are options.
#[inline(always)]
fn lengthen_v4<const N: usize>(words: &mut [u32; N], by: u16) {
    let [first, tos, a, b] = words[0].to_ne_bytes();
    let [a, b] = u16::from_be_bytes([a, b]).wrapping_add(by).to_be_bytes();
    words[0] = u32::from_ne_bytes([(first & 0xf0) | N as u8, tos, a, b]);
    let [ttl, proto, _, _] = words[2].to_ne_bytes();
    words[2] = u32::from_ne_bytes([ttl, proto, 0, 0]);
    let [c, d] = checksum::finish(checksum::sum(words)).to_ne_bytes();
    words[2] = u32::from_ne_bytes([ttl, proto, c, d]);
}

#[inline(always)]
fn adjust(skb: Skb, by: i32) -> Dropped<()> {
    // SAFETY: the helper checks its arguments.
    if unsafe { bpf_skb_adjust_room(skb.0, by, AFTER_IP, SPACE_FLAGS) } != 0 {
        return Err(Counter::RewriteFailed);
    }
    Ok(())
}

/// What another node says that the client asked for.
#[inline(always)]
fn told(skb: Skb, packet: &Packet) -> Option<(Addr, u16)> {
    if packet.position != Position::Whole as u32 {
        return None;
    }
    if packet.is_v4() {
        let mut words = [0_u32; 2];
        let there = packet.l4 == ETHERNET + 20 + dsr::LENGTH_V4 && skb.peek(ETHERNET + 20, &mut words);
        return if there { dsr::read_v4(&words) } else { None };
    }
    let mut words = [0_u32; 6];
    let there = packet.l4 == ETHERNET + 40 + dsr::LENGTH_V6
        && packet.hop_word.to_ne_bytes()[2] == DESTINATION_OPTIONS
        && skb.peek(ETHERNET + 40, &mut words);
    if there { dsr::read_v6(&words).map(|(_, addr, port_be)| (addr, port_be)) } else { None }
}

/// The service at a NodePort: the address that a client reached is another node's then, the port is all nodes'.
#[inline(always)]
fn node_port(addr: &Addr, port_be: u16, proto: u8) -> Option<&'static Service> {
    if cluster_net(addr) != CLUSTER_NET_NODE {
        return None;
    }
    let (config, v4) = (config()?, addr.is_v4());
    let own = if v4 { config.node_v4 } else { config.node_v6 };
    service(&own, port_be, proto, SCOPE_EXTERNAL).filter(|found| found.flags & SERVICE_NODE_PORT != 0)
}

/// Takes over a connection from the node that the client reached: its replies are translated here. Only for what this
/// node would do itself: anybody can write an option.
#[inline(always)]
pub(crate) fn accept(skb: Skb, scratch: &mut Scratch) -> Dropped<()> {
    let Some((addr, port_be)) = told(skb, &scratch.packet) else { return Ok(()) };
    let flow = scratch.packet.flow;
    let proto = flow.proto as u8;
    let asked = service(&addr, port_be, proto, SCOPE_EXTERNAL);
    let Some(found) = asked.or_else(|| node_port(&addr, port_be, proto)) else { return Ok(()) };
    let here = found.flags & SERVICE_DSR != 0
        && member(found, &flow.dst, flow.dst_port_be)
            .is_some_and(|backend| backend.flags & BACKEND_LOCAL != 0);
    if !here {
        return Ok(());
    }
    let now = now_s();
    let value = |to: FlowTuple, flags: u16| FlowValue {
        to,
        service: found.id,
        flags,
        pad: 0,
        last_seen_s: now,
        created_s: now,
    };
    scratch.reply_key = flow.inverted();
    let answered = FlowTuple { src: addr, src_port_be: port_be, ..scratch.reply_key };
    scratch.reply = value(answered, FLOW_REPLY);
    scratch.forward = value(flow, FLOW_TRANSPARENT);
    if FLOWS.insert(&scratch.reply_key, &scratch.reply, 0).is_err()
        || FLOWS.insert(&scratch.packet.flow, &scratch.forward, 0).is_err()
    {
        return Err(Counter::FlowMapFull);
    }
    strip(skb, &mut scratch.packet, &mut scratch.words)
}

/// Takes the option out, which is not meant for the backend.
#[inline(always)]
fn strip(skb: Skb, packet: &mut Packet, words: &mut [u32; 32]) -> Dropped<()> {
    let v4 = packet.is_v4();
    let length = length(v4);
    let mut next = 0_u8;
    if !v4 && !skb.load(ETHERNET + 40, &mut next) {
        return Err(Counter::RewriteFailed);
    }
    adjust(skb, -(length as i32))?;
    packet.l4 = ETHERNET + if v4 { 20 } else { 40 };
    packet.total_len -= length;
    if v4 {
        let Some(header) = words.first_chunk_mut::<5>() else { return Err(Counter::RewriteFailed) };
        if !skb.load(ETHERNET, header) {
            return Err(Counter::RewriteFailed);
        }
        lengthen_v4(header, 0_u16.wrapping_sub(dsr::LENGTH_V4 as u16));
        packet.hop_word = header[2];
        return skb.store(ETHERNET, header);
    }
    let [a, b, _, hops] = packet.hop_word.to_ne_bytes();
    let [a, b] = u16::from_be_bytes([a, b]).wrapping_sub(dsr::LENGTH_V6 as u16).to_be_bytes();
    packet.hop_word = u32::from_ne_bytes([a, b, next, hops]);
    skb.store_covered(ETHERNET + 4, &packet.hop_word)
}
