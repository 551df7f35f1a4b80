//! What can go wrong in a store, with the object and both values, so that the API server can answer precisely.

use std::{io, path::PathBuf, sync::Arc};

use crate::Revision;

/// A failed operation. Cloneable, because one failed disk write fails every write that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A create found the key taken.
    #[error("key {key} exists since revision {revision}")]
    KeyExists {
        /// The key.
        key: Arc<str>,
        /// The `mod_revision` of what is there.
        revision: Revision,
    },
    /// The key is not there.
    #[error("key {key} not found")]
    NotFound {
        /// The key.
        key: Arc<str>,
    },
    /// Somebody else wrote the key in between.
    #[error("key {key} is at revision {actual}, expected {expected}")]
    Conflict {
        /// The key.
        key: Arc<str>,
        /// The revision that the writer had read.
        expected: Revision,
        /// The revision of what is there.
        actual: Revision,
    },
    /// The history needed is gone.
    #[error("revision {requested} is compacted, the oldest available is {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can be asked for.
        compacted: Revision,
    },
    /// The revision lies in the future.
    #[error("revision {requested} is in the future, the current one is {current}")]
    Future {
        /// The revision asked for.
        requested: Revision,
        /// The current revision.
        current: Revision,
    },
    /// The write does not fit the log's limits.
    #[error("write of {len} bytes to key {key} exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The key.
        key: Arc<str>,
        /// The size of key and value.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is full; nothing was written. Free some space and try again.
    #[error("no space left for {path}; the write was not made: make room on its disk and try again")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// A durable write failed in a way that leaves the file's content unknown; the store takes no writes until it is
    /// opened again.
    #[error(
        "the store is read-only since a write to {path} failed: {reason}; restart after checking the disk"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The first failure.
        reason: Arc<str>,
    },
    /// Acknowledged data is damaged.
    #[error("{path} is damaged at byte {offset}: {reason}; restore it from a backup")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another process has the directory open.
    #[error("{path} is in use by another server; stop it or choose another data directory")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Wraps a failed file operation, telling a full disk from the rest.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { action, path, source: Arc::new(source) },
        }
    }
}
