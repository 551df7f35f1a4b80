//! Fuzzing: builds a target in release and runs it for a given time.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::process::{self, cargo, output};

/// What can be fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The CNI plugin: standard input and environment
    Cni,
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
    /// Where the random numbers begin; the same seed does the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep inputs with a new kind of answer in this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<std::path::PathBuf>,
}

/// Builds and runs.
pub fn run(options: Options) -> Result<()> {
    if output(std::process::Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("the target makes network namespaces: run it as root");
    }
    let (package, example) = match options.name {
        Name::Cni => ("seaway-cni", "fuzz_cni"),
    };
    let mut target = cargo();
    target.args(["run", "--release", "--package", package, "--example", example, "--"]);
    target
        .args([options.seconds.to_string(), options.seed.to_string()])
        .args(options.keep.map(std::path::absolute).transpose()?);
    process::run(&mut target)
}
