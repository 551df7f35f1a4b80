//! Where cgroup2 and bpffs are mounted. On a hybrid system cgroup2 is not at /sys/fs/cgroup; bpffs may not be
//! mounted at all.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

/// Where bpffs belongs.
const BPFFS: &str = "/sys/fs/bpf";

/// The first mount point of cgroup version 2.
pub fn cgroup2_mount() -> Option<PathBuf> {
    mount_point("cgroup2")
}

/// A mount point of bpffs; it is mounted if there is none.
pub fn bpffs_mount() -> Option<PathBuf> {
    if let Some(found) = mount_point("bpf") {
        return Some(found);
    }
    mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).ok()?;
    Some(Path::new(BPFFS).to_owned())
}

fn mount_point(file_system: &str) -> Option<PathBuf> {
    find_mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?, file_system)
}

/// Reads `… MOUNT-POINT OPTIONS [FIELDS] - TYPE SOURCE OPTIONS` of proc(5).
fn find_mount_point(mountinfo: &str, file_system: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == file_system)
            .then(|| PathBuf::from(mount.split(' ').nth(4).unwrap_or("/")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found_by_type() {
        let text = "25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                    36 25 0:31 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount_point(text, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount_point(text, "bpf"), None);
    }
}
