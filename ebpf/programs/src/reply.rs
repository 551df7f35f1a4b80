//! Answers that a program gives itself: a refused connection is told so at once, and a sender whose packets are too
//! large for the way learns the MTU. The packet is turned around in place and sent back.

use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_tail};
use seaway_ebpf_abi::packet::{ETHERNET, Position, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use seaway_ebpf_abi::{Counter, FlowTuple, ICMP, ICMPV6, REJECTS_PER_S, TCP, checksum};

use crate::frame::{Dropped, Frame};
use crate::maps::{Scratch, config, now_s};
use crate::parse::Packet;
use crate::skb::Skb;

const TTL: u8 = 64;
/// Bytes beyond its IP header that an ICMP error quotes.
const QUOTED: u32 = 8;

/// An ICMP message: type, code, and the second word of its header.
pub(crate) struct Message {
    kind: u8,
    code: u8,
    rest_be: u32,
}

impl Message {
    /// "Port unreachable".
    #[inline(always)]
    pub(crate) fn port_unreachable(v4: bool) -> Self {
        if v4 { Self { kind: 3, code: 3, rest_be: 0 } } else { Self { kind: 1, code: 4, rest_be: 0 } }
    }

    /// "Fragmentation needed" or "packet too big".
    #[inline(always)]
    pub(crate) fn too_big(v4: bool, mtu: u16) -> Self {
        let rest_be = (mtu as u32).to_be();
        if v4 { Self { kind: 3, code: 4, rest_be } } else { Self { kind: 2, code: 0, rest_be } }
    }
}

/// Rejects a packet: RST to TCP, "port unreachable" to UDP; so many a second and CPU, that nobody uses this node to
/// send others what they did not ask for.
#[inline(always)]
pub(crate) fn reject(skb: Skb, scratch: &mut Scratch) -> Dropped<i32> {
    let now = now_s();
    if scratch.reject_s != now {
        scratch.reject_s = now;
        scratch.rejects = 0;
    }
    let limit = config().map_or(0, |config| config.rejects_per_s);
    if scratch.rejects >= if limit == 0 { REJECTS_PER_S } else { limit } {
        return Err(Counter::RejectLimited);
    }
    scratch.rejects += 1;
    if scratch.packet.flow.proto == TCP as u32 {
        reset(skb, scratch)
    } else {
        let message = Message::port_unreachable(scratch.packet.is_v4());
        icmp(skb, scratch, &message)
    }
}

/// Whether the packet's headers are the plain ones, which fixed offsets reach.
#[inline(always)]
fn plain(packet: &Packet) -> bool {
    let header = if packet.is_v4() { 20 } else { 40 };
    packet.l4 == ETHERNET + header && packet.position != Position::Later as u32
}

/// Writes an IP header (of the opposite direction) to the front of `words` and to the packet.
#[inline(always)]
fn ip_header(skb: Skb, v4: bool, flow: &FlowTuple, proto: u8, payload: u16) -> Dropped<()> {
    if v4 {
        let [a, b] = (payload + 20).to_be_bytes();
        let mut words = [
            u32::from_ne_bytes([0x45, 0, a, b]),
            0,
            u32::from_ne_bytes([TTL, proto, 0, 0]),
            flow.dst.v4_word(),
            flow.src.v4_word(),
        ];
        let [c, d] = checksum::finish(checksum::sum(&words)).to_ne_bytes();
        words[2] = u32::from_ne_bytes([TTL, proto, c, d]);
        return skb.store(ETHERNET, &words);
    }
    let [a, b] = payload.to_be_bytes();
    let (src, dst) = (&flow.dst.words, &flow.src.words);
    let words = [
        u32::from_ne_bytes([0x60, 0, 0, 0]),
        u32::from_ne_bytes([a, b, proto, TTL]),
        src[0],
        src[1],
        src[2],
        src[3],
        dst[0],
        dst[1],
        dst[2],
        dst[3],
    ];
    skb.store(ETHERNET, &words)
}

/// The pseudo-header's sum: addresses (the direction does not matter), protocol and length.
#[inline(always)]
pub(crate) fn pseudo(v4: bool, flow: &FlowTuple, proto: u8, len: u16) -> u64 {
    let fixed = checksum::pseudo(proto, len);
    if v4 {
        return fixed + flow.src.v4_word() as u64 + flow.dst.v4_word() as u64;
    }
    fixed + checksum::sum(&flow.src.words) + checksum::sum(&flow.dst.words)
}

/// Resizes the packet and swaps its Ethernet addresses.
#[inline(always)]
fn turn(skb: Skb, room: &mut [u32; 12], len: u32) -> Dropped<()> {
    // SAFETY: the helper checks its arguments.
    if unsafe { bpf_skb_change_tail(skb.0, len, 0) } != 0 {
        return Err(Counter::RewriteFailed);
    }
    let Some(macs) = room.first_chunk_mut::<3>() else { return Err(Counter::RewriteFailed) };
    if !skb.load(0, macs) {
        return Err(Counter::RewriteFailed);
    }
    // Destination and source, 6 bytes each, change places.
    let ([a, b, c, d], [e, f, g, h]) = (macs[0].to_ne_bytes(), macs[1].to_ne_bytes());
    let [i, j, k, l] = macs[2].to_ne_bytes();
    macs[0] = u32::from_ne_bytes([g, h, i, j]);
    macs[1] = u32::from_ne_bytes([k, l, a, b]);
    macs[2] = u32::from_ne_bytes([c, d, e, f]);
    skb.store(0, macs)
}

#[inline(always)]
fn back(skb: Skb) -> i32 {
    // SAFETY: the helper takes a device index.
    unsafe { bpf_redirect(skb.ifindex(), 0) as i32 }
}

/// Answers TCP with RST, as RFC 9293 3.10.7.1 wants it for a connection that does not exist.
#[inline(always)]
fn reset(skb: Skb, scratch: &mut Scratch) -> Dropped<i32> {
    let packet = &scratch.packet;
    let v4 = packet.is_v4();
    let flags = packet.kind as u8;
    let Some(old) = scratch.old.first_chunk_mut::<5>() else { return Err(Counter::RewriteFailed) };
    if !plain(packet) || flags & TCP_RST != 0 || !skb.load(packet.l4, old) {
        return Err(Counter::NoBackend);
    }
    let header = u32::from(old[3].to_ne_bytes()[0] >> 4) * 4;
    let payload = packet.total_len.wrapping_sub(packet.l4 - ETHERNET + header);
    let occupies = payload + (flags & TCP_SYN != 0) as u32 + (flags & TCP_FIN != 0) as u32;
    let (seq_be, ack_be, answer) = if flags & TCP_ACK != 0 {
        (old[2], 0, TCP_RST)
    } else {
        (0, u32::from_be(old[1]).wrapping_add(occupies).to_be(), TCP_RST | TCP_ACK)
    };
    let [a, b, c, d] = old[0].to_ne_bytes();
    let mut new =
        [u32::from_ne_bytes([c, d, a, b]), seq_be, ack_be, u32::from_ne_bytes([0x50, answer, 0, 0]), 0];
    let partial = skb.checksum_is_partial(packet.l4 + 16);
    let pseudo = pseudo(v4, &packet.flow, TCP, 20);
    let sum = if partial { checksum::fold(pseudo) } else { checksum::finish(pseudo + checksum::sum(&new)) };
    let [e, f] = sum.to_ne_bytes();
    new[4] = u32::from_ne_bytes([e, f, 0, 0]);
    turn(skb, &mut scratch.new, packet.l4 + 20)?;
    ip_header(skb, v4, &packet.flow, TCP, 20)?;
    skb.store(packet.l4, &new)?;
    Ok(back(skb))
}

/// Answers with an ICMP error that quotes the packet's headers.
#[inline(always)]
pub(crate) fn icmp(skb: Skb, scratch: &mut Scratch, message: &Message) -> Dropped<i32> {
    let v4 = scratch.packet.is_v4();
    if !plain(&scratch.packet) {
        return Err(Counter::NoBackend);
    }
    let l4 = scratch.packet.l4;
    let quoted = l4 - ETHERNET + QUOTED;
    // The checksum of the packet that is quoted, should the device still have to fill one in.
    let field = l4 + if scratch.packet.flow.proto == TCP as u32 { 16 } else { 6 };
    let words = &mut scratch.words;
    let loaded = if v4 {
        words.first_chunk_mut::<7>().is_some_and(|words| skb.load(ETHERNET, words))
    } else {
        words.first_chunk_mut::<12>().is_some_and(|words| skb.load(ETHERNET, words))
    };
    if !loaded {
        return Err(Counter::NoBackend);
    }
    let proto = if v4 { ICMP } else { ICMPV6 };
    let pseudo = if v4 { 0 } else { pseudo(false, &scratch.packet.flow, proto, quoted as u16 + 8) };
    let mut rest_be = message.rest_be;
    if rest_be == 0 && !v4 && skb.checksum_is_partial(field) {
        // The device will write a checksum without pseudo-header here (it lies where UDP's was); a field that nobody
        // reads makes up for the difference.
        let [a, b] = checksum::fold(pseudo).to_ne_bytes();
        rest_be = u32::from_ne_bytes([0, 0, a, b]);
    }
    let mut head = [u32::from_ne_bytes([message.kind, message.code, 0, 0]), rest_be];
    let quote = if v4 { checksum::sum(first::<7>(words)?) } else { checksum::sum(first::<12>(words)?) };
    let [c, d] = checksum::finish(pseudo + checksum::sum(&head) + quote).to_ne_bytes();
    head[0] = u32::from_ne_bytes([message.kind, message.code, c, d]);
    turn(skb, &mut scratch.new, l4 + 8 + quoted)?;
    ip_header(skb, v4, &scratch.packet.flow, proto, quoted as u16 + 8)?;
    skb.store(l4, &head)?;
    if v4 {
        skb.store(l4 + 8, first::<7>(words)?)?;
    } else {
        skb.store(l4 + 8, first::<12>(words)?)?;
    }
    Ok(back(skb))
}

#[inline(always)]
fn first<const N: usize>(words: &[u32; 32]) -> Dropped<&[u32; N]> {
    words.first_chunk().ok_or(Counter::RewriteFailed)
}
