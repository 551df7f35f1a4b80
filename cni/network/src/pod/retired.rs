//! Links that are done with, and who deletes them.
//!
//! DEL moves a pod's link to a group ([`super::Attachment::retire`]) and answers. Deleting the group is the work of
//! whoever holds a lock on a file: the agent as long as it runs, else a process that DEL starts and that ends with its
//! work. The one that finds the lock held may leave its links to the holder, since a holder looks once more after it
//! has given the lock back.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::RETIRED_GROUP;
use crate::disk;
#[cfg(feature = "node")]
use crate::netlink::Link;
use crate::netlink::{Netlink, NetlinkError};

/// The name of the lock's file, beside the directories of the networks, none of which can begin with a dot.
const LOCK: &str = ".retired.lock";

/// The right to delete retired links, and the duty.
#[derive(Debug)]
pub struct Undertaker {
    _lock: File,
}

impl Undertaker {
    /// Takes it. None: somebody has it.
    pub fn appoint(data_dir: &Path) -> io::Result<Option<Self>> {
        disk::create_directory(data_dir)?;
        let file = disk::open(&data_dir.join(LOCK))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _lock: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Deletes retired links until there are none, unless somebody else does.
pub fn delete_all(data_dir: &Path) -> Result<(), NetlinkError> {
    let failed = |source| NetlinkError::Socket { action: "lock retired links for", source };
    let mut netlink = Netlink::open()?;
    loop {
        let Some(undertaker) = Undertaker::appoint(data_dir).map_err(failed)? else { return Ok(()) };
        delete_now(&mut netlink)?;
        drop(undertaker);
        // Whoever found the lock held in the meantime has moved its links before.
        if !netlink.links()?.iter().any(super::is_retired) {
            return Ok(());
        }
    }
}

/// Deletes retired links without being the undertaker: when it returns, those are gone that were retired before.
pub(crate) fn delete_now(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    while netlink.delete_group(RETIRED_GROUP)? {}
    Ok(())
}

/// Deletes the retired ones among `links`, for whoever is the undertaker. Returns whether there were any.
#[cfg(feature = "node")]
pub(crate) fn delete_among(netlink: &mut Netlink, links: &[Link]) -> Result<bool, NetlinkError> {
    if !links.iter().any(super::is_retired) {
        return Ok(false);
    }
    netlink.delete_group(RETIRED_GROUP)
}
