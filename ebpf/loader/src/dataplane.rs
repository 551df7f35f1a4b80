//! The loaded programs of one node: opened, attached, replaced.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::MapError;

/// How many entries the maps take. Applies to maps that are created; pinned ones keep their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Frontends.
    pub services: u32,
    /// Backends of all slices.
    pub backends: u32,
    /// Source ranges.
    pub source_ranges: u32,
    /// Clients of services with session affinity.
    pub affinity: u32,
    /// Sockets.
    pub sockets: u32,
    /// Connection entries, two per connection.
    pub flows: u32,
    /// Fragmented datagrams.
    pub fragments: u32,
}

/// What went wrong while loading or attaching.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or directory operation failed.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// A map operation failed.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Where a program is attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// The program's name.
    pub program: &'static str,
    /// A device's name, or the cgroup.
    pub target: String,
}

/// The programs and maps of one node.
#[derive(Debug)]
pub struct Dataplane {
    _private: (),
}

impl Dataplane {
    /// Mounts a bpffs at `bpffs` or above if there is none, adopts or creates the pinned maps there, loads the programs.
    /// Programs that are attached already are not touched before the `attach_*` calls.
    pub fn open(bpffs: &Path, capacities: &Capacities) -> Result<Self, LoadError> {
        let _ = (bpffs, capacities);
        Err(LoadError::Io { op: "open", path: bpffs.into(), source: io::ErrorKind::Unsupported.into() })
    }

    /// The maps; implements [`crate::ServiceMaps`]. May be cloned and sent to another thread.
    pub fn maps(&self) -> crate::KernelMaps {
        crate::KernelMaps { _private: () }
    }

    /// Attaches the socket programs to a cgroup2 directory, or replaces those that are there.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), LoadError> {
        let _ = cgroup;
        Ok(())
    }

    /// Makes exactly these devices carry the packet programs: attaches to new ones (and to ones that came back),
    /// replaces on those that have them, detaches from all others. Devices that do not exist are returned.
    pub fn attach_devices(&mut self, devices: &[String]) -> Result<Vec<String>, LoadError> {
        let _ = devices;
        Ok(Vec::new())
    }

    /// What is attached now, as the pinned links say.
    pub fn attached(&self) -> Result<Vec<Attached>, LoadError> {
        Ok(Vec::new())
    }
}
