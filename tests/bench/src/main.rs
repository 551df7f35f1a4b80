//! `seaway-bench NAME`: measures Seaway against its peers, both sides in turn in one run.
//!
//! What is measured happens in namespaces that the run makes and removes. The process that one starts only watches
//! over the one that measures, so that nothing stays when that one is interrupted, killed or panics.

#![allow(
    unreachable_pub,
    reason = "nothing links against a binary; `pub` marks what a module offers to the others"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures of measurements: a rounding of the sixteenth digit is no loss"
)]

mod clock;
mod cluster;
mod cni;
mod dns;
mod driver;
mod objects;
mod row;
mod rules;
mod service;
mod stats;
mod supervise;
mod sync;
mod worker;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use supervise::measure;
use worker::Role;

#[derive(Parser)]
#[command(name = "seaway-bench", about = "Measures Seaway against its peers. Needs root.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connections, round trips and throughput through Services
    Service(Options),
    /// Cold sync, one change, and memory, from the API server to packets
    Sync(Options),
    /// What an answer costs, beside other servers with the same records
    Dns(Options),
    /// ADD and DEL of the CNI plugin, and packets between pods
    Cni(Options),
    /// A process of a bench: started by it in a namespace, not by people
    #[command(subcommand, hide = true)]
    Worker(Role),
}

/// How to measure.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Fewer rounds and smaller sizes: ends within 45 s
    #[arg(long)]
    quick: bool,
    /// One JSON object per row
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Worker(role) => worker::run(role).map(|()| true),
        Command::Service(options) => measure("service", options, service::run),
        Command::Sync(options) => measure("sync", options, sync::run),
        Command::Dns(options) => measure("dns", options, dns::run),
        Command::Cni(options) => measure("cni", options, cni::run),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("seaway-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
