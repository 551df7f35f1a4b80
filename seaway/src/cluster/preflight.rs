//! What a machine must offer before `up` makes anything: each thing that is missing gets one line that says what
//! to do.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Space that a fresh cluster needs for logs, store and state, beside its copy of the binary.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// Checks everything and reports all that is missing, not only the first.
pub fn check(state_root: &Path, listen: &[SocketAddr]) -> Result<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        bail!("`up` makes network namespaces and loads eBPF programs: run it as root (sudo)");
    }
    let mut missing = Vec::new();
    let cgroup2 = cgroup2_mount();
    if let Err(error) = &cgroup2 {
        missing.push(format!("{error:#}"));
    }
    missing.extend(kernel_gaps());
    missing.extend(free_space(state_root).err().map(|error| format!("{error:#}")));
    for addr in listen {
        if let Err(error) = TcpListener::bind(addr) {
            missing.push(format!(
                "{addr} cannot be listened at ({error}): choose another with --api-listen or --publish"
            ));
        }
    }
    if missing.is_empty() {
        cgroup2
    } else {
        bail!("this machine is not ready:\n  - {}", missing.join("\n  - "))
    }
}

/// The directory where cgroup2 is mounted; on hybrid systems that is not /sys/fs/cgroup.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    mount_of(&mounts, "cgroup2").context(
        "no cgroup2 file system is mounted: `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`",
    )
}

/// The first mount point of a file system type in the text of mountinfo (proc(5)).
fn mount_of(mountinfo: &str, fs_type: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some(fs_type))
            .then(|| before.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    })
}

fn kernel_gaps() -> Vec<String> {
    let needs = [
        ("/proc/self/ns/net", "network namespaces (CONFIG_NET_NS)"),
        ("/sys/fs/bpf", "eBPF (CONFIG_BPF_SYSCALL)"),
        ("/proc/sys/net/ipv6", "IPv6 (boot without ipv6.disable=1)"),
    ];
    let absent = needs.iter().filter(|(file, _)| !Path::new(file).exists());
    absent.map(|(file, what)| format!("the kernel lacks {what}: {file} does not exist")).collect()
}

fn free_space(state_root: &Path) -> Result<()> {
    fs::create_dir_all(state_root).with_context(|| format!("cannot make {}", state_root.display()))?;
    let stat = rustix::fs::statvfs(state_root)
        .with_context(|| format!("cannot ask for free space at {}", state_root.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let binary = std::env::current_exe().and_then(fs::metadata).map_or(0, |file| file.len());
    let needed = MIN_FREE_BYTES + binary;
    if free < needed {
        bail!(
            "{} has {} MiB free, {} MiB are needed: make room or choose another --state-dir",
            state_root.display(),
            free >> 20,
            needed >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_by_type_not_by_place() {
        let hybrid = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      30 24 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(hybrid, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_of(hybrid, "bpf"), None);
    }
}
