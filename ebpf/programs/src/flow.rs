//! Connections from outside: remembered in two entries, one per direction, made with the first packet.

use aya_ebpf::bindings::BPF_NOEXIST;
use seaway_ebpf_abi::packet::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use seaway_ebpf_abi::select::{PORT_ATTEMPTS, flow_hash, source_port};
use seaway_ebpf_abi::{
    Addr, BACKEND_LOCAL, Backend, CLUSTER_NET_NODE, CONFIG_TAKING_OVER, Counter, FLOW_CLOSING, FLOW_DSR,
    FLOW_MASQUERADE, FLOW_POD, FLOW_REPLY, FLOW_SEEN_REPLY, FLOW_SNAT, FlowTuple, FlowValue, SERVICE_DSR,
    SERVICE_MASQUERADE, SERVICE_NODE_PORT, Service, TCP, UDP,
};

use crate::balance::is_node_port;
use crate::count::count;
use crate::dsr;
use crate::frame::Dropped;
use crate::maps::{FLOWS, Scratch, cluster_net, config, now_s};
use crate::parse::Packet;
use crate::repeat::{END, GO_ON, repeat};

/// A closed connection's source port may be used again after this time.
const CLOSED_S: u32 = 10;
/// One that went quiet, after this: longer than the kernel's own memory of an established connection's keep-alive.
const QUIET_S: u32 = 8 * 3600;
/// A UDP flow's, after this.
const QUIET_UDP_S: u32 = 180;
/// One whose client has not been heard of for as long as this does not begin anew.
const RESTING_S: u32 = 2;
const EEXIST: i32 = -17;

/// The entry of a packet's flow, as it is.
#[inline(always)]
pub(crate) fn find(packet: &Packet) -> Option<&'static mut FlowValue> {
    let flow = FLOWS.get_ptr_mut(&packet.flow)?;
    // SAFETY: an LRU element may be reused while it is read: the worst case is a packet that is translated as another
    // flow's and answered with a reset there.
    Some(unsafe { &mut *flow })
}

/// The entry of a packet's flow, touched.
#[inline(always)]
pub(crate) fn known(packet: &Packet) -> Option<&'static mut FlowValue> {
    let flow = find(packet)?;
    let now = now_s();
    if begins_answer_of_closed(packet, flow) {
        if now.wrapping_sub(flow.last_seen_s) < RESTING_S {
            return Some(flow);
        }
        forget(&packet.flow, flow);
        return None;
    }
    touch_by(packet, flow, now);
    Some(flow)
}

/// Notes in the entry of a packet's flow that the packet was seen.
#[inline(always)]
pub(crate) fn touch_by(packet: &Packet, flow: &mut FlowValue, now: u32) {
    if flow.last_seen_s != now {
        flow.last_seen_s = now;
        if flow.flags & (FLOW_DSR | FLOW_MASQUERADE) != 0 {
            // Of the other direction perhaps nothing comes here that could keep its entry.
            touch(flow, now);
        }
    }
    if packet.flow.proto == TCP as u32 {
        let flags = packet.kind as u8;
        if flags & (TCP_FIN | TCP_RST) != 0 && packet.has_ports() {
            close(flow);
        }
    }
    if flow.flags & (FLOW_REPLY | FLOW_SEEN_REPLY) == FLOW_REPLY {
        flow.flags |= FLOW_SEEN_REPLY;
        mark(flow, FLOW_SEEN_REPLY);
    }
}

/// Whether a backend begins to answer, while the connection that was translated has ended: unless a straggler of the
/// former connection has just marked a new one, a client that now reaches the backend directly has got the same port.
#[inline(always)]
pub(crate) fn begins_answer_of_closed(packet: &Packet, flow: &FlowValue) -> bool {
    packet.flow.proto == TCP as u32
        && flow.flags & (FLOW_REPLY | FLOW_CLOSING) == FLOW_REPLY | FLOW_CLOSING
        && packet.kind as u8 & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK
        && packet.has_ports()
}

