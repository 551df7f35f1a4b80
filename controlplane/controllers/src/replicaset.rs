//! ReplicaSets → pods: as many as the spec says, adopted where they match, the least valuable deleted first.

mod decide;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use seaway_client::{Change, EventType, Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::owner::{self, Claim};
use crate::{pod, write};

/// The most pods made or deleted in one go.
const BURST: usize = 500;

struct ReplicaSets {
    context: Arc<Context>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let (sets, pods) = (context.caches.replica_sets(), context.caches.pods());
    sets.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|set| queue.add(Key::of(set.as_ref())))
    });
    pods.on_change({
        let (queue, sets) = (Arc::clone(&queue), Arc::clone(&sets));
        move |change| mark(change, &sets, &queue)
    });
    let controller = Arc::new(ReplicaSets { context: Arc::clone(context), sets, pods });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    work("replicaset", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

/// Marks the ReplicaSets that a change of a pod concerns.
fn mark(change: &Change<Pod>, sets: &Informer<ReplicaSet>, queue: &Queue<Key>) {
    for side in change.sides() {
        let namespace = side.namespace().unwrap_or_default();
        if let Some(by) = owner::controller_of(&side.metadata) {
            if by.kind == "ReplicaSet" {
                queue.add(Key::new(namespace, &by.name));
            }
        } else if side.metadata.deletion_timestamp.is_none() {
            for set in sets.store().in_namespace(&namespace) {
                let name = set.name_any();
                let matches = owner::compile(&set.spec.clone().unwrap_or_default().selector, &name)
                    .is_ok_and(|selector| owner::selects(&selector, &side.metadata));
                if matches {
                    queue.add(Key::new(&*namespace, name));
                }
            }
        }
    }
}

impl ReplicaSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, WorkError> {
        self.sets.wait_until_synced().await;
        self.pods.wait_until_synced().await;
        let Some(set) = self.sets.store().get(key) else { return Ok(None) };
        let api = self.context.namespaced::<Pod>(&key.namespace);
        let pods = self.claim(&set, &api).await?;
        let mut failure = None;
        let mut outcome = Ok(());
        if set.metadata.deletion_timestamp.is_none() {
            let siblings = self.siblings(&set);
            match decide::scale(&set, &pods, &siblings) {
                decide::Scale::Keep => {}
                decide::Scale::Create(count) => outcome = self.create(&set, &api, count.min(BURST)).await,
                decide::Scale::Delete(victims) => outcome = self.delete(&set, &api, &victims).await,
            }
            failure =
                outcome.as_ref().err().map(|error| (pods.len() < decide::wanted(&set), error.to_string()));
        }
        let again = self.write_status(key, failure).await?;
        outcome.map(|()| again)
    }

    /// The pods that are the set's own, after adopting and releasing.
    async fn claim(&self, set: &Arc<ReplicaSet>, api: &Api<Pod>) -> Result<Vec<Arc<Pod>>, WorkError> {
        let uid = set.uid().unwrap_or_default();
        let namespace = set.namespace().unwrap_or_default();
        let spec = set.spec.clone().unwrap_or_default();
        let selector = owner::compile(&spec.selector, &format!("replicaset {}", set.name_any()))?;
        let mut own = Vec::new();
        let mut candidates = self.pods.store().indexed(&owner::owned_by(&uid));
        candidates.extend(self.pods.store().indexed(&owner::orphans_in(&namespace)));
        let mut checked = false;
        for candidate in candidates {
            match owner::claim(&set.metadata, &selector, &candidate.metadata) {
                Claim::Keep => own.push(candidate),
                Claim::Ignore => {}
                Claim::Release => {
                    let patch = owner::release(&candidate.metadata, &uid);
                    write::merge(api, &self.pods, &candidate.name_any(), &patch).await?;
                }
                Claim::Adopt if pod::is_terminal(&candidate) => {}
                Claim::Adopt => {
                    if !checked && !self.is_still_there(set).await? {
                        return Ok(own);
                    }
                    checked = true;
                    let patch = owner::adoption(&candidate.metadata, owner::reference(set.as_ref()));
                    write::merge(api, &self.pods, &candidate.name_any(), &patch).await?;
                    own.extend(self.pods.store().get(&Key::of(candidate.as_ref())));
                }
            }
        }
        Ok(own)
    }

    /// Asks the server, not the cache: a set that is gone must not adopt.
    async fn is_still_there(&self, set: &ReplicaSet) -> Result<bool, WorkError> {
        let api = self.context.namespaced::<ReplicaSet>(&set.namespace().unwrap_or_default());
        let live =
            api.get_opt(&set.name_any()).await.map_err(WorkError::api("read replicaset", &set.name_any()))?;
        Ok(live.is_some_and(|live| live.uid() == set.uid() && live.metadata.deletion_timestamp.is_none()))
    }

    /// The active pods of all sets of the same owner: where they crowd a node, pods are deleted first.
    fn siblings(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let sets = match owner::controller_of(&set.metadata) {
            Some(by) => self.sets.store().indexed(&owner::owned_by(&by.uid)),
            None => vec![Arc::new(set.clone())],
        };
        let uids = sets.iter().filter_map(|set| set.uid());
        uids.flat_map(|uid| self.pods.store().indexed(&owner::owned_by(&uid)))
            .filter(|pod| pod::is_active(pod))
            .collect()
    }

    /// Creates pods in batches of 1, 2, 4, …, so that a template that is refused is refused once, not 500 times.
    async fn create(&self, set: &ReplicaSet, api: &Api<Pod>, count: usize) -> Result<(), WorkError> {
        let namespace = set.namespace().unwrap_or_default();
        let template = set.spec.clone().unwrap_or_default().template.unwrap_or_default();
        let wanted = pod::from_template(&template, &namespace, owner::reference(set));
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let creations = (0..size).map(|_| write::create(api, &self.pods, &wanted));
            let mut failed = None;
            for created in futures::future::join_all(creations).await {
                match created {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.name_any());
                        self.context.recorder.record(set, EventType::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                self.failed(set, "FailedCreate", "creating", &error);
                return Err(error);
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, set: &ReplicaSet, api: &Api<Pod>, victims: &[Arc<Pod>]) -> Result<(), WorkError> {
        let victims = &victims[..victims.len().min(BURST)];
        let deletions =
            victims.iter().map(|pod| write::delete(api, &self.pods, pod.as_ref(), DeleteParams::default()));
        for (pod, deleted) in victims.iter().zip(futures::future::join_all(deletions).await) {
            if let Err(error) = deleted {
                self.failed(set, "FailedDelete", "deleting", &error);
                return Err(error);
            }
            let message = format!("Deleted pod: {}", pod.name_any());
            self.context.recorder.record(set, EventType::Normal, "SuccessfulDelete", message);
        }
        Ok(())
    }

    fn failed(&self, set: &ReplicaSet, reason: &str, doing: &str, error: &WorkError) {
        let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        let message = format!("Error {doing}: {source}");
        self.context.recorder.record(set, EventType::Warning, reason, message);
    }

    /// Counts again after the writes and says when a pod becomes available without anything else happening.
    async fn write_status(
        &self,
        key: &Key,
        failure: Option<(bool, String)>,
    ) -> Result<Option<Duration>, WorkError> {
        let Some(set) = self.sets.store().get(key) else { return Ok(None) };
        let own = self.pods.store().indexed(&owner::owned_by(&set.uid().unwrap_or_default()));
        let now = Timestamp::now();
        let (mut status, again) = decide::status(&set, &own, now);
        let kept = set.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let old: Vec<_> = kept.filter(|condition| condition.type_ == "ReplicaFailure").cloned().collect();
        status.conditions = failure
            .map(|(creating, message)| match old.into_iter().next() {
                Some(condition) => condition,
                None => ReplicaSetCondition {
                    type_: "ReplicaFailure".to_owned(),
                    status: "True".to_owned(),
                    reason: Some(if creating { "FailedCreate" } else { "FailedDelete" }.to_owned()),
                    message: Some(message),
                    last_transition_time: Some(Time(now)),
                },
            })
            .map(|condition| vec![condition]);
        if set.status.as_ref() != Some(&status) {
            let mut changed = set.as_ref().clone();
            changed.status = Some(status);
            let api = self.context.namespaced::<ReplicaSet>(&key.namespace);
            write::replace_status(&api, &self.sets, &changed).await?;
        }
        Ok(again)
    }
}
