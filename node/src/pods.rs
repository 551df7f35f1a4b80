//! Runs the pods that are bound to this node: watches them, gives each a worker, and clears away what a former
//! incarnation left of pods that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use seaway_model::{ServiceKey, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::runtime::{Runtime, Sandbox};
use worker::Desired;

mod backoff;
pub(crate) mod env;
pub(crate) mod etc;
mod hook;
pub(crate) mod memory;
mod plan;
mod probe;
mod prober;
mod start;
pub(crate) mod status;
mod volumes;
mod worker;
mod writer;

/// Everything that workers share.
pub(crate) struct Runner<R> {
    /// Runs containers.
    pub(crate) runtime: R,
    /// The API.
    pub(crate) client: kube::Client,
    /// The node's name.
    pub(crate) node: String,
    /// Its addresses.
    pub(crate) node_ips: Vec<IpAddr>,
    /// The cluster's zone.
    pub(crate) zone: String,
    /// Fixed nameservers for pods; empty: those of the Service kube-dns.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Events.
    pub(crate) recorder: Recorder,
    /// For service variables and the DNS service's addresses.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Carries the images.
    pub(crate) exe: std::path::PathBuf,
    /// What is told about the pods to whoever asks the agent.
    pub(crate) pods: watch::Sender<BTreeMap<String, Arc<Pod>>>,
}

impl<R: Runtime> Runner<R> {
    /// What name resolution in a new pod is made from. Waits a moment for the first snapshot, so that the first pods
    /// of a new agent get nameservers too.
    async fn dns(&self) -> etc::ClusterDns {
        let mut servers = self.cluster_dns.clone();
        if servers.is_empty() {
            let mut snapshots = self.snapshots.clone();
            let key = ServiceKey::new("kube-system", "kube-dns");
            let known = snapshots.wait_for(|s| s.synced && s.services.contains_key(&key));
            if let Ok(Ok(snapshot)) = tokio::time::timeout(Duration::from_secs(2), known).await {
                servers = snapshot.services.get(&key).map(|s| s.cluster_ips.clone()).unwrap_or_default();
            }
        }
        let node = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        etc::ClusterDns { servers, zone: self.zone.clone(), node }
    }
}

/// Runs pods until `shutdown`; they go on running then.
pub(crate) async fn run<R: Runtime>(runner: Arc<Runner<R>>, shutdown: CancellationToken) {
    let adopted = runner.runtime.adopt().await;
    let adopted = adopted.into_iter().map(|sandbox| (sandbox.meta.pod.uid.clone(), sandbox)).collect();
    let mut pods = Pods {
        runner: Arc::clone(&runner),
        adopted,
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        listed: None,
        shutdown: shutdown.clone(),
    };
    let api: Api<Pod> = Api::all(runner.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", runner.node));
    let mut events = watcher(api, config).modify(slim).default_backoff().boxed();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            event = events.next() => match event {
                Some(Ok(event)) => pods.take(event),
                Some(Err(error)) => tracing::warn!(%error, "cannot watch the pods of this node; trying again"),
                None => break,
            },
            Some(ended) = pods.tasks.join_next() => pods.ended(ended.ok()),
        }
    }
    while pods.tasks.join_next().await.is_some() {}
}

/// Drops what is large and of no use here.
fn slim(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

struct Pods<R> {
    runner: Arc<Runner<R>>,
    /// Sandboxes of the former incarnation that no pod has claimed yet.
    adopted: BTreeMap<String, Sandbox>,
    workers: BTreeMap<String, watch::Sender<Desired>>,
    tasks: JoinSet<String>,
    /// The pods of the list that is coming in.
    listed: Option<BTreeSet<String>>,
    shutdown: CancellationToken,
}

impl<R: Runtime> Pods<R> {
    fn take(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed = Some(BTreeSet::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, &pod.metadata.uid) {
                    listed.insert(uid.clone());
                }
                self.apply(pod);
            }
            watcher::Event::InitDone => self.listed(),
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => {
                if let Some(uid) = pod.metadata.uid {
                    self.gone(&uid);
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Arc::new(pod);
        self.runner.pods.send_modify(|pods| {
            pods.insert(uid.clone(), Arc::clone(&pod));
        });
        let desired = Desired { pod, gone: false };
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_replace(desired);
            return;
        }
        let (sender, receiver) = watch::channel(desired);
        self.workers.insert(uid.clone(), sender);
        let sandbox = self.adopted.remove(&uid);
        let worker = worker::run(Arc::clone(&self.runner), receiver, sandbox, self.shutdown.clone());
        self.tasks.spawn(async move {
            worker.await;
            uid
        });
    }

    fn gone(&mut self, uid: &str) {
        self.runner.pods.send_modify(|pods| {
            pods.remove(uid);
        });
        if let Some(worker) = self.workers.get(uid) {
            worker.send_modify(|desired| desired.gone = true);
        }
    }

    /// The list is complete: whatever is not in it is gone, workers' pods and adopted sandboxes alike.
    fn listed(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let gone: Vec<String> = self.workers.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.gone(&uid);
        }
        for (uid, sandbox) in std::mem::take(&mut self.adopted) {
            tracing::info!(pod = %sandbox.meta.pod.name, %uid, "clearing away a pod that is gone");
            let runner = Arc::clone(&self.runner);
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move {
                shutdown.run_until_cancelled(clear(&runner, &sandbox)).await;
                uid
            });
        }
    }

    fn ended(&mut self, uid: Option<String>) {
        let Some(uid) = uid else {
            tracing::error!(
                "a pod's worker panicked; its pod is looked at again after a restart of the agent"
            );
            return;
        };
        self.workers.remove(&uid);
    }
}

async fn clear<R: Runtime>(runner: &Runner<R>, sandbox: &Sandbox) {
    let mut delay = Duration::from_millis(100);
    let uid = &sandbox.meta.pod.uid;
    loop {
        let cleared = match runner.runtime.remove(sandbox).await {
            Ok(()) => runner.runtime.purge(uid).await,
            error => error,
        };
        let Err(error) = cleared else { return };
        tracing::warn!(%error, %uid, "cannot clear a pod away; trying again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(30));
    }
}
