//! Logs go to standard error, one line an event; what a person asked for goes to standard output.

use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;

/// What a process that serves logs. Failed connections are reported by whoever tried, not by the client library too.
const SERVING: &str = "info,kube_client=off";
/// What a command that a person waits for logs: it says the rest itself.
const INTERACTIVE: &str = "error,kube_client=off";

/// Starts logging at `filter`, in the syntax of `RUST_LOG`, else at what suits the command.
pub fn init(filter: Option<&str>, interactive: bool) {
    let default = if interactive { INTERACTIVE } else { SERVING };
    let filter = EnvFilter::try_new(filter.unwrap_or(default)).unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true)
        .init();
}

/// Says on one line what went wrong.
pub fn complain(error: &anyhow::Error) {
    say_err(&format!("seaway: {error:#}"));
}

/// Prints a line for the person who called. A closed pipe is not our error.
pub fn say(line: &str) {
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// Prints a line beside the result: progress, complaints.
pub fn say_err(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}
