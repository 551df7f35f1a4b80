//! The embedded engine: every key in memory in an ordered persistent map, every write in an append-only log before it
//! is seen. One thread writes: it takes all waiting writes, checks them in order, appends them as one frame, syncs once,
//! publishes and only then answers. Readers never wait for the disk.

mod history;
mod log;
mod record;
mod recover;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use imbl::OrdMap;
use tokio::sync::oneshot;

use self::{
    history::History,
    record::{KEY_LIMIT, VALUE_LIMIT},
    writer::{Command, Operation, Write, Writer},
};
use crate::{
    Entry, Event, Expect, ListOptions, Page, Put, Revision, Store, StoreError,
    watch::{self, BACKLOG_LIMIT, Subscriber, Watch},
};

type Index = OrdMap<Arc<str>, Arc<Entry>>;

/// How an engine keeps its data.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The directory; created when missing, used by one engine at a time.
    pub dir: PathBuf,
    /// How many past events watches can resume from.
    pub history_events: usize,
    /// How many bytes of replaced values the past events may hold.
    pub history_bytes: usize,
    /// The log's size from which a snapshot replaces it (once it also exceeds the live data).
    pub rotate_bytes: u64,
    /// How many events may wait for one reader before its watch is ended.
    pub watch_backlog: usize,
}

impl EngineConfig {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            history_events: 20_000,
            history_bytes: 8 * 1024 * 1024,
            rotate_bytes: 16 * 1024 * 1024,
            watch_backlog: BACKLOG_LIMIT,
        }
    }
}

/// Figures of a running engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub live_bytes: u64,
    /// Bytes of the current log.
    pub log_bytes: u64,
    /// Durable writes since the start.
    pub writes: u64,
    /// Syncs since the start; `writes / syncs` is the group commit's gain.
    pub syncs: u64,
    /// Open watches.
    pub watches: u64,
}

/// The embedded engine. Dropping it closes it: waiting writes are finished, watches end.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    /// Set once, when a failed write left the log in an unknown state.
    read_only: OnceLock<StoreError>,
    watch_backlog: usize,
    log_bytes: AtomicU64,
    writes: AtomicU64,
    syncs: AtomicU64,
}

#[derive(Debug)]
struct State {
    index: Index,
    revision: Revision,
    live_bytes: u64,
    history: History,
    subscribers: Vec<Subscriber>,
}

impl State {
    fn empty(config: &EngineConfig, revision: Revision) -> Self {
        let history = History::new(revision, config.history_events, config.history_bytes);
        Self { index: Index::new(), revision, live_bytes: 0, history, subscribers: Vec::new() }
    }

    /// Makes a durable event visible.
    fn publish(&mut self, event: Arc<Event>) {
        let entry = &event.entry;
        if let Some(previous) = &event.previous {
            self.live_bytes = self.live_bytes.saturating_sub(weight(previous));
        }
        if event.change == crate::Change::Deleted {
            self.index.remove(&*entry.key);
        } else {
            self.live_bytes += weight(entry);
            self.index.insert(Arc::clone(&entry.key), Arc::clone(entry));
        }
        self.subscribers.retain(|subscriber| subscriber.offer(&event));
        self.revision = event.revision();
        self.history.push(event);
    }
}

fn weight(entry: &Entry) -> u64 {
    (entry.key.len() + entry.value.len()) as u64
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Opens the directory, restores what was acknowledged and starts the writing thread. A torn write at the log's end
    /// is cut off; damage anywhere else is an error.
    pub fn open(config: EngineConfig) -> Result<Self, StoreError> {
        Self::open_with(config, |_| {})
    }

    /// [`Engine::open`] with a chance to put something else in the place of the log's file.
    fn open_with(config: EngineConfig, replace: impl FnOnce(&mut log::Log)) -> Result<Self, StoreError> {
        let mut recovered = recover::open(&config)?;
        replace(&mut recovered.log);
        let shared = Arc::new(Shared {
            state: RwLock::new(recovered.state),
            read_only: OnceLock::new(),
            watch_backlog: config.watch_backlog,
            log_bytes: AtomicU64::new(recovered.log.len()),
            writes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        });
        let (commands, queue) = mpsc::channel();
        let dir = config.dir.clone();
        let writer = Writer::new(Arc::clone(&shared), recovered.log, config, recovered.lock);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|source| StoreError::io("start the writing thread of", dir, source))?;
        Ok(Self { shared, commands, writer: Mutex::new(Some(thread)) })
    }

    /// Current figures.
    pub fn stats(&self) -> EngineStats {
        let state = self.shared.read();
        EngineStats {
            keys: state.index.len() as u64,
            live_bytes: state.live_bytes,
            log_bytes: self.shared.log_bytes.load(Ordering::Relaxed),
            writes: self.shared.writes.load(Ordering::Relaxed),
            syncs: self.shared.syncs.load(Ordering::Relaxed),
            watches: state.subscribers.iter().filter(|subscriber| !subscriber.closed()).count() as u64,
        }
    }

    fn submit(&self, write: Write) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Write(write, reply)).is_err() {
            return Box::pin(ready(Err(StoreError::Closed)));
        }
        Box::pin(async { answer.await.unwrap_or(Err(StoreError::Closed)) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The writer may be gone already; then there is nothing to stop.
        drop(self.commands.send(Command::Stop));
        let thread = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's writing thread panicked");
        }
    }
}

