//! How large the maps are.
//!
//! What is chosen here is a node's memory, whether anything uses it or not: the LRU maps and the arrays are allocated when
//! they are made (about 24 MB with the defaults), the hash of services takes 2 MB for its table and 112 bytes for each
//! entry. The maps that user space writes take a cluster of 30,000 Services with 4 endpoints each without being
//! exchanged for larger ones, which would cost a second run of the verifier in the middle of the first sync.

use seaway_ebpf_abi::maps::{self as names, capacity};

/// How many entries the maps take. Applies to maps that are created; pinned ones keep their size until
/// [`crate::Dataplane::grow`] exchanges them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Frontends.
    pub services: u32,
    /// Backends of all slices.
    pub backends: u32,
    /// Chunks of Maglev tables ([`crate::maglev_chunks`]).
    pub maglev: u32,
    /// Source ranges.
    pub source_ranges: u32,
    /// Clients of services with session affinity.
    pub affinity: u32,
    /// Sockets.
    pub sockets: u32,
    /// Connection entries, two per connection.
    pub flows: u32,
    /// Fragmented datagrams.
    pub fragments: u32,
    /// Backends whose traffic is counted.
    pub stats: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            // A ClusterIP takes three: each scope and the guard of its undefined ports.
            services: 131_072,
            backends: 163_840,
            maglev: capacity::MAGLEV,
            source_ranges: capacity::SOURCE_RANGES,
            affinity: 24_576,
            sockets: 49_152,
            // Two for a connection from outside: that of the longest silence goes first.
            flows: 65_536,
            fragments: 4_096,
            stats: capacity::STATS,
        }
    }
}

impl Capacities {
    /// All maps.
    pub(crate) fn entries(&self) -> [(&'static str, u32); 9] {
        let [a, b, c, d] = self.written_by_user();
        [
            a,
            b,
            c,
            d,
            (names::AFFINITY, self.affinity),
            (names::SOCKETS, self.sockets),
            (names::FLOWS, self.flows),
            (names::FRAGMENTS, self.fragments),
            (names::STATS, self.stats),
        ]
    }

    /// Those that user space writes, and that can be exchanged for larger ones.
    pub(crate) fn written_by_user(&self) -> [(&'static str, u32); 4] {
        [
            (names::SERVICES, self.services),
            (names::BACKENDS, self.backends),
            (names::MAGLEV, self.maglev),
            (names::SOURCE_RANGES, self.source_ranges),
        ]
    }
}
