//! Packets that arrive: on an uplink requests to NodePorts, load balancer and external addresses, and replies of
//! backends on other nodes; from a pod of this node what the socket programs have not seen (sandboxes and virtual
//! machines with a stack of their own, raw packets).

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use seaway_ebpf_abi::packet::Position;
use seaway_ebpf_abi::{
    Addr, CONFIG_HAND_OVER, Config, Counter, FLOW_ANNOUNCED, FLOW_DSR, FLOW_MASQUERADE, FLOW_POD, FLOW_REPLY,
    FLOW_SNAT, FlowValue, POD_LINK_TRANSLATES, SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_DROP_WHEN_EMPTY,
    SERVICE_HOST_ONLY, SERVICE_SOURCE_RANGES, Service,
};

use crate::balance::{admitted, balance, service};
use crate::count::count;
use crate::frame::{Dropped, Frame};
use crate::maps::{Scratch, config, is_pod, pod_link, scratch};
use crate::parse::Packet;
use crate::reply::{Message, icmp, reject};
use crate::route::{Way, hand_over, hop, may_hop, route, send};
use crate::skb::{Skb, verdict};
use crate::stats::account;
use crate::tunnel::{self, Own};
use crate::{dsr, flow, masquerade, nat, parse, pods};

/// The world's answer to a pod.
const MASQUERADED_ANSWER: u16 = FLOW_MASQUERADE | FLOW_REPLY;

/// On an uplink.
#[classifier]
fn sw_ingress(ctx: TcContext) -> i32 {
    verdict(from_outside(Skb(ctx.skb.skb)))
}

/// At the host's end of a pod's link.
#[classifier]
fn sw_pod_ingress(ctx: TcContext) -> i32 {
    match verdict(from_pod(Skb(ctx.skb.skb))) {
        // Filters of others at this link have their turn, such as one that limits what the pod sends.
        TC_ACT_OK => TC_ACT_UNSPEC,
        other => other,
    }
}

#[inline(always)]
fn from_outside(skb: Skb) -> Dropped<i32> {
    // Another node's, where nodes share a kernel.
    skb.take_note();
    if !skb.is_for_us() {
        return Ok(TC_ACT_UNSPEC);
    }
    let Some(scratch) = scratch() else { return Ok(TC_ACT_UNSPEC) };
    if let Some(config) = config() {
        if tunnel::is_outer(skb, config, Own::Destination, &mut scratch.words) {
            return Ok(TC_ACT_UNSPEC);
        }
        if let Some(verdict) = pods::between(skb, scratch, config, false) {
            return Ok(verdict);
        }
    }
    let read = parse::parse(skb, &mut scratch.packet, &mut scratch.words);
    if !read || masquerade::is_echo(&scratch.packet) {
        return masquerade::arrive(skb, scratch);
    }
    if scratch.packet.is_icmp() {
        return error(skb, scratch);
    }
    dsr::accept(skb, scratch)?;
    translate(skb, scratch, false)
}

#[inline(always)]
fn from_pod(skb: Skb) -> Dropped<i32> {
    if !skb.is_for_us() {
        return Ok(TC_ACT_UNSPEC);
    }
    let Some(destination) = parse::destination(skb) else { return Ok(TC_ACT_UNSPEC) };
    let Some(scratch) = scratch() else { return Ok(TC_ACT_UNSPEC) };
    if let Some(config) = config()
        && config.may_be_pod(&destination)
        && let Some(verdict) = to_pod(skb, scratch, config, &destination)
    {
        return Ok(verdict);
    }
    if !parse::parse(skb, &mut scratch.packet, &mut scratch.words) {
        return Ok(TC_ACT_UNSPEC);
    }
    if scratch.packet.is_icmp() {
        return error(skb, scratch);
    }
    translate(skb, scratch, true)
}

/// From a pod to a pod. `None`: to something else.
#[inline(always)]
fn to_pod(skb: Skb, scratch: &mut Scratch, config: &Config, destination: &Addr) -> Option<i32> {
    // What is not handed over to the pod at the end of this link is not taken from it past the stack either.
    if let Some(link) = pod_link(skb.ifindex()) {
        if link.flags & POD_LINK_TRANSLATES != 0
            && parse::parse(skb, &mut scratch.packet, &mut scratch.words)
            && flow::begins(&scratch.packet)
        {
            flow::forget_ended(&scratch.packet);
        }
        if let Some(verdict) = pods::between(skb, scratch, config, true) {
            return Some(verdict);
        }
    }
    is_pod(destination).then_some(TC_ACT_UNSPEC)
}

