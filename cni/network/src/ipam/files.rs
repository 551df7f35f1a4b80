//! The few things that the store does with files, as a trait: tests have an implementation that fails or stops
//! anywhere.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{FilesResult, IpamError};
use crate::{disk, fault, lock};

/// How long the lock is waited for. A holder needs less than a millisecond for itself.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// What of the store is forgotten with the boot.
pub(super) const DIRECTORIES: [&str; 3] = ["owners", "addresses", "pools"];
/// The length of a record. The longest text is an owner's key with a word before it.
const RECORD: usize = 256;

/// Small files in one directory, by relative name.
pub trait Files {
    /// The content, or none if there is no such file.
    fn read(&self, name: &str) -> FilesResult<Option<String>>;
    /// Writes a file in one step: it has the old content or the new.
    fn replace(&mut self, name: &str, content: &str) -> FilesResult<()>;
    /// The text of a file's record of this number, or none if it was never written.
    fn record(&self, name: &str, number: u64) -> FilesResult<Option<String>>;
    /// Writes a short text in the place of a file's record, in one step, and makes the file if it is missing.
    fn set_record(&mut self, name: &str, number: u64, text: &str) -> FilesResult<()>;
    /// Removes a file. It may be gone already.
    fn remove(&mut self, name: &str) -> FilesResult<()>;
    /// The names of the files in a directory, in no order.
    fn list(&self, directory: &str) -> FilesResult<Vec<String>>;
}

/// Files on the disk, locked against other processes for as long as this value lives.
#[derive(Debug)]
pub struct DirectoryFiles {
    directory: PathBuf,
    _lock: File,
}

impl DirectoryFiles {
    /// Makes the directories if they are missing, and takes the lock.
    pub fn lock(directory: &Path) -> FilesResult<Self> {
        Self::lock_within(directory, fault::wait(LOCK_WAIT))
    }

    /// As [`Self::lock`], but gives up after `wait`.
    pub(super) fn lock_within(directory: &Path, wait: Duration) -> FilesResult<Self> {
        for below in DIRECTORIES {
            let path = directory.join(below);
            disk::create_directory(&path).map_err(|source| IpamError::Io {
                action: "create",
                path,
                source,
            })?;
        }
        let path = directory.join("lock");
        let failed = |source| IpamError::Io { action: "lock", path: path.clone(), source };
        let file = disk::open(&path).map_err(failed)?;
        let waited_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match lock::exclusive(file, wait).map_err(failed)? {
            Some(lock) => Ok(Self { directory: directory.to_owned(), _lock: lock }),
            None => Err(IpamError::Locked { path, waited_ms }),
        }
    }

    fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(io::Error) -> IpamError + use<> {
        let path = self.directory.join(name);
        move |source| IpamError::Io { action, path, source }
    }
}

/// Where a record of this number stands.
fn place(number: u64) -> u64 {
    number.saturating_mul(RECORD as u64)
}

impl Files for DirectoryFiles {
    fn read(&self, name: &str) -> FilesResult<Option<String>> {
        match fs::read(self.directory.join(name)) {
            // A torn or foreign file is as good as an empty one; only its text matters.
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", name)(error)),
        }
    }

    fn replace(&mut self, name: &str, content: &str) -> FilesResult<()> {
        // Under the lock there is one writer, so one name does for what is being written.
        let new = self.directory.join("new");
        let written = disk::replace(&self.directory.join(name), &new, content.as_bytes());
        written.map_err(self.failed("write", name))
    }

    fn record(&self, name: &str, number: u64) -> FilesResult<Option<String>> {
        let mut record = [0; RECORD];
        let length = match File::open(self.directory.join(name)) {
            Ok(file) => file.read_at(&mut record, place(number)).map_err(self.failed("read", name))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(self.failed("read", name)(error)),
        };
        let text = String::from_utf8_lossy(&record[..length]);
        let text = text.trim_matches(['\0', ' ', '\n']);
        Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
    }

    /// Overwriting in place costs a fraction of truncating or renaming, which make the file system write at once. A
    /// record lies within one page, and so is written whole or not at all by a process that is killed.
    fn set_record(&mut self, name: &str, number: u64, text: &str) -> FilesResult<()> {
        let mut record = [b' '; RECORD];
        record[RECORD - 1] = b'\n';
        for (to, from) in record[..RECORD - 1].iter_mut().zip(text.bytes()) {
            *to = from;
        }
        let written = disk::write_at(&self.directory.join(name), &record, place(number));
        written.map_err(self.failed("write", name))
    }

    fn remove(&mut self, name: &str) -> FilesResult<()> {
        disk::remove(&self.directory.join(name)).map(drop).map_err(self.failed("remove", name))
    }

    fn list(&self, directory: &str) -> FilesResult<Vec<String>> {
        let entries = fs::read_dir(self.directory.join(directory)).map_err(self.failed("list", directory))?;
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(self.failed("list", directory))
    }
}
