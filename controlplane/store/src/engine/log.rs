//! The append-only log file. Its few operations stand behind a trait, so that tests can make a disk full or broken.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::{Revision, StoreError};

/// What the log needs of a file.
pub(super) trait LogFile: Send + std::fmt::Debug {
    /// Appends all bytes.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything appended is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `len`.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

impl LogFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

/// The log that is being written.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: Box<dyn LogFile>,
    pub(super) path: PathBuf,
    len: u64,
}

impl Log {
    /// The log's length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Opens the log at `path` for appending after its first `len` bytes.
    pub(super) fn open(path: PathBuf, len: u64) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|source| StoreError::io("open", &path, source))?;
        Ok(Self { file: Box::new(file), path, len })
    }

    /// Starts the log whose first record will have `revision`.
    pub(super) fn create(dir: &Path, revision: Revision) -> Result<Self, StoreError> {
        let log = Self::open(dir.join(name(revision)), 0)?;
        sync_dir(dir)?;
        Ok(log)
    }

    /// Appends one frame durably. After an error nothing of it is in the file, or the error is
    /// [`StoreError::ReadOnly`] and the file must not be written again.
    pub(super) fn append(&mut self, frame: &[u8]) -> Result<(), StoreError> {
        let failed = match self.file.append(frame).and_then(|()| self.file.sync()) {
            Ok(()) => {
                self.len += frame.len() as u64;
                return Ok(());
            }
            Err(source) => StoreError::io("write", &self.path, source),
        };
        let full = matches!(failed, StoreError::DiskFull { .. });
        let undone = self.file.truncate(self.len).and_then(|()| self.file.sync());
        // After a failed sync the kernel may have dropped pages: only a full disk, undone, leaves a known state.
        match undone {
            Ok(()) if full => Err(failed),
            _ => Err(StoreError::ReadOnly { path: self.path.clone(), reason: describe(&failed).into() }),
        }
    }
}

fn describe(error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// The file name of the log that begins with `revision`.
pub(super) fn name(revision: Revision) -> String {
    format!("wal-{revision:016x}.log")
}

/// The revision in a name made by [`name`].
pub(super) fn parse_name(name: &str) -> Option<Revision> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".log")?;
    Revision::from_str_radix(digits, 16).ok()
}

/// Makes renames, creations and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| StoreError::io("sync", dir, source))
}
