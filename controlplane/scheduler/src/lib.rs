//! The scheduler: gives each pending pod a node, through the pod's `binding` subresource.
//!
//! It is a client of the Kubernetes API like any other and can be switched off to run upstream's instead.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// What the scheduler is told at start.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Pods are scheduled when `spec.schedulerName` is this.
    pub scheduler_name: String,
    /// Seeds the choice between nodes of the same score, so that a run can be repeated.
    pub seed: u64,
    /// How many bindings may be in flight at once.
    pub parallel_bindings: usize,
    /// The first wait after a failed attempt; doubles up to `max_backoff`.
    pub initial_backoff: Duration,
    /// The longest wait after a failed attempt.
    pub max_backoff: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            seed: 0,
            parallel_bindings: 64,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
        }
    }
}

/// Why the scheduler ended other than by its shutdown token.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// A task of the scheduler panicked.
    #[error("a task of the scheduler panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Schedules pods until `shutdown` is cancelled.
pub async fn run(
    client: kube::Client,
    config: SchedulerConfig,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    drop((client, config));
    shutdown.cancelled().await;
    Ok(())
}
