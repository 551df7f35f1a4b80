//! The kernel's maps behind [`ServiceMaps`]: batches where the kernel has them, single calls where not.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use seaway_ebpf_abi as abi;
use seaway_ebpf_abi::maps as names;

use crate::maps::check_slice;
use crate::sys::{self, Plain};
use crate::{
    Affinity, BackendEntry, ClusterNet, Connection, Counter, Frontend, LoadError, MaglevTable, MapError,
    MapUsage, Masquerading, NodeConfig, ServiceEntry, ServiceMaps, SocketFlow, SourceRange, Traffic,
};

/// Elements per call.
const BATCH: usize = 4096;
/// So many are worth a thread.
const MANY: usize = 2048;
/// `ENOTSUPP`, which the kernel uses internally and lets out here.
const ENOTSUPP: i32 = 524;

/// One map.
#[derive(Debug)]
pub(crate) struct KernelMap {
    pub(crate) fd: OwnedFd,
    pub(crate) name: &'static str,
    pub(crate) capacity: u32,
}

/// The maps of one node in the kernel: the real [`ServiceMaps`]. Cloning shares them, and all clones go over to
/// larger maps together ([`crate::Dataplane::grow`]).
#[derive(Debug, Clone)]
pub struct KernelMaps {
    maps: Arc<RwLock<Arc<Maps>>>,
}

impl KernelMaps {
    pub(crate) fn new(maps: Arc<Maps>) -> Self {
        Self { maps: Arc::new(RwLock::new(maps)) }
    }

    /// The maps as they are now.
    pub(crate) fn now(&self) -> Arc<Maps> {
        Arc::clone(&self.maps.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Exchanges them for all clones.
    pub(crate) fn exchange(&self, maps: Arc<Maps>) {
        *self.maps.write().unwrap_or_else(PoisonError::into_inner) = maps;
    }
}

/// A pod's link whose host end runs the programs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodLinkEntry {
    pub(crate) ifindex: u32,
    /// It ran them before it came to be in the map, which is where they note that they translated something.
    pub(crate) may_translate: bool,
}

#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) services: KernelMap,
    pub(crate) backends: KernelMap,
    pub(crate) maglev: KernelMap,
    pub(crate) source_ranges: KernelMap,
    pub(crate) affinity: KernelMap,
    pub(crate) sockets: KernelMap,
    pub(crate) flows: KernelMap,
    pub(crate) fragments: KernelMap,
    pub(crate) counters: KernelMap,
    pub(crate) stats: KernelMap,
    pub(crate) config: KernelMap,
    pub(crate) pod_links: KernelMap,
    pub(crate) cluster_nets: KernelMap,
    pub(crate) xdp_links: KernelMap,
    pub(crate) masquerade: KernelMap,
    pub(crate) sources: KernelMap,
    /// Values of a per-CPU element.
    pub(crate) cpus: usize,
    /// [`abi::Config::csum_flags_v6`] for this kernel.
    pub(crate) csum_flags_v6: u32,
}