/// Translates a packet of a known flow, or of a new one to a service.
#[inline(always)]
fn translate(skb: Skb, scratch: &mut Scratch, pod: bool) -> Dropped<i32> {
    let known = flow::known(&scratch.packet);
    let (flow, first): (&mut FlowValue, bool) = match known {
        Some(known) if !flow::restarts(&scratch.packet, known) => (known, false),
        _ => {
            let scope = if pod { SCOPE_INTERNAL } else { SCOPE_EXTERNAL };
            let wanted = &scratch.packet.flow;
            let Some(found) = service(&wanted.dst, wanted.dst_port_be, wanted.proto as u8, scope) else {
                if flow::begins(&scratch.packet) {
                    flow::forget_ended(&scratch.packet);
                }
                if !pod {
                    masquerade::note_asked(scratch);
                }
                return Ok(TC_ACT_UNSPEC);
            };
            if found.flags & SERVICE_HOST_ONLY != 0 {
                return Ok(TC_ACT_UNSPEC);
            }
            if flow::is_anothers(&scratch.packet) {
                return Ok(TC_ACT_UNSPEC);
            }
            if found.flags & SERVICE_SOURCE_RANGES != 0 && !pod && !admitted(found, wanted) {
                return Err(Counter::SourceRange);
            }
            if found.count == 0 {
                return refuse(skb, scratch, found);
            }
            let backend = balance(found, wanted, scope)?;
            let made = flow::create(scratch, found, backend, pod)?;
            if pod && let Some(link) = pod_link(skb.ifindex()) {
                link.flags |= POD_LINK_TRANSLATES;
            }
            (made, true)
        }
    };
    // What a pod sends to the world is translated where it leaves, and nobody out there opens a connection by the way that
    // answers take.
    if masquerade::goes_out(flow) || (masquerade::comes_back(flow) && flow::begins(&scratch.packet)) {
        return Ok(TC_ACT_UNSPEC);
    }
    match flow.flags & (FLOW_REPLY | FLOW_SNAT | FLOW_POD | FLOW_DSR | FLOW_MASQUERADE) {
        // An answer of a local backend to a client outside. It came back from there, or it is on its way there.
        FLOW_REPLY if pod => answer(skb, scratch, flow),
        // One of a backend to a pod: that pod's link translates it.
        kind if kind & (FLOW_REPLY | FLOW_SNAT | FLOW_MASQUERADE) == FLOW_REPLY => Ok(TC_ACT_UNSPEC),
        // What it answers went out through the stack, which tracks both ways, should somebody have it do so.
        MASQUERADED_ANSWER => through_stack(skb, &scratch.packet, flow, first),
        0 => deliver(skb, scratch, flow, first),
        FLOW_DSR => send_direct(skb, scratch, flow, first),
        kind if kind & FLOW_SNAT != 0 => send_on(skb, scratch, flow, first),
        _ => through_stack(skb, &scratch.packet, flow, first),
    }
}

#[inline(always)]
fn refuse(skb: Skb, scratch: &mut Scratch, service: &Service) -> Dropped<i32> {
    if service.flags & SERVICE_DROP_WHEN_EMPTY != 0 {
        return Err(Counter::NoLocalBackend);
    }
    let verdict = reject(skb, scratch)?;
    count(Counter::NoBackend);
    Ok(verdict)
}

/// The way of a packet once it is translated.
#[inline(always)]
fn way(skb: Skb, scratch: &mut Scratch, flow: &FlowValue) -> Way {
    let (v4, proto) = (scratch.packet.is_v4(), scratch.packet.flow.proto as u8);
    route(skb, &mut scratch.fib, v4, (proto, 0), &flow.to.src, &flow.to.dst)
}

/// Tells the sender the MTU of a way that its packet is too large for.
#[inline(always)]
fn too_big(skb: Skb, scratch: &mut Scratch, mtu: u16) -> Dropped<i32> {
    let v4 = scratch.packet.is_v4();
    let verdict = icmp(skb, scratch, &Message::too_big(v4, mtu))?;
    count(Counter::TooBig);
    Ok(verdict)
}

/// Translates and leaves the rest to this node's stack.
#[inline(always)]
fn through_stack(skb: Skb, packet: &Packet, flow: &FlowValue, first: bool) -> Dropped<i32> {
    nat::rewrite(skb, packet, &flow.to, false)?;
    account(packet, flow, first);
    Ok(TC_ACT_OK)
}

/// Between a client and a backend elsewhere: translates and sends out.
#[inline(always)]
fn send_on(skb: Skb, scratch: &mut Scratch, flow: &FlowValue, first: bool) -> Dropped<i32> {
    match way(skb, scratch, flow) {
        Way::TooBig(mtu) => return too_big(skb, scratch, mtu),
        Way::Stack => return Err(Counter::NoRoute),
        Way::Open => {}
    }
    if !may_hop(&scratch.packet) {
        return Err(Counter::TtlExceeded);
    }
    nat::rewrite(skb, &scratch.packet, &flow.to, true)?;
    account(&scratch.packet, flow, first);
    Ok(send(skb, &scratch.fib, &mut scratch.words))
}

