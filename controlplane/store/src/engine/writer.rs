//! The writing thread: takes every waiting write, decides each against what the ones before it leave, commits them as
//! one frame with one sync, publishes them, and answers.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use super::{
    EngineConfig, Shared,
    log::Log,
    record::{self, Record},
    recover, snapshot, stamp,
};
use crate::{Change, Entry, Event, Expect, Put, Revision, StoreError};

/// Writes committed together at most, so that the first one does not wait for ever.
const BATCH_LIMIT: usize = 1024;

/// The answer to a write.
type Reply = oneshot::Sender<Result<Arc<Entry>, StoreError>>;

/// A request to the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Make this write.
    Write(Write, Reply),
    /// Finish what was asked before, then end.
    Stop,
}

/// One write that was asked for.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) key: Arc<str>,
    pub(super) operation: Operation,
    pub(super) expect: Expect,
}

/// What to do with the key.
#[derive(Debug)]
pub(super) enum Operation {
    Put(Put),
    Delete,
}

/// The thread's state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    log: Log,
    dir: PathBuf,
    rotate_bytes: u64,
    /// The log's size at which the next rotation is tried.
    rotate_at: u64,
    snapshot: Option<JoinHandle<()>>,
    stop_snapshot: Arc<AtomicBool>,
    frame: Vec<u8>,
    _lock: File,
}

