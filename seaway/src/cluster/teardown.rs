//! Takes a cluster away, whatever state it is in: processes, mounts, pins, namespaces, cgroups, files, in that order.
//!
//! Everything is found by the cluster's name, never by what some process remembered, so that it works after any
//! crash; each step is tried even where an earlier one failed, and every failure is reported.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

use super::spec::NETNS_DIR;
use super::{Layout, bpffs};
use crate::cli::STATES;

const KILL_DEADLINE: Duration = Duration::from_secs(10);

type Step = fn(&Layout) -> Result<()>;

/// Removes all of it. Says whether there was anything.
pub fn remove(layout: &Layout) -> Result<bool> {
    let existed = exists(layout);
    let steps: [(&str, Step); 5] = [
        ("processes", kill_all),
        ("mounts", unmount_all),
        ("eBPF pins", bpffs::remove),
        ("cgroups", |layout| remove_cgroups(&layout.cgroup())),
        ("state directory", |layout| remove_tree(layout.root())),
    ];
    let mut failures = Vec::new();
    for (what, step) in steps {
        if let Err(error) = step(layout) {
            failures.push(format!("{what}: {error:#}"));
        }
    }
    remove_empty_parents(layout);
    if failures.is_empty() {
        Ok(existed)
    } else {
        bail!("some of it is left:\n  - {}", failures.join("\n  - "))
    }
}

/// Anything of the cluster is there.
pub fn exists(layout: &Layout) -> bool {
    layout.spec_file().exists()
        || layout.cgroup().exists()
        || layout.bpffs().exists()
        || namespaces(layout).is_ok_and(|found| !found.is_empty())
}

/// Kills every process of the cluster's cgroup subtree at once, forks in flight included (cgroup v2, cgroup.kill).
fn kill_all(layout: &Layout) -> Result<()> {
    let cgroup = layout.cgroup();
    match fs::write(cgroup.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot kill the processes in {}", cgroup.display()))?,
    }
    let deadline = Instant::now() + KILL_DEADLINE;
    while populated(&cgroup) {
        if Instant::now() > deadline {
            bail!(
                "processes in {} are still alive {} s after their kill",
                cgroup.display(),
                KILL_DEADLINE.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
}

/// Unmounts what is mounted below the state directory, and the namespaces; with its last user gone the kernel frees
/// a namespace and every link in it.
fn unmount_all(layout: &Layout) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    for point in mounts_below(&mounts, layout.root()) {
        unmount(&point, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    for netns in namespaces(layout)? {
        match unmount(&netns, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", netns.display())),
        }
        fs::remove_file(&netns).with_context(|| format!("cannot remove {}", netns.display()))?;
    }
    Ok(())
}

/// Mount points below `dir`, the deepest first.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

fn namespaces(layout: &Layout) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {NETNS_DIR}")),
    };
    Ok(entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| layout.owns_netns(&name.to_string_lossy())))
        .collect())
}

fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Control files cannot be deleted; a cgroup goes by rmdir, children first.
fn remove_cgroups(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("cannot remove the cgroup {}", dir.display()))
}

/// The directories that all clusters share go with the last of them; where one is still in use that fails, as it should.
fn remove_empty_parents(layout: &Layout) {
    for shared in [layout.cgroup(), layout.root().to_owned()] {
        if let Some(parent) = shared.parent() {
            drop(fs::remove_dir(parent));
        }
    }
    // Of a directory that the user named, what lies above is the user's; the default one lies in one of ours.
    if layout.root().parent() == Some(Path::new(STATES))
        && let Some(ours) = Path::new(STATES).parent()
    {
        drop(fs::remove_dir(ours));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_directory_count_the_deepest_first() {
        let info = "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / /state/a rw - tmpfs x rw\n3 2 0:3 / /state/a/b rw - bpf x rw\n\
                    4 1 0:4 / /state-of/else rw - tmpfs x rw\n";
        assert_eq!(mounts_below(info, Path::new("/state")), [Path::new("/state/a/b"), Path::new("/state/a")]);
    }
}
