//! Measuring: builds the bench in release and runs it, with the peers that it needs from Debian's packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::process::{self, cargo, output, target_dir};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Connections, round trips and streams through Services
    Service,
    /// From the API server to packets: cold, one change, memory
    Sync,
    /// DNS answers, beside other servers with the same records
    Dns,
}

impl Name {
    /// Packages of the peers, and a file that each brings.
    fn peers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Service | Self::Sync => {
                &[("nftables", "/usr/sbin/nft"), ("iptables", "/usr/sbin/iptables-restore")]
            }
            Self::Dns => &[
                ("dnsperf", "/usr/bin/dnsperf"),
                ("unbound", "/usr/sbin/unbound"),
                ("knot", "/usr/sbin/knotd"),
                ("util-linux", "/usr/bin/taskset"),
            ],
        }
    }
}

/// What to measure, and how.
#[derive(Debug, Clone, Copy, Args)]
pub struct Options {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// Fewer rounds and smaller sizes: ends within 45 s, the build not counted
    #[arg(long)]
    quick: bool,
    /// One JSON object per row
    #[arg(long)]
    json: bool,
}

/// Sets up, builds, measures.
pub fn run(options: Options) -> Result<()> {
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("a bench makes network namespaces and loads eBPF programs: run it as root");
    }
    install_peers(options.name)?;
    process::run(cargo().args(["build", "--release", "--package", "seaway-bench"]))?;
    let mut bench = Command::new(target_dir().join("release/seaway-bench"));
    bench.arg(match options.name {
        Name::Service => "service",
        Name::Sync => "sync",
        Name::Dns => "dns",
    });
    bench.args(options.quick.then_some("--quick")).args(options.json.then_some("--json"));
    process::run(&mut bench)
}

fn install_peers(name: Name) -> Result<()> {
    let missing = name.peers().iter().filter(|(_, file)| !Path::new(file).exists());
    let missing: Vec<&str> = missing.map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    process::run(Command::new("apt-get").args(["update", "-q"]))?;
    process::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(&missing),
    )
    .with_context(|| format!("cannot install {}", missing.join(" ")))
}
