//! Names and sizes of the maps. A name ends in the version of its layout: a program that needs another layout uses
//! another name, and never reads what it does not understand.

/// Frontends: [`crate::ServiceKey`] -> [`crate::Service`], hash. Written by user space.
pub const SERVICES: &str = "sw_services_2";
/// Backend slices: index -> [`crate::Backend`], array. Written by user space.
pub const BACKENDS: &str = "sw_backends_1";
/// Maglev tables: index -> [`crate::MaglevChunk`], array. Written by user space.
pub const MAGLEV: &str = "sw_maglev_1";
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
/// Traffic: [`crate::StatsKey`] -> [`crate::Stats`], per-CPU hash.
pub const STATS: &str = "sw_stats_1";
/// The node: 0 -> [`crate::Config`], array. Written by user space.
pub const CONFIG: &str = "sw_config_3";
/// Pods' links whose host end runs the programs: index of the link -> [`crate::PodLink`], hash. User space writes it.
pub const POD_LINKS: &str = "sw_pod_links_1";
/// The nodes' pod subnets and addresses: [`crate::ClusterNetKey`] -> `CLUSTER_NET_*` (u32), LPM trie. Written by user
/// space.
pub const CLUSTER_NETS: &str = "sw_cluster_nets_1";
/// Uplinks that the XDP program runs at: index of the link -> [`crate::XdpLink`], hash. User space writes it.
pub const XDP_LINKS: &str = "sw_xdp_links_1";
/// Whose packets are masqueraded, and towards whom not: [`crate::ClusterNetKey`] -> `MASQUERADE_*` (u32), LPM trie. Written
/// by user space.
pub const MASQUERADE: &str = "sw_masquerade_1";
/// Uplinks at which packets are masqueraded: index of the link -> [`crate::MasqueradeSource`], hash. Written by user space.
pub const SOURCES: &str = "sw_sources_1";

/// All maps that are pinned.
pub const ALL: [&str; 16] = [
    SERVICES,
    BACKENDS,
    MAGLEV,
    SOURCE_RANGES,
    AFFINITY,
    SOCKETS,
    FLOWS,
    FRAGMENTS,
    COUNTERS,
    STATS,
    CONFIG,
    POD_LINKS,
    CLUSTER_NETS,
    XDP_LINKS,
    MASQUERADE,
    SOURCES,
];

/// Entries that a map takes unless the user says otherwise. What user space writes begins small and is exchanged for
/// a larger map when it fills; the LRU maps take their memory at once (about 24 MB with these).
pub mod capacity {
    /// Frontends, both scopes.
    pub const SERVICES: u32 = 16_384;
    /// Backends of all slices together, with room for new slices beside those that they replace.
    pub const BACKENDS: u32 = 16_384;
    /// Chunks of Maglev tables.
    pub const MAGLEV: u32 = 512;
    /// Source ranges.
    pub const SOURCE_RANGES: u32 = 16_384;
    /// Clients of services with session affinity.
    pub const AFFINITY: u32 = 32_768;
    /// Sockets.
    pub const SOCKETS: u32 = 65_536;
    /// Connections; each takes two entries.
    pub const FLOWS: u32 = 131_072;
    /// Backends whose traffic is counted. Elements are allocated as they come.
    pub const STATS: u32 = 65_536;
    /// Fragmented datagrams on their way.
    pub const FRAGMENTS: u32 = 8_192;
    /// Links of pods: more than a node has pods. Elements are allocated as they come.
    pub const POD_LINKS: u32 = 4_096;
    /// Pod subnets and addresses, a few per node. Elements are allocated as they come.
    pub const CLUSTER_NETS: u32 = 65_536;
    /// Uplinks: more than a node has.
    pub const XDP_LINKS: u32 = 256;
    /// Pod subnets, addresses of nodes, and destinations that the administrator has named. Elements are allocated as they
    /// come.
    pub const MASQUERADE: u32 = 65_536;
    /// Uplinks: more than a node has.
    pub const SOURCES: u32 = 256;
}