/// Whether an error says that a map has no batch calls.
fn no_batch(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

impl KernelMap {
    /// Opens a map by its pin.
    pub(crate) fn open(path: &Path, name: &'static str) -> Result<Self, LoadError> {
        let fd = sys::open_pin(path).map_err(|e| LoadError::io("open", path, e))?;
        let shape = sys::map_shape(fd.as_fd()).map_err(|e| LoadError::io("inspect", path, e))?;
        Ok(Self { fd, name, capacity: shape.capacity })
    }

    /// Creates an empty map that differs in its capacity only, and pins it.
    pub(crate) fn create_alike(&self, path: &Path, capacity: u32) -> Result<Self, LoadError> {
        let shape = sys::map_shape(self.fd.as_fd()).map_err(|e| self.error("inspect", e))?;
        let shape = sys::MapShape { capacity, ..shape };
        let fd = sys::create_map(self.name, shape).map_err(|e| self.error("create a larger", e))?;
        sys::pin(fd.as_fd(), path).map_err(|e| LoadError::io("pin", path, e))?;
        Ok(Self { fd, name: self.name, capacity })
    }

    pub(crate) fn error(&self, op: &'static str, source: io::Error) -> MapError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) if op == "write" => {
                MapError::Full { map: self.name, capacity: self.capacity }
            }
            _ => MapError::Kernel { op, map: self.name, source },
        }
    }

    /// Writes elements, many of them on two cores: the kernel waits for memory more than it computes.
    pub(crate) fn put<K: Plain, V: Plain>(&self, keys: &[K], values: &[V]) -> Result<(), MapError> {
        if keys.len() < MANY {
            return self.put_here(keys, values);
        }
        let middle = keys.len() / 2;
        std::thread::scope(|scope| {
            let half = scope.spawn(|| self.put_here(&keys[middle..], &values[middle..]));
            let here = self.put_here(&keys[..middle], &values[..middle]);
            let there = half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            here.and(there)
        })
    }

    fn put_here<K: Plain, V: Plain>(&self, keys: &[K], values: &[V]) -> Result<(), MapError> {
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            match sys::update_batch(self.fd.as_fd(), keys, values) {
                Ok(()) => {}
                Err((_, e)) if no_batch(&e) => {
                    for (key, value) in keys.iter().zip(values) {
                        sys::update(self.fd.as_fd(), key, value).map_err(|e| self.error("write", e))?;
                    }
                }
                Err((_, e)) => return Err(self.error("write", e)),
            }
        }
        Ok(())
    }

    pub(crate) fn remove<K: Plain>(&self, keys: &[K]) -> Result<(), MapError> {
        let mut rest = keys;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(BATCH)];
            match sys::delete_batch(self.fd.as_fd(), chunk) {
                Ok(()) => rest = &rest[chunk.len()..],
                // The batch ends at an element that is gone already: that one is passed over.
                Err((done, e)) if e.raw_os_error() == Some(libc::ENOENT) => rest = &rest[done + 1..],
                Err((_, e)) if no_batch(&e) => {
                    for key in chunk {
                        sys::delete(self.fd.as_fd(), key).map_err(|e| self.error("delete from", e))?;
                    }
                    rest = &rest[chunk.len()..];
                }
                Err((_, e)) => return Err(self.error("delete from", e)),
            }
        }
        Ok(())
    }

    pub(crate) fn all<K: Plain, V: Plain>(&self, zero: (K, V)) -> Result<Vec<(K, V)>, MapError> {
        let mut room = BATCH;
        let mut elements = Vec::new();
        let (mut start, mut end) = (None, sys::Position::default());
        let (mut keys, mut values) = (vec![zero.0; room], vec![zero.1; room]);
        loop {
            match sys::lookup_batch(self.fd.as_fd(), start.as_ref(), &mut end, &mut keys, &mut values) {
                Ok((count, last)) => {
                    elements.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
                    if last {
                        return Ok(elements);
                    }
                    start = Some(end);
                }
                // A bucket that does not fit.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(room, zero.0);
                    values.resize(room, zero.1);
                }
                Err(e) if no_batch(&e) && start.is_none() => return self.walk(zero),
                Err(e) => return Err(self.error("read", e)),
            }
        }
    }

    /// [`KernelMap::all`] without batches.
    fn walk<K: Plain, V: Plain>(&self, zero: (K, V)) -> Result<Vec<(K, V)>, MapError> {
        let mut elements = Vec::new();
        let (mut key, mut next, mut value) = (None, zero.0, zero.1);
        while sys::next_key(self.fd.as_fd(), key.as_ref(), &mut next).map_err(|e| self.error("read", e))? {
            if sys::lookup(self.fd.as_fd(), &next, &mut value).map_err(|e| self.error("read", e))? {
                elements.push((next, value));
            }
            key = Some(next);
        }
        Ok(elements)
    }

    fn element<V: Plain>(&self, index: u32, zero: V) -> Result<V, MapError> {
        let mut value = zero;
        sys::lookup(self.fd.as_fd(), &index, &mut value).map_err(|e| self.error("read", e))?;
        Ok(value)
    }

    fn count<K: Plain, V: Plain>(&self, zero: (K, V)) -> Result<MapUsage, MapError> {
        let used = u32::try_from(self.all(zero)?.len()).unwrap_or(u32::MAX);
        Ok(MapUsage { map: self.name, capacity: self.capacity, used: Some(used) })
    }
}

pub(crate) const NO_KEY: abi::ServiceKey =
    abi::ServiceKey { addr: abi::Addr::NONE, port_be: 0, proto: 0, scope: 0, pad: 0 };
const NO_CLUSTER_NET: abi::ClusterNetKey = abi::ClusterNetKey { prefix_len: 0, words: [0; 4] };
pub(crate) const NO_RANGE: abi::SourceRangeKey =
    abi::SourceRangeKey { prefix_len: 0, service: 0, addr: abi::Addr::NONE };
