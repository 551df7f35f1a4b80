//! Fuzzing: feeds a part what is nearly right, for as long as one likes. Each target is the part's own example: it
//! needs nothing but stable Rust, and starts from the corpus that is checked in beside it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::process::{self, cargo, output};

/// What can be fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The CNI plugin: standard input and environment
    Cni,
    /// DNS packets
    Dns,
}

/// What to fuzz, and for how long.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// What to fuzz
    #[arg(value_enum)]
    name: Name,
    /// For how long
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
    /// The same seed makes the same inputs; without one, others each time
    #[arg(long)]
    seed: Option<u64>,
    /// Keep inputs with a new kind of answer in this directory (cni)
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Fuzzes. An input that breaks a rule is printed, and is an error.
pub fn run(options: Options) -> Result<()> {
    let target: &[&str] = match options.name {
        Name::Cni => {
            require_root()?;
            &["--release", "--package", "seaway-cni", "--example", "fuzz_cni"]
        }
        // Unoptimised, with every check on.
        Name::Dns => &["--package", "seaway-dns", "--example", "fuzz_wire"],
    };
    let seed = options.seed.unwrap_or_else(|| std::process::id().into());
    process::run(
        cargo()
            .arg("run")
            .args(target)
            .arg("--")
            .args([options.seconds.to_string(), seed.to_string()])
            .args(options.keep.map(std::path::absolute).transpose()?),
    )
}

fn require_root() -> Result<()> {
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("the target makes network namespaces: run it as root");
    }
    Ok(())
}
