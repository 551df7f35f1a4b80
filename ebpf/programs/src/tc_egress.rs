//! Packets that leave: by an uplink, replies of this node's backends to clients outside; to a pod, replies of backends
//! to what was translated when it came from there. Both get back the address that the client asked. What else pods send to
//! the world is masqueraded.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use seaway_ebpf_abi::{
    Counter, FLOW_DSR, FLOW_MASQUERADE, FLOW_POD, FLOW_REPLY, FLOW_SNAT, FlowValue, POD_LINK_TRANSLATES,
};

use crate::count::count;
use crate::frame::{Dropped, Frame};
use crate::maps::{Scratch, config, pod_link, scratch};
use crate::skb::{Skb, verdict};
use crate::stats::{self, Event};
use crate::tunnel::{self, Own};
use crate::{flow, icmp, masquerade, nat, parse};

/// On an uplink.
#[classifier]
fn sw_egress(ctx: TcContext) -> i32 {
    let skb = Skb(ctx.skb.skb);
    if skb.take_note() {
        return TC_ACT_UNSPEC;
    }
    verdict(egress(skb, 0))
}

/// At the host's end of a pod's link.
#[classifier]
fn sw_pod_egress(ctx: TcContext) -> i32 {
    let skb = Skb(ctx.skb.skb);
    if pod_link(skb.ifindex()).is_some_and(|link| link.flags & POD_LINK_TRANSLATES == 0) {
        return TC_ACT_UNSPEC;
    }
    verdict(egress(skb, FLOW_POD))
}

/// Whether a flow is one of replies that are translated here: those for pods at the pods, all others at the uplinks.
#[inline(always)]
fn is_ours(flow: &FlowValue, pod: u16) -> bool {
    flow.flags & (FLOW_REPLY | FLOW_SNAT | FLOW_POD | FLOW_DSR | FLOW_MASQUERADE) == FLOW_REPLY | pod
}

#[inline(always)]
fn egress(skb: Skb, pod: u16) -> Dropped<i32> {
    let Some(scratch) = scratch() else { return Ok(TC_ACT_UNSPEC) };
    let is_outer = |config| tunnel::is_outer(skb, config, Own::Source, &mut scratch.words);
    if pod == 0 && config().is_some_and(is_outer) {
        return Ok(TC_ACT_UNSPEC);
    }
    let (read, uplink) = (parse::parse(skb, &mut scratch.packet, &mut scratch.words), pod == 0);
    if read && scratch.packet.is_icmp() && !masquerade::is_echo(&scratch.packet) {
        return error(skb, scratch, pod);
    }
    let known = if read && !scratch.packet.is_icmp() { flow::known(&scratch.packet) } else { None };
    let known = match known {
        Some(known) if is_ours(known, pod) => known,
        other if uplink && other.as_ref().is_none_or(|known| masquerade::goes_out(known)) => {
            return masquerade::leave(skb, scratch, read, other.map(|known| &*known));
        }
        _ => return Ok(TC_ACT_UNSPEC),
    };
    let packet = &scratch.packet;
    packet.note_fragment();
    let from = &packet.flow;
    stats::note(known.service, &from.src, from.src_port_be, Event::Out(packet.total_len));
    nat::rewrite(skb, packet, &known.to, false)?;
    count(Counter::Reply);
    Ok(TC_ACT_OK)
}

/// An ICMP error of this node, of a backend or of the way there, about a request that was translated here.
#[inline(always)]
fn error(skb: Skb, scratch: &mut Scratch, pod: u16) -> Dropped<i32> {
    let Some(flow) = icmp::quoted(skb, scratch) else { return Ok(TC_ACT_UNSPEC) };
    if !is_ours(flow, pod) && !(pod == 0 && masquerade::goes_out(flow)) {
        return Ok(TC_ACT_UNSPEC);
    }
    icmp::translate(skb, scratch, flow)?;
    Ok(TC_ACT_OK)
}
