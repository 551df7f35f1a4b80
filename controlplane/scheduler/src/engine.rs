//! The scheduling loop: events in, one decision at a time, bindings out.
//!
//! One task owns queue and cluster, so decisions see a consistent state; the writes run beside it. A decision holds its
//! place (it is assumed) from the moment it is made until the server confirms or refuses it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use seaway_client::{Change, EventType, Recorder};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::SchedulerConfig;
use crate::cluster::{Cluster, PodInfo};
use crate::decide::{Chooser, Decision};
use crate::queue::{Queue, Wake};

/// What the informers tell.
pub(crate) enum Event {
    Pod(Change<Pod>),
    Node(Change<Node>),
}

/// How a binding went.
#[derive(Debug, PartialEq, Eq)]
enum Bound {
    /// The pod is on the node.
    Yes,
    /// The pod is gone, or somebody else has bound it: the watch tells.
    Overtaken,
    /// The server refused.
    No,
}

/// The scheduler's state.
pub(crate) struct Engine {
    client: Client,
    config: SchedulerConfig,
    recorder: Recorder,
    cluster: Cluster,
    queue: Queue,
    chooser: Chooser,
    bindings: JoinSet<(Arc<PodInfo>, Bound)>,
    reports: JoinSet<()>,
}

impl Engine {
    pub(crate) fn new(client: Client, config: SchedulerConfig, recorder: Recorder) -> Self {
        Self {
            client,
            recorder,
            cluster: Cluster::default(),
            queue: Queue::new(config.initial_backoff, config.max_backoff),
            chooser: Chooser::new(config.seed),
            bindings: JoinSet::new(),
            reports: JoinSet::new(),
            config,
        }
    }

    /// Schedules for ever.
    pub(crate) async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        loop {
            while let Ok(event) = events.try_recv() {
                self.learn(event);
            }
            while let Some(Ok((pod, bound))) = self.bindings.try_join_next() {
                self.bound(&pod, &bound);
            }
            while self.reports.try_join_next().is_some() {}
            if self.bindings.len() < self.config.parallel_bindings
                && let Some(pod) = self.queue.pop(Instant::now())
            {
                self.schedule(&pod);
                continue;
            }
            let next = self.queue.next_at().filter(|_| self.bindings.len() < self.config.parallel_bindings);
            let timer = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.learn(event),
                    None => return,
                },
                Some(Ok((pod, bound))) = self.bindings.join_next() => self.bound(&pod, &bound),
                () = timer => {}
            }
        }
    }

    fn learn(&mut self, event: Event) {
        match event {
            Event::Node(Change { old, new: Some(new) }) => {
                let helps = old.is_none_or(|old| node_may_help(&old, &new));
                self.cluster.set_node(new);
                if helps {
                    self.queue.wake(Wake::Node, Instant::now());
                }
            }
            Event::Node(Change { old: Some(old), new: None }) => self.cluster.remove_node(&old.name_any()),
            Event::Pod(change) => self.learn_of_pod(change),
            Event::Node(_) => {}
        }
    }

    fn learn_of_pod(&mut self, change: Change<Pod>) {
        // A pod of the same name may be another one.
        let replaced =
            change.old.as_ref().filter(|old| change.new.as_ref().is_none_or(|new| new.uid() != old.uid()));
        if let Some(old) = replaced {
            self.pod_is_gone(&old.uid().unwrap_or_default());
        }
        let Some(new) = change.new else { return };
        let uid = new.uid().unwrap_or_default();
        let spec = new.spec.clone().unwrap_or_default();
        let phase = new.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            self.pod_is_gone(&uid);
            return;
        }
        if let Some(node) = spec.node_name.filter(|node| !node.is_empty()) {
            self.queue.remove(&uid);
            let came = change
                .old
                .as_ref()
                .is_none_or(|old| old.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()));
            self.cluster.place(Arc::new(PodInfo::new(new)), &node);
            if came {
                // Others may wait for it, by affinity.
                self.queue.wake(Wake::Pod, Instant::now());
            }
            return;
        }
        let ours =
            spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == self.config.scheduler_name;
        let gated = spec.scheduling_gates.is_some_and(|gates| !gates.is_empty());
        if !ours || gated || new.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&uid);
        } else if !self.cluster.is_assumed(&uid) {
            self.queue.add(Arc::new(PodInfo::new(new)));
        }
    }

    fn pod_is_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        if self.cluster.remove(uid) {
            self.queue.wake(Wake::Pod, Instant::now());
        }
    }

    fn schedule(&mut self, pod: &Arc<PodInfo>) {
        match self.chooser.decide(pod, &self.cluster) {
            Decision::Node(node) => {
                self.cluster.assume(Arc::clone(pod), &node);
                let (client, recorder, pod) = (self.client.clone(), self.recorder.clone(), Arc::clone(pod));
                self.bindings.spawn(async move {
                    let bound = bind(&client, &pod, &node).await;
                    if bound == Bound::Yes {
                        let message = format!("Successfully assigned {} to {node}", pod.key);
                        recorder.record(pod.pod.as_ref(), EventType::Normal, "Scheduled", message);
                    }
                    (pod, bound)
                });
            }
            Decision::Nowhere { message, depends_on_pods } => {
                self.queue.unschedulable(&pod.uid, depends_on_pods, Instant::now());
                self.recorder.record(
                    pod.pod.as_ref(),
                    EventType::Warning,
                    "FailedScheduling",
                    message.clone(),
                );
                self.report(pod, message);
            }
        }
    }

    /// Says in the pod's status why it has no node.
    fn report(&mut self, pod: &Arc<PodInfo>, message: String) {
        let conditions =
            pod.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let said = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
        let before = said.filter(|condition| condition.status == "False");
        if before.is_some_and(|condition| condition.message.as_ref() == Some(&message)) {
            return;
        }
        let since = before.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0);
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": format!("{:.0}", since.unwrap_or_else(Timestamp::now)),
        });
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let key = pod.key.clone();
        self.reports.spawn(async move {
            let patched =
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            if let Err(error) = patched {
                debug!(pod = %key, %error, "cannot say why the pod has no node");
            }
        });
    }

    fn bound(&mut self, pod: &PodInfo, bound: &Bound) {
        match bound {
            // The assumption holds the place until the watch confirms it.
            Bound::Yes => self.queue.remove(&pod.uid),
            Bound::Overtaken => {
                self.cluster.forget(&pod.uid);
                self.queue.remove(&pod.uid);
            }
            Bound::No => {
                self.cluster.forget(&pod.uid);
                self.queue.failed(&pod.uid, Instant::now());
            }
        }
    }
}

