//! Packets that arrive: on an uplink requests to NodePorts, load balancer and external addresses, and replies of
//! backends on other nodes; from a pod of this node what the socket programs have not seen (sandboxes and virtual
//! machines with a stack of their own, raw packets).

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use seaway_ebpf_abi::{
    AffinityKey, Backend, CLIENT_ADDRESS, Counter, FLOW_REPLY, FLOW_SNAT, FlowTuple, FlowValue,
    SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_DROP_WHEN_EMPTY, SERVICE_HOST_ONLY, SERVICE_SOURCE_RANGES,
    Service, select,
};

use crate::balance::{choose, service};
use crate::count::count;
use crate::maps::{SOURCE_RANGES, Scratch, config, scratch};
use crate::reply::{Message, icmp, reject};
use crate::route::{Way, route, send};
use crate::skb::{Dropped, Skb};
use crate::stats::{self, Event};
use crate::{flow, nat, parse};

/// On an uplink.
#[classifier]
fn sw_ingress(ctx: TcContext) -> i32 {
    verdict(from_outside(Skb(ctx.skb.skb)))
}

/// At the host's end of a pod's link.
#[classifier]
fn sw_pod_ingress(ctx: TcContext) -> i32 {
    verdict(from_pod(Skb(ctx.skb.skb)))
}

#[inline(always)]
fn verdict(result: Dropped<i32>) -> i32 {
    match result {
        Ok(verdict) => verdict,
        Err(reason) => {
            count(reason);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn from_outside(skb: Skb) -> Dropped<i32> {
    let Some(scratch) = scratch() else { return Ok(TC_ACT_UNSPEC) };
    if !parse::parse(skb, &mut scratch.packet, &mut scratch.words) {
        return Ok(TC_ACT_UNSPEC);
    }
    if scratch.packet.is_icmp() {
        return error(skb, scratch);
    }
    translate(skb, scratch, false)
}

#[inline(always)]
fn from_pod(skb: Skb) -> Dropped<i32> {
    let Some(destination) = parse::destination(skb) else { return Ok(TC_ACT_UNSPEC) };
    if config().is_some_and(|config| config.is_pod(&destination)) {
        return Ok(TC_ACT_UNSPEC);
    }
    let Some(scratch) = scratch() else { return Ok(TC_ACT_UNSPEC) };
    if !parse::parse(skb, &mut scratch.packet, &mut scratch.words) {
        return Ok(TC_ACT_UNSPEC);
    }
    if scratch.packet.is_icmp() {
        return error(skb, scratch);
    }
    translate(skb, scratch, true)
}

/// Translates a packet of a known flow, or of a new one to a service.
#[inline(always)]
fn translate(skb: Skb, scratch: &mut Scratch, pod: bool) -> Dropped<i32> {
    if let Some(known) = flow::known(&scratch.packet)
        && !flow::restarts(&scratch.packet, known)
    {
        // A reply that belongs to egress has no business here: it came back from outside, or it is on its way there.
        if known.flags & (FLOW_REPLY | FLOW_SNAT) == FLOW_REPLY {
            return Ok(TC_ACT_UNSPEC);
        }
        return deliver(skb, scratch, known, false);
    }
    let scope = if pod { SCOPE_INTERNAL } else { SCOPE_EXTERNAL };
    let wanted = &scratch.packet.flow;
    let Some(found) = service(&wanted.dst, wanted.dst_port_be, wanted.proto as u8, scope) else {
        return Ok(TC_ACT_UNSPEC);
    };
    if found.flags & SERVICE_HOST_ONLY != 0 {
        return Ok(TC_ACT_UNSPEC);
    }
    if found.flags & SERVICE_SOURCE_RANGES != 0 && !pod && !admitted(found, wanted) {
        return Err(Counter::SourceRange);
    }
    if found.count == 0 {
        if found.flags & SERVICE_DROP_WHEN_EMPTY != 0 {
            return Err(Counter::NoLocalBackend);
        }
        let verdict = reject(skb, scratch)?;
        count(Counter::NoBackend);
        return Ok(verdict);
    }
    let backend = balance(found, wanted, scope)?;
    let made = flow::create(scratch, found.id, backend, pod)?;
    deliver(skb, scratch, made, true)
}

#[inline(always)]
fn admitted(service: &Service, flow: &FlowTuple) -> bool {
    let [a, b, c, d] = flow.src.words;
    SOURCE_RANGES.get(Key::new(160, [service.id, a, b, c, d])).is_some()
}

#[inline(always)]
fn balance(found: &Service, wanted: &FlowTuple, scope: u8) -> Dropped<&'static Backend> {
    let client = AffinityKey { client: wanted.src, service: found.id, kind: CLIENT_ADDRESS };
    let hash = select::flow_hash(wanted);
    if let Some(backend) = choose(found, &client, hash) {
        return Ok(backend);
    }
    // The slice is being replaced: the service points to the new one by now.
    service(&wanted.dst, wanted.dst_port_be, wanted.proto as u8, scope)
        .filter(|found| found.count > 0)
        .and_then(|found| choose(found, &client, hash))
        .ok_or(Counter::StaleSlice)
}

/// Translates to what the flow says and sends the packet on.
#[inline(always)]
fn deliver(skb: Skb, scratch: &mut Scratch, flow: &FlowValue, first: bool) -> Dropped<i32> {
    let reply = flow.flags & FLOW_REPLY != 0;
    let packet = &scratch.packet;
    let v4 = packet.is_v4();
    packet.note_fragment();
    if reply {
        let from = &packet.flow;
        stats::note(flow.service, &from.src, from.src_port_be, Event::Out(packet.total_len));
    } else {
        let event = if first { Event::First(packet.total_len) } else { Event::In(packet.total_len) };
        stats::note(flow.service, &flow.to.dst, flow.to.dst_port_be, event);
    }
    if flow.flags & FLOW_SNAT == 0 {
        nat::rewrite(skb, packet, &flow.to)?;
        count(Counter::Forward);
        return Ok(TC_ACT_OK);
    }
    let proto = packet.flow.proto as u8;
    match route(skb, &mut scratch.fib, v4, (proto, 0), &flow.to.src, &flow.to.dst)? {
        Way::TooBig(mtu) => {
            let verdict = icmp(skb, scratch, &Message::too_big(v4, mtu))?;
            count(Counter::TooBig);
            return Ok(verdict);
        }
        Way::Open => {}
    }
    nat::rewrite(skb, packet, &flow.to)?;
    count(if reply { Counter::Reply } else { Counter::Forward });
    send(skb, &scratch.fib, &mut scratch.words, v4, packet.ttl)
}

/// An ICMP error: of the way to a remote backend (for the client), or of the way to the client (for the backend).
#[inline(always)]
fn error(skb: Skb, scratch: &mut Scratch) -> Dropped<i32> {
    let Some(flow) = crate::icmp::quoted(skb, scratch) else { return Ok(TC_ACT_UNSPEC) };
    let snat = flow.flags & FLOW_SNAT != 0;
    if flow.flags & FLOW_REPLY != 0 && !snat {
        return Ok(TC_ACT_UNSPEC);
    }
    crate::icmp::translate(skb, scratch, flow)?;
    if !snat {
        return Ok(TC_ACT_OK);
    }
    let (v4, to) = (scratch.packet.is_v4(), &scratch.forward.to);
    match route(skb, &mut scratch.fib, v4, (to.proto as u8, 0), &to.src, &to.dst)? {
        Way::TooBig(_) => Err(Counter::TooBig),
        Way::Open => send(skb, &scratch.fib, &mut scratch.words, v4, scratch.packet.ttl),
    }
}
