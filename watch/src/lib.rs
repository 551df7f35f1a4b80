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
use store::{Change, Event, Store};

/// How many pieces of news one snapshot takes at most, so that a long list of changes does not hold back the first.
const COALESCE_MAX: usize = 1000;
/// Pages and events that wait to be taken in. The smaller, the less memory a list takes beside what is kept of it.
const WAITING_MAX: usize = 4;
/// How long an EndpointSlice may be without its Service before that is told, at least; and after which it is tried again to
/// list all pods where that was denied.
const LOOK_AROUND_INTERVAL: Duration = Duration::from_secs(30);

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
    /// Whether the addresses of every node's pods are part of the snapshot, at the moment; `None`: never.
    pub all_pods: Option<watch::Receiver<bool>>,
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
async fn publish(client: &kube::Client, sender: watch::Sender<Arc<Snapshot>>, mut options: Options) {
    let metrics = options.metrics.clone().unwrap_or_else(|| Metrics::new(&prometheus::Registry::new()));
    let mut denied = false;
    let mut pods = PodScope::wanted(&mut options, &mut denied);
    let mut store = Store::waiting_for(pods != PodScope::None, options.namespaces);
    let (out, mut news) = mpsc::channel(WAITING_MAX);
    let reports = Arc::new(Reports::new(metrics.clone(), options.on_invalid.clone()));
    let own_node = options.own_node.clone();
    let start = |sources: &mut JoinSet<()>, kind, field_selector| {
        let intake = Intake::new(kind, metrics.clone(), Arc::clone(&reports), own_node.clone());
        sources
            .spawn(Source { client: client.clone(), kind, field_selector, intake, out: out.clone() }.run());
    };
    // They end with these.
    let (mut sources, mut pod_source) = (JoinSet::new(), JoinSet::new());
    for kind in kinds(&options) {
        start(&mut sources, kind, None);
    }
    if pods != PodScope::None {
        store.list_pods_anew(pods == PodScope::All);
        start(&mut pod_source, Kind::Pod, pods.selector());
    }
    let mut orphans = Orphans::default();
    let mut look_around = tokio::time::interval(LOOK_AROUND_INTERVAL);
    loop {
        tokio::select! {
            Some(events) = news.recv() => store.apply_all(events),
            _ = look_around.tick() => {
                orphans.look(&store, &reports);
                denied = false;
            }
            () = changed(&mut options.all_pods) => {}
        }
        for _ in 1..COALESCE_MAX {
            let Ok(events) = news.try_recv() else { break };
            store.apply_all(events);
        }
        denied |= store.all_pods_denied();
        let wanted = PodScope::wanted(&mut options, &mut denied);
        if wanted != pods {
            pods = wanted;
            // What it has told by now is of the former list.
            pod_source.shutdown().await;
            while let Ok(events) = news.try_recv() {
                store.apply_all(events);
            }
            store.list_pods_anew(pods == PodScope::All);
            if pods == PodScope::None {
                store.apply_all(vec![Event::Pod(Change::ListBegins), Event::Pod(Change::ListEnds)]);
            } else {
                start(&mut pod_source, Kind::Pod, pods.selector());
            }
        }
        if let Some(snapshot) = store.publish() {
            metrics.published(snapshot.version);
            sender.send_replace(snapshot);
        }
    }
}

/// Whose pods are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PodScope {
    None,
    /// Those of one node.
    Node(String),
    All,
}

impl PodScope {
    /// As is asked for at the moment. Who may not list all of them has those of the own node meanwhile.
    fn wanted(options: &mut Options, denied: &mut bool) -> Self {
        let all = options.all_pods.as_mut().is_some_and(|all| *all.borrow_and_update());
        *denied &= all;
        match &options.own_node {
            None if all => Self::All,
            Some(_) if all && !*denied => Self::All,
            Some(name) => Self::Node(name.clone()),
            None => Self::None,
        }
    }

    fn selector(&self) -> Option<String> {
        if let Self::Node(name) = self { Some(format!("spec.nodeName={name}")) } else { None }
    }
}

/// Something else is wanted, or never will be.
async fn changed(wanted: &mut Option<watch::Receiver<bool>>) {
    if let Some(wanted) = wanted
        && wanted.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// What is always listed, whole.
fn kinds(options: &Options) -> Vec<Kind> {
    let mut kinds = vec![Kind::Service, Kind::EndpointSlice, Kind::Node];
    kinds.extend(options.namespaces.then_some(Kind::Namespace));
    kinds
}
