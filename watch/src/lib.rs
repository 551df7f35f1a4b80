//! Kubernetes API to model: lists and watches Services, EndpointSlices and Nodes, and publishes each state as one
//! immutable [`Snapshot`]. It is the only writer.
//!
//! Objects are converted the moment they arrive, so that nothing of them is kept that no data plane acts on
//! (managedFields, annotations, pod templates). Events that arrive together are published together; a single one is
//! published at once.

pub mod convert;
mod intake;
mod metrics;
mod requests;
mod source;
pub mod store;
pub mod wire;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use seaway_model::Snapshot;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub use intake::OnInvalid;
use intake::{Intake, Orphans, Reports};
pub use metrics::Metrics;
pub use requests::{Answered, OnAnswered, observed_client};
use source::{Kind, Source};
use store::Store;

/// How many pieces of news one snapshot takes at most, so that a long list of changes does not hold back the first.
const COALESCE_MAX: usize = 1000;
/// Pages and events that wait to be taken in. The smaller, the less memory a list takes beside what is kept of it.
const WAITING_MAX: usize = 4;
/// How long an EndpointSlice may be without its Service before that is told, at least.
const ORPHANS_INTERVAL: Duration = Duration::from_secs(30);

/// Watches the cluster that `client` speaks to until `shutdown`. Never gives up: errors are logged and retried with
/// back-off, and the last known state stays published meanwhile.
pub fn spawn(
    client: kube::Client,
    shutdown: CancellationToken,
) -> (watch::Receiver<Arc<Snapshot>>, JoinHandle<()>) {
    spawn_for(client, Options::default(), shutdown)
}

/// What a watch may be told beyond whom to ask.
#[derive(Clone, Default)]
pub struct Options {
    /// Counts here; `None`: unseen.
    pub metrics: Option<Metrics>,
    /// The own node: the host ports and the addresses of its pods are part of the snapshot.
    pub own_node: Option<String>,
    /// The addresses of every node's pods are part of the snapshot.
    pub all_pods: bool,
    /// The names of the namespaces are part of the snapshot.
    pub namespaces: bool,
    /// Is told about objects that are left out.
    pub on_invalid: Option<OnInvalid>,
}

impl Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("own_node", &self.own_node)
            .field("all_pods", &self.all_pods)
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

/// As [`spawn`], counting into `metrics`.
pub fn spawn_with(
    client: kube::Client,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> (watch::Receiver<Arc<Snapshot>>, JoinHandle<()>) {
    spawn_for(client, Options { metrics: Some(metrics), ..Options::default() }, shutdown)
}

/// As [`spawn`], with `options`.
pub fn spawn_for(
    client: kube::Client,
    options: Options,
    shutdown: CancellationToken,
) -> (watch::Receiver<Arc<Snapshot>>, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let task = tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = publish(&client, sender, options) => {}
        }
    });
    (receiver, task)
}

/// Feeds the store and publishes what it makes of it, for ever.
async fn publish(client: &kube::Client, sender: watch::Sender<Arc<Snapshot>>, options: Options) {
    let metrics = options.metrics.clone().unwrap_or_else(|| Metrics::new(&prometheus::Registry::new()));
    let mut store = Store::waiting_for(options.own_node.is_some() || options.all_pods, options.namespaces);
    let (out, mut news) = mpsc::channel(WAITING_MAX);
    let reports = Arc::new(Reports::new(metrics.clone(), options.on_invalid.clone()));
    // They end with this.
    let mut sources = JoinSet::new();
    for (kind, field_selector) in kinds(&options) {
        let intake = Intake::new(kind, metrics.clone(), Arc::clone(&reports), options.own_node.clone());
        let source = Source { client: client.clone(), kind, field_selector, intake, out: out.clone() };
        sources.spawn(source.run());
    }
    let mut orphans = Orphans::default();
    let mut look_for_orphans = tokio::time::interval(ORPHANS_INTERVAL);
    loop {
        tokio::select! {
            Some(events) = news.recv() => store.apply_all(events),
            _ = look_for_orphans.tick() => orphans.look(&store, &reports),
        }
        for _ in 1..COALESCE_MAX {
            let Ok(events) = news.try_recv() else { break };
            store.apply_all(events);
        }
        if let Some(snapshot) = store.publish() {
            metrics.published(snapshot.version);
            sender.send_replace(snapshot);
        }
    }
}

/// What is listed, and which objects of it.
fn kinds(options: &Options) -> Vec<(Kind, Option<String>)> {
    let mut kinds = vec![(Kind::Service, None), (Kind::EndpointSlice, None), (Kind::Node, None)];
    if options.namespaces {
        kinds.push((Kind::Namespace, None));
    }
    if options.all_pods {
        kinds.push((Kind::Pod, None));
    } else if let Some(name) = &options.own_node {
        kinds.push((Kind::Pod, Some(format!("spec.nodeName={name}"))));
    }
    kinds
}
