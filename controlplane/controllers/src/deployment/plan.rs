//! What to do for a Deployment: a pure function from what is there to a list of writes.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::revision::{self, DESIRED, REVISION, number};
use super::{conditions, scaling, template};
use crate::owner;

/// Everything that is known about one Deployment.
pub(super) struct View {
    pub(super) deployment: Arc<Deployment>,
    pub(super) new: Option<Arc<ReplicaSet>>,
    /// Oldest first.
    pub(super) old: Vec<Arc<ReplicaSet>>,
    /// The pods that have not ended, also those that are being deleted.
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) now: Timestamp,
    hash: String,
    spec: DeploymentSpec,
}

/// One write.
#[derive(Debug)]
pub(super) enum Action {
    /// Make the ReplicaSet.
    Create(Box<ReplicaSet>),
    /// Replace the ReplicaSet, which had another size if that is given.
    Update { set: Box<ReplicaSet>, scaled_from: Option<i32> },
    /// Delete the ReplicaSet, beyond the history limit.
    Delete(Arc<ReplicaSet>),
    /// Merge this into the Deployment.
    Annotate(Value),
    /// Write the status.
    Status(Box<DeploymentStatus>),
}

/// The size that the ReplicaSet should have.
pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

impl View {
    pub(super) fn new(
        deployment: Arc<Deployment>,
        mut sets: Vec<Arc<ReplicaSet>>,
        pods: Vec<Arc<Pod>>,
        now: Timestamp,
    ) -> Self {
        sets.sort_by_cached_key(|set| {
            (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.metadata.name.clone())
        });
        let hash = template::hash_of(&deployment);
        // The oldest wins, as upstream decides it.
        let new =
            sets.iter().position(|set| template::is_of(set, &deployment, &hash)).map(|at| sets.remove(at));
        let spec = deployment.spec.clone().unwrap_or_default();
        Self { deployment, new, old: sets, pods, now, hash, spec }
    }

    pub(super) fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    pub(super) fn paused(&self) -> bool {
        self.spec.paused == Some(true)
    }

    pub(super) fn max_unavailable(&self) -> i32 {
        scaling::surge_and_unavailable(&self.spec).1
    }

    fn max_surge(&self) -> i32 {
        scaling::surge_and_unavailable(&self.spec).0
    }

    /// All ReplicaSets.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }

    /// How many pods there should be by the ReplicaSets' specs.
    pub(super) fn total(&self) -> i32 {
        self.all().map(|set| replicas(set)).sum()
    }

    fn recreates(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
    }

    fn scale_marks(&self) -> (i32, i32) {
        (self.wanted(), self.wanted() + self.max_surge())
    }

    /// The annotations that the new ReplicaSet must have.
    fn new_annotations(&self) -> std::collections::BTreeMap<String, String> {
        revision::annotations(
            &self.deployment,
            self.new.as_deref(),
            revision::next(&self.old),
            self.scale_marks(),
        )
    }

    /// Whether the Deployment's size changed since its ReplicaSets were last scaled.
    fn was_resized(&self) -> bool {
        let active = self.all().filter(|set| replicas(set) > 0);
        active.filter_map(|set| number(set, DESIRED)).any(|desired| desired != i64::from(self.wanted()))
    }

    fn resize(&self, set: &Arc<ReplicaSet>, to: i32) -> Option<Action> {
        let from = replicas(set);
        let mut changed = set.as_ref().clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        revision::scaled(annotations, self.scale_marks());
        if from == to && changed.metadata.annotations == set.metadata.annotations {
            return None;
        }
        changed.spec.get_or_insert_default().replicas = Some(to);
        Some(Action::Update { set: Box::new(changed), scaled_from: Some(from).filter(|from| *from != to) })
    }
}

/// Decides what to do. The status is of what is there now; what the other actions change shows next time.
pub(super) fn decide(view: &View) -> Vec<Action> {
    let mut actions = Vec::new();
    let being_deleted = view.deployment.metadata.deletion_timestamp.is_some();
    if !being_deleted {
        if view.paused() || view.was_resized() {
            actions.extend(annotate_new(view));
            if actions.is_empty() {
                actions = resize(view);
            }
        } else if view.recreates() {
            actions = recreate(view);
        } else {
            actions = roll(view);
        }
        actions.extend(revision_of_deployment(view));
    }
    let status = conditions::status(view);
    if !being_deleted && conditions::is_complete(view, &status) {
        actions.extend(clean_up(view));
    }
    if view.deployment.status.as_ref() != Some(&status) {
        actions.push(Action::Status(Box::new(status)));
    }
    actions
}

/// Brings the new ReplicaSet's annotations (and minReadySeconds) up to date.
fn annotate_new(view: &View) -> Option<Action> {
    let set = view.new.as_ref()?;
    let mut changed = set.as_ref().clone();
    let mut annotations = view.new_annotations();
    // Only scaling may say by which size it scaled.
    for key in [DESIRED, revision::MAX] {
        match set.metadata.annotations.as_ref().and_then(|old| old.get(key)) {
            Some(old) => annotations.insert(key.to_owned(), old.clone()),
            None => annotations.remove(key),
        };
    }
    changed.metadata.annotations = Some(annotations);
    changed.spec.get_or_insert_default().min_ready_seconds = view.spec.min_ready_seconds;
    (changed != **set).then(|| Action::Update { set: Box::new(changed), scaled_from: None })
}

