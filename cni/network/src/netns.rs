//! Network namespaces: making them, entering them, starting programs in them.
//!
//! A thread that has changed its namespace is a trap for whatever runs on it next. So nothing here moves the
//! caller: [`Namespace::run`] uses a thread that ends with the closure, [`Namespace::enter`] makes a child process
//! change between `fork` and `exec`, and sockets can be opened in a namespace and used elsewhere
//! ([`crate::netlink::Netlink::open_in`]).
#![allow(unsafe_code, reason = "unshare, ioctl and the hook between fork and exec are unsafe to call")]

mod spawn;
pub mod sysctl;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use thiserror::Error;

pub use spawn::join_cgroup;

use crate::{disk, lock};

/// `NSFS_MAGIC` of `linux/magic.h`: the file system that namespace files live in.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What can go wrong with a namespace.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// The namespace could not be made.
    #[error("cannot create network namespace {}", path.display())]
    Create {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is a namespace of that name already.
    #[error("network namespace {} exists", path.display())]
    Exists {
        /// Its file.
        path: PathBuf,
    },
    /// The namespace could not be opened.
    #[error("cannot open network namespace {}", path.display())]
    Open {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no namespace (one whose creation was cut short, or that was unmounted).
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// The namespace could not be entered.
    #[error("cannot enter network namespace {}", path.display())]
    Enter {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be deleted.
    #[error("cannot delete network namespace {}", path.display())]
    Delete {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open network namespace. It exists for at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    path: PathBuf,
}

impl Namespace {
    /// Makes a namespace that lives at `directory/name` (a bind mount; `/run/netns` makes it known to `ip netns`)
    /// until [`delete`] is called. Its loopback link is up.
    pub fn create(directory: &Path, name: &str) -> Result<Self, NetnsError> {
        let path = directory.join(name);
        let failed = |source| NetnsError::Create { path: path.clone(), source };
        disk::create_directory(directory).map_err(failed)?;
        match disk::create_new(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(NetnsError::Exists { path });
            }
            Err(error) => return Err(failed(error)),
        }
        let made = Self::anonymous().and_then(|namespace| {
            let source = format!("/proc/self/fd/{}", namespace.fd.as_raw_fd());
            mount_bind(source, &path).map_err(|error| failed(error.into()))?;
            Ok(Self { fd: namespace.fd, path: path.clone() })
        });
        if made.is_err() {
            // The error that led here is the one to report.
            drop(disk::remove(&path));
        }
        made
    }

    /// Makes a namespace without a name: it ends with this value and the processes and links that use it. Its
    /// loopback link is up.
    pub fn anonymous() -> Result<Self, NetnsError> {
        let path = PathBuf::from("(unnamed)");
        let failed = |source| NetnsError::Create { path: path.clone(), source };
        let fd = on_a_thread(|| -> io::Result<OwnedFd> {
            // SAFETY: CLONE_NEWNET touches neither memory nor descriptors, and the thread ends right after.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
            let fd = File::open("/proc/thread-self/ns/net")?;
            loopback_up().map_err(io::Error::other)?;
            Ok(fd.into())
        })
        .map_err(failed)?
        .map_err(failed)?;
        Ok(Self { fd, path })
    }

    /// Opens the namespace that a file stands for: a bind mount, or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        // Opening a device may set something off, and opening a pipe waits for its other end: the path is a stranger's.
        let file_system = rustix::fs::statfs(path).map_err(|error| failed(error.into()))?;
        if file_system.f_type != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace { path: path.to_owned() });
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        if !is_of_networks(&file) {
            return Err(NetnsError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { fd: file.into(), path: path.to_owned() })
    }

    /// Opens the calling thread's namespace.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self, NetnsError> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The file that it was opened from or lives at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A number that tells it from every other namespace that exists.
    pub fn id(&self) -> Result<u64, NetnsError> {
        let metadata = self
            .fd
            .try_clone()
            .and_then(|fd| File::from(fd).metadata())
            .map_err(|source| NetnsError::Open { path: self.path.clone(), source })?;
        Ok(metadata.ino())
    }

    /// Keeps others who ask for the same from working on the namespace, for as long as what is returned lives. None:
    /// somebody has done so for all of `limit`.
    pub fn lock(&self, limit: Duration) -> Result<Option<NamespaceLock>, NetnsError> {
        let failed = |source| NetnsError::Open { path: self.path.clone(), source };
        // A lock is of one opening of the file: duplicates of the descriptor would share it.
        let own = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let held = File::open(own).and_then(|file| lock::exclusive(file, limit)).map_err(failed)?;
        Ok(held.map(|file| NamespaceLock { _file: file }))
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. A panic in `work` is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let failed = |source: io::Error| NetnsError::Enter { path: self.path.clone(), source };
        on_a_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })
        .map_err(failed)?
        .map_err(|error: rustix::io::Errno| failed(error.into()))
    }

    /// Makes `command` start inside.
    pub fn enter<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command, NetnsError> {
        let fd =
            self.fd.try_clone().map_err(|source| NetnsError::Enter { path: self.path.clone(), source })?;
        let hook = move || {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(())
        };
        // SAFETY: between fork and exec the hook makes one system call and touches no lock and no heap.
        Ok(unsafe { command.pre_exec(hook) })
    }

    /// A command that will start `program` inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, NetnsError> {
        let mut command = Command::new(program);
        self.enter(&mut command)?;
        Ok(command)
    }
}

/// The right to work on a namespace, see [`Namespace::lock`]. It ends with this value, and with the process.
#[derive(Debug)]
pub struct NamespaceLock {
    _file: File,
}

/// Whether the file stands for a network namespace, and not for one of another kind.
fn is_of_networks(file: &File) -> bool {
    // SAFETY: the request has no argument, and the descriptor is open.
    unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Deletes the namespace that [`Namespace::create`] made at `directory/name`. `Ok(false)`: there was none. The
/// kernel ends it when no process and no descriptor uses it any more.
pub fn delete(directory: &Path, name: &str) -> Result<bool, NetnsError> {
    let path = directory.join(name);
    let failed = |source| NetnsError::Delete { path: path.clone(), source };
    match unmount(&path, UnmountFlags::DETACH) {
        // EINVAL: a plain file, left by a creation that was cut short.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    disk::remove(&path).map_err(failed)
}

fn loopback_up() -> crate::netlink::Result<()> {
    let mut netlink = crate::netlink::Netlink::open()?;
    match netlink.link("lo")? {
        Some(lo) => netlink.set_up(lo.index),
        None => Ok(()),
    }
}

/// Runs `work` on a thread that ends with it, so that whatever it does to its thread's namespaces goes with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
