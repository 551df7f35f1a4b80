//! How much the data plane takes on, and what it turned away.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
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
    OutOfFiles,
}

const REASONS: [(Reason, &str); 5] = [
    (Reason::SourceRange, "source_range"),
    (Reason::NoBackend, "no_backend"),
    (Reason::Full, USERSPACE_FULL),
    (Reason::Unreachable, "backend_unreachable"),
    (Reason::OutOfFiles, OUT_OF_FILES),
];

/// Clients were turned away since there were as many connections as are taken on.
pub(crate) const USERSPACE_FULL: &str = "userspace_full";
/// Clients were turned away since no more files could be opened.
pub(crate) const OUT_OF_FILES: &str = "out_of_files";

/// What all sockets share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) room: Arc<Semaphore>,
    pub(super) picker: super::pick::Picker,
    pub(super) associations: super::udp::Associations,
    counts: [AtomicU64; REASONS.len()],
    /// Closed to turn a client away when no more files can be opened.
    spare: Mutex<Option<File>>,
}

impl Shared {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            room: Arc::new(Semaphore::new(limits.connections_max)),
            picker: super::pick::Picker::new(limits.affinities_max),
            associations: super::udp::Associations::default(),
            counts: Default::default(),
            spare: Mutex::new(spare()),
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

    /// Turns away who has waited longest at a socket for which no more files can be opened: told so, a client can act.
    /// Says whether there was one.
    pub(super) fn turn_one_away(&self, listener: &impl AsFd) -> bool {
        let mut held = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        drop(held.take());
        let accepted = SockRef::from(listener).accept();
        let turned_away = accepted.and_then(|(client, _)| client.set_linger(Some(Duration::ZERO))).is_ok();
        *held = spare();
        if turned_away {
            self.turned_away(Reason::OutOfFiles);
        }
        turned_away
    }

    pub(super) fn drops(&self) -> Vec<DropCount> {
        let counts =
            REASONS.iter().zip(&self.counts).map(|((_, name), count)| (name, count.load(Ordering::Relaxed)));
        let some = counts.filter(|(_, packets)| *packets > 0);
        some.map(|(name, packets)| DropCount { reason: (*name).to_owned(), packets }).collect()
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
