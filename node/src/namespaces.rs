//! New kernel namespaces for this thread: the one system call of the agent that Rust cannot check.
#![allow(
    unsafe_code,
    reason = "unshare(2) has no safe wrapper; the flags used here share nothing with other threads"
)]

use std::io;
use std::process::{Child, Command};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread fresh namespaces.
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "the file table must stay shared");
    // SAFETY: without CLONE_FILES no file descriptor that another thread may use is closed or duplicated behind its
    // back; the namespace flags only change what this thread (and its children) see.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// A mount namespace of its own for this process, which must be single-threaded.
pub(crate) fn own_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)
}

/// Starts `command` in fresh namespaces: mount, ipc and pid, and unless `host_network` also network and uts.
/// Runs on a thread that ends with it, so that nothing of the caller changes.
pub(crate) fn spawn_sandboxed(mut command: Command, host_network: bool) -> io::Result<Child> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWPID;
    if !host_network {
        flags |= UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
    }
    let thread = std::thread::Builder::new().name("sandbox".into()).spawn(move || {
        unshare(flags)?;
        command.spawn()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts sandboxes panicked")))
}
