//! DaemonSets → one pod on each node that qualifies, replaced node by node when the template changes.

mod decide;
mod history;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use seaway_client::{Change, EventType, Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::owner::{self, Claim};
use crate::write;

/// The most pods made or deleted in one go.
const BURST: usize = 250;
/// How long a node waits for a new pod after one failed there.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

struct DaemonSets {
    context: Arc<Context>,
    sets: Arc<Informer<DaemonSet>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let caches = &context.caches;
    let (sets, pods, nodes) = (caches.daemon_sets(), caches.pods(), caches.nodes());
    sets.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|one| queue.add(Key::of(one.as_ref())))
    });
    pods.on_change({
        let (queue, sets) = (Arc::clone(&queue), Arc::clone(&sets));
        move |change| mark(change, &sets, &queue)
    });
    nodes.on_change({
        let (queue, sets) = (Arc::clone(&queue), Arc::clone(&sets));
        move |change| {
            // Heartbeats change nothing here.
            let same =
                change.old.as_ref().zip(change.new.as_ref()).is_some_and(|(old, new)| {
                    old.spec == new.spec && old.metadata.labels == new.metadata.labels
                });
            if !same {
                sets.store().all().iter().for_each(|set| queue.add(Key::of(set.as_ref())));
            }
        }
    });
    let controller = Arc::new(DaemonSets { context: Arc::clone(context), sets, pods, nodes });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    work("daemonset", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

fn mark(change: &Change<Pod>, sets: &Informer<DaemonSet>, queue: &Queue<Key>) {
    for pod in change.sides() {
        let namespace = pod.namespace().unwrap_or_default();
        match owner::controller_of(&pod.metadata) {
            Some(by) if by.kind == "DaemonSet" => queue.add(Key::new(namespace, &by.name)),
            Some(_) => {}
            None => {
                sets.store().in_namespace(&namespace).iter().for_each(|set| queue.add(Key::of(set.as_ref())));
            }
        }
    }
}

impl DaemonSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, WorkError> {
        self.sets.wait_until_synced().await;
        self.pods.wait_until_synced().await;
        self.nodes.wait_until_synced().await;
        let Some(set) = self.sets.store().get(key) else { return Ok(None) };
        let api = self.context.namespaced::<Pod>(&key.namespace);
        let pods = self.claim(&set, &api).await?;
        let nodes = self.nodes.store().all();
        let now = Timestamp::now();
        let hash = decide::hash_of(&set);
        let mut outcome = Ok(());
        let mut failed_before = false;
        if set.metadata.deletion_timestamp.is_none() {
            let plan = decide::plan(&set, &nodes, &pods, &hash, now);
            failed_before = !plan.failed.is_empty();
            for failed in &plan.failed {
                let message = format!(
                    "Found failed daemon pod {} on its node, will try to kill it",
                    Key::of(failed.as_ref())
                );
                self.context.recorder.record(set.as_ref(), EventType::Warning, "FailedDaemonPod", message);
            }
            outcome = self.apply(&set, &api, plan, &hash).await;
            if set.status.as_ref().and_then(|status| status.observed_generation) != set.metadata.generation {
                history::keep(&self.context, &set, &pods, &hash).await?;
            }
        }
        let again = self.write_status(key, &hash).await?;
        outcome?;
        let pause = failed_before.then_some(AFTER_FAILURE);
        Ok(again.into_iter().chain(pause).min())
    }

    async fn claim(&self, set: &Arc<DaemonSet>, api: &Api<Pod>) -> Result<Vec<Arc<Pod>>, WorkError> {
        let (uid, namespace) = (set.uid().unwrap_or_default(), set.namespace().unwrap_or_default());
        let spec = set.spec.clone().unwrap_or_default();
        let selector = owner::compile(&spec.selector, &format!("daemonset {}", set.name_any()))?;
        let mut own = Vec::new();
        let mut candidates = self.pods.store().indexed(&owner::owned_by(&uid));
        candidates.extend(self.pods.store().indexed(&owner::orphans_in(&namespace)));
        for candidate in candidates {
            let name = candidate.name_any();
            match owner::claim(&set.metadata, &selector, &candidate.metadata) {
                Claim::Keep => own.push(candidate),
                Claim::Ignore => {}
                Claim::Release => {
                    write::merge(api, &self.pods, &name, &owner::release(&candidate.metadata, &uid)).await?;
                }
                Claim::Adopt => {
                    let live =
                        self.context.namespaced::<DaemonSet>(&namespace).get_opt(&set.name_any()).await;
                    let live = live.map_err(WorkError::api("read daemonset", &set.name_any()))?;
                    if live.is_none_or(|live| {
                        live.uid() != set.uid() || live.metadata.deletion_timestamp.is_some()
                    }) {
                        return Ok(own);
                    }
                    let patch = owner::adoption(&candidate.metadata, owner::reference(set.as_ref()));
                    write::merge(api, &self.pods, &name, &patch).await?;
                    own.extend(self.pods.store().get(&Key::of(candidate.as_ref())));
                }
            }
        }
        Ok(own)
    }

    async fn apply(
        &self,
        set: &DaemonSet,
        api: &Api<Pod>,
        plan: decide::Plan,
        hash: &str,
    ) -> Result<(), WorkError> {
        let recorder = &self.context.recorder;
        let pods: Vec<Pod> =
            plan.create.iter().take(BURST).map(|node| decide::pod(set, node, hash)).collect();
        let creations = join_all(pods.iter().map(|pod| write::create(api, &self.pods, pod))).await;
        let going: Vec<_> = plan.delete.iter().chain(&plan.failed).take(BURST).collect();
        let deletions =
            going.iter().map(|pod| write::delete(api, &self.pods, pod.as_ref(), DeleteParams::default()));
        let deletions = join_all(deletions).await;
        let mut outcome = Ok(());
        for created in creations {
            match created {
                Ok(pod) => {
                    let message = format!("Created pod: {}", pod.name_any());
                    recorder.record(set, EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) => {
                    let source =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    recorder.record(
                        set,
                        EventType::Warning,
                        "FailedCreate",
                        format!("Error creating: {source}"),
                    );
                    outcome = Err(error);
                }
            }
        }
        for (pod, deleted) in going.iter().zip(deletions) {
            deleted?;
            let message = format!("Deleted pod: {}", pod.name_any());
            recorder.record(set, EventType::Normal, "SuccessfulDelete", message);
        }
        outcome
    }

    async fn write_status(&self, key: &Key, hash: &str) -> Result<Option<Duration>, WorkError> {
        let Some(set) = self.sets.store().get(key) else { return Ok(None) };
        let own = self.pods.store().indexed(&owner::owned_by(&set.uid().unwrap_or_default()));
        let (status, again) = decide::status(&set, &self.nodes.store().all(), &own, hash, Timestamp::now());
        if set.status.as_ref() != Some(&status) {
            let mut changed = set.as_ref().clone();
            changed.status = Some(status);
            let api = self.context.namespaced::<DaemonSet>(&key.namespace);
            write::replace_status(&api, &self.sets, &changed).await?;
        }
        Ok(again)
    }
}