/// Writes that were decided but are not durable yet.
#[derive(Default)]
struct Staged {
    events: Vec<Arc<Event>>,
    /// The newest staged event of each key.
    latest: HashMap<Arc<str>, usize>,
    replies: Vec<(Reply, Result<Arc<Entry>, StoreError>)>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, log: Log, config: EngineConfig, lock: File) -> Self {
        Self {
            shared,
            log,
            dir: config.dir,
            rotate_bytes: config.rotate_bytes,
            rotate_at: config.rotate_bytes,
            snapshot: None,
            stop_snapshot: Arc::default(),
            frame: Vec::new(),
            _lock: lock,
        }
    }

    pub(super) fn run(mut self, queue: &Receiver<Command>) {
        let mut stopping = false;
        while !stopping {
            let Ok(first) = queue.recv() else { break };
            let mut staged = Staged::default();
            let mut next = Some(first);
            while let Some(command) = next.take() {
                match command {
                    Command::Write(write, reply) => self.stage(write, reply, &mut staged),
                    Command::Stop => stopping = true,
                }
                if staged.replies.len() < BATCH_LIMIT {
                    next = queue.try_recv().ok();
                }
            }
            self.commit(staged);
            self.rotate_when_due();
        }
        self.stop_snapshot.store(true, Ordering::Relaxed);
        if let Some(thread) = self.snapshot.take() {
            join(thread);
        }
        self.shared.write().subscribers.clear();
    }

    fn stage(&self, write: Write, reply: Reply, staged: &mut Staged) {
        let result = self.decide(&write, staged).map(|event| {
            let entry = Arc::clone(&event.entry);
            staged.latest.insert(write.key, staged.events.len());
            staged.events.push(Arc::new(event));
            entry
        });
        staged.replies.push((reply, result));
    }

    fn decide(&self, write: &Write, staged: &Staged) -> Result<Event, StoreError> {
        if let Some(error) = self.shared.read_only.get() {
            return Err(error.clone());
        }
        let state = self.shared.read();
        let current = match staged.latest.get(&write.key).map(|at| &staged.events[*at]) {
            Some(event) if event.change == Change::Deleted => None,
            Some(event) => Some(Arc::clone(&event.entry)),
            None => state.index.get(&*write.key).cloned(),
        };
        check(&write.key, write.expect, current.as_deref())?;
        let revision = state.revision + staged.events.len() as Revision + 1;
        match (&write.operation, current) {
            (Operation::Delete, Some(current)) => Ok(recover::deletion(current, revision)),
            (Operation::Delete, None) => Err(StoreError::NotFound { key: Arc::clone(&write.key) }),
            (Operation::Put(put), current) => Ok(written(&write.key, put, current, revision)),
        }
    }

    /// Makes the staged writes durable and visible, or fails all of them.
    fn commit(&mut self, mut staged: Staged) {
        if let Err(error) = self.append(&staged.events) {
            if matches!(error, StoreError::ReadOnly { .. }) {
                tracing::error!(%error, "the store takes no writes any more");
                // Set once; an error that is there already is the first one.
                self.shared.read_only.get_or_init(|| error.clone());
            }
            staged.events.clear();
            staged.replies.iter_mut().for_each(|(_, result)| *result = Err(error.clone()));
        }
        if !staged.events.is_empty() {
            self.shared.writes.fetch_add(staged.events.len() as u64, Ordering::Relaxed);
            let mut state = self.shared.write();
            staged.events.into_iter().for_each(|event| state.publish(event));
        }
        for (reply, result) in staged.replies {
            // A caller that went away does not change what was written.
            drop(reply.send(result));
        }
    }

    fn append(&mut self, events: &[Arc<Event>]) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        self.frame.clear();
        let start = record::begin_frame(&mut self.frame);
        for event in events {
            record::encode(&mut self.frame, &record_of(event));
        }
        record::finish_frame(&mut self.frame, start);
        self.log.append(&self.frame)?;
        self.frame.shrink_to(64 * 1024);
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.shared.log_bytes.store(self.log.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Starts a new log and, beside it, the snapshot that replaces the old one.
    fn rotate_when_due(&mut self) {
        if self.log.len() < self.rotate_at
            || self.snapshot.as_ref().is_some_and(|thread| !thread.is_finished())
        {
            return;
        }
        let state = self.shared.read();
        let (index, revision, live_bytes) = (state.index.clone(), state.revision, state.live_bytes);
        drop(state);
        self.rotate_at = self.rotate_bytes.max(live_bytes);
        if self.log.len() < self.rotate_at {
            return;
        }
        match Log::create(&self.dir, revision + 1) {
            Ok(log) => self.log = log,
            Err(error) => {
                tracing::warn!(%error, "cannot start a new log, going on with the old one");
                self.rotate_at = self.log.len() + self.rotate_bytes / 4;
                return;
            }
        }
        self.shared.log_bytes.store(0, Ordering::Relaxed);
        if let Some(thread) = self.snapshot.take() {
            join(thread);
        }
        let (dir, stop) = (self.dir.clone(), Arc::clone(&self.stop_snapshot));
        let work = move || {
            if let Err(error) = snapshot::write(&dir, &index, revision, &stop) {
                tracing::warn!(%error, "cannot write a snapshot, keeping the logs");
            }
        };
        match std::thread::Builder::new().name("store-snapshot".to_owned()).spawn(work) {
            Ok(thread) => self.snapshot = Some(thread),
            Err(error) => tracing::warn!(%error, "cannot start the snapshot thread, keeping the logs"),
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("the store's snapshot thread panicked");
    }
}

fn check(key: &Arc<str>, expect: Expect, current: Option<&Entry>) -> Result<(), StoreError> {
    let key = || Arc::clone(key);
    match (expect, current.map(|entry| entry.mod_revision)) {
        (Expect::Absent, None) | (Expect::Present, Some(_)) => Ok(()),
        (Expect::Absent, Some(revision)) => Err(StoreError::KeyExists { key: key(), revision }),
        (Expect::Present | Expect::Revision(_), None) => Err(StoreError::NotFound { key: key() }),
        (Expect::Revision(expected), Some(actual)) if expected == actual => Ok(()),
        (Expect::Revision(expected), Some(actual)) => {
            Err(StoreError::Conflict { key: key(), expected, actual })
        }
    }
}

fn written(key: &Arc<str>, put: &Put, current: Option<Arc<Entry>>, revision: Revision) -> Event {
    let entry = Entry {
        // One allocation per key, however often it is written.
        key: current.as_ref().map_or_else(|| Arc::clone(key), |current| Arc::clone(&current.key)),
        value: stamp(&put.value, put.stamp_at, revision),
        stamp_at: put.stamp_at,
        create_revision: current.as_ref().map_or(revision, |current| current.create_revision),
        mod_revision: revision,
    };
    let change = if current.is_some() { Change::Updated } else { Change::Created };
    Event { change, entry: Arc::new(entry), previous: current }
}

fn record_of(event: &Event) -> Record {
    match event.change {
        Change::Deleted => Record::Delete { key: Arc::clone(&event.entry.key), revision: event.revision() },
        Change::Created | Change::Updated => Record::Put(Arc::clone(&event.entry)),
    }
}
