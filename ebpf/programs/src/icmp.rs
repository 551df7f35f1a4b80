//! ICMP errors belong to the connection that they quote: they are translated with it, outside and inside, in both
//! directions. Otherwise path MTU discovery and "port unreachable" end at the frontend.

use seaway_ebpf_abi::packet::{IpHeader, Position, is_icmp_error};
use seaway_ebpf_abi::{Addr, Counter, FlowTuple, FlowValue, ICMP, ICMPV6, TCP, UDP, checksum};

use crate::count::count;
use crate::frame::{Dropped, Frame};
use crate::maps::{FLOWS, Scratch};
use crate::nat::{family_flags, rewrite_addresses};
use crate::skb::{Skb, diff};

/// Words of the quoted packet that are looked at: its IP header (10 words in IPv6, then 12 with these) and 8 bytes beyond.
const QUOTED_V4: usize = 7;
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: u32 = 8;

/// The flow that an ICMP error belongs to, as packets of the opposite direction know it. Quoted words are left in
/// `scratch.old`, the quoted flow in `scratch.reply_key`.
#[inline(always)]
pub(crate) fn quoted(skb: Skb, scratch: &mut Scratch) -> Option<&'static FlowValue> {
    let v4 = scratch.packet.is_v4();
    if !is_icmp_error(v4, scratch.packet.kind as u8) {
        return None;
    }
    let at = scratch.packet.l4 + 8;
    let (header, ports) = if v4 {
        let words: &mut [u32; QUOTED_V4] = scratch.old.first_chunk_mut()?;
        if !skb.load(at, words) {
            return None;
        }
        (IpHeader::v4(words.first_chunk()?)?, words[5])
    } else {
        let (proto, gap) = load_v6(skb, at, &mut scratch.old)?;
        scratch.quoted_gap = gap;
        let header = IpHeader::v6(scratch.old.first_chunk()?)?;
        (IpHeader { proto, ..header }, scratch.old[10])
    };
    let plain = header.len == if v4 { 20 } else { 40 };
    if !plain || header.fragment as u32 == Position::Later as u32 {
        return None;
    }
    let echo = if v4 { (ICMP, 8, scratch.old[6]) } else { (ICMPV6, 128, scratch.old[11]) };
    let [a, b, c, d] = match header.proto {
        TCP | UDP => ports.to_ne_bytes(),
        // The identifier stands for the asker's port.
        proto if proto == echo.0 && ports.to_ne_bytes()[0] == echo.1 => {
            let [a, b, _, _] = echo.2.to_ne_bytes();
            [a, b, 0, 0]
        }
        _ => return None,
    };
    scratch.reply_key = FlowTuple {
        src: header.src,
        dst: header.dst,
        src_port_be: u16::from_ne_bytes([a, b]),
        dst_port_be: u16::from_ne_bytes([c, d]),
        proto: header.proto as u32,
    };
    let flow = FLOWS.get_ptr(&scratch.reply_key.inverted())?;
    // SAFETY: an LRU element may be reused while it is read: the error is then one of another flow, and ignored there.
    Some(unsafe { &*flow })
}

/// Reads a quoted IPv6 header and the 8 bytes of its transport's. Returns the transport, and how much lies between: what is
/// too large for a way in IPv6 may be the first fragment of a datagram.
#[inline(always)]
fn load_v6(skb: Skb, at: u32, words: &mut [u32; 12]) -> Option<(u8, u32)> {
    let header: &mut [u32; 10] = words.first_chunk_mut()?;
    if !skb.load(at, header) {
        return None;
    }
    let mut found = (header[1].to_ne_bytes()[2], 0);
    if found.0 == FRAGMENT {
        let mut fragment = 0_u32;
        let there = skb.load(at + 40, &mut fragment);
        let [proto, _, c, d] = fragment.to_ne_bytes();
        if !there || u16::from_be_bytes([c, d]) >> 3 != 0 {
            return None;
        }
        found = (proto, FRAGMENT_HEADER);
    }
    let ports: &mut [u32; 2] = words.last_chunk_mut()?;
    skb.load(at + 40 + found.1, ports).then_some(found)
}

