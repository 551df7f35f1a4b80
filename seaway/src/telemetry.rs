//! Logs go to standard error, one line an event; what a person asked for goes to standard output.

use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;

/// Starts logging at `filter` (`info` where none is given), in the syntax of `RUST_LOG`.
pub fn init(filter: Option<&str>) {
    let filter = EnvFilter::try_new(filter.unwrap_or("info")).unwrap_or_else(|_| EnvFilter::new("info"));
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
