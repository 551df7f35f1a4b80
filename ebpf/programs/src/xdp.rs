//! Packets between clients outside and backends on other nodes, sent on before the kernel makes buffers of them.
//!
//! This is a short cut before `tc_ingress`, which decides the same from the same maps: whatever cannot be done to the
//! end here is passed on to it untouched, and leaves no trace. That is, beside all that is not to be sent on to another
//! node, what has to be answered or refused, packets with options, fragments, and those too large for the way; also
//! what may have a checksum that its sender left to a device.
//!
//! What is sent from here does not prove to the kernel that a neighbour is alive. So some packets go the long way, where
//! the kernel sees them: repeated openings, the first ones after a silence, and some new flows. A neighbour that has
//! moved is thus noticed as it is without this program.

use aya_ebpf::bindings::{bpf_fib_lookup, xdp_action, xdp_md};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use seaway_ebpf_abi::packet::{ETHERNET, Position};
use seaway_ebpf_abi::select::flow_hash;
use seaway_ebpf_abi::{
    Addr, BACKEND_LOCAL, Backend, Counter, FLOW_ANNOUNCED, FLOW_DSR, FLOW_POD, FLOW_REPLY, FLOW_SNAT,
    FlowValue, SCOPE_EXTERNAL, SERVICE_DSR, SERVICE_HOST_ONLY, SERVICE_SOURCE_RANGES, Service, TCP,
    XDP_LINK_ACCEPTS, XDP_LINK_ANSWERS, XdpLink, checksum,
};

use crate::balance::{admitted, balance, service};
use crate::count::count;
use crate::frame::{Dropped, Frame};
use crate::maps::{Scratch, config, now_s, scratch, xdp_link};
use crate::parse::Packet;
use crate::route::{Way, may_hop, route};
use crate::stats::account;
use crate::tunnel::{self, Own};
use crate::xdp_buff::XdpBuff;
use crate::{dsr, flow, nat, parse, reply};

/// A flow that was silent for longer goes the long way once.
const SILENT_S: u32 = 1;
/// One of so many new flows goes the long way; a power of two.
const SAMPLE: u32 = 16;

const PASS: u32 = xdp_action::XDP_PASS;

/// On an uplink, in its driver. Packets may come in several pieces: otherwise no driver takes it whose MTU is larger than a
/// page.
#[xdp(frags)]
fn sw_xdp(ctx: XdpContext) -> u32 {
    run(ctx.ctx)
}

/// On an uplink, after the driver. For packets in one piece: for others the kernel copies each packet first, and such
/// copies were seen to pass both this program and the tc one by (Linux 6.18).
#[xdp]
fn sw_xdp_generic(ctx: XdpContext) -> u32 {
    run(ctx.ctx)
}

