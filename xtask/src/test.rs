//! Everything that must hold, in one command. As root nothing is skipped.

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::process::{self, cargo, output, target_dir};
use crate::{ebpf, setup, tidy};

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Pure tests: units, properties, tables, documentation examples. Need no privilege
    Unit,
    /// Tests of each room against the real kernel, in namespaces of their own
    Privileged,
    /// The whole cluster through `seaway up` and kubectl
    E2e,
}

const E2E: &str = "seaway-e2e";

/// Sets the machine up and runs one part, or all.
pub fn run(part: Option<Part>) -> Result<()> {
    let wanted = |this: Part| part.is_none_or(|part| part == this);
    if wanted(Part::Privileged) || wanted(Part::E2e) {
        require_root()?;
        setup::run()?;
    }
    if part.is_none() {
        tidy::run()?;
        ebpf::build(true)?;
    }
    if wanted(Part::Unit) {
        process::run(cargo().args(["test", "--lib", "--bins"]))?;
        process::run(cargo().args(["test", "--doc"]))?;
    }
    if wanted(Part::Privileged) {
        process::run(cargo().args(["build", "--bins", "--examples"]))?;
        process::run(
            cargo()
                .env("KUBECTL", setup::kubectl()?)
                .envs(fresh_object(part))
                .args(["test", "--no-fail-fast", "--test", "*", "--workspace"])
                .args(not(&["seaway-ebpf-programs", E2E])),
        )?;
    }
    if wanted(Part::E2e) {
        process::run(cargo().args(["build", "--bins", "--examples"]))?;
        process::run(
            cargo()
                .env("SEAWAY_BIN", target_dir().join("debug/seaway"))
                .env("KUBECTL", setup::kubectl()?)
                .args(["test", "--package", E2E, "--", "--test-threads=1"]),
        )?;
    }
    Ok(())
}

/// The object that [`ebpf::build`] has just made, where it was part of this run: tests are to run on it.
fn fresh_object(part: Option<Part>) -> Option<(&'static str, std::path::PathBuf)> {
    part.is_none().then(|| ("SEAWAY_BPF_OBJECT", process::root().join(ebpf::FRESH)))
}

fn not(packages: &[&'static str]) -> Vec<&'static str> {
    packages.iter().flat_map(|package| ["--exclude", *package]).collect()
}

fn require_root() -> Result<()> {
    let uid = output(std::process::Command::new("id").arg("-u"))?;
    if uid.trim() != "0" {
        bail!(
            "the privileged and end-to-end tests make network namespaces and load eBPF programs: run them as \
             root, or run `cargo xtask test unit` for those that need no privilege"
        );
    }
    Ok(())
}
