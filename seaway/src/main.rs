//! The one binary: `seaway` on the command line, the processes of a cluster, and, called under the name
//! `seaway-cni`, the CNI plugin.

#![allow(
    unreachable_pub,
    reason = "nothing links against a binary; `pub` marks what a module offers to the others"
)]

mod check;
mod cli;
mod cluster;
mod commands;
#[cfg(test)]
mod deploy;
mod place;
mod plugin;
mod telemetry;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Usage errors, as sysexits.h numbers them; clap uses the same for flags that it refuses.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    if called_as("seaway-cni") {
        return seaway_cni::main();
    }
    let cli = cli::Cli::parse();
    let filter = cli.log.as_deref().or(cli.command.log_filter());
    telemetry::init(filter, cli.command.is_interactive());
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            telemetry::complain(&error);
            if error.is::<commands::Usage>() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn called_as(name: &str) -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|arg0| Path::new(&arg0).file_name().is_some_and(|file| file == name))
}
