//! Packets of this node's pods to the world outside of the cluster: at the uplink they get the node's address as their
//! source, and what is answered finds back to the pod.
//!
//! A TCP connection of which the programs have not seen the beginning keeps its addresses, as do answers to somebody outside
//! who knows the way to the pod: they go out as they would have without any of this.

use aya_ebpf::bindings::{BPF_NOEXIST, TC_ACT_OK, TC_ACT_UNSPEC};
use seaway_ebpf_abi::packet::Position;
use seaway_ebpf_abi::{
    Counter, FLOW_MASQUERADE, FLOW_REPLY, FlowTuple, FlowValue, ICMP, ICMPV6, MASQUERADE_KEPT,
    MASQUERADE_PODS, TCP, UDP,
};

use crate::count::count;
use crate::flow::{self, Ports};
use crate::frame::{Dropped, Frame};
use crate::maps::{FLOWS, FRAGMENTS, Scratch, config, masquerade, masquerade_source, now_s};
use crate::nat;
use crate::parse::Packet;
use crate::skb::Skb;

/// ICMP types (IPv4, IPv6).
const ECHO_REQUEST: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// What a packet has that tells its flow from others between the same two.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// The ports of TCP and UDP.
    Ports,
    /// The identifier of an echo.
    Echo,
    /// Nothing that is looked at.
    Nothing,
}

/// Whether a packet is one of a known flow from a pod to the world.
#[inline(always)]
pub(crate) fn goes_out(flow: &FlowValue) -> bool {
    flow.flags & (FLOW_MASQUERADE | FLOW_REPLY) == FLOW_MASQUERADE
}

/// Whether it is one of the world's answers to that.
#[inline(always)]
pub(crate) fn comes_back(flow: &FlowValue) -> bool {
    flow.flags & (FLOW_MASQUERADE | FLOW_REPLY) == FLOW_MASQUERADE | FLOW_REPLY
}

#[inline(always)]
fn leaves(flow: &FlowTuple) -> bool {
    let is_nodes = config().is_some_and(|config| config.is_node(&flow.src));
    // Of most packets of pods the destination is all that has to be asked for: they stay in the cluster.
    !is_nodes && masquerade(&flow.dst) & MASQUERADE_KEPT == 0 && masquerade(&flow.src) & MASQUERADE_PODS != 0
}

/// Whether the kind of an ICMP message is one of two.
#[inline(always)]
fn is(packet: &Packet, kinds: [u8; 2]) -> bool {
    packet.is_icmp() && packet.kind as u8 == if packet.is_v4() { kinds[0] } else { kinds[1] }
}

/// Whether an ICMP message is a question or an answer of `ping`.
#[inline(always)]
pub(crate) fn is_echo(packet: &Packet) -> bool {
    is(packet, ECHO_REQUEST) || is(packet, ECHO_REPLY)
}

/// Completes the flow of a packet by what stands in the place of ports. `None`: it has none that could be masqueraded.
/// `read`: all that [`crate::parse`] knows of. A function of its own, so that its frame is not part of everybody's.
#[inline(never)]
fn complete(skb: Skb, packet: &mut Packet, read: bool) -> Option<Marks> {
    let proto = packet.flow.proto;
    if proto == TCP as u32 || proto == UDP as u32 {
        return read.then_some(Marks::Ports);
    }
    if !packet.is_icmp() {
        // ICMP of the other family is nobody's.
        return (proto != 0 && proto != ICMP as u32 && proto != ICMPV6 as u32).then_some(Marks::Nothing);
    }
    if packet.position == Position::Later as u32 {
        let ports = FRAGMENTS.get_ptr(&packet.fragment_key())?;
        // SAFETY: as in `parse`.
        let ports = unsafe { *ports };
        packet.flow.src_port_be = ports.src_port_be;
        packet.flow.dst_port_be = ports.dst_port_be;
        return Some(Marks::Echo);
    }
    let mut words = [0_u32; 2];
    if !skb.load(packet.l4, &mut words) {
        return None;
    }
    packet.kind = words[0].to_ne_bytes()[0] as u32;
    let [a, b, _, _] = words[1].to_ne_bytes();
    let id_be = u16::from_ne_bytes([a, b]);
    if is(packet, ECHO_REQUEST) {
        packet.flow.src_port_be = id_be;
    } else if is(packet, ECHO_REPLY) {
        packet.flow.dst_port_be = id_be;
    } else {
        return None;
    }
    Some(Marks::Echo)
}

/// Whether a packet may be the first of its flow.
#[inline(always)]
fn begins(packet: &Packet, marks: Marks) -> bool {
    match marks {
        Marks::Ports => packet.flow.proto != TCP as u32 || flow::begins(packet),
        Marks::Echo => packet.has_ports() && is(packet, ECHO_REQUEST),
        Marks::Nothing => true,
    }
}

