//! Names and sizes of the maps. A name ends in the version of its layout: a program that needs another layout uses
//! another name, and never reads what it does not understand.

/// Frontends: [`crate::ServiceKey`] -> [`crate::Service`], hash. Written by user space.
pub const SERVICES: &str = "sw_services_1";
/// Backend slices: index -> [`crate::Backend`], array. Written by user space.
pub const BACKENDS: &str = "sw_backends_1";
/// Admitted sources: [`crate::SourceRangeKey`] -> 1 (u32), LPM trie. Written by user space.
pub const SOURCE_RANGES: &str = "sw_src_range_1";
/// Session affinity: [`crate::AffinityKey`] -> [`crate::AffinityValue`], LRU.
pub const AFFINITY: &str = "sw_affinity_1";
/// Sockets: [`crate::SocketKey`] -> [`crate::SocketValue`], LRU.
pub const SOCKETS: &str = "sw_sockets_1";
/// Connections: [`crate::FlowTuple`] -> [`crate::FlowValue`], LRU.
pub const FLOWS: &str = "sw_flows_1";
/// Fragments: [`crate::FragmentKey`] -> [`crate::FragmentValue`], LRU.
pub const FRAGMENTS: &str = "sw_fragments_1";
/// Counters: [`crate::Counter`] -> u64, per-CPU array.
pub const COUNTERS: &str = "sw_counters_1";
/// The node: 0 -> [`crate::Config`], array. Written by user space.
pub const CONFIG: &str = "sw_config_1";

/// All maps that are pinned.
pub const ALL: [&str; 9] =
    [SERVICES, BACKENDS, SOURCE_RANGES, AFFINITY, SOCKETS, FLOWS, FRAGMENTS, COUNTERS, CONFIG];

/// Entries that a map takes unless the user says otherwise. Hashes that user space writes are not preallocated; the
/// array and the LRU maps take their memory at once (about 30 MB with these).
pub mod capacity {
    /// Frontends, both scopes.
    pub const SERVICES: u32 = 262_144;
    /// Backends of all slices together, twice over so that every slice can be replaced at the same time.
    pub const BACKENDS: u32 = 262_144;
    /// Source ranges.
    pub const SOURCE_RANGES: u32 = 65_536;
    /// Clients of services with session affinity.
    pub const AFFINITY: u32 = 32_768;
    /// Sockets.
    pub const SOCKETS: u32 = 65_536;
    /// Connections; each takes two entries.
    pub const FLOWS: u32 = 131_072;
    /// Fragmented datagrams on their way.
    pub const FRAGMENTS: u32 = 8_192;
}
