//! The root file system of a container: a small tmpfs that holds the binary, the system's shared libraries
//! (read-only), the pod's own files in /etc and its volumes. Nothing of the node's files is visible beyond that.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::protocol::{BindMount, ContainerSpec};

/// Where the binary stands in every container.
pub(crate) const BINARY: &str = "/seaway";

/// Directories with shared libraries, for a dynamically linked binary.
const LIBRARIES: [&str; 6] = ["usr/lib", "usr/lib64", "lib", "lib64", "usr/libexec", "nix/store"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub(crate) struct RootError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, RootError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, RootError> {
        self.map_err(|source| RootError { action, path: path.to_owned(), source: source.into() })
    }
}

/// Builds the root on `root` (an empty directory) and moves this process into it. The process must have a mount
/// namespace of its own.
pub(crate) fn enter(root: &Path, spec: &ContainerSpec) -> Result<(), RootError> {
    let slash = Path::new("/");
    mount_change(slash, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("detach", slash)?;
    let options = c"size=64m,mode=755";
    mount("tmpfs", root, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)
        .context("mount tmpfs on", root)?;
    for dir in ["proc", "sys", "dev/shm", "tmp", "etc", "run", "root", "var/tmp", "usr"] {
        make_dir(&root.join(dir))?;
    }
    for dir in ["tmp", "var/tmp", "dev/shm"] {
        let path = root.join(dir);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).context("open up", &path)?;
    }
    system(root)?;
    for library in LIBRARIES {
        mirror(root, library)?;
    }
    etc(root)?;
    bind_file(&binary(spec), &inside(root, Path::new(BINARY)), true)?;
    for volume in &spec.mounts {
        bind_volume(root, volume)?;
    }
    pivot(root)
}

/// /proc, /sys and /dev.
fn system(root: &Path) -> Result<(), RootError> {
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let proc = root.join("proc");
    mount("proc", &proc, "proc", hardened, None).context("mount proc on", &proc)?;
    let sys = root.join("sys");
    mount("sysfs", &sys, "sysfs", hardened | MountFlags::RDONLY, None).context("mount sysfs on", &sys)?;
    for device in DEVICES {
        let source = Path::new("/dev").join(device);
        if source.exists() {
            bind_file(&source, &root.join("dev").join(device), false)?;
        }
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let link = root.join("dev").join(name);
        symlink(target, &link).context("link", &link)?;
    }
    Ok(())
}

/// Repeats a directory of the node read-only, or the symbolic link that it is.
fn mirror(root: &Path, name: &str) -> Result<(), RootError> {
    let source = Path::new("/").join(name);
    let Ok(metadata) = fs::symlink_metadata(&source) else { return Ok(()) };
    let target = root.join(name);
    if metadata.is_symlink() {
        let to = fs::read_link(&source).context("read", &source)?;
        return symlink(to, &target).context("link", &target);
    }
    if !metadata.is_dir() {
        return Ok(());
    }
    make_dir(&target)?;
    mount_bind_recursive(&source, &target).context("mount", &target)?;
    mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "").context("protect", &target)
}

/// The files that name resolution and libraries look for.
fn etc(root: &Path) -> Result<(), RootError> {
    let etc = root.join("etc");
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ] {
        let path = etc.join(name);
        fs::write(&path, text).context("write", &path)?;
    }
    for name in ["ld.so.cache", "ld.so.conf"] {
        let source = Path::new("/etc").join(name);
        if source.is_file() {
            bind_file(&source, &etc.join(name), true)?;
        }
    }
    Ok(())
}

/// The binary that runs now, even if its file was replaced since; else the one that the agent names.
fn binary(spec: &ContainerSpec) -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    match fs::read_link(&running) {
        Ok(path) if path.is_file() => path,
        _ => spec.exe.clone(),
    }
}

fn bind_volume(root: &Path, volume: &BindMount) -> Result<(), RootError> {
    let target = inside(root, &volume.path);
    if volume.source.is_dir() {
        make_dir(&target)?;
        mount_bind(&volume.source, &target).context("mount", &target)?;
        if volume.read_only {
            mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "").context("protect", &target)?;
        }
        return Ok(());
    }
    bind_file(&volume.source, &target, volume.read_only)
}

fn bind_file(source: &Path, target: &Path, read_only: bool) -> Result<(), RootError> {
    if let Some(parent) = target.parent() {
        make_dir(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(target).context("create", target)?;
    mount_bind(source, target).context("mount", target)?;
    if read_only {
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").context("protect", target)?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), RootError> {
    fs::create_dir_all(path).context("create", path)
}

/// `path` below `root`, without a way out through `..`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    let mut joined = root.to_owned();
    for part in path.components() {
        if let std::path::Component::Normal(name) = part {
            joined.push(name);
        }
    }
    joined
}

fn pivot(root: &Path) -> Result<(), RootError> {
    std::env::set_current_dir(root).context("enter", root)?;
    let dot = Path::new(".");
    rustix::process::pivot_root(dot, dot).context("make the root of", root)?;
    unmount(dot, UnmountFlags::DETACH).context("leave the old root for", root)?;
    std::env::set_current_dir("/").context("enter", root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_root() {
        for (path, want) in
            [("/etc/x", "/r/etc/x"), ("../../etc", "/r/etc"), ("/a/../b", "/r/a/b"), ("/", "/r")]
        {
            assert_eq!(inside(Path::new("/r"), Path::new(path)), Path::new(want));
        }
    }
}
