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
    /// ADD and DEL of the CNI plugin, packets between pods, thousands of nodes
    Cni,
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
            Self::Cni => &[
                ("containernetworking-plugins", "/usr/lib/cni/bridge"),
                ("iproute2", "/usr/sbin/ip"),
                ("nftables", "/usr/sbin/nft"),
                ("util-linux", "/usr/bin/taskset"),
            ],
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
    if options.name == Name::Cni {
        // As a release carries it: see seaway/build.rs.
        process::run(
            cargo()
                .args([
                    "rustc",
                    "--profile",
                    "plugin",
                    "--package",
                    "seaway-cni",
                    "--bin",
                    "seaway-cni",
                    "--",
                ])
                .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static"]),
        )?;
    }
    let mut bench = Command::new(target_dir().join("release/seaway-bench"));
    bench.arg(match options.name {
        Name::Service => "service",
        Name::Sync => "sync",
        Name::Dns => "dns",
        Name::Cni => "cni",
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
