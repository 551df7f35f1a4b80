//! Counting per service and backend, where the node wants it: one more look-up per packet.

use aya_ebpf::bindings::BPF_NOEXIST;
use seaway_ebpf_abi::{
    Addr, CONFIG_STATS, Counter, FLOW_MASQUERADE, FLOW_REPLY, FLOW_TRANSPARENT, FlowValue, Stats, StatsKey,
};

use crate::count::count;
use crate::maps::{STATS, config};
use crate::parse::Packet;

/// What happened.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    /// A socket was given the backend.
    Socket,
    /// A connection from outside was, with its first packet of so many bytes.
    First(u32),
    /// Another packet towards it.
    In(u32),
    /// One that it sent.
    Out(u32),
}

/// The first event of a backend. Another CPU may be faster, which is as good.
#[inline(always)]
fn begin(key: &StatsKey) -> Option<*mut Stats> {
    let _ = STATS.insert(key, &Stats::default(), BPF_NOEXIST as u64);
    STATS.get_ptr_mut(key)
}

/// Counts an event of a backend.
#[inline(always)]
pub(crate) fn note(service: u32, addr: &Addr, port_be: u16, event: Event) {
    if config().is_none_or(|config| config.flags & CONFIG_STATS == 0) {
        return;
    }
    let key = StatsKey { addr: *addr, service, port_be, pad: 0 };
    let Some(stats) = STATS.get_ptr_mut(&key).or_else(|| begin(&key)) else {
        return count(Counter::StatsFull);
    };
    // SAFETY: the element is this CPU's; an interrupted addition may lose one count, no more.
    let stats = unsafe { &mut *stats };
    match event {
        Event::Socket => stats.connections += 1,
        Event::First(bytes) => {
            stats.connections += 1;
            stats.packets_in += 1;
            stats.bytes_in += bytes as u64;
        }
        Event::In(bytes) => {
            stats.packets_in += 1;
            stats.bytes_in += bytes as u64;
        }
        Event::Out(bytes) => {
            stats.packets_out += 1;
            stats.bytes_out += bytes as u64;
        }
    }
}

/// What is noted of a packet that is translated.
#[inline(always)]
pub(crate) fn account(packet: &Packet, flow: &FlowValue, first: bool) {
    packet.note_fragment();
    if flow.flags & FLOW_MASQUERADE != 0 {
        count(Counter::Masqueraded);
    } else if flow.flags & FLOW_TRANSPARENT != 0 {
        // The node that translated it has counted it.
    } else if flow.flags & FLOW_REPLY != 0 {
        let from = &packet.flow;
        note(flow.service, &from.src, from.src_port_be, Event::Out(packet.total_len));
        count(Counter::Reply);
    } else {
        let event = if first { Event::First(packet.total_len) } else { Event::In(packet.total_len) };
        note(flow.service, &flow.to.dst, flow.to.dst_port_be, event);
        count(Counter::Forward);
    }
}