/// From a client outside to a backend elsewhere that answers it directly, as that one's node is told.
#[inline(always)]
fn send_direct(skb: Skb, scratch: &mut Scratch, flow: &mut FlowValue, first: bool) -> Dropped<i32> {
    let v4 = scratch.packet.is_v4();
    let long = scratch.packet.total_len + dsr::length(v4);
    // What was told once is told again where that costs no packet.
    let tell = dsr::can_tell(&scratch.packet) && (flow.flags & FLOW_ANNOUNCED == 0 || long <= dsr::FITS);
    let (size, proto) = (if tell { long as u16 } else { 0 }, scratch.packet.flow.proto as u8);
    match route(skb, &mut scratch.fib, v4, (proto, size), &flow.to.src, &flow.to.dst) {
        Way::TooBig(mtu) => {
            let room = if tell { dsr::length(v4) as u16 } else { 0 };
            if flow.flags & FLOW_ANNOUNCED == 0 {
                // What comes instead may be fragments, which cannot tell either: source NAT is for them.
                flow::forget(&scratch.packet.flow, flow);
            }
            return too_big(skb, scratch, mtu.wrapping_sub(room));
        }
        Way::Stack => return Err(Counter::NoRoute),
        Way::Open => {}
    }
    if !may_hop(&scratch.packet) {
        return Err(Counter::TtlExceeded);
    }
    nat::rewrite(skb, &scratch.packet, &flow.to, true)?;
    account(&scratch.packet, flow, first);
    if tell {
        let asked = &scratch.packet.flow;
        dsr::tell(skb, v4, &mut scratch.words, &asked.dst, asked.dst_port_be)?;
        flow.flags |= FLOW_ANNOUNCED;
    }
    Ok(send(skb, &scratch.fib, &mut scratch.words))
}

/// From a client outside to a backend of this node: straight to its pod, if the pod's answers come straight back.
#[inline(always)]
fn deliver(skb: Skb, scratch: &mut Scratch, flow: &FlowValue, first: bool) -> Dropped<i32> {
    let shortcut = hands_over()
        && is_whole(&scratch.packet)
        && may_hop(&scratch.packet)
        && matches!(way(skb, scratch, flow), Way::Open)
        && pod_link(scratch.fib.ifindex).is_some();
    if !shortcut {
        return through_stack(skb, &scratch.packet, flow, first);
    }
    nat::rewrite(skb, &scratch.packet, &flow.to, true)?;
    account(&scratch.packet, flow, first);
    Ok(hand_over(&scratch.fib))
}

/// Of a datagram in fragments all go through the stack, which may have to cut one of them once more, or puts them together.
#[inline(always)]
fn is_whole(packet: &Packet) -> bool {
    packet.position == Position::Whole as u32
}

/// Whether packets of pods may go past this node's stack.
#[inline(always)]
fn hands_over() -> bool {
    config().is_some_and(|config| config.flags & CONFIG_HAND_OVER != 0)
}

/// An answer of a pod to a client outside: translated here and sent straight out. What only the stack can send is
/// translated where it leaves.
#[inline(always)]
fn answer(skb: Skb, scratch: &mut Scratch, flow: &FlowValue) -> Dropped<i32> {
    let packet = &scratch.packet;
    if !may_hop(packet) || !is_whole(packet) || !hands_over() || pod_link(skb.ifindex()).is_none() {
        return Ok(TC_ACT_UNSPEC);
    }
    match way(skb, scratch, flow) {
        Way::TooBig(mtu) => return too_big(skb, scratch, mtu),
        Way::Stack => return Ok(TC_ACT_UNSPEC),
        Way::Open => {}
    }
    nat::rewrite(skb, &scratch.packet, &flow.to, true)?;
    account(&scratch.packet, flow, false);
    Ok(send(skb, &scratch.fib, &mut scratch.words))
}

/// An ICMP error: of the way to a remote backend (for the client), or of the way to the client (for the backend).
#[inline(always)]
fn error(skb: Skb, scratch: &mut Scratch) -> Dropped<i32> {
    let Some(flow) = crate::icmp::quoted(skb, scratch) else { return Ok(TC_ACT_UNSPEC) };
    let elsewhere = flow.flags & (FLOW_SNAT | FLOW_DSR) != 0;
    let passes = flow.flags & FLOW_REPLY != 0 && flow.flags & (FLOW_SNAT | FLOW_MASQUERADE) == 0;
    if passes || masquerade::goes_out(flow) {
        return Ok(TC_ACT_UNSPEC);
    }
    crate::icmp::translate(skb, scratch, flow)?;
    if !elsewhere {
        return Ok(TC_ACT_OK);
    }
    if !may_hop(&scratch.packet) {
        return Err(Counter::TtlExceeded);
    }
    let (v4, to) = (scratch.packet.is_v4(), &scratch.forward.to);
    match route(skb, &mut scratch.fib, v4, (to.proto as u8, 0), &to.src, &to.dst) {
        Way::TooBig(_) => return Err(Counter::TooBig),
        Way::Stack => return Err(Counter::NoRoute),
        Way::Open => {}
    }
    hop(skb, &scratch.packet)?;
    Ok(send(skb, &scratch.fib, &mut scratch.words))
}