/// What leaves by an uplink and is of no other flow that is translated there. `known`: it is of one that goes out; otherwise
/// one with ports is of none.
#[inline(always)]
pub(crate) fn leave(
    skb: Skb,
    scratch: &mut Scratch,
    read: bool,
    known: Option<&'static FlowValue>,
) -> Dropped<i32> {
    let mut flow = known;
    let mut marks = Marks::Ports;
    if flow.is_none() {
        // Without a protocol it is none of IP, and nothing else of it is known.
        if scratch.packet.flow.proto == 0 || !leaves(&scratch.packet.flow) {
            return Ok(TC_ACT_UNSPEC);
        }
        let Some(found) = complete(skb, &mut scratch.packet, read) else {
            let lost = scratch.packet.position == Position::Later as u32;
            return if lost { Err(Counter::FragmentUnknown) } else { Ok(TC_ACT_UNSPEC) };
        };
        marks = found;
        if marks != Marks::Ports {
            flow = flow::known(&scratch.packet).map(|known| &*known);
        }
    }
    let held = flow.filter(|flow| goes_out(flow) && !begins_again(skb, &scratch.packet, flow));
    let flow = match (held, flow) {
        (Some(held), _) => held,
        (None, Some(other)) if !goes_out(other) => return Ok(TC_ACT_UNSPEC),
        (None, _) => match begin(skb, scratch, marks)? {
            Some(made) => made,
            None => return Ok(TC_ACT_UNSPEC),
        },
    };
    translate(skb, &scratch.packet, flow, marks)
}

/// Whether a packet of a flow begins another: one that has ended, or has the address of another link, or one that the node
/// has no more. TCP ends with its address.
#[inline(always)]
fn begins_again(skb: Skb, packet: &Packet, known: &FlowValue) -> bool {
    let first = flow::begins(packet);
    if first && flow::restarts(packet, known) {
        return true;
    }
    packet.has_ports()
        && (packet.flow.proto != TCP as u32 || first)
        && masquerade_source(skb.ifindex(), packet.is_v4()).is_some_and(|source| !source.same(&known.to.src))
}

/// The flow that a packet begins. `None`: none, it stays as it is.
#[inline(always)]
fn begin(skb: Skb, scratch: &mut Scratch, marks: Marks) -> Dropped<Option<&'static FlowValue>> {
    // Its other fragments go the way that it goes.
    scratch.packet.note_fragment();
    let Some(source) = masquerade_source(skb.ifindex(), scratch.packet.is_v4()) else { return Ok(None) };
    if !begins(&scratch.packet, marks) {
        return Ok(None);
    }
    let ports = match marks {
        Marks::Ports => Ports::Nat,
        Marks::Echo => Ports::OwnFirst,
        Marks::Nothing => Ports::Own,
    };
    flow::masquerade(scratch, source, ports).map(|made| Some(&*made))
}

#[inline(always)]
fn translate(skb: Skb, packet: &Packet, flow: &FlowValue, marks: Marks) -> Dropped<i32> {
    match marks {
        Marks::Ports => nat::rewrite(skb, packet, &flow.to, false)?,
        Marks::Echo => nat::rewrite_echo(skb, packet, &flow.to)?,
        Marks::Nothing => nat::rewrite_addresses_of(skb, packet, &flow.to)?,
    }
    packet.note_fragment();
    count(Counter::Masqueraded);
    Ok(TC_ACT_OK)
}

/// What arrives by an uplink and has no ports: an answer to a pod, perhaps.
#[inline(always)]
pub(crate) fn arrive(skb: Skb, scratch: &mut Scratch) -> Dropped<i32> {
    let Some(marks) = complete(skb, &mut scratch.packet, false) else { return Ok(TC_ACT_UNSPEC) };
    match flow::known(&scratch.packet) {
        Some(known) if comes_back(known) => translate(skb, &scratch.packet, known, marks),
        _ => Ok(TC_ACT_UNSPEC),
    }
}

/// Somebody outside who knows the way to a pod of this node asks it by UDP: what it answers keeps its source. (TCP shows by
/// itself who has begun.)
#[inline(never)]
pub(crate) fn note_asked(scratch: &mut Scratch) {
    let asked = &scratch.packet.flow;
    let is_nodes = config().is_some_and(|config| config.is_node(&asked.dst));
    if asked.proto != UDP as u32
        || is_nodes
        || masquerade(&asked.dst) & MASQUERADE_PODS == 0
        || masquerade(&asked.src) & MASQUERADE_KEPT != 0
    {
        return;
    }
    let asked = &scratch.packet.flow;
    scratch.reply_key.src = asked.dst;
    scratch.reply_key.dst = asked.src;
    scratch.reply_key.src_port_be = asked.dst_port_be;
    scratch.reply_key.dst_port_be = asked.src_port_be;
    scratch.reply_key.proto = asked.proto;
    let now = now_s();
    if let Some(held) = FLOWS.get_ptr_mut(&scratch.reply_key) {
        // SAFETY: as in `flow::find`.
        unsafe { (*held).last_seen_s = now };
        return;
    }
    scratch.reply.to = scratch.reply_key;
    scratch.reply.service = 0;
    scratch.reply.flags = FLOW_REPLY;
    scratch.reply.last_seen_s = now;
    scratch.reply.created_s = now;
    // An LRU map takes every entry; without it the answer is masqueraded.
    let _ = FLOWS.insert(&scratch.reply_key, &scratch.reply, BPF_NOEXIST as u64);
}
