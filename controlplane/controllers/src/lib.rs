//! The controllers: each makes one kind of object true, from what the API server says to what it should say.
//!
//! Every controller is a pure decision on cached objects between thin edges: informers mark keys as due, a queue
//! hands them out, the decision yields writes. They speak only the Kubernetes API, so each also works against
//! upstream's API server, and each can be switched off. They keep nothing that cannot be read back from the server,
//! so they may be killed and started again at any moment.

mod cluster_dns;
mod config;
mod context;
mod daemonset;
mod deployment;
mod endpoints;
mod endpointslice;
mod garbage;
mod hash;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod owner;
mod pod;
mod replicaset;
mod root_ca;
mod serviceaccount;
mod write;

use std::sync::Arc;

pub use config::{ControllerName, ControllersConfig, ControllersError, UnknownController};
use context::{Caches, Context};
use seaway_client::Recorder;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The name that Events carry.
const COMPONENT: &str = "seaway-controllers";

/// Runs the controllers that are not disabled until `shutdown` is cancelled. Errors of the API server, also that it
/// cannot be reached, are waited out.
pub async fn run(
    client: kube::Client,
    config: ControllersConfig,
    shutdown: CancellationToken,
) -> Result<(), ControllersError> {
    nodeipam::validate(&config)?;
    let mut tasks = JoinSet::new();
    let (recorder, events) = Recorder::new(client.clone(), COMPONENT, shutdown.clone());
    tasks.spawn(events);
    let caches = Caches::new(client.clone(), shutdown.clone());
    let context = Arc::new(Context { client, config, recorder, caches, shutdown });
    let enabled = ControllerName::ALL.into_iter().filter(|name| !context.config.disabled.contains(name));
    let enabled: Vec<_> = enabled.collect();
    for name in &enabled {
        start(*name, &context, &mut tasks);
    }
    // Only now, so that no handler misses a change.
    context.caches.run(&mut tasks);
    info!(controllers = ?enabled, "controllers started");
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            context.shutdown.cancel();
            return Err(ControllersError::Panicked(error));
        }
    }
    Ok(())
}

fn start(name: ControllerName, context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    match name {
        ControllerName::Deployment => deployment::start(context, tasks),
        ControllerName::ReplicaSet => replicaset::start(context, tasks),
        ControllerName::DaemonSet => daemonset::start(context, tasks),
        ControllerName::EndpointSlice => endpointslice::start(context, tasks),
        ControllerName::Endpoints => endpoints::start(context, tasks),
        ControllerName::NodeIpam => nodeipam::start(context, tasks),
        ControllerName::NodeLifecycle => nodelifecycle::start(context, tasks),
        ControllerName::GarbageCollector => garbage::start(context, tasks),
        ControllerName::Namespace => namespace::start(context, tasks),
        ControllerName::ServiceAccount => serviceaccount::start(context, tasks),
        ControllerName::RootCa => root_ca::start(context, tasks),
        ControllerName::ClusterDns => cluster_dns::start(context, tasks),
    }
}