const NO_CLIENT: abi::AffinityKey = abi::AffinityKey { client: abi::Addr::NONE, service: 0, kind: 0 };
const NO_SOCKET: abi::SocketKey =
    abi::SocketKey { cookie: 0, addr: abi::Addr::NONE, port_be: 0, kind: 0, proto: 0, pad: 0 };
const NO_FRAGMENT: abi::FragmentKey =
    abi::FragmentKey { src: abi::Addr::NONE, dst: abi::Addr::NONE, ident: 0, proto: 0 };

impl Maps {
    /// Tells the programs what this kernel can.
    pub(crate) fn note_kernel(&self) -> Result<(), MapError> {
        let mut config = self.config.element(0, abi::Config::default())?;
        if config.csum_flags_v6 != self.csum_flags_v6 {
            config.csum_flags_v6 = self.csum_flags_v6;
            self.config.put(&[0_u32], &[config])?;
        }
        Ok(())
    }

    /// Lets the programs use these pods' links, whose host ends run them.
    pub(crate) fn add_pod_links(&self, links: &[PodLinkEntry]) -> Result<(), MapError> {
        for link in links {
            let flags = if link.may_translate { abi::POD_LINK_TRANSLATES } else { 0 };
            sys::insert(self.pod_links.fd.as_fd(), &link.ifindex, &abi::PodLink { flags })
                .map_err(|e| self.pod_links.error("write", e))?;
        }
        Ok(())
    }

    /// Lets them use no others.
    pub(crate) fn retain_pod_links(&self, links: &[PodLinkEntry]) -> Result<(), MapError> {
        let kept: HashSet<u32> = links.iter().map(|link| link.ifindex).collect();
        let mut gone = self.pod_link_indices()?;
        gone.retain(|index| !kept.contains(index));
        self.pod_links.remove(&gone)
    }

    /// Those that they use.
    pub(crate) fn pod_link_indices(&self) -> Result<Vec<u32>, MapError> {
        let held = self.pod_links.all((0_u32, abi::PodLink::default()))?;
        Ok(held.into_iter().map(|(index, _)| index).collect())
    }

    /// Lets the XDP program use exactly these links.
    pub(crate) fn set_xdp_links(&self, links: &[(u32, abi::XdpLink)]) -> Result<(), MapError> {
        let held = self.xdp_links.all((0_u32, abi::XdpLink::default()))?;
        let gone = held.into_iter().map(|(index, _)| index);
        let gone: Vec<u32> = gone.filter(|index| !links.iter().any(|(kept, _)| kept == index)).collect();
        self.xdp_links.remove(&gone)?;
        let (keys, values): (Vec<_>, Vec<_>) = links.iter().copied().unzip();
        self.xdp_links.put(&keys, &values)
    }

    /// `count` elements of the array from `base` on; the batch call continues after a key.
    fn slice(&self, base: u32, count: u32) -> Result<Vec<abi::Backend>, MapError> {
        let map = &self.backends;
        let (mut keys, mut values) =
            (vec![0_u32; count as usize], vec![abi::Backend::default(); count as usize]);
        let mut end = sys::Position::default();
        let before = base.checked_sub(1).map(|before| {
            let [a, b, c, d] = before.to_ne_bytes();
            let mut position = sys::Position::default();
            position[0] = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
            position
        });
        if count == 0 {
            return Ok(values);
        }
        match sys::lookup_batch(map.fd.as_fd(), before.as_ref(), &mut end, &mut keys, &mut values) {
            Ok((read, _)) if read == count as usize && keys.first() == Some(&base) => Ok(values),
            Ok(_) => (base..base + count).map(|index| map.element(index, abi::Backend::default())).collect(),
            Err(e) if no_batch(&e) => {
                (base..base + count).map(|index| map.element(index, abi::Backend::default())).collect()
            }
            Err(e) => Err(map.error("read", e)),
        }
    }
}

impl ServiceMaps for KernelMaps {
    fn services(&self) -> Result<Vec<(Frontend, ServiceEntry)>, MapError> {
        let elements = self.now().services.all((NO_KEY, abi::Service::default()))?;
        Ok(elements.iter().map(|(k, v)| (Frontend::from_key(k), ServiceEntry::from_value(v))).collect())
    }

