//! Addresses of pods: who holds which, kept in files so that the plugin needs no daemon.
//!
//! [`Ipam`] is the store: one directory per network, one process at a time (flock). What is decided is decided by
//! pure code (`pool`, [`Range`]); what is written goes through the small [`Files`] trait, so that tests can cut
//! the work short after every single write.
//!
//! ```text
//! <dataDir>/<network>/lock             held while anything below is read or written
//!                     boot             the boot that the reservations belong to
//!                     owners/<key>     a reservation: {"addresses": […]}          <- the truth
//!                     addresses/<addr> "held KEY" or "freed MILLISECONDS"         <- an index of it
//!                     pools/<pool>     records: which of the freed ones wait, and the newest of the addresses that
//!                                      were given for the first time; then the queue of freed ones, in a ring
//! ```
//!
//! **Invariant:** an address is held if and only if an owner's file lists it. An owner's file appears and goes in one
//! step (rename, unlink). On ADD the index is written before it and on DEL after it, so a crash in between leaves at
//! worst an index entry that names an owner without that address; whoever meets it next takes it as free.
//!
//! Giving an address out costs the same however large a range is and however full: it comes off the head of the
//! queue of freed ones, or is the next that never was given. Both are hints; the owners' files decide. What a crash
//! takes out of the queue is found again when there is nothing else left.
//!
//! Reservations do not outlive the boot that they were made in: the pods do not either. What a killed process has
//! written is there for the next one without `fsync`, and what a power loss tears is of another boot, and forgotten.
//! So nothing is synced to the disk, which would cost more than the rest of ADD, and all of it under the lock.

mod files;
mod pool;
mod range;
mod store;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use thiserror::Error;

pub use files::{DirectoryFiles, Files};
pub use range::Range;
pub use store::{Ipam, Request, Reservation, boot_id};

/// For how long an address that was freed is not given out again, as long as there are others.
pub const REST_MS: u64 = 30_000;

/// Who holds an address: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The container's id, as the runtime names it.
    pub container_id: String,
    /// The interface's name within the container.
    pub ifname: String,
}

impl Owner {
    /// The longest container id that fits into a file's name together with an interface's name.
    pub const MAX_CONTAINER_ID: usize = 230;

    /// An owner from its two parts.
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
    }

    /// The name of its file. Neither part may contain a colon.
    fn key(&self) -> String {
        format!("{}:{}", self.container_id, self.ifname)
    }

    fn from_key(key: &str) -> Option<Self> {
        key.rsplit_once(':').map(|(container_id, ifname)| Self::new(container_id, ifname))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.container_id, self.ifname)
    }
}

/// Who holds an address, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The interface.
    pub owner: Owner,
    /// The pod, `namespace/name`, if it is known.
    pub pod: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({}, {})", self.owner.container_id, self.owner.ifname),
            None => self.owner.fmt(f),
        }
    }
}

/// Why an address could not be given or freed.
#[derive(Debug, Error)]
pub enum IpamError {
    /// Every address is held.
    #[error("no free address in {}: all {size} are held, by {}", join(ranges), describe(holders))]
    Exhausted {
        /// The subnets that were searched.
        ranges: Vec<IpNet>,
        /// How many addresses they have.
        size: u128,
        /// Who holds them.
        holders: Vec<Holder>,
    },
    /// The directory or a file of it.
    #[error("IPAM: cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The lock was not to be had.
    #[error("IPAM: another process has held {} for more than {waited_ms} ms", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long was waited for it.
        waited_ms: u64,
    },
}

/// An error of the file system under the store.
pub(crate) type FilesResult<T> = Result<T, IpamError>;

fn join(parts: &[impl fmt::Display]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The first few holders and how many more there are.
fn describe(holders: &[Holder]) -> String {
    const SHOWN: usize = 5;
    let text = join(&holders[..holders.len().min(SHOWN)]);
    match holders.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// What the index says about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressState {
    /// Never given since the boot.
    Free,
    /// Given and freed, this many milliseconds ago.
    Resting {
        /// Since when.
        rested_ms: u64,
    },
    /// Held.
    Held,
}