/// Whether the packet opens a TCP connection.
#[inline(always)]
pub(crate) fn begins(packet: &Packet) -> bool {
    packet.flow.proto == TCP as u32
        && packet.kind as u8 & (TCP_SYN | TCP_ACK) == TCP_SYN
        && packet.has_ports()
}

/// A client opens a connection to a backend itself, from the port that one to a service had that has ended: what is
/// answered now is not to be translated.
#[inline(always)]
pub(crate) fn forget_ended(packet: &Packet) {
    let reply = packet.flow.inverted();
    let Some(flow) = FLOWS.get_ptr(&reply) else { return };
    // SAFETY: as in `known`.
    let flow = unsafe { &*flow };
    if flow.flags & (FLOW_REPLY | FLOW_CLOSING) == FLOW_REPLY | FLOW_CLOSING {
        forget(&reply, flow);
    }
}

/// Removes both directions of the flow that is at `key`.
#[inline(always)]
pub(crate) fn forget(key: &FlowTuple, flow: &FlowValue) {
    // Either may be gone already.
    let _ = FLOWS.remove(&flow.to.inverted());
    let _ = FLOWS.remove(key);
}

/// Marks both directions as ending.
#[inline(always)]
fn close(flow: &mut FlowValue) {
    if flow.flags & FLOW_CLOSING == 0 {
        flow.flags |= FLOW_CLOSING;
        mark(flow, FLOW_CLOSING);
    }
}

/// Sets a flag in the other direction's entry.
#[inline(always)]
fn mark(flow: &FlowValue, flag: u16) {
    if let Some(other) = FLOWS.get_ptr_mut(&flow.to.inverted()) {
        // SAFETY: as in `known`.
        unsafe { (*other).flags |= flag };
    }
}

/// Keeps the other direction's entry alive.
#[inline(always)]
fn touch(flow: &FlowValue, now: u32) {
    if let Some(other) = FLOWS.get_ptr_mut(&flow.to.inverted()) {
        // SAFETY: as in `known`.
        unsafe { (*other).last_seen_s = now };
    }
}

/// Whether the packet begins a connection anew that is known as ending.
#[inline(always)]
pub(crate) fn restarts(packet: &Packet, flow: &FlowValue) -> bool {
    flow.flags & FLOW_CLOSING != 0 && begins(packet)
}

/// Whether the packet belongs to a connection that another mode translates: one of which the programs have not seen
/// the beginning, while they are taking over.
#[inline(always)]
pub(crate) fn is_anothers(packet: &Packet) -> bool {
    packet.flow.proto == TCP as u32
        && packet.kind as u8 & (TCP_SYN | TCP_ACK) != TCP_SYN
        && config().is_some_and(|config| config.flags & CONFIG_TAKING_OVER != 0)
}

/// The address that a remote backend sees as its client.
#[inline(always)]
pub(crate) fn node_address(v4: bool) -> Dropped<Addr> {
    let Some(config) = config() else { return Err(Counter::NoNodeAddress) };
    let addr = if v4 { config.node_v4 } else { config.node_v6 };
    if addr.same(&Addr::NONE) || config.snat_port_max == 0 { Err(Counter::NoNodeAddress) } else { Ok(addr) }
}

/// Whether a backend on another node is to see the client and to answer it directly. Not where the client is in the
/// cluster: to the backend's node it may be its own, which it answers without any program's help. And not where that
/// node could not know what was asked: it believes in NodePorts at addresses of nodes only.
#[inline(always)]
fn direct(packet: &Packet, service: &Service, backend: &Backend, pod: bool) -> bool {
    service.flags & SERVICE_DSR != 0
        && backend.flags & BACKEND_LOCAL == 0
        && !pod
        && dsr::can_tell(packet)
        && cluster_net(&packet.flow.src) == 0
        && (service.flags & SERVICE_NODE_PORT == 0 || cluster_net(&packet.flow.dst) == CLUSTER_NET_NODE)
}

