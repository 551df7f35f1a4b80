//! The agent's word that it has set up the node's pod network since the boot.
//!
//! Plugin and network configuration outlive a reboot, devices, routes and rules do not: a runtime that is up before the
//! agent would start pods that reach nobody, and give them addresses of a subnet that may be another node's by now. So
//! the agent leaves a mark with the boot's id in it, and the plugin waits for that, but not for ever. The node's namespace
//! stands in it, too: where nodes are containers, they start anew without a boot.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::netns::Namespace;
use crate::{fault, ipam};

/// The name of the mark, beside the directories of the networks, none of which can begin with a dot.
#[cfg(feature = "node")]
pub(crate) const FILE: &str = ".ready";
/// How long the agent is waited for. A runtime waits longer.
const WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// More than any mark has.
const MAX_MARK: u64 = 128;

/// What the mark says on this node since its start: the boot, and the calling thread's network namespace. None: the
/// kernel does not tell.
pub fn mark() -> Option<String> {
    let namespace = Namespace::current().and_then(|namespace| namespace.id()).ok()?;
    Some(format!("{} {namespace}", ipam::boot_id().ok()?))
}

/// Whether the mark at `path` is of this boot and namespace.
pub fn is_set_up(path: &Path) -> bool {
    // A kernel that does not tell which they are cannot be waited for.
    mark().is_none_or(|mark| read(path).trim() == mark)
}

/// As [`is_set_up`], but waits for it.
pub fn await_set_up(path: &Path) -> bool {
    let end = Instant::now() + fault::wait(WAIT);
    while !is_set_up(path) {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// The mark, or nothing. The path is a stranger's: what stands there may have no end, or none that writes.
fn read(path: &Path) -> String {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let read = file.and_then(|file| file.take(MAX_MARK).read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_good_for_its_boot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        assert!(!is_set_up(&path));
        let (own, boot) = (mark().unwrap(), ipam::boot_id().unwrap());
        let others =
            [format!("another-boot {}", own.split(' ').next_back().unwrap()), format!("{boot} 1"), boot];
        for (mark, good) in
            others.iter().map(|other| (other.as_str(), false)).chain([(own.as_str(), true), ("", false)])
        {
            std::fs::write(&path, mark).unwrap();
            assert_eq!(is_set_up(&path), good, "{mark:?}");
        }
        assert!(!is_set_up(directory.path()) && !is_set_up(Path::new("/dev/zero")));
    }
}