    fn put_services(&mut self, entries: &[(Frontend, ServiceEntry)]) -> Result<(), MapError> {
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().map(|(f, e)| (f.key(), e.value())).unzip();
        self.now().services.put(&keys, &values)
    }

    fn remove_services(&mut self, frontends: &[Frontend]) -> Result<(), MapError> {
        self.now().services.remove(&frontends.iter().map(Frontend::key).collect::<Vec<_>>())
    }

    fn service_capacity(&self) -> u32 {
        self.now().services.capacity
    }

    fn cluster_nets(&self) -> Result<Vec<ClusterNet>, MapError> {
        let elements = self.now().cluster_nets.all((NO_CLUSTER_NET, 0_u32))?;
        Ok(elements.iter().map(|(key, value)| ClusterNet::from_entry(key, *value)).collect())
    }

    fn put_cluster_nets(&mut self, nets: &[ClusterNet]) -> Result<(), MapError> {
        let keys: Vec<abi::ClusterNetKey> = nets.iter().map(ClusterNet::key).collect();
        self.now().cluster_nets.put(&keys, &nets.iter().map(ClusterNet::value).collect::<Vec<_>>())
    }

    fn remove_cluster_nets(&mut self, nets: &[ClusterNet]) -> Result<(), MapError> {
        self.now().cluster_nets.remove(&nets.iter().map(ClusterNet::key).collect::<Vec<_>>())
    }

    fn masquerading(&self) -> Result<Masquerading, MapError> {
        self.now().masquerading()
    }

    fn set_masquerading(&mut self, wanted: &Masquerading) -> Result<(), MapError> {
        self.now().set_masquerading(wanted)
    }

    fn source_range_capacity(&self) -> u32 {
        self.now().source_ranges.capacity
    }

    fn backend_capacity(&self) -> u32 {
        self.now().backends.capacity
    }

    fn backends(&self, base: u32, count: u32) -> Result<Vec<BackendEntry>, MapError> {
        let end = u64::from(base) + u64::from(count);
        let capacity = self.backend_capacity();
        if end > u64::from(capacity) {
            return Err(MapError::OutOfBounds { map: names::BACKENDS, base, end, capacity });
        }
        Ok(self.now().slice(base, count)?.iter().map(BackendEntry::from_value).collect())
    }

