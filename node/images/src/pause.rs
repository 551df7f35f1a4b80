//! `seaway/pause`: holds a pod's namespaces open and reaps what is left behind by others, until it is told to stop.

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

use crate::process::{ImageError, block_on, stop_on_signals};

/// Waits for SIGTERM or SIGINT.
pub(crate) fn run() -> Result<(), ImageError> {
    block_on(async {
        let mut child_ended = signal(SignalKind::child())
            .map_err(|source| ImageError::Start { what: "signal handlers", source })?;
        let stop = stop_on_signals()?;
        loop {
            // Several children may have ended behind one signal.
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = child_ended.recv() => {}
            }
        }
    })
}
