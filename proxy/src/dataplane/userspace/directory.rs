//! The directory in which workers are found. Each has a socket of its own there, and `current` leads to the one that
//! serves; others may still be busy with connections that were open when a successor came.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::channel::Channel;
use super::wire::{Line, PROTOCOL, Presence};

const PREFIX: &str = "w-";
const CURRENT: &str = "current";
/// Who does not answer within this time is not waited for. A plan of everything takes a worker a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the workers of one node are found.
#[derive(Debug, Clone)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes it, for its owner alone.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Held by a worker that begins: there is one at a time.
    pub(super) fn lock(&self) -> io::Result<File> {
        let file = File::create(self.0.join("lock"))?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    }

    /// A socket under a name that nobody had before.
    pub(super) fn bind(&self) -> io::Result<(UnixListener, PathBuf)> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = self.0.join(format!("{PREFIX}{:x}-{:x}", since.as_micros(), std::process::id()));
        Ok((UnixListener::bind(&path)?, path))
    }

    /// From now on this one is found.
    pub(super) fn make_current(&self, socket: &Path) -> io::Result<()> {
        let next = self.0.join("next");
        match fs::remove_file(&next) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(socket.file_name().unwrap_or_default(), &next)?;
        fs::rename(&next, self.0.join(CURRENT))
    }

    /// The worker that serves, if there is one.
    pub(super) fn current(&self) -> Option<(Channel, Presence)> {
        greet(&self.0.join(CURRENT)).ok().filter(|(_, presence)| presence.serving)
    }

    /// As [`Directory::lock`], if nobody holds it.
    fn try_lock(&self) -> Option<File> {
        let file = File::create(self.0.join("lock")).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(file)
    }

    /// Removes a socket that nobody listens at. One that has just been made is not listened at for a moment: its worker
    /// holds the lock.
    fn remove_dead(&self, socket: &Path) {
        let Some(_lock) = self.try_lock() else { return };
        if greet(socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            let _gone = fs::remove_file(socket);
        }
    }

    /// All workers that live, and whether each is the current one. Sockets of others are removed.
    pub(super) fn all(&self) -> io::Result<Vec<(Channel, Presence, bool)>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let current = fs::read_link(self.0.join(CURRENT)).ok();
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            match greet(&entry.path()) {
                Ok((channel, presence)) => {
                    found.push((channel, presence, current.as_deref() == Some(Path::new(&name))));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.remove_dead(&entry.path());
                }
                Err(error) => tracing::debug!(%error, worker = ?name, "a worker does not answer"),
            }
        }
        Ok(found)
    }

    /// Removes it, unless somebody lives in it or is about to. Says whether it is gone.
    pub(super) fn remove(&self) -> io::Result<bool> {
        if !self.0.exists() {
            return Ok(true);
        }
        let Some(_lock) = self.try_lock() else { return Ok(false) };
        if !self.is_deserted()? {
            return Ok(false);
        }
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(true),
        }
    }

    /// Nobody answers at any socket.
    fn is_deserted(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) && greet(&entry.path()).is_ok() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn greet(socket: &Path) -> io::Result<(Channel, Presence)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut channel = Channel::new(stream);
    channel.send(&Line::Hello)?;
    match channel.get()? {
        Line::Worker(presence) if presence.protocol == PROTOCOL => Ok((channel, presence)),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "a worker that speaks another language")),
    }
}
