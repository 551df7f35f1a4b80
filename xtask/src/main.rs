//! The project's own chores: `cargo xtask setup | test | lint | tidy | ebpf | bench | fuzz`.
//!
//! They are Rust, not shell, so that they need nothing but cargo and behave alike on every machine.

#![allow(
    unreachable_pub,
    reason = "nothing links against a binary; `pub` marks what a module offers to the others"
)]

mod bench;
mod ebpf;
mod fuzz;
mod lint;
mod process;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Seaway's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need from Debian's packages
    Setup,
    /// Set up, then run everything: unit, property, privileged and end-to-end tests
    Test {
        /// Only one part of the tests
        #[arg(value_enum)]
        part: Option<test::Part>,
    },
    /// Check formatting and lints
    Lint {
        /// Repair what can be repaired
        #[arg(long)]
        fix: bool,
    },
    /// Check the rules of the house: file heads, dependency arrows, sizes
    Tidy,
    /// Rebuild the eBPF object that is checked in beside the loader
    Ebpf {
        /// Do not write: compare with the object that is checked in
        #[arg(long)]
        check: bool,
    },
    /// Measure against peers, both sides in turn
    Bench(bench::Options),
    /// Feed what nobody should send, for a given time
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::run(),
        Task::Test { part } => test::run(part),
        Task::Lint { fix } => lint::run(fix),
        Task::Tidy => tidy::run(),
        Task::Ebpf { check } => ebpf::build(check),
        Task::Bench(options) => bench::run(options),
        Task::Fuzz(options) => fuzz::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
