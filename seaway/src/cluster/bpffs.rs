//! The bpffs in which programs and maps are pinned. Where the system has mounted none, the first `up` does, and the last
//! `down` takes it away again.
//!
//! That it is ours is recorded in the file system itself, as a directory: several clusters share it, and a record kept
//! anywhere else could outlive it, so that one which the system mounted later would be taken for ours.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Layout;
use super::spec::BPFFS;

/// `BPF_FS_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0xcafe_4a11;
/// There when `up` mounted the file system.
const OURS: &str = "mounted-by-seaway-up";
/// What the kernel itself puts into every bpffs, where it is built so.
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];

/// Mounts bpffs where the system has not, and makes the cluster's directory in it.
pub fn prepare(layout: &Layout) -> Result<()> {
    let mount_point = Path::new(BPFFS);
    let _turn = turn()?;
    if !is_bpffs(mount_point) {
        mount("bpf", mount_point, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("cannot mount bpffs at {BPFFS}"))?;
        fs::create_dir(mount_point.join(OURS)).context("cannot make a directory in bpffs")?;
    }
    let dir = layout.bpffs();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Removes the cluster's directory, and the mount if it was ours and nothing else is in it.
pub fn remove(layout: &Layout) -> Result<()> {
    let _turn = turn()?;
    match fs::remove_dir_all(layout.bpffs()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", layout.bpffs().display()));
        }
        _ => {}
    }
    if let Some(shared) = layout.bpffs().parent() {
        // It stays as long as another cluster is in it.
        drop(fs::remove_dir(shared));
    }
    let mount_point = Path::new(BPFFS);
    if !is_bpffs(mount_point) || !is_only_ours(mount_point) {
        return Ok(());
    }
    match unmount(mount_point, UnmountFlags::empty()) {
        // Somebody looks at it: then it is in use, and stays.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {BPFFS}")),
    }
}

/// One at a time mounts and unmounts: the directory that bpffs is mounted below is there on every machine.
fn turn() -> Result<File> {
    let dir = Path::new(BPFFS).parent().unwrap_or(Path::new("/"));
    let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {}", dir.display()))?;
    Ok(file)
}

fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|kind| kind == MAGIC))
}

/// Marked as ours, with nothing of anybody in it.
fn is_only_ours(mount_point: &Path) -> bool {
    let Ok(entries) = fs::read_dir(mount_point) else { return false };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    is_nobodys(&names)
}

fn is_nobodys(names: &[String]) -> bool {
    names.iter().any(|name| name == OURS)
        && names.iter().all(|name| name == OURS || PRELOADED.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_ours_that_nobody_uses_goes() {
        let nobodys =
            |names: &[&str]| is_nobodys(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert!(nobodys(&[OURS]));
        assert!(nobodys(&["maps.debug", OURS, "progs.debug"]));
        assert!(!nobodys(&[]), "the system's own");
        assert!(!nobodys(&[OURS, "seaway"]), "another cluster is in it");
        assert!(!nobodys(&[OURS, "cilium"]), "somebody pinned something since");
    }
}
