//! Finding the cgroup2 hierarchy and having a BPF file system.

use std::io;
use std::path::{Path, PathBuf};

use crate::{LoadError, sys};

/// Where the cgroup2 hierarchy is mounted (`/sys/fs/cgroup`, or `…/unified` on a hybrid system), from
/// `/proc/self/mountinfo`.
pub fn cgroup2_mount() -> Result<PathBuf, LoadError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(path).map_err(|e| LoadError::io("read", path, e))?;
    find_mount(&text, "cgroup2").ok_or(LoadError::NoCgroup2)
}

/// The first mount of a file system in the text of `mountinfo`.
fn find_mount(mountinfo: &str, file_system: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        // 38 31 0:31 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
        let (fields, kind) = line.split_once(" - ")?;
        if kind.split(' ').next()? != file_system {
            return None;
        }
        fields.split(' ').nth(4).map(unescape)
    })
}

/// Undoes the octal escapes of `mountinfo` (space, tab, newline, backslash).
fn unescape(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escape, plain);
    }
    path.into()
}

/// Makes `directory` exist on a BPF file system, mounting one if there is none above it: at `/sys/fs/bpf` for what
/// lies there, else at the directory itself.
pub(crate) fn ensure_bpffs(directory: &Path) -> Result<(), LoadError> {
    let root = Path::new("/sys/fs/bpf");
    let at = if directory.starts_with(root) { root } else { directory };
    // Two agents that start at the same time must not mount one over the other's pins.
    let above = at.parent().unwrap_or(root);
    std::fs::create_dir_all(above).map_err(|e| LoadError::io("create", above, e))?;
    let lock = std::fs::File::open(above).map_err(|e| LoadError::io("open", above, e))?;
    lock.lock().map_err(|e| LoadError::io("lock", above, e))?;
    if !on_bpffs(directory).map_err(|e| LoadError::io("inspect", directory, e))? {
        std::fs::create_dir_all(at).map_err(|e| LoadError::io("create", at, e))?;
        sys::mount_bpffs(at).map_err(|e| LoadError::io("mount a BPF file system at", at, e))?;
    }
    std::fs::create_dir_all(directory).map_err(|e| LoadError::io("create", directory, e))
}

/// Whether the nearest part of the path that exists lies on a BPF file system.
fn on_bpffs(directory: &Path) -> io::Result<bool> {
    for path in directory.ancestors() {
        if let Some(answer) = sys::is_bpffs(path)? {
            return Ok(answer);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_on_hybrid_and_unified_systems() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            38 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        let unified = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount(unified, "cgroup2"), Some("/sys/fs/cgroup".into()));
        assert_eq!(
            find_mount("1 2 0:3 / /with\\040space rw - cgroup2 x rw", "cgroup2"),
            Some("/with space".into())
        );
        assert_eq!(find_mount("29 22 0:26 / /proc rw - proc proc rw", "cgroup2"), None);
    }
}
