//! Packets that leave by an uplink: replies of this node's backends to clients outside get back the address that the
//! client asked.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use seaway_ebpf_abi::{Counter, FLOW_REPLY, FLOW_SNAT};

use crate::count::count;
use crate::maps::{Scratch, scratch};
use crate::skb::{Dropped, Skb};
use crate::stats::{self, Event};
use crate::{flow, icmp, nat, parse};

#[classifier]
fn sw_egress(ctx: TcContext) -> i32 {
    match egress(Skb(ctx.skb.skb)) {
        Ok(verdict) => verdict,
        Err(reason) => {
            count(reason);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn egress(skb: Skb) -> Dropped<i32> {
    let Some(scratch) = scratch() else { return Ok(TC_ACT_UNSPEC) };
    if !parse::parse(skb, &mut scratch.packet, &mut scratch.words) {
        return Ok(TC_ACT_UNSPEC);
    }
    if scratch.packet.is_icmp() {
        return error(skb, scratch);
    }
    let Some(known) = flow::known(&scratch.packet) else { return Ok(TC_ACT_UNSPEC) };
    if known.flags & (FLOW_REPLY | FLOW_SNAT) != FLOW_REPLY {
        return Ok(TC_ACT_UNSPEC);
    }
    let packet = &scratch.packet;
    packet.note_fragment();
    let from = &packet.flow;
    stats::note(known.service, &from.src, from.src_port_be, Event::Out(packet.total_len));
    nat::rewrite(skb, &scratch.packet, &known.to)?;
    count(Counter::Reply);
    Ok(TC_ACT_OK)
}

/// An ICMP error of this node or of a backend on it, about a request that was translated here.
#[inline(always)]
fn error(skb: Skb, scratch: &mut Scratch) -> Dropped<i32> {
    let Some(flow) = icmp::quoted(skb, scratch) else { return Ok(TC_ACT_UNSPEC) };
    if flow.flags & (FLOW_REPLY | FLOW_SNAT) != FLOW_REPLY {
        return Ok(TC_ACT_UNSPEC);
    }
    icmp::translate(skb, scratch, flow)?;
    Ok(TC_ACT_OK)
}