/// Makes the entries of a new connection; returns that of its own direction. `pod`: its client is a pod of this node,
/// which keeps its address, unless it has been given itself as its backend, or the service shows backends the node only.
#[inline(always)]
pub(crate) fn create(
    scratch: &mut Scratch,
    service: &Service,
    backend: &Backend,
    pod: bool,
) -> Dropped<&'static mut FlowValue> {
    let packet = &scratch.packet;
    let now = now_s();
    let service_id = service.id;
    scratch.reply_key = FlowTuple {
        src: backend.addr,
        dst: packet.flow.src,
        src_port_be: backend.port_be,
        dst_port_be: packet.flow.src_port_be,
        proto: packet.flow.proto,
    };
    scratch.reply = FlowValue {
        to: packet.flow.inverted(),
        service: service_id,
        flags: FLOW_DSR | FLOW_REPLY,
        pad: 0,
        last_seen_s: now,
        created_s: now,
    };
    // If somebody has this port to this backend already, source NAT finds another.
    let flags = if direct(packet, service, backend, pod) && take(scratch, now)? {
        FLOW_DSR
    } else {
        translate_source(scratch, service, backend, pod, now)?
    };
    begin(scratch, service_id, flags, now)
}

/// Makes the entries of a pod's connection to somebody outside of the cluster, who sees `source`, with one of `ports`.
#[inline(always)]
pub(crate) fn masquerade(
    scratch: &mut Scratch,
    source: Addr,
    ports: Ports,
) -> Dropped<&'static mut FlowValue> {
    let now = now_s();
    let asked = &scratch.packet.flow;
    scratch.reply_key = FlowTuple { dst: source, ..asked.inverted() };
    scratch.reply = FlowValue {
        to: asked.inverted(),
        service: 0,
        flags: FLOW_MASQUERADE | FLOW_REPLY,
        pad: 0,
        last_seen_s: now,
        created_s: now,
    };
    search(scratch, ports, now)?;
    begin(scratch, 0, FLOW_MASQUERADE, now)
}

/// Makes the entry of the own direction, once the reply's is made.
#[inline(always)]
fn begin(scratch: &mut Scratch, service: u32, flags: u16, now: u32) -> Dropped<&'static mut FlowValue> {
    scratch.forward = FlowValue {
        to: scratch.reply_key.inverted(),
        service,
        flags,
        pad: 0,
        last_seen_s: now,
        created_s: now,
    };
    if FLOWS.insert(&scratch.packet.flow, &scratch.forward, 0).is_err() {
        return Err(Counter::FlowMapFull);
    }
    count(Counter::FlowCreated);
    // SAFETY: as in `known`.
    FLOWS.get_ptr_mut(&scratch.packet.flow).map(|flow| unsafe { &mut *flow }).ok_or(Counter::FlowMapFull)
}

/// Decides which source the backend sees, and makes the reply's entry. Returns the flags of both directions.
#[inline(always)]
fn translate_source(
    scratch: &mut Scratch,
    service: &Service,
    backend: &Backend,
    pod: bool,
    now: u32,
) -> Dropped<u16> {
    let packet = &scratch.packet;
    let local = if pod {
        service.flags & SERVICE_MASQUERADE == 0 && !backend.addr.same(&packet.flow.src)
    } else {
        backend.flags & BACKEND_LOCAL != 0
    };
    let source = if local { packet.flow.src } else { node_address(packet.is_v4())? };
    let flags = if local { 0 } else { FLOW_SNAT } | if pod { FLOW_POD } else { 0 };
    scratch.reply_key.dst = source;
    scratch.reply.flags = flags | FLOW_REPLY;
    search(scratch, if local { Ports::OwnFirst } else { Ports::Nat }, now)?;
    Ok(flags)
}