    fn put_backends(&mut self, slices: &[(u32, Vec<BackendEntry>)]) -> Result<(), MapError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (base, slice) in slices {
            check_slice(*base, slice, self.backend_capacity(), names::BACKENDS)?;
            keys.extend((*base..).take(slice.len()));
            values.extend(slice.iter().map(BackendEntry::value));
        }
        self.now().backends.put(&keys, &values)
    }

    fn maglev_capacity(&self) -> u32 {
        self.now().maglev.capacity
    }

    fn put_maglev(&mut self, tables: &[MaglevTable]) -> Result<(), MapError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for table in tables {
            table.check(self.maglev_capacity())?;
            for (index, slots) in (table.base..).zip(table.slots.chunks(abi::CHUNK_SLOTS as usize)) {
                let mut chunk = abi::MaglevChunk::default();
                chunk.slots[..slots.len()].copy_from_slice(slots);
                keys.push(index);
                values.push(chunk);
            }
        }
        self.now().maglev.put(&keys, &values)
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, MapError> {
        let elements = self.now().source_ranges.all((NO_RANGE, 0_u32))?;
        Ok(elements.iter().map(|(key, _)| SourceRange::from_key(key)).collect())
    }

    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapError> {
        let keys: Vec<_> = ranges.iter().map(SourceRange::key).collect();
        self.now().source_ranges.put(&keys, &vec![1_u32; keys.len()])
    }

    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.now().source_ranges.remove(&ranges.iter().map(SourceRange::key).collect::<Vec<_>>())
    }

    fn connections(&self) -> Result<Vec<Connection>, MapError> {
        let now = sys::monotonic_s();
        let elements = self.now().flows.all((abi::FlowTuple::default(), abi::FlowValue::default()))?;
        Ok(elements.iter().filter_map(|(k, v)| Connection::from_element(k, v, now)).collect())
    }

    fn put_connections(&mut self, connections: &[Connection]) -> Result<(), MapError> {
        if connections.is_empty() {
            return Ok(());
        }
        let now = sys::monotonic_s();
        let held = self.now().flows.all((abi::FlowTuple::default(), abi::FlowValue::default()))?;
        let held: HashSet<abi::FlowTuple> = held.into_iter().map(|(key, _)| key).collect();
        let new = connections.iter().filter(|connection| !held.contains(&connection.tuple()));
        let (keys, values): (Vec<_>, Vec<_>) = new.map(|c| (c.tuple(), c.value(now))).unzip();
        self.now().flows.put(&keys, &values)
    }

    fn remove_connections(&mut self, connections: &[Connection]) -> Result<(), MapError> {
        self.now().flows.remove(&connections.iter().map(Connection::tuple).collect::<Vec<_>>())
    }

    fn socket_flows(&self) -> Result<Vec<SocketFlow>, MapError> {
        let now = sys::monotonic_s();
        let elements = self.now().sockets.all((NO_SOCKET, abi::SocketValue::default()))?;
        Ok(elements.iter().filter_map(|(k, v)| SocketFlow::from_element(k, v, now)).collect())
    }

    fn remove_socket_flows(&mut self, flows: &[SocketFlow]) -> Result<(), MapError> {
        self.now().sockets.remove(&flows.iter().map(SocketFlow::key).collect::<Vec<_>>())
    }

    fn affinities(&self) -> Result<Vec<Affinity>, MapError> {
        let now = sys::monotonic_s();
        let elements = self.now().affinity.all((NO_CLIENT, abi::AffinityValue::default()))?;
        Ok(elements.iter().map(|(k, v)| Affinity::from_element(k, v, now)).collect())
    }

    fn remove_affinities(&mut self, affinities: &[Affinity]) -> Result<(), MapError> {
        self.now().affinity.remove(&affinities.iter().map(Affinity::key).collect::<Vec<_>>())
    }

    fn config(&self) -> Result<NodeConfig, MapError> {
        Ok(NodeConfig::from_value(&self.now().config.element(0, abi::Config::default())?))
    }

    fn set_config(&mut self, config: &NodeConfig) -> Result<(), MapError> {
        self.now().config.put(&[0_u32], &[config.value(self.now().csum_flags_v6)])
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, MapError> {
        let maps = self.now();
        let map = &maps.counters;
        let mut per_cpu = vec![0_u64; maps.cpus];
        let mut counters = Vec::with_capacity(Counter::ALL.len());
        for counter in Counter::ALL {
            sys::lookup_per_cpu(map.fd.as_fd(), &(*counter as u32), &mut per_cpu)
                .map_err(|e| map.error("read", e))?;
            counters.push((*counter, per_cpu.iter().sum()));
        }
        Ok(counters)
    }

    fn traffic(&self) -> Result<Vec<Traffic>, MapError> {
        let maps = self.now();
        let map = &maps.stats;
        let mut per_cpu = vec![abi::Stats::default(); maps.cpus];
        let (mut key, mut next) = (None, abi::StatsKey::default());
        let mut traffic = Vec::new();
        while sys::next_key(map.fd.as_fd(), key.as_ref(), &mut next).map_err(|e| map.error("read", e))? {
            if sys::lookup_per_cpu(map.fd.as_fd(), &next, &mut per_cpu).map_err(|e| map.error("read", e))? {
                traffic.push(Traffic::new(&next, &per_cpu));
            }
            key = Some(next);
        }
        Ok(traffic)
    }

    fn remove_traffic(&mut self, gone: &[Traffic]) -> Result<(), MapError> {
        self.now().stats.remove(&gone.iter().map(Traffic::key).collect::<Vec<_>>())
    }

    fn usage(&self) -> Result<Vec<MapUsage>, MapError> {
        let maps = self.now();
        let (backends, maglev) = (&maps.backends, &maps.maglev);
        Ok(vec![
            maps.services.count((NO_KEY, abi::Service::default()))?,
            MapUsage { map: backends.name, capacity: backends.capacity, used: None },
            MapUsage { map: maglev.name, capacity: maglev.capacity, used: None },
            maps.source_ranges.count((NO_RANGE, 0_u32))?,
            maps.affinity.count((NO_CLIENT, abi::AffinityValue::default()))?,
            maps.sockets.count((NO_SOCKET, abi::SocketValue::default()))?,
            maps.flows.count((abi::FlowTuple::default(), abi::FlowValue::default()))?,
            maps.fragments.count((NO_FRAGMENT, abi::FragmentValue::default()))?,
        ])
    }
}
