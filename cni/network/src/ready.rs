//! The agent's word that it has set up the node's pod network since the boot.
//!
//! Plugin and network configuration outlive a reboot, devices, routes and rules do not: a runtime that is up before the
//! agent would start pods that reach nobody, and give them addresses of a subnet that may be another node's by now. So
//! the agent leaves a mark with the boot's id in it, and the plugin waits for that, but not for ever.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{fault, ipam};

/// The name of the mark, beside the directories of the networks, none of which can begin with a dot.
#[cfg(feature = "node")]
pub(crate) const FILE: &str = ".ready";
/// How long the agent is waited for. A runtime waits longer.
const WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// More than any boot's id has.
const MAX_MARK: u64 = 64;

/// Whether the mark at `path` is of this boot.
pub fn is_set_up(path: &Path) -> bool {
    // A kernel that does not tell which boot this is cannot be waited for.
    ipam::boot_id().map_or(true, |boot| read(path).trim() == boot)
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
        for (mark, good) in
            [("another boot", false), ("", false), (&ipam::boot_id().unwrap(), true), ("\u{fffd}", false)]
        {
            std::fs::write(&path, mark).unwrap();
            assert_eq!(is_set_up(&path), good, "{mark:?}");
        }
        assert!(!is_set_up(directory.path()) && !is_set_up(Path::new("/dev/zero")));
    }
}