/// Which source ports a connection may get.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// Those of source NAT.
    Nat,
    /// Its own, or one of those if somebody has it.
    OwnFirst,
    /// Its own.
    Own,
}

/// Takes a source port that nobody else has: in the reply's entry, which it makes.
#[inline(always)]
fn search(scratch: &mut Scratch, ports: Ports, now: u32) -> Dropped<()> {
    let hash = flow_hash(&scratch.packet.flow);
    let local = ports != Ports::Nat;
    let mut tries = Tries { scratch, hash, local, now, attempt: 0, taken: Err(Counter::SnatExhausted) };
    // The first is good almost always.
    if tries.next() == GO_ON && ports != Ports::Own {
        repeat(PORT_ATTEMPTS - 1, next, &mut tries);
    }
    tries.taken
}

/// The search for a source port.
struct Tries {
    scratch: *mut Scratch,
    hash: u32,
    now: u32,
    attempt: u32,
    /// The client keeps its address: any port will do that nobody else has.
    local: bool,
    taken: Dropped<()>,
}

/// Another try.
unsafe extern "C" fn next(_index: u64, tries: *mut Tries) -> i64 {
    // SAFETY: `repeat` passes on what `search` gave it.
    unsafe { &mut *tries }.next()
}

impl Tries {
    #[inline(always)]
    fn next(&mut self) -> i64 {
        // SAFETY: it is this CPU's, and whoever searches does not touch it meanwhile.
        let scratch = unsafe { &mut *self.scratch };
        let Some(config) = config() else { return END };
        let own = u16::from_be(scratch.packet.flow.src_port_be);
        let (min, max) = (config.snat_port_min, config.snat_port_max);
        let port_be = source_port(self.attempt, own, self.local, self.hash, min, max).to_be();
        self.attempt += 1;
        scratch.reply_key.dst_port_be = port_be;
        // The range keeps off the usual NodePorts; a cluster may have others. What comes to the tunnel's is the tunnel's.
        let proto = scratch.packet.flow.proto as u8;
        let is_tunnels = proto == UDP && port_be == config.tunnel_port_be;
        if !self.local && (is_tunnels || is_node_port(scratch.packet.is_v4(), port_be, proto)) {
            return GO_ON;
        }
        match take(scratch, self.now) {
            Ok(false) => return GO_ON,
            Ok(true) => self.taken = Ok(()),
            Err(reason) => self.taken = Err(reason),
        }
        END
    }
}

/// Takes a source port, by inserting the reply's entry. False: somebody else talks to the backend under it.
#[inline(always)]
fn take(scratch: &mut Scratch, now: u32) -> Dropped<bool> {
    match FLOWS.insert(&scratch.reply_key, &scratch.reply, BPF_NOEXIST as u64) {
        Ok(()) => return Ok(true),
        Err(EEXIST) => {}
        Err(_) => return Err(Counter::FlowMapFull),
    }
    if let Some(held) = FLOWS.get_ptr_mut(&scratch.reply_key) {
        // SAFETY: as in `known`.
        let held = unsafe { &mut *held };
        if held.to.same(&scratch.reply.to) || over(held, now) {
            *held = scratch.reply;
            return Ok(true);
        }
    }
    count(Counter::SnatCollision);
    Ok(false)
}

/// Whether a connection has ended, as far as one can tell.
#[inline(always)]
fn over(flow: &FlowValue, now: u32) -> bool {
    let quiet_s = now.wrapping_sub(flow.last_seen_s);
    if flow.flags & FLOW_CLOSING != 0 {
        quiet_s > CLOSED_S
    } else if flow.flags & (FLOW_MASQUERADE | FLOW_SEEN_REPLY) == FLOW_MASQUERADE {
        quiet_s > QUIET_UDP_S
    } else if flow.to.proto == TCP as u32 {
        quiet_s > QUIET_S
    } else {
        quiet_s > QUIET_UDP_S
    }
}