/// Translates the error with its flow. `scratch.forward.to` holds the outer addresses afterwards.
#[inline(always)]
pub(crate) fn translate(skb: Skb, scratch: &mut Scratch, flow: &FlowValue) -> Dropped<()> {
    let v4 = scratch.packet.is_v4();
    let (quoted, becomes) = (scratch.reply_key, flow.to.inverted());
    let outer = scratch.packet.flow;
    let source = if outer.src.same(&quoted.dst) { becomes.dst } else { outer.src };
    scratch.forward.to = FlowTuple { src: source, dst: becomes.src, ..outer };
    copy(&scratch.old, &mut scratch.new);
    let at = scratch.packet.l4 + 8;
    let sum = scratch.packet.l4 + 2;
    if v4 {
        requote_v4(&mut scratch.new, &quoted, &becomes);
        let (Some(old), Some(new)) =
            (scratch.old.first_chunk_mut::<QUOTED_V4>(), scratch.new.first_chunk_mut::<QUOTED_V4>())
        else {
            return Err(Counter::RewriteFailed);
        };
        skb.data_sum(sum, diff(old, new), 0)?;
        skb.store(at, new)?;
    } else {
        requote_v6(&mut scratch.new, &quoted, &becomes);
        skb.data_sum(sum, diff(&mut scratch.old, &mut scratch.new), 0)?;
        let (Some(header), Some(ports)) = (scratch.new.first_chunk::<10>(), scratch.new.last_chunk::<2>())
        else {
            return Err(Counter::RewriteFailed);
        };
        skb.store(at, header)?;
        skb.store(at + 40 + scratch.quoted_gap, ports)?;
    }
    let change = rewrite_addresses(skb, v4, (&outer.src, &outer.dst), (&source, &becomes.src))?;
    if !v4 {
        skb.pseudo_sum(sum, change, family_flags(v4))?;
    }
    count(Counter::IcmpTranslated);
    Ok(())
}

/// A copy that the compiler does not make a call of.
#[inline(always)]
fn copy(from: &[u32; 12], to: &mut [u32; 12]) {
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: both are valid references.
        unsafe { core::ptr::write_volatile(to, *from) };
    }
}

#[inline(always)]
fn requote_v4(words: &mut [u32; 12], from: &FlowTuple, to: &FlowTuple) {
    let (old, new) = (from.src.v4_word() as u64 + from.dst.v4_word() as u64, words_of(&to.src, &to.dst));
    let [a, b, c, d] = words[2].to_ne_bytes();
    let [e, f] = checksum::update(u16::from_ne_bytes([c, d]), old, new).to_ne_bytes();
    words[2] = u32::from_ne_bytes([a, b, e, f]);
    words[3] = to.src.v4_word();
    words[4] = to.dst.v4_word();
    if from.proto == ICMP as u32 {
        (words[5], words[6]) = requote_echo((words[5], words[6]), (0, 0), to);
        return;
    }
    let port_words = (words[5], port_word(to));
    words[5] = port_words.1;
    if from.proto == UDP as u32 {
        words[6] = requote_udp(words[6], old + port_words.0 as u64, new + port_words.1 as u64);
    }
}

#[inline(always)]
fn words_of(a: &Addr, b: &Addr) -> u64 {
    a.v4_word() as u64 + b.v4_word() as u64
}

#[inline(always)]
fn requote_v6(words: &mut [u32; 12], from: &FlowTuple, to: &FlowTuple) {
    let echo = from.proto == ICMPV6 as u32;
    let mut old = if echo { 0 } else { words[10] as u64 };
    let mut new = if echo { 0 } else { port_word(to) as u64 };
    for i in 0..4 {
        old += from.src.words[i] as u64 + from.dst.words[i] as u64;
        new += to.src.words[i] as u64 + to.dst.words[i] as u64;
        words[2 + i] = to.src.words[i];
        words[6 + i] = to.dst.words[i];
    }
    if echo {
        (words[10], words[11]) = requote_echo((words[10], words[11]), (old, new), to);
        return;
    }
    words[10] = port_word(to);
    if from.proto == UDP as u32 {
        words[11] = requote_udp(words[11], old, new);
    }
}

/// Both words of an echo's header with another identifier, and a checksum that has changed from one sum to another besides.
#[inline(always)]
fn requote_echo(words: (u32, u32), sums: (u64, u64), to: &FlowTuple) -> (u32, u32) {
    let [kind, code, c, d] = words.0.to_ne_bytes();
    let [a, b, e, f] = words.1.to_ne_bytes();
    let [g, h] = to.src_port_be.to_ne_bytes();
    let id = |a: u8, b: u8| u16::from_ne_bytes([a, b]) as u64;
    let field = checksum::update(u16::from_ne_bytes([c, d]), sums.0 + id(a, b), sums.1 + id(g, h));
    let [c, d] = field.to_ne_bytes();
    (u32::from_ne_bytes([kind, code, c, d]), u32::from_ne_bytes([g, h, e, f]))
}

/// The second word of a UDP header, with its checksum updated if it has one. (TCP's is beyond what is quoted.)
#[inline(always)]
fn requote_udp(word: u32, old: u64, new: u64) -> u32 {
    let [a, b, c, d] = word.to_ne_bytes();
    let field = u16::from_ne_bytes([c, d]);
    if field == 0 {
        return word;
    }
    let [e, f] = match checksum::update(field, old, new) {
        0 => [0xff, 0xff],
        field => field.to_ne_bytes(),
    };
    u32::from_ne_bytes([a, b, e, f])
}

#[inline(always)]
fn port_word(flow: &FlowTuple) -> u32 {
    let [a, b] = flow.src_port_be.to_ne_bytes();
    let [c, d] = flow.dst_port_be.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
