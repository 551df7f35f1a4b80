//! The controllers: each makes one kind of object true, from what the API server says to what it should say.
//!
//! Every controller is a pure decision on cached objects between thin edges: informers mark keys as dirty, a queue
//! hands them out, the decision yields writes. They speak only the Kubernetes API, so each also works against
//! upstream's API server, and each can be switched off.

mod config;

pub use config::{ControllerName, ControllersConfig, ControllersError, UnknownController};

use tokio_util::sync::CancellationToken;

/// Runs the controllers that are not disabled until `shutdown` is cancelled.
pub async fn run(
    client: kube::Client,
    config: ControllersConfig,
    shutdown: CancellationToken,
) -> Result<(), ControllersError> {
    drop((client, config));
    shutdown.cancelled().await;
    Ok(())
}
