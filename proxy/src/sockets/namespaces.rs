//! The network namespaces of a node: its own, and those of the processes in its cgroup, which are its pods'.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// No node has more; and whoever makes more does not hold up the rest.
const NAMESPACES_MAX: usize = 4096;

/// A network namespace that can be entered.
#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    /// Moves this thread into it.
    pub(super) fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
    }
}

/// All namespaces of the node, each once, the own one first.
pub(super) fn of_node(cgroup: &Path) -> Vec<Namespace> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let own = std::iter::once("self".to_owned());
    for process in own.chain(processes(cgroup)) {
        // A process that has gone meanwhile has no sockets.
        let Ok(file) = File::open(format!("/proc/{process}/ns/net")) else { continue };
        let Ok(meta) = file.metadata() else { continue };
        if seen.insert((meta.dev(), meta.ino())) {
            found.push(Namespace(file));
        }
        if found.len() == NAMESPACES_MAX {
            break;
        }
    }
    found
}

/// The processes of `cgroup` and of everything below it.
fn processes(cgroup: &Path) -> Vec<String> {
    let mut pids = Vec::new();
    let mut dirs: Vec<PathBuf> = vec![cgroup.to_owned()];
    while let Some(dir) = dirs.pop() {
        let listed = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed.lines().map(str::to_owned));
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    pids
}
