//! Kubernetes API to model: lists and watches Services, EndpointSlices and Nodes, and publishes each state as one
//! immutable [`Snapshot`]. It is the only writer.
//!
//! Objects are converted the moment they arrive, so that nothing of them is kept that no data plane acts on
//! (managedFields, annotations, pod templates). Events that arrive together are published together; a single one is
//! published at once.

pub mod convert;
mod intake;
mod metrics;
pub mod store;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use intake::OnInvalid;
use intake::{Incoming, Intake};
pub use metrics::Metrics;
use store::Store;

/// Objects per page of a list.
const PAGE_SIZE: u32 = 1000;
/// How many events one snapshot takes at most, so that a long list of changes does not hold back the first.
const COALESCE_MAX: usize = 10_000;

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
            () = publish(streams(&client, &options), sender, options) => {}
        }
    });
    (receiver, task)
}

/// Feeds the store and publishes what it makes of it, for ever.
async fn publish(
    mut incoming: BoxStream<'static, Incoming>,
    sender: watch::Sender<Arc<Snapshot>>,
    options: Options,
) {
    let metrics = options.metrics.unwrap_or_else(|| Metrics::new(&prometheus::Registry::new()));
    let mut store = Store::waiting_for(options.own_node.is_some() || options.all_pods, options.namespaces);
    let mut intake = Intake::new(metrics.clone(), options.on_invalid, options.own_node);
    while let Some(first) = incoming.next().await {
        if let Some(event) = intake.convert(first) {
            store.apply(event);
        }
        for _ in 1..COALESCE_MAX {
            let Some(Some(item)) = incoming.next().now_or_never() else { break };
            if let Some(event) = intake.convert(item) {
                store.apply(event);
            }
        }
        if let Some(snapshot) = store.publish() {
            metrics.published(snapshot.version);
            sender.send_replace(snapshot);
        }
    }
}

fn streams(client: &kube::Client, options: &Options) -> BoxStream<'static, Incoming> {
    let all = watcher::Config::default();
    let services = watched::<Service>(client, all.clone()).map(Incoming::Service).boxed();
    let slices = watched::<EndpointSlice>(client, all.clone()).map(Incoming::Slice).boxed();
    let nodes = watched::<Node>(client, all.clone()).map(Incoming::Node).boxed();
    let mut streams = vec![services, slices, nodes];
    if options.namespaces {
        streams.push(watched::<Namespace>(client, all.clone()).map(Incoming::Namespace).boxed());
    }
    if options.all_pods {
        streams.push(watched::<Pod>(client, all).map(Incoming::Pod).boxed());
    } else if let Some(name) = &options.own_node {
        let own = all.fields(&format!("spec.nodeName={name}"));
        streams.push(watched::<Pod>(client, own).map(Incoming::Pod).boxed());
    }
    stream::select_all(streams).boxed()
}

fn watched<K>(
    client: &kube::Client,
    config: watcher::Config,
) -> BoxStream<'static, watcher::Result<watcher::Event<K>>>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let api = Api::<K>::all(client.clone());
    let begin = move || watcher(api.clone(), config.clone().page_size(PAGE_SIZE)).boxed();
    let events = stream::unfold((begin(), begin), |(mut events, begin)| async move {
        let item = events.next().await?;
        if history_is_gone(&item) {
            events = begin();
        }
        Some((item, (events, begin)))
    });
    events.backoff(Retry::default()).boxed()
}

/// Whether the server cannot go on from where the watch was: everything has to be listed anew. The watcher sees to
/// that when it is told so in an event of the watch, but not when the request for the watch is answered with it.
fn history_is_gone<K>(item: &watcher::Result<watcher::Event<K>>) -> bool {
    const BAD_REQUEST: u16 = 400;
    const GONE: u16 = 410;
    /// "Too large resource version": the server has less history than we have seen.
    const TIMEOUT: u16 = 504;
    match item {
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => {
            matches!(status.code, BAD_REQUEST | GONE | TIMEOUT)
        }
        _ => false,
    }
}

/// Waits between attempts: short at first, since most interruptions are a server that restarts.
#[derive(Debug, Default)]
struct Retry {
    attempts: u32,
}

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = RETRY_MIN.saturating_mul(1 << self.attempts.min(10)).min(RETRY_MAX);
        self.attempts += 1;
        Some(wait)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.attempts = 0;
    }
}
