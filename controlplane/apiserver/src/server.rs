//! Starts and stops the server.

use tokio_util::sync::CancellationToken;

use crate::{PkiError, ServerConfig};

/// Why a server cannot start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Keys or certificates.
    #[error("cannot prepare the certificates")]
    Pki(#[from] PkiError),
}

/// Serves until `shutdown`.
pub async fn run(config: ServerConfig, shutdown: CancellationToken) -> Result<(), ServerError> {
    drop(config);
    shutdown.cancelled().await;
    Ok(())
}
