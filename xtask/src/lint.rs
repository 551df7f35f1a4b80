//! rustfmt and clippy over the whole workspace, the eBPF programs' formatting included.

use anyhow::Result;

use crate::process::{self, cargo};

/// Checks, or repairs with `fix`.
pub fn run(fix: bool) -> Result<()> {
    let mut fmt = cargo();
    fmt.args(["fmt", "--all"]);
    let mut clippy = cargo();
    clippy.args(["clippy", "--all-targets", "--quiet"]);
    if fix {
        clippy.args(["--fix", "--allow-dirty", "--allow-staged"]);
    } else {
        fmt.arg("--check");
    }
    process::run(&mut fmt)?;
    clippy.args(["--", "-D", "warnings"]);
    process::run(&mut clippy)
}
