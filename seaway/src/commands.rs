//! One function per command: flags in, exit code out. What they do lies in the crates and modules they call.

mod dns;
mod node;
mod probe;
mod proxy;
mod server;
mod status;
mod up;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command};
pub use up::layout;

/// Marks an error as the caller's: a wrong flag or value, nothing was tried.
#[derive(Debug, thiserror::Error)]
#[error("wrong usage")]
pub struct Usage;

/// Runs one command to its end.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up::up(args),
        Command::Down(which) => up::down(&which),
        Command::Check(args) => crate::check::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Services(args) => status::services(&args),
        Command::Server(args) => server::run(*args),
        Command::Node(args) => node::run(*args),
        Command::Proxy(args) => proxy::run(*args),
        Command::Dns(args) => dns::run(args),
        Command::Probe(args) => probe::run(&args),
        Command::Supervise { cluster_of } => up::supervise(&cluster_of),
        Command::UserspaceWorker { directory } => {
            seaway_node::serve_as_worker(&directory, env!("CARGO_PKG_VERSION"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::DnsStandby { directory } => {
            seaway_node::serve_as_standby(&directory)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Image { image, args } => Ok(seaway_images::run(&image, &args)),
        Command::PodShim { args } => Ok(seaway_node::shim::main(&args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "seaway", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// TLS in this process is ring's, whoever asks.
pub fn install_crypto() {
    // An error says that it is installed already, which is what we want.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// Runs a long-lived part until it ends or the process is told to stop, which it then does in good order.
fn serve<F, E>(threads: usize, part: impl FnOnce(CancellationToken) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error>,
{
    seaway_node::share_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(8)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signal(shutdown.clone())?;
        part(shutdown).await.map_err(Into::into)
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    done.map(|()| ExitCode::SUCCESS)
}

fn stop_on_signal(shutdown: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}
