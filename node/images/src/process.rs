//! What every built-in image shares as a process: its errors, its small runtime, and how it is asked to stop.

use std::error::Error;
use std::io::{self, Write as _};
use std::net::SocketAddr;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Why an image's process ended badly.
#[derive(Debug, Error)]
pub(crate) enum ImageError {
    #[error("argument {argument:?}: {why}")]
    Argument { argument: String, why: String },
    #[error("cannot listen on {protocol} {address}")]
    Listen {
        protocol: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot start: {what}")]
    Start {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// The process's exit code: 2 for a mistake of the caller, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        if matches!(self, Self::Argument { .. }) { 2 } else { 1 }
    }
}

/// The error with its sources on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

/// Writes a line to stdout. Nobody may be reading any more: that is no reason to end.
pub(crate) fn say(line: &str) {
    writeln!(io::stdout(), "{line}").ok();
}

/// Runs `work` on a runtime of one thread: a pod of these needs little memory.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, ImageError>>) -> Result<T, ImageError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ImageError::Start { what: "the runtime", source })?
        .block_on(work)
}

/// A token that SIGTERM or SIGINT cancels. The handlers are in place when this returns: also as process 1, where the
/// default would be to ignore them.
pub(crate) fn stop_on_signals() -> Result<CancellationToken, ImageError> {
    let listen = |kind| signal(kind).map_err(|source| ImageError::Start { what: "signal handlers", source });
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(token)
}
