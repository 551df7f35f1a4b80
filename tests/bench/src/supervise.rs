//! Watches over the process that measures, and removes what it leaves when it does not end well.

use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use seaway_lab::Lab;
use tokio::signal::unix::{SignalKind, signal};

use crate::Options;
use crate::row::Report;

/// Tells the inner process what it is.
const INSIDE: &str = "SEAWAY_BENCH_INSIDE";

/// Runs a bench in a process of its own and cleans up behind it. The inner process does the measuring.
pub fn measure(
    name: &'static str,
    options: Options,
    bench: fn(Options, &mut Report) -> Result<()>,
) -> Result<bool> {
    if !is_inside() {
        return run();
    }
    let mut report = Report::new(name, options.json);
    bench(options, &mut report)?;
    report.finish();
    Ok(true)
}

/// Whether this is the process that measures.
fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program anew to measure, and waits for it. Returns whether it did well.
fn run() -> Result<bool> {
    if !rustix::process::geteuid().is_root() {
        bail!("a bench makes network namespaces and loads eBPF programs: run it as root");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(watch_over())?;
    if status.is_some_and(|status| status.success()) {
        return Ok(true);
    }
    // A lab removes what runs of processes that are gone have left.
    drop(Lab::new(0));
    match status {
        Some(_) => Ok(false),
        None => bail!("interrupted; everything that the run made is removed"),
    }
}

/// Waits for the inner process. `None`: it was ended because a signal asked for it.
async fn watch_over() -> Result<Option<ExitStatus>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let program = std::env::current_exe().context("where is this program?")?;
    let mut child = tokio::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the process that measures")?;
    tokio::select! {
        status = child.wait() => return Ok(Some(status?)),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    child.kill().await?;
    Ok(None)
}