impl Store for Engine {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Arc<Entry>>, StoreError>> {
        let entry = self.shared.read().index.get(key).cloned();
        Box::pin(ready(Ok(entry)))
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(ready(list(&self.shared, prefix, &options)))
    }

    fn put(&self, key: &str, put: Put, expect: Expect) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        let limit = if key.len() > KEY_LIMIT { KEY_LIMIT } else { VALUE_LIMIT };
        let len = if key.len() > KEY_LIMIT { key.len() } else { put.value.len() };
        if len > limit {
            return Box::pin(ready(Err(StoreError::TooLarge { key: key.into(), len, limit })));
        }
        self.submit(Write { key: key.into(), operation: Operation::Put(put), expect })
    }

    fn delete(&self, key: &str, expect: Expect) -> BoxFuture<'_, Result<Arc<Entry>, StoreError>> {
        self.submit(Write { key: key.into(), operation: Operation::Delete, expect })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let mut state = self.shared.write();
        if after > state.revision {
            return Err(StoreError::Future { requested: after, current: state.revision });
        }
        let past = state
            .history
            .after(after)?
            .filter(|event| event.entry.key.starts_with(prefix))
            .map(Arc::clone)
            .collect();
        let (subscriber, watch) = watch::channel(prefix, past, self.shared.watch_backlog);
        state.subscribers.retain(|subscriber| !subscriber.closed());
        state.subscribers.push(subscriber);
        Ok(watch)
    }

    fn revision(&self) -> Revision {
        self.shared.read().revision
    }

    fn compacted(&self) -> Revision {
        self.shared.read().history.compacted()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut state = self.shared.write();
        let current = state.revision;
        let result = if revision > current {
            Err(StoreError::Future { requested: revision, current })
        } else {
            state.history.compact(revision);
            Ok(())
        };
        Box::pin(ready(result))
    }

    fn healthy(&self) -> Result<(), StoreError> {
        self.shared.read_only.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

fn list(shared: &Shared, prefix: &str, options: &ListOptions) -> Result<Page, StoreError> {
    let state = shared.read();
    let revision = options.revision.unwrap_or(state.revision);
    if revision > state.revision {
        return Err(StoreError::Future { requested: revision, current: state.revision });
    }
    let past =
        if revision == state.revision { BTreeMap::new() } else { state.history.undo(prefix, revision)? };
    let index = state.index.clone();
    drop(state);

    let from = match &options.after {
        Some(key) if &**key >= prefix => Bound::Excluded(&**key),
        _ => Bound::Included(prefix),
    };
    let now = index
        .range::<_, str>((from, Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix))
        .filter(|(key, _)| !past.contains_key(*key));
    let then = past
        .range::<str, _>((from, Bound::Unbounded))
        .filter_map(|(key, entry)| entry.as_ref().map(|entry| (key, entry)));
    let mut merged = merge(now, then);

    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let entries = merged.by_ref().take(limit).map(Arc::clone).collect();
    Ok(Page { revision, entries, remaining: merged.count() })
}

/// Two rows in key order, without common keys, as one.
fn merge<'a>(
    left: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Entry>)>,
    right: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Entry>)>,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let mut left = left.peekable();
    let mut right = right.peekable();
    std::iter::from_fn(move || {
        let take_left = match (left.peek(), right.peek()) {
            (Some((left, _)), Some((right, _))) => left < right,
            (left, _) => left.is_some(),
        };
        let next = if take_left { left.next() } else { right.next() };
        next.map(|(_, entry)| entry)
    })
}

/// `value` with the digits of `revision` inserted.
fn stamp(value: &Bytes, stamp_at: Option<u32>, revision: Revision) -> Bytes {
    match stamp_at {
        None => value.clone(),
        Some(at) => crate::splice(value, at as usize, 0, revision),
    }
}
