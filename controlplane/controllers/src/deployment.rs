//! Deployments → ReplicaSets: one per template, rolled over, rolled back, paused, scaled in proportion.

mod conditions;
mod plan;
mod revision;
mod scaling;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use seaway_client::{Change, EventType, Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::owner::{self, Claim};
use crate::{pod, write};
use plan::{Action, View};

struct Deployments {
    context: Arc<Context>,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let caches = &context.caches;
    let (deployments, sets, pods) = (caches.deployments(), caches.replica_sets(), caches.pods());
    deployments.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|one| queue.add(Key::of(one.as_ref())))
    });
    sets.on_change({
        let (queue, deployments) = (Arc::clone(&queue), Arc::clone(&deployments));
        move |change| mark(change, &deployments, &queue)
    });
    pods.on_change({
        let (queue, sets) = (Arc::clone(&queue), Arc::clone(&sets));
        move |change| mark_recreation(change, &sets, &queue)
    });
    let controller = Arc::new(Deployments { context: Arc::clone(context), deployments, sets, pods });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    work("deployment", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

/// Marks the Deployments that a change of a ReplicaSet concerns.
fn mark(change: &Change<ReplicaSet>, deployments: &Informer<Deployment>, queue: &Queue<Key>) {
    for set in change.sides() {
        let namespace = set.namespace().unwrap_or_default();
        match owner::controller_of(&set.metadata) {
            Some(by) if by.kind == "Deployment" => queue.add(Key::new(namespace, &by.name)),
            Some(_) => {}
            None => {
                for deployment in deployments.store().in_namespace(&namespace) {
                    queue.add(Key::of(deployment.as_ref()));
                }
            }
        }
    }
}

/// The strategy Recreate waits for the end of the last old pod, which changes no ReplicaSet.
fn mark_recreation(change: &Change<Pod>, sets: &Informer<ReplicaSet>, queue: &Queue<Key>) {
    let (Some(pod), None) = (&change.old, &change.new) else { return };
    let Some(by) = owner::controller_of(&pod.metadata).filter(|by| by.kind == "ReplicaSet") else { return };
    let namespace = pod.namespace().unwrap_or_default();
    let set = sets.store().get(&Key::new(&*namespace, &by.name));
    if let Some(of) = set.as_ref().and_then(|set| owner::controller_of(&set.metadata)) {
        queue.add(Key::new(namespace, &of.name));
    }
}

impl Deployments {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, WorkError> {
        self.deployments.wait_until_synced().await;
        self.sets.wait_until_synced().await;
        self.pods.wait_until_synced().await;
        let Some(deployment) = self.deployments.store().get(key) else { return Ok(None) };
        let spec = deployment.spec.clone().unwrap_or_default();
        let selector = owner::compile(&spec.selector, &format!("deployment {key}"))?;
        if selector.selects_all() {
            self.context.recorder.record(
                deployment.as_ref(),
                EventType::Warning,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(None);
        }
        let sets = self.claim(&deployment, &selector).await?;
        let pods = sets
            .iter()
            .flat_map(|set| self.pods.store().indexed(&owner::owned_by(&set.uid().unwrap_or_default())))
            .filter(|pod| !pod::is_terminal(pod))
            .collect();
        let now = Timestamp::now();
        let view = View::new(Arc::clone(&deployment), sets, pods, now);
        // The status is written also when a write before it failed: it says what is true now.
        let mut outcome = Ok(conditions::deadline(&view, now));
        for action in plan::decide(&view) {
            if let Err(error) = self.execute(&deployment, action).await {
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    async fn claim(
        &self,
        deployment: &Deployment,
        selector: &kube::core::Selector,
    ) -> Result<Vec<Arc<ReplicaSet>>, WorkError> {
        let uid = deployment.uid().unwrap_or_default();
        let namespace = deployment.namespace().unwrap_or_default();
        let api = self.context.namespaced::<ReplicaSet>(&namespace);
        let mut candidates = self.sets.store().indexed(&owner::owned_by(&uid));
        candidates.extend(self.sets.store().indexed(&owner::orphans_in(&namespace)));
        let mut own = Vec::new();
        for candidate in candidates {
            let name = candidate.name_any();
            match owner::claim(&deployment.metadata, selector, &candidate.metadata) {
                Claim::Keep => own.push(candidate),
                Claim::Ignore => {}
                Claim::Release => {
                    write::merge(&api, &self.sets, &name, &owner::release(&candidate.metadata, &uid)).await?;
                }
                Claim::Adopt => {
                    if !self.is_still_there(deployment).await? {
                        return Ok(own);
                    }
                    let patch = owner::adoption(&candidate.metadata, owner::reference(deployment));
                    write::merge(&api, &self.sets, &name, &patch).await?;
                    own.extend(self.sets.store().get(&Key::of(candidate.as_ref())));
                }
            }
        }
        Ok(own)
    }

    async fn is_still_there(&self, deployment: &Deployment) -> Result<bool, WorkError> {
        let api = self.context.namespaced::<Deployment>(&deployment.namespace().unwrap_or_default());
        let name = deployment.name_any();
        let live = api.get_opt(&name).await.map_err(WorkError::api("read deployment", &name))?;
        Ok(live
            .is_some_and(|live| live.uid() == deployment.uid() && live.metadata.deletion_timestamp.is_none()))
    }

    async fn execute(&self, deployment: &Deployment, action: Action) -> Result<(), WorkError> {
        let namespace = deployment.namespace().unwrap_or_default();
        let sets = self.context.namespaced::<ReplicaSet>(&namespace);
        let deployments = self.context.namespaced::<Deployment>(&namespace);
        match action {
            Action::Create(set) => self.create(deployment, &set).await,
            Action::Update { set, scaled_from } => {
                write::replace(&sets, &self.sets, &*set).await?;
                if let Some(from) = scaled_from {
                    self.scaled(deployment, &set, from);
                }
                Ok(())
            }
            Action::Delete(set) => {
                write::delete(&sets, &self.sets, set.as_ref(), DeleteParams::background()).await
            }
            Action::Annotate(patch) => {
                write::merge(&deployments, &self.deployments, &deployment.name_any(), &patch).await
            }
            Action::Status(status) => {
                let latest = self.deployments.store().get(&Key::of(deployment));
                let mut changed = latest.as_deref().unwrap_or(deployment).clone();
                changed.status = Some(*status);
                write::replace_status(&deployments, &self.deployments, &changed).await
            }
        }
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), WorkError> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api = self.context.namespaced::<ReplicaSet>(&namespace);
        match write::create(&api, &self.sets, set).await {
            Ok(_) => {
                self.scaled(deployment, set, 0);
                Ok(())
            }
            Err(error) if error.code() == Some(409) => self.collided(deployment, set, error).await,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let message = format!("Failed to create new replica set {:?}: {source}", set.name_any());
                self.context.recorder.record(
                    deployment,
                    EventType::Warning,
                    "ReplicaSetCreateError",
                    message,
                );
                Err(error)
            }
        }
    }

    /// Another ReplicaSet has the name: unless it is ours after all, the next attempt hashes to another name.
    async fn collided(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        error: WorkError,
    ) -> Result<(), WorkError> {
        let namespace = deployment.namespace().unwrap_or_default();
        let sets = self.context.namespaced::<ReplicaSet>(&namespace);
        let name = set.name_any();
        let there = sets.get_opt(&name).await.map_err(WorkError::api("read replicaset", &name))?;
        let Some(there) = there else { return Err(error) };
        if owner::is_controlled_by(&there.metadata, &deployment.uid().unwrap_or_default()) {
            self.sets.wrote(there);
            return Err(error);
        }
        let count = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let patch = serde_json::json!({"status": {"collisionCount": count + 1}});
        let api = self.context.namespaced::<Deployment>(&namespace);
        write::merge_status(&api, &self.deployments, &deployment.name_any(), &patch).await?;
        Err(error)
    }

    fn scaled(&self, deployment: &Deployment, set: &ReplicaSet, from: i32) {
        let to = plan::replicas(set);
        if to == from {
            return;
        }
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name_any());
        self.context.recorder.record(deployment, EventType::Normal, "ScalingReplicaSet", message);
    }
}
