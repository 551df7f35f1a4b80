//! Snapshots: all live entries at one revision, so that older logs can go. Written beside the old ones and renamed when
//! whole, so a crash at any point leaves something to start from.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Index, log,
    record::{self, Frame, Record},
};
use crate::{Entry, Revision, StoreError};

/// Records are put in frames of about this size.
const FRAME_TARGET: usize = 256 * 1024;

/// The file name of the snapshot at `revision`.
pub(super) fn name(revision: Revision) -> String {
    format!("snapshot-{revision:016x}.snap")
}

/// The revision in a name made by [`name`].
pub(super) fn parse_name(name: &str) -> Option<Revision> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".snap")?;
    Revision::from_str_radix(digits, 16).ok()
}

/// Writes the snapshot of `index` at `revision` into `dir`, and then removes the logs and snapshots that it replaces.
/// Gives up without an error when `stop` is set.
pub(super) fn write(
    dir: &Path,
    index: &Index,
    revision: Revision,
    stop: &AtomicBool,
) -> Result<(), StoreError> {
    let temporary = dir.join(format!("{}.tmp", name(revision)));
    match write_file(&temporary, index, revision, stop) {
        Ok(true) => {}
        outcome => {
            remove(&temporary)?;
            return outcome.map(|_| ());
        }
    }
    let path = dir.join(name(revision));
    std::fs::rename(&temporary, &path).map_err(|source| StoreError::io("rename", &temporary, source))?;
    log::sync_dir(dir)?;
    remove_older(dir, revision)
}

fn write_file(path: &Path, index: &Index, revision: Revision, stop: &AtomicBool) -> Result<bool, StoreError> {
    let failed = |source| StoreError::io("write", path, source);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let mut frame = Vec::new();
    let mut start = record::begin_frame(&mut frame);
    for entry in index.values() {
        record::encode(&mut frame, &Record::Put(Arc::clone(entry)));
        if frame.len() >= FRAME_TARGET {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            record::finish_frame(&mut frame, start);
            file.write_all(&frame).map_err(failed)?;
            frame.clear();
            start = record::begin_frame(&mut frame);
        }
    }
    record::encode(&mut frame, &Record::End { count: index.len() as u64, revision });
    record::finish_frame(&mut frame, start);
    file.write_all(&frame).map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(true)
}

/// The entries of the snapshot at `path`, which must be whole.
pub(super) fn read(path: &Path) -> Result<(Revision, Vec<Arc<Entry>>), StoreError> {
    let bytes = std::fs::read(path).map_err(|source| StoreError::io("read", path, source))?;
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let corrupt = |reason| StoreError::Corrupt { path: path.to_owned(), offset: at as u64, reason };
        let (payload, len) = match record::frame(&bytes[at..]) {
            Frame::Whole { payload, len } => (payload, len),
            Frame::End => return Err(corrupt("the snapshot ends too early")),
            Frame::Bad(reason) => return Err(corrupt(reason)),
        };
        for record in record::decode(payload).ok_or_else(|| corrupt("not a record"))? {
            match record {
                Record::Put(entry) => entries.push(entry),
                Record::End { count, revision } if count == entries.len() as u64 => {
                    return Ok((revision, entries));
                }
                Record::End { .. } | Record::Delete { .. } => return Err(corrupt("unexpected record")),
            }
        }
        at += len;
    }
}

fn remove_older(dir: &Path, revision: Revision) -> Result<(), StoreError> {
    for (path, name) in files(dir)? {
        let old_snapshot = parse_name(&name).is_some_and(|at| at < revision);
        let old_log = log::parse_name(&name).is_some_and(|first| first <= revision);
        if old_snapshot || old_log {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The files in `dir` with UTF-8 names.
pub(super) fn files(dir: &Path) -> Result<Vec<(PathBuf, String)>, StoreError> {
    let failed = |source| StoreError::io("read", dir, source);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            files.push((entry.path(), name));
        }
    }
    Ok(files)
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, source))
        }
        _ => Ok(()),
    }
}
