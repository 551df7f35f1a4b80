//! Where a process of a local cluster lives: its network namespace and its cgroup.
//!
//! A process moves itself there before it starts its first thread, so that nobody needs code between fork and exec,
//! and a restarted process finds its place by the same flags.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The flags that `up` starts its processes with.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// Move into this network namespace (a file such as /run/netns/NAME) first
    #[arg(long, value_name = "FILE", hide = true)]
    pub netns: Option<PathBuf>,
    /// Move into this cgroup2 directory first
    #[arg(long, value_name = "DIR", hide = true)]
    pub join_cgroup: Option<PathBuf>,
}

impl Place {
    /// Moves the calling thread. Call it before any other thread exists.
    pub fn enter(&self) -> Result<()> {
        if let Some(cgroup) = &self.join_cgroup {
            join_cgroup(cgroup)?;
        }
        if let Some(netns) = &self.netns {
            enter_netns(netns)?;
        }
        Ok(())
    }

    /// The flags that say this place.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(netns) = &self.netns {
            flags.extend(["--netns".to_owned(), netns.display().to_string()]);
        }
        if let Some(cgroup) = &self.join_cgroup {
            flags.extend(["--join-cgroup".to_owned(), cgroup.display().to_string()]);
        }
        flags
    }
}

/// Moves the calling process into a cgroup, which is made where it is missing.
pub fn join_cgroup(cgroup: &Path) -> Result<()> {
    std::fs::create_dir_all(cgroup)
        .with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("cannot join the cgroup {}", cgroup.display()))
}

/// Moves the calling thread into a network namespace.
pub fn enter_netns(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("no network namespace at {}", netns.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter the network namespace {}", netns.display()))
}
