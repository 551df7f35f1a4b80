//! Locks on files against other processes, waited for, but not for ever.

use std::fs::File;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Takes the lock on `file`, for as long as the file that is returned is open. None: somebody else has it, and has had
/// it for all of `limit`.
pub(crate) fn exclusive(file: File, limit: Duration) -> io::Result<Option<File>> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => wait(file, limit),
        Err(error) => Err(error.into()),
    }
}

/// Waits in the kernel's queue, which is fair: on a thread that is left behind if it takes too long, and gives the lock
/// back if it gets it after all.
fn wait(file: File, limit: Duration) -> io::Result<Option<File>> {
    let (locked, waiting) = mpsc::channel();
    let queue = move || {
        let outcome = loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                outcome => break outcome,
            }
        };
        // Nobody waits any more: the lock goes with the file.
        drop(locked.send(outcome.map(|()| file)));
    };
    std::thread::Builder::new().name("lock".to_owned()).spawn(queue)?;
    match waiting.recv_timeout(limit) {
        Ok(Ok(file)) => Ok(Some(file)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}
