//! The scheduler: gives each pending pod a node, through the pod's `binding` subresource.
//!
//! It is a client of the Kubernetes API like any other and can be switched off to run upstream's instead.

mod cluster;
mod decide;
mod engine;
mod filter;
mod interpod;
mod queue;
mod resources;
mod score;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, Event};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use seaway_client::{Informer, Recorder, Store};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

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

/// Schedules pods until `shutdown` is cancelled. Errors of the API server, also that it cannot be reached, are waited
/// out. It may be killed at any moment: all it knows is on the server.
pub async fn run(
    client: kube::Client,
    config: SchedulerConfig,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let (sender, events) = mpsc::unbounded_channel();
    let pods: Informer<Pod> = Informer::new(Api::all(client.clone()), Store::default());
    let nodes: Informer<Node> = Informer::new(Api::all(client.clone()), Store::default());
    pods.on_change({
        let sender = sender.clone();
        // The receiver lives as long as the scheduler.
        move |change| drop(sender.send(Event::Pod(change.clone())))
    });
    nodes.on_change(move |change| drop(sender.send(Event::Node(change.clone()))));
    let (pods, nodes) = (Arc::new(pods), Arc::new(nodes));
    let mut tasks = JoinSet::new();
    let (recorder, writing) = Recorder::new(client.clone(), "default-scheduler", shutdown.clone());
    tasks.spawn(writing);
    tasks.spawn(Arc::clone(&pods).run(shutdown.clone()));
    tasks.spawn(Arc::clone(&nodes).run(shutdown.clone()));
    info!(name = config.scheduler_name, "scheduler started");
    let ended = shutdown.clone();
    tasks.spawn(async move {
        let scheduling = async {
            // Both lists first: a node without its pods looks empty, a cluster without its nodes full.
            pods.wait_until_synced().await;
            nodes.wait_until_synced().await;
            Engine::new(client, config, recorder).run(events).await;
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = scheduling => {}
        }
    });
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            shutdown.cancel();
            return Err(SchedulerError::Panicked(error));
        }
    }
    Ok(())
}