/// The Deployment's revision is that of its new ReplicaSet.
fn revision_of_deployment(view: &View) -> Option<Action> {
    let next = revision::next(&view.old);
    let number = match &view.new {
        Some(set) => number(set, REVISION).map_or(next, |number| number.max(next)),
        None if view.paused() => return None,
        None => next,
    };
    let now = view.deployment.metadata.annotations.as_ref().and_then(|map| map.get(REVISION));
    let differs = now.is_none_or(|now| *now != number.to_string());
    differs.then(|| Action::Annotate(json!({"metadata": {"annotations": {REVISION: number.to_string()}}})))
}

fn create_new(view: &View, size: i32) -> Vec<Action> {
    let set = template::replica_set(&view.deployment, &view.hash, size, view.new_annotations());
    vec![Action::Create(Box::new(set))]
}

/// How big the new ReplicaSet should be now.
fn new_size(view: &View) -> i32 {
    let current = view.new.as_ref().map_or(0, |set| replicas(set));
    if view.recreates() {
        return view.wanted();
    }
    let room = view.wanted() + view.max_surge() - view.total();
    if current >= view.wanted() || room <= 0 {
        return current.min(view.wanted());
    }
    current + room.min(view.wanted() - current)
}

/// RollingUpdate: grow the new one as far as the surge allows, then shrink the old ones as far as availability allows.
fn roll(view: &View) -> Vec<Action> {
    let Some(new) = &view.new else { return create_new(view, new_size(view)) };
    if let Some(update) = annotate_new(view) {
        return vec![update];
    }
    let size = new_size(view);
    if size != replicas(new) {
        return view.resize(new, size).into_iter().collect();
    }
    shrink_old(view, new)
}

fn shrink_old(view: &View, new: &ReplicaSet) -> Vec<Action> {
    let old_total: i32 = view.old.iter().map(|set| replicas(set)).sum();
    if old_total == 0 {
        return Vec::new();
    }
    let min_available = view.wanted() - view.max_unavailable();
    let new_unavailable = (replicas(new) - available(new)).max(0);
    let room = view.total() - min_available - new_unavailable;
    if room <= 0 {
        return Vec::new();
    }
    // Old pods that serve nobody go first: losing them costs nothing.
    let mut sizes: Vec<(&Arc<ReplicaSet>, i32)> = view.old.iter().map(|set| (set, replicas(set))).collect();
    let mut left = room;
    for (set, size) in &mut sizes {
        let unhealthy = (*size - available(set)).clamp(0, left);
        *size -= unhealthy;
        left -= unhealthy;
    }
    let available_now: i32 = view.all().map(|set| available(set)).sum();
    let mut spare = (available_now - min_available).clamp(0, left);
    for (_, size) in &mut sizes {
        let take = (*size).min(spare);
        *size -= take;
        spare -= take;
    }
    let changed = sizes.into_iter().filter(|(set, size)| replicas(set) != *size);
    changed.filter_map(|(set, size)| view.resize(set, size)).collect()
}

/// Recreate: all old pods end before the first new one starts.
fn recreate(view: &View) -> Vec<Action> {
    let mut actions: Vec<Action> =
        view.old.iter().filter(|set| replicas(set) > 0).filter_map(|set| view.resize(set, 0)).collect();
    if !actions.is_empty() || old_pods_run(view) {
        return actions;
    }
    match &view.new {
        None => create_new(view, new_size(view)),
        Some(new) => {
            actions.extend(annotate_new(view));
            if actions.is_empty() && replicas(new) != view.wanted() {
                actions.extend(view.resize(new, view.wanted()));
            }
            actions
        }
    }
}

fn old_pods_run(view: &View) -> bool {
    let new = view.new.as_ref().and_then(|set| set.metadata.uid.as_deref());
    view.pods.iter().any(|pod| new.is_none_or(|new| !owner::is_controlled_by(&pod.metadata, new)))
}

/// The Deployment's size changed (or it is paused): its ReplicaSets follow without rolling.
fn resize(view: &View) -> Vec<Action> {
    let active: Vec<_> = view.all().filter(|set| replicas(set) > 0).cloned().collect();
    let only = match active.as_slice() {
        [] => view.new.clone().or_else(|| view.old.last().cloned()),
        [only] => Some(Arc::clone(only)),
        _ => None,
    };
    if let Some(only) = only {
        return view.resize(&only, view.wanted()).into_iter().collect();
    }
    let saturated = view.new.as_ref().is_some_and(|new| {
        replicas(new) == view.wanted()
            && number(new, DESIRED) == Some(i64::from(view.wanted()))
            && available(new) == view.wanted()
    });
    if saturated {
        let old = view.old.iter().filter(|set| replicas(set) > 0);
        return old.filter_map(|set| view.resize(set, 0)).collect();
    }
    if view.recreates() {
        return Vec::new();
    }
    let sizes = scaling::proportional(&active, view.wanted(), view.max_surge());
    sizes.iter().filter_map(|(set, size)| view.resize(set, *size)).collect()
}

/// Old ReplicaSets beyond the history limit, the lowest revisions first.
fn clean_up(view: &View) -> Vec<Action> {
    let Some(limit) = view.spec.revision_history_limit.or(Some(10)).filter(|limit| *limit != i32::MAX) else {
        return Vec::new();
    };
    let mut old: Vec<_> =
        view.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).cloned().collect();
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|set| number(set, REVISION).unwrap_or(0));
    old.into_iter()
        .take(surplus)
        .filter(|set| {
            let status = set.status.clone().unwrap_or_default();
            replicas(set) == 0
                && status.replicas == 0
                && status.observed_generation >= set.metadata.generation
        })
        .map(Action::Delete)
        .collect()
}
