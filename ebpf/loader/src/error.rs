//! What can go wrong between this crate and the kernel, maps aside.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::ProgramError;
use thiserror::Error;

use crate::MapError;

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
    /// No cgroup2 hierarchy.
    #[error("no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")]
    NoCgroup2,
    /// The object could not be loaded: too old a kernel, a lack of privilege (CAP_BPF, CAP_NET_ADMIN), or maps of
    /// another shape under our names.
    #[error("cannot load the eBPF object with maps at {}", bpffs.display())]
    Object {
        /// Where the maps are pinned.
        bpffs: PathBuf,
        /// aya's answer.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The object lacks a program or map, or it is of another type.
    #[error("the eBPF object has no {kind} {name:?}")]
    Missing {
        /// "program" or "map".
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel refused a program.
    #[error("cannot load program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// aya's answer, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup's path, or the device's name.
        target: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The network namespace would not tell its cookie.
    #[error("cannot read the network namespace's cookie (SO_NETNS_COOKIE)")]
    NetnsCookie(#[source] io::Error),
    /// A packet could not be run through a program.
    #[error("cannot run a packet through {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A map operation failed.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl LoadError {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.into(), source }
    }
}