/// Whether a change of a node may let a pod fit that did not fit before.
fn node_may_help(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || allocatable(old) != allocatable(new)
        || crate::filter::is_ready(old) != crate::filter::is_ready(new)
}

/// Binds, and finds out how it went also when the answer got lost.
async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Bound {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let binding = Binding {
        metadata: kube::core::ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..kube::core::ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let answer: Result<serde_json::Value, _> =
        api.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await;
    match answer {
        Ok(_) => Bound::Yes,
        Err(kube::Error::Api(status)) if status.code == 404 => Bound::Overtaken,
        Err(kube::Error::Api(status)) if status.code != 409 && status.code < 500 => {
            warn!(pod = %pod.key, node, %status, "the server refused the binding");
            Bound::No
        }
        Err(error) => {
            debug!(pod = %pod.key, node, %error, "binding in doubt");
            resolve(&api, pod, node).await
        }
    }
}

/// Asks the server what became of the pod, until it answers.
async fn resolve(api: &Api<Pod>, pod: &PodInfo, node: &str) -> Bound {
    let mut wait = Duration::from_millis(50);
    loop {
        match api.get_opt(&pod.key.name).await {
            Ok(None) => return Bound::Overtaken,
            Ok(Some(live)) if live.meta().uid.as_deref() != Some(&pod.uid) => return Bound::Overtaken,
            Ok(Some(live)) => {
                return match live.spec.and_then(|spec| spec.node_name).filter(|name| !name.is_empty()) {
                    Some(bound) if bound == node => Bound::Yes,
                    Some(_) => Bound::Overtaken,
                    None => Bound::No,
                };
            }
            Err(error) => {
                debug!(pod = %pod.key, %error, "cannot ask what became of a binding");
                sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
        }
    }
}
