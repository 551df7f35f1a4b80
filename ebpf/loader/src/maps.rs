//! The trait through which user space sees the maps, so that the proxy can be tested without a kernel.

use std::io;

use seaway_ebpf_abi::maps as names;
use thiserror::Error;

use crate::{
    Affinity, BackendEntry, ClusterNet, Connection, Counter, Frontend, Masquerading, NodeConfig,
    ServiceEntry, SocketFlow, SourceRange, Traffic,
};

/// What went wrong with a map.
#[derive(Debug, Error)]
pub enum MapError {
    /// The kernel's map takes no further entry.
    #[error("map {map} is full: {capacity} entries; raise its capacity")]
    Full {
        /// The map's name.
        map: &'static str,
        /// Its capacity.
        capacity: u32,
    },
    /// A slice lies beyond the end of the array.
    #[error("elements {base}..{end} lie beyond the end of map {map}: {capacity} entries; raise its capacity")]
    OutOfBounds {
        /// The map's name.
        map: &'static str,
        /// First index.
        base: u32,
        /// One past the last index.
        end: u64,
        /// Its capacity.
        capacity: u32,
    },
    /// A slice is not ordered by (address, port).
    #[error("backends of the slice at {base} are not in ascending order at index {index}")]
    Unordered {
        /// First index of the slice.
        base: u32,
        /// The offending position in it.
        index: usize,
    },
    /// Anything else.
    #[error("cannot {op} map {map}")]
    Kernel {
        /// What was tried: "read", "write", "delete from".
        op: &'static str,
        /// The map's name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapUsage {
    /// The map's name.
    pub map: &'static str,
    /// Entries that it takes.
    pub capacity: u32,
    /// Entries that it has; `None` for arrays, which are always full.
    pub used: Option<u32>,
}

/// A service's Maglev table, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaglevTable {
    /// The first chunk.
    pub base: u32,
    /// Positions in the service's slice ([`crate::maglev::table`]).
    pub slots: Vec<u16>,
}

impl MaglevTable {
    pub(crate) fn check(&self, capacity: u32) -> Result<(), MapError> {
        let size = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let end = u64::from(self.base) + u64::from(maglev_chunks(size));
        if end > u64::from(capacity) {
            return Err(MapError::OutOfBounds { map: names::MAGLEV, base: self.base, end, capacity });
        }
        Ok(())
    }
}

/// How many chunks a Maglev table of so many slots takes.
pub const fn maglev_chunks(size: u32) -> u32 {
    size.div_ceil(seaway_ebpf_abi::CHUNK_SLOTS)
}

/// The maps of a node. See the crate's head for the order in which they are to be written.
///
/// Every `put_*` inserts or replaces and goes in batches; when one fails, an unknown part of the batch has been
/// written, and repeating it is safe. Every `remove_*` ignores elements that are already gone.
pub trait ServiceMaps: Send {
    /// All services.
    fn services(&self) -> Result<Vec<(Frontend, ServiceEntry)>, MapError>;
    /// Writes services.
    fn put_services(&mut self, entries: &[(Frontend, ServiceEntry)]) -> Result<(), MapError>;
    /// Removes services.
    fn remove_services(&mut self, frontends: &[Frontend]) -> Result<(), MapError>;

    /// Number of services that there is room for.
    fn service_capacity(&self) -> u32;
    /// Number of source ranges that there is room for.
    fn source_range_capacity(&self) -> u32;
    /// Number of elements of the backend array: slices lie in `0..capacity`.
    fn backend_capacity(&self) -> u32;
    /// `count` backends from `base` on.
    fn backends(&self, base: u32, count: u32) -> Result<Vec<BackendEntry>, MapError>;
    /// Writes slices: each is `(base, backends in ascending order of address and port)`.
    fn put_backends(&mut self, slices: &[(u32, Vec<BackendEntry>)]) -> Result<(), MapError>;

    /// Number of chunks that Maglev tables may take: tables lie in `0..capacity`, [`maglev_chunks`] each.
    fn maglev_capacity(&self) -> u32;
    /// Writes Maglev tables to unused places of their array.
    fn put_maglev(&mut self, tables: &[MaglevTable]) -> Result<(), MapError>;

    /// All source ranges.
    fn source_ranges(&self) -> Result<Vec<SourceRange>, MapError>;
    /// Adds source ranges.
    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapError>;
    /// Removes source ranges.
    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapError>;

    /// The nodes' pod subnets and addresses.
    fn cluster_nets(&self) -> Result<Vec<ClusterNet>, MapError>;
    /// Adds some; what is there already becomes what it is said to be.
    fn put_cluster_nets(&mut self, nets: &[ClusterNet]) -> Result<(), MapError>;
    /// Removes some, whatever they are.
    fn remove_cluster_nets(&mut self, nets: &[ClusterNet]) -> Result<(), MapError>;

    /// Whose packets are masqueraded, and where.
    fn masquerading(&self) -> Result<Masquerading, MapError>;
    /// Sets that.
    fn set_masquerading(&mut self, wanted: &Masquerading) -> Result<(), MapError>;

    /// The connections from outside, and with [`Connection::masqueraded`] those to there, that are remembered; two
    /// elements each, one per direction.
    fn connections(&self) -> Result<Vec<Connection>, MapError>;
    /// Remembers connections that are not remembered yet. With [`Connection::untouched`] another translates them.
    fn put_connections(&mut self, connections: &[Connection]) -> Result<(), MapError>;
    /// Forgets connections: the next packet of each is treated as that of a new one.
    fn remove_connections(&mut self, connections: &[Connection]) -> Result<(), MapError>;

    /// The translations of this node's sockets.
    fn socket_flows(&self) -> Result<Vec<SocketFlow>, MapError>;
    /// Forgets translations.
    fn remove_socket_flows(&mut self, flows: &[SocketFlow]) -> Result<(), MapError>;

    /// The session affinities. They need no pruning: one whose backend left the slice is ignored.
    fn affinities(&self) -> Result<Vec<Affinity>, MapError>;
    /// Forgets affinities.
    fn remove_affinities(&mut self, affinities: &[Affinity]) -> Result<(), MapError>;

    /// The node's configuration.
    fn config(&self) -> Result<NodeConfig, MapError>;
    /// Sets the node's configuration.
    fn set_config(&mut self, config: &NodeConfig) -> Result<(), MapError>;

    /// All counters, summed over CPUs.
    fn counters(&self) -> Result<Vec<(Counter, u64)>, MapError>;
    /// Traffic by service and backend, summed over CPUs. Empty unless [`NodeConfig::stats`] is set.
    fn traffic(&self) -> Result<Vec<Traffic>, MapError>;
    /// Stops counting for backends that are gone: their elements are given back.
    fn remove_traffic(&mut self, gone: &[Traffic]) -> Result<(), MapError>;
    /// How full each map is. Counts entries: not for every second.
    fn usage(&self) -> Result<Vec<MapUsage>, MapError>;
}

/// The rule of [`ServiceMaps::put_backends`], for every implementation.
pub(crate) fn check_slice(
    base: u32,
    slice: &[BackendEntry],
    capacity: u32,
    map: &'static str,
) -> Result<(), MapError> {
    let end = u64::from(base) + slice.len() as u64;
    if end > u64::from(capacity) {
        return Err(MapError::OutOfBounds { map, base, end, capacity });
    }
    match slice.windows(2).position(|pair| (pair[0].addr, pair[0].port) >= (pair[1].addr, pair[1].port)) {
        Some(position) => Err(MapError::Unordered { base, index: position + 1 }),
        None => Ok(()),
    }
}
