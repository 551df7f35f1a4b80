//! Feeding packets that are nearly right to a part, for as long as one likes. The fuzzer is the part's own example: it needs
//! nothing but stable Rust, and starts from the corpus that is checked in. It runs unoptimised, with every check on.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::process::{self, cargo};

/// What can be fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// DNS packets
    Dns,
}

/// What to fuzz, and for how long.
#[derive(Debug, Clone, Copy, Args)]
pub struct Options {
    /// What to fuzz
    #[arg(value_enum)]
    name: Name,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The same seed makes the same packets; without one, another each time
    #[arg(long)]
    seed: Option<u64>,
}

/// Fuzzes. A packet that breaks a rule is printed, and is an error.
pub fn run(options: Options) -> Result<()> {
    let Name::Dns = options.name;
    let seed = options.seed.unwrap_or_else(|| std::process::id().into());
    process::run(
        cargo()
            .args(["run", "--package", "seaway-dns", "--example", "fuzz_wire", "--"])
            .args([options.seconds.to_string(), seed.to_string()]),
    )
}
