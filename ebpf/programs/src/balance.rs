//! From a frontend to one of its backends: shared by sockets and packets.

use aya_ebpf::maps::lpm_trie::Key;
use seaway_ebpf_abi::select::{FIND_STEPS, Search};
use seaway_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, Backend, CHUNK_SLOTS, CLIENT_ADDRESS, Counter, FlowTuple,
    SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_NODE_PORT, Service, ServiceKey, select,
};

use crate::frame::Dropped;
use crate::maps::{AFFINITY, BACKENDS, MAGLEV, SERVICES, SOURCE_RANGES, now_s};
use crate::repeat::{END, GO_ON, repeat};

/// The service at a frontend: its own, or that of all other ports of the address, which is the same from everywhere.
#[inline(always)]
pub(crate) fn service(addr: &Addr, port_be: u16, proto: u8, scope: u8) -> Option<&'static Service> {
    let mut key = ServiceKey { addr: *addr, port_be, proto, scope, pad: 0 };
    // SAFETY: the map is not preallocated: an element that is replaced meanwhile stays readable.
    if let Some(service) = unsafe { SERVICES.get(&key) } {
        return Some(service);
    }
    key.port_be = 0;
    key.proto = 0;
    key.scope = SCOPE_INTERNAL;
    // SAFETY: as above.
    unsafe { SERVICES.get(&key) }
}

/// Whether a port of this node is some service's NodePort, by the guard that stands for all its addresses.
#[inline(always)]
pub(crate) fn is_node_port(v4: bool, port_be: u16, proto: u8) -> bool {
    let key = ServiceKey { addr: Addr::unspecified(v4), port_be, proto, scope: SCOPE_EXTERNAL, pad: 0 };
    // SAFETY: as above.
    unsafe { SERVICES.get(&key) }.is_some_and(|service| service.flags & SERVICE_NODE_PORT != 0)
}

/// A search in the backend array.
struct Walk {
    search: Search,
    base: u32,
}

/// A backend by address, if it stands in the service's slice.
#[inline(always)]
pub(crate) fn member(service: &Service, addr: &Addr, port_be: u16) -> Option<&'static Backend> {
    let mut walk = Walk { search: Search::new(service.count, addr, port_be), base: service.base };
    repeat(FIND_STEPS, step, &mut walk);
    let place = walk.search.place();
    let backend = BACKENDS.get(service.base.wrapping_add(place))?;
    (place < service.count && backend.addr.same(addr) && backend.port_be == port_be).then_some(backend)
}

/// One step of a search.
unsafe extern "C" fn step(_index: u64, walk: *mut Walk) -> i64 {
    // SAFETY: `repeat` passes on what `member` gave it.
    let walk = unsafe { &mut *walk };
    let backend = walk.search.next().and_then(|index| BACKENDS.get(walk.base.wrapping_add(index)));
    let Some(backend) = backend else { return END };
    walk.search.step(&backend.addr, backend.port_be);
    GO_ON
}

/// Where in the service's slice `hash` falls: through its Maglev table, if it has one, so that few hashes change
/// their backend when the slice does.
#[inline(always)]
fn position(service: &Service, hash: u32) -> Option<u32> {
    if service.maglev_size == 0 {
        return Some(select::index(hash, service.count));
    }
    let slot = hash % service.maglev_size;
    let chunk = MAGLEV.get(service.maglev_base.wrapping_add(slot / CHUNK_SLOTS))?;
    let position = chunk.slots[(slot % CHUNK_SLOTS) as usize] as u32;
    (position < service.count).then_some(position)
}

/// One backend: the client's, where the service has session affinity, or the one that `hash` falls on. `None`: the
/// slice is being replaced.
#[inline(always)]
pub(crate) fn choose(service: &Service, client: &AffinityKey, hash: u32) -> Option<&'static Backend> {
    let timeout_s = service.affinity_timeout_s;
    if timeout_s != 0
        && let Some(held) = AFFINITY.get_ptr_mut(client)
    {
        // SAFETY: an LRU element may be reused while it is read: the worst case is another client's backend, and
        // that one is looked up in this service's slice.
        let held = unsafe { &mut *held };
        let now = now_s();
        if now.wrapping_sub(held.last_used_s) < timeout_s
            && let Some(backend) = member(service, &held.addr, held.port_be)
        {
            held.last_used_s = now;
            return Some(backend);
        }
    }
    let backend = BACKENDS.get(service.base.wrapping_add(position(service, hash)?))?;
    if backend.service != service.id {
        return None;
    }
    if timeout_s != 0 {
        let value =
            AffinityValue { addr: backend.addr, port_be: backend.port_be, pad: 0, last_used_s: now_s() };
        // An LRU map takes every entry; without it the client is balanced again next time.
        let _ = AFFINITY.insert(client, &value, 0);
    }
    Some(backend)
}

/// Whether a service admits a packet's source.
#[inline(always)]
pub(crate) fn admitted(service: &Service, flow: &FlowTuple) -> bool {
    let [a, b, c, d] = flow.src.words;
    SOURCE_RANGES.get(Key::new(160, [service.id, a, b, c, d])).is_some()
}

/// The backend of a packet's flow, which is new.
#[inline(always)]
pub(crate) fn balance(found: &Service, wanted: &FlowTuple, scope: u8) -> Dropped<&'static Backend> {
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