/// A function of its own, so that the object holds it once.
#[inline(never)]
fn run(ctx: *mut xdp_md) -> u32 {
    match forward(XdpBuff(ctx)) {
        Ok(verdict) => verdict,
        Err(reason) => {
            count(reason);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn forward(frame: XdpBuff) -> Dropped<u32> {
    let Some(here) = xdp_link(frame.ifindex()) else { return Ok(PASS) };
    if !frame.is_for(here) {
        return Ok(PASS);
    }
    let Some(scratch) = scratch() else { return Ok(PASS) };
    if config().is_some_and(|config| tunnel::is_outer(frame, config, Own::Destination, &mut scratch.words)) {
        return Ok(PASS);
    }
    if !parse::parse(frame, &mut scratch.packet, &mut scratch.words) || !is_plain(frame, &scratch.packet) {
        return Ok(PASS);
    }
    let known = flow::find(&scratch.packet);
    let begun = match &known {
        Some(known) if goes_on(&scratch.packet, known) => None,
        None => chosen(&scratch.packet),
        Some(_) => return Ok(PASS),
    };
    let (src, dst) = match (&known, &begun) {
        (Some(known), _) => (known.to.src, known.to.dst),
        (None, Some(begun)) => (begun.source, begun.backend.addr),
        (None, None) => return Ok(PASS),
    };
    let Some(verdict) = way(frame, here, scratch, &src, &dst) else { return Ok(PASS) };
    let (flow, first) = match (known, begun) {
        (Some(known), _) => {
            flow::touch_by(&scratch.packet, known, now_s());
            (known, false)
        }
        (None, Some(begun)) => (flow::create(scratch, begun.service, begun.backend, false)?, true),
        (None, None) => return Ok(PASS),
    };
    nat::rewrite(frame, &scratch.packet, &flow.to, true)?;
    account(&scratch.packet, flow, first);
    count(Counter::XdpForwarded);
    send(frame, &scratch.fib, verdict)
}

/// Whether a packet is whole, with plain headers, in one piece, with a checksum of its own, and may go a hop further.
#[inline(always)]
fn is_plain(frame: XdpBuff, packet: &Packet) -> bool {
    let ip = if packet.is_v4() { 20 } else { 40 };
    let (tcp, icmp) = (packet.flow.proto == TCP as u32, packet.is_icmp());
    let (header, sum) = if tcp { (20, 16) } else { (8, 6) };
    if icmp
        || packet.position != Position::Whole as u32
        || packet.l4 != ETHERNET + ip
        || packet.total_len < ip + header
        || frame.len() < ETHERNET + packet.total_len
        || !may_hop(packet)
    {
        return false;
    }
    let pseudo =
        reply::pseudo(packet.is_v4(), &packet.flow, packet.flow.proto as u8, (packet.total_len - ip) as u16);
    !checksum::may_be_partial(frame.field(packet.l4 + sum), pseudo)
}

/// Whether a packet of a known flow may be sent on from here.
#[inline(always)]
fn goes_on(packet: &Packet, known: &FlowValue) -> bool {
    let passes = match known.flags & (FLOW_REPLY | FLOW_SNAT | FLOW_POD | FLOW_DSR) {
        kind if kind & !FLOW_REPLY == FLOW_SNAT => true,
        FLOW_DSR => known.flags & FLOW_ANNOUNCED != 0 && !dsr::can_tell(packet),
        _ => false,
    };
    passes
        && now_s().wrapping_sub(known.last_seen_s) <= SILENT_S
        && !flow::begins(packet)
        && !flow::begins_answer_of_closed(packet, known)
}

/// A new flow to a backend on another node.
struct Begun {
    service: &'static Service,
    backend: &'static Backend,
    /// The address that the backend sees.
    source: Addr,
}

/// Where a packet goes that is of no known flow. `None`: it begins none, or one that is not for here.
#[inline(always)]
fn chosen(packet: &Packet) -> Option<Begun> {
    let wanted = &packet.flow;
    if (wanted.proto == TCP as u32 && !flow::begins(packet)) || flow_hash(wanted).is_multiple_of(SAMPLE) {
        return None;
    }
    let service = service(&wanted.dst, wanted.dst_port_be, wanted.proto as u8, SCOPE_EXTERNAL)?;
    if service.count == 0
        || service.flags & (SERVICE_HOST_ONLY | SERVICE_DSR) != 0
        || (service.flags & SERVICE_SOURCE_RANGES != 0 && !admitted(service, wanted))
    {
        return None;
    }
    let backend = balance(service, wanted, SCOPE_EXTERNAL).ok()?;
    let source = flow::node_address(packet.is_v4()).ok()?;
    if backend.flags & BACKEND_LOCAL != 0 { None } else { Some(Begun { service, backend, source }) }
}

/// The verdict that sends a packet from `src` to `dst`; `scratch.fib` then holds the neighbour. `None`: it cannot be sent
/// from here.
#[inline(always)]
fn way(frame: XdpBuff, here: &XdpLink, scratch: &mut Scratch, src: &Addr, dst: &Addr) -> Option<u32> {
    let packet = &scratch.packet;
    let size = (packet.flow.proto as u8, packet.total_len as u16);
    let Way::Open = route(frame, &mut scratch.fib, packet.is_v4(), size, src, dst) else { return None };
    if scratch.fib.ifindex == frame.ifindex() {
        return (here.flags & XDP_LINK_ANSWERS != 0).then_some(xdp_action::XDP_TX);
    }
    let there = xdp_link(scratch.fib.ifindex)?;
    (there.flags & XDP_LINK_ACCEPTS != 0).then_some(xdp_action::XDP_REDIRECT)
}

/// Sends the packet, which is translated, by the way in `fib`.
#[inline(always)]
fn send(frame: XdpBuff, fib: &bpf_fib_lookup, verdict: u32) -> Dropped<u32> {
    frame.store(0, &addresses(fib))?;
    if verdict == xdp_action::XDP_TX {
        return Ok(verdict);
    }
    // SAFETY: the helper takes a device index.
    Ok(unsafe { bpf_redirect(fib.ifindex, 0) as u32 })
}

/// The Ethernet addresses of a frame that goes this way.
#[inline(always)]
fn addresses(fib: &bpf_fib_lookup) -> [u32; 3] {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (fib.dmac, fib.smac);
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]), u32::from_ne_bytes([i, j, k, l])]
}
