//! How much the data plane takes on, and what it turned away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::status::DropCount;

/// How much the userspace data plane takes on.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TCP connections and UDP associations at a time. Each costs two file descriptors and about 40 kB.
    pub connections_max: usize,
    /// Clients whose backend is remembered for session affinity.
    pub affinities_max: usize,
    /// How long a backend may take to accept a connection before another is tried.
    pub connect_timeout: Duration,
    /// After how long without a datagram an association ends.
    pub udp_idle: Duration,
    /// How long connections may go on after the data plane was let go of.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            affinities_max: 65_536,
            connect_timeout: Duration::from_secs(3),
            udp_idle: Duration::from_secs(120),
            linger: Duration::from_secs(10),
        }
    }
}

/// Why a client was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    SourceRange,
    NoBackend,
    Full,
    Unreachable,
}

const REASONS: [(Reason, &str); 4] = [
    (Reason::SourceRange, "source_range"),
    (Reason::NoBackend, "no_backend"),
    (Reason::Full, "userspace_full"),
    (Reason::Unreachable, "backend_unreachable"),
];

/// What all sockets share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) room: Arc<Semaphore>,
    pub(super) picker: super::pick::Picker,
    pub(super) associations: super::udp::Associations,
    counts: [AtomicU64; REASONS.len()],
}

impl Shared {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            room: Arc::new(Semaphore::new(limits.connections_max)),
            picker: super::pick::Picker::new(limits.affinities_max),
            associations: super::udp::Associations::default(),
            counts: Default::default(),
            limits,
        }
    }

    /// Connections and associations that there are.
    pub(super) fn busy(&self) -> usize {
        self.limits.connections_max.saturating_sub(self.room.available_permits())
    }

    pub(super) fn turned_away(&self, reason: Reason) {
        if let Some(at) = REASONS.iter().position(|(known, _)| *known == reason) {
            self.counts[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn drops(&self) -> Vec<DropCount> {
        let counts =
            REASONS.iter().zip(&self.counts).map(|((_, name), count)| (name, count.load(Ordering::Relaxed)));
        let some = counts.filter(|(_, packets)| *packets > 0);
        some.map(|(name, packets)| DropCount { reason: (*name).to_owned(), packets }).collect()
    }
}
