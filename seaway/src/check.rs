//! `seaway check`: every kind of path through a cluster, tried with real packets, a row each.
//!
//! A row that cannot be tried is a row that fails. The fixtures live in a namespace of their own, which goes when the
//! check ends.

mod fixture;
mod names;
mod paths;
mod policies;
mod report;
mod updates;
mod vantage;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cli;
use crate::cluster::bringup;
use crate::commands;
use crate::telemetry::say_err;
use fixture::Fixture;
use report::Report;

/// Runs all rows, or those that `--only` names; exit code 1 if one fails.
pub fn run(args: &cli::Check) -> Result<ExitCode> {
    commands::install_crypto();
    let layout = commands::layout(&args.which)?;
    let spec = layout.load_spec()?;
    let spec = spec
        .with_context(|| format!("there is no cluster {:?}: start one with `seaway up`", args.which.name))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = bringup::client(layout.kubeconfig()).await?;
        let mut report = Report::new(args.json, args.only.clone());
        let since = Instant::now();
        let fixture = Fixture::create(client, spec, layout).await?;
        say_err(&format!("fixtures are ready after {:.1} s", since.elapsed().as_secs_f32()));
        paths::rows(&fixture, &mut report).await;
        policies::rows(&fixture, &mut report).await;
        names::rows(&fixture, &mut report).await;
        updates::rows(&fixture, &mut report).await;
        fixture.remove().await?;
        Ok(report.finish())
    })
}
