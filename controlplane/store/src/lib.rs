//! The store behind the API server: a revisioned, watchable map of keys to bytes. It knows neither kinds nor JSON, so
//! that engines stay exchangeable: the embedded one here, etcd for several servers later.
//!
//! Every write gets the next revision. A list is consistent at one revision, a watch continues from one, and both say
//! [`StoreError::Compacted`] when the history they need is gone.

mod engine;
mod error;
mod watch;

use std::{ops::Deref, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;

pub use engine::{Engine, EngineConfig, EngineStats};
pub use error::StoreError;
pub use watch::Watch;

/// A point in the store's history. 0 is the empty store; every write takes the next number.
pub type Revision = u64;

/// One key with its value as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value, with the revision stamped in when the writer asked for it (see [`Put::stamp_at`]).
    pub value: Bytes,
    /// Where in `value` the decimal digits of `mod_revision` stand.
    pub stamp_at: Option<u32>,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
}

impl Entry {
    /// The value with `revision` in the place of its own, for showing an old state as of a later event.
    pub fn stamped(&self, revision: Revision) -> Bytes {
        let Some(at) = self.stamp_at else { return self.value.clone() };
        splice(&self.value, at as usize, self.mod_revision.to_string().len(), revision)
    }
}

/// `value` with `replaced` bytes at `at` replaced by the digits of `revision`.
fn splice(value: &[u8], at: usize, replaced: usize, revision: Revision) -> Bytes {
    let digits = revision.to_string();
    let at = at.min(value.len());
    let rest = (at + replaced).min(value.len());
    [&value[..at], digits.as_bytes(), &value[rest..]].concat().into()
}

/// What an event did to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The key was absent before.
    Created,
    /// The key had another value before.
    Updated,
    /// The key is gone; the event's entry is the last value, stamped with the revision of the deletion.
    Deleted,
}

/// One write, as watchers see it. Shared: all watchers hold the same allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// The value written, or the last value for a deletion.
    pub entry: Arc<Entry>,
    /// The value before.
    pub previous: Option<Arc<Entry>>,
}

impl Event {
    /// The revision of the write.
    pub fn revision(&self) -> Revision {
        self.entry.mod_revision
    }
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key must not exist.
    Absent,
    /// The key must exist, whatever its revision.
    Present,
    /// The key must exist with this `mod_revision`.
    Revision(Revision),
}

/// A value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The bytes.
    pub value: Bytes,
    /// Where to insert the decimal digits of the write's revision, so that a value can carry its own revision without
    /// being serialized again.
    pub stamp_at: Option<u32>,
}

impl From<Bytes> for Put {
    fn from(value: Bytes) -> Self {
        Self { value, stamp_at: None }
    }
}

/// Which part of the keys a list returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// The revision to list at; `None` is the current one.
    pub revision: Option<Revision>,
    /// Continue after this key (exclusive).
    pub after: Option<String>,
    /// At most so many entries; 0 is no limit.
    pub limit: usize,
}

/// A consistent part of the keys under a prefix, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The revision that the list is consistent with.
    pub revision: Revision,
    /// The entries.
    pub entries: Vec<Arc<Entry>>,
    /// How many entries follow after the last one of this page.
    pub remaining: usize,
}

/// A revisioned, watchable store. Everything a method returns is durable.
pub trait Store: Send + Sync + 'static {
    /// The entry under `key`, as of now.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Arc<Entry>>, StoreError>>;

    /// The entries whose keys begin with `prefix`.
    fn list(&self, prefix: &str, options: ListOptions) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// Writes a key. It returns when the write is durable and visible.
    fn put(&self, key: &str, put: Put, expect: Expect) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>>;

    /// Removes a key, and returns its last value stamped with the revision of the deletion.
    fn delete(&self, key: &str, expect: Expect) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>>;

    /// The events with a revision greater than `after` under `prefix`, past ones first, then new ones as they happen.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// The revision of the last write.
    fn revision(&self) -> Revision;

    /// The oldest revision that a watch can continue from.
    fn compacted(&self) -> Revision;

    /// Forgets the events up to `revision`.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Whether the store can take writes, and why not.
    fn healthy(&self) -> Result<(), StoreError>;

    /// Creates a key that must not exist.
    fn create(&self, key: &str, put: Put) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        self.put(key, put, Expect::Absent)
    }

    /// Replaces a key's value if its `mod_revision` is still `revision`.
    fn update(
        &self,
        key: &str,
        put: Put,
        revision: Revision,
    ) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        self.put(key, put, Expect::Revision(revision))
    }
}

/// A store is used through `Arc<dyn Store>`; this lets a reference to either be passed on.
impl<S: Store + ?Sized> Store for Arc<S> {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Arc<Entry>>, StoreError>> {
        self.deref().get(key)
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.deref().list(prefix, options)
    }

    fn put(&self, key: &str, put: Put, expect: Expect) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        self.deref().put(key, put, expect)
    }

    fn delete(&self, key: &str, expect: Expect) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        self.deref().delete(key, expect)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.deref().watch(prefix, after)
    }

    fn revision(&self) -> Revision {
        self.deref().revision()
    }

    fn compacted(&self) -> Revision {
        self.deref().compacted()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.deref().compact(revision)
    }

    fn healthy(&self) -> Result<(), StoreError> {
        self.deref().healthy()
    }
}
