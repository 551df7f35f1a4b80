//! Opening: lock, newest snapshot, the logs after it, cut the torn tail. Everything that was acknowledged is there
//! afterwards, or there is an error that names the damaged byte.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    EngineConfig, State, log,
    log::Log,
    record::{self, Frame, Record},
    snapshot,
};
use crate::{Change, Entry, Event, Revision, StoreError};

/// A store read back from its directory.
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) log: Log,
    /// Holds the directory's lock as long as it lives.
    pub(super) lock: File,
}

pub(super) fn open(config: &EngineConfig) -> Result<Recovered, StoreError> {
    let dir = &config.dir;
    std::fs::create_dir_all(dir).map_err(|source| StoreError::io("create", dir, source))?;
    let lock = lock(dir)?;
    let mut snapshots = Vec::new();
    let mut logs = Vec::new();
    for (path, name) in snapshot::files(dir)? {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            snapshot::remove(&path)?;
        } else if let Some(revision) = snapshot::parse_name(&name) {
            snapshots.push((revision, path));
        } else if let Some(first) = log::parse_name(&name) {
            logs.push((first, path));
        }
    }
    snapshots.sort_unstable();
    logs.sort_unstable();

    let mut state = State::empty(config, 0);
    if let Some((_, path)) = snapshots.last() {
        let (revision, entries) = snapshot::read(path)?;
        state = State::empty(config, revision);
        for entry in entries {
            state.live_bytes += super::weight(&entry);
            state.index.insert(Arc::clone(&entry.key), entry);
        }
    }
    let log = replay_all(&mut state, dir, logs)?;
    Ok(Recovered { state, log, lock })
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| StoreError::io("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(StoreError::io("lock", path, source)),
    }
}

fn replay_all(state: &mut State, dir: &Path, logs: Vec<(Revision, PathBuf)>) -> Result<Log, StoreError> {
    let last = logs.len().saturating_sub(1);
    let mut open = None;
    for (at, (_, path)) in logs.into_iter().enumerate() {
        let len = replay(state, &path, at == last)?;
        open = Some((path, len));
    }
    match open {
        Some((path, len)) => Log::open(path, len),
        None => Log::create(dir, state.revision + 1),
    }
}

/// Applies the log at `path` and returns the length of its good part. Only the newest log may have a torn tail.
fn replay(state: &mut State, path: &Path, newest: bool) -> Result<u64, StoreError> {
    let bytes = std::fs::read(path).map_err(|source| StoreError::io("read", path, source))?;
    let mut at = 0;
    loop {
        let corrupt = |reason| StoreError::Corrupt { path: path.to_owned(), offset: at as u64, reason };
        match record::frame(&bytes[at..]) {
            Frame::End => return Ok(at as u64),
            Frame::Whole { payload, len } => {
                let records = record::decode(payload).ok_or_else(|| corrupt("not a record"))?;
                let known = state.revision;
                for record in records.into_iter().filter(|record| record.revision() > known) {
                    apply(state, record).ok_or_else(|| corrupt("a revision is missing"))?;
                }
                at += len;
            }
            // An unfinished write: nobody was told that it happened.
            Frame::Bad(reason) if newest && !record::any_frame_in(&bytes[at + 1..]) => {
                tracing::warn!(path = %path.display(), at, cut = bytes.len() - at, reason, "cutting an unfinished write off the log");
                cut(path, at as u64)?;
                return Ok(at as u64);
            }
            Frame::Bad(reason) => return Err(corrupt(reason)),
        }
    }
}

fn cut(path: &Path, len: u64) -> Result<(), StoreError> {
    let failed = |source| StoreError::io("cut", path, source);
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    file.set_len(len).and_then(|()| file.sync_all()).map_err(failed)
}

/// Applies the next record; `None` when it is not the next.
fn apply(state: &mut State, record: Record) -> Option<()> {
    if record.revision() != state.revision + 1 {
        return None;
    }
    let (key, put) = match record {
        Record::Put(entry) => (Arc::clone(&entry.key), Some(entry)),
        Record::Delete { key, .. } => (key, None),
        Record::End { .. } => return None,
    };
    let previous = state.index.get(&*key).cloned();
    let event = match (put, previous) {
        (Some(entry), None) => Event { change: Change::Created, entry, previous: None },
        (Some(entry), previous) => Event { change: Change::Updated, entry, previous },
        (None, previous) => deletion(previous?, state.revision + 1),
    };
    state.publish(Arc::new(event));
    Some(())
}

/// The event of deleting `previous` at `revision`.
pub(super) fn deletion(previous: Arc<Entry>, revision: Revision) -> Event {
    let entry = Entry {
        key: Arc::clone(&previous.key),
        value: previous.stamped(revision),
        stamp_at: previous.stamp_at,
        create_revision: previous.create_revision,
        mod_revision: revision,
    };
    Event { change: Change::Deleted, entry: Arc::new(entry), previous: Some(previous) }
}
