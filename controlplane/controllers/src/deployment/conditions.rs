//! What a Deployment's status says: counts, `Available`, `Progressing`, `ReplicaFailure`.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::plan::{View, replicas};

/// A Deployment without a progress deadline.
const NO_DEADLINE: i32 = i32::MAX;

/// The status by the ReplicaSets as they are.
pub(super) fn status(view: &View) -> DeploymentStatus {
    let before = view.deployment.status.clone().unwrap_or_default();
    let sum = |count: fn(&ReplicaSet) -> i32| view.all().map(|set| count(set)).sum::<i32>();
    let available = sum(|set| set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0));
    let updated = view.new.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let count = |number: i32| Some(number).filter(|number| *number != 0);
    let mut status = DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: count(sum(|set| set.status.as_ref().map_or(0, |status| status.replicas))),
        updated_replicas: count(updated),
        ready_replicas: count(sum(|set| {
            set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
        })),
        available_replicas: count(available),
        unavailable_replicas: count((view.total() - available).max(0)),
        terminating_replicas: before.terminating_replicas,
        collision_count: before.collision_count,
        conditions: None,
    };
    let mut conditions = before.conditions.clone().unwrap_or_default();
    set(&mut conditions, availability(view, available), view.now);
    progress(view, &before, &status, &mut conditions);
    replica_failure(view, &mut conditions);
    status.conditions = Some(conditions).filter(|conditions| !conditions.is_empty());
    status
}

/// When the progress deadline passes, if it still can.
pub(super) fn deadline(view: &View, now: Timestamp) -> Option<Duration> {
    let seconds = view.progress_deadline()?;
    let status = view.deployment.status.as_ref()?;
    let progressing =
        status.conditions.iter().flatten().find(|condition| condition.type_ == "Progressing")?;
    let running = matches!(progressing.reason.as_deref(), Some(reason) if reason != "NewReplicaSetAvailable")
        && progressing.status == "True";
    if !running || view.paused() {
        return None;
    }
    let since = progressing.last_update_time.as_ref()?.0;
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(limit.saturating_sub(passed) + Duration::from_secs(1))
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: None,
        last_update_time: None,
    }
}

/// Puts `condition` in its place; the same status and reason as before leaves what is there.
fn set(conditions: &mut Vec<DeploymentCondition>, mut condition: DeploymentCondition, now: Timestamp) {
    let position = conditions.iter().position(|old| old.type_ == condition.type_);
    let old = position.map(|at| conditions.remove(at));
    if let Some(old) = old.filter(|old| old.status == condition.status) {
        if old.reason == condition.reason && old.message == condition.message {
            condition = old;
        } else {
            condition.last_transition_time = old.last_transition_time;
            condition.last_update_time = Some(Time(now));
        }
    }
    condition.last_transition_time.get_or_insert(Time(now));
    condition.last_update_time.get_or_insert(Time(now));
    conditions.insert(position.unwrap_or(conditions.len()), condition);
}

fn availability(view: &View, available: i32) -> DeploymentCondition {
    if available >= view.wanted() - view.max_unavailable() {
        let message = "Deployment has minimum availability.".to_owned();
        condition("Available", "True", "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        condition("Available", "False", "MinimumReplicasUnavailable", message)
    }
}

fn progress(
    view: &View,
    before: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
) {
    let Some(deadline) = view.progress_deadline() else {
        conditions.retain(|condition| condition.type_ != "Progressing");
        return;
    };
    let current = conditions.iter().find(|condition| condition.type_ == "Progressing").cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or_default();
    if view.paused() {
        if reason != "ProgressDeadlineExceeded" {
            let message = "Deployment is paused".to_owned();
            set(conditions, condition("Progressing", "Unknown", "DeploymentPaused", message), view.now);
        }
        return;
    }
    if reason == "DeploymentPaused" {
        let message = "Deployment is resumed".to_owned();
        set(conditions, condition("Progressing", "Unknown", "DeploymentResumed", message), view.now);
    }
    let name = view.new.as_ref().and_then(|set| set.metadata.name.clone());
    let subject = name.map_or_else(|| view.deployment_title(), |name| format!("ReplicaSet {name:?}"));
    let settled = status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable";
    if settled && is_complete(view, status) {
        return;
    }
    if is_complete(view, status) {
        let message = format!("{subject} has successfully progressed.");
        set(conditions, condition("Progressing", "True", "NewReplicaSetAvailable", message), view.now);
    } else if settled {
        // Pods of a finished rollout that come and go are no rollout.
    } else if has_progressed(before, status) || current.is_none() || reason == "NewReplicaSetAvailable" {
        let message = format!("{subject} is progressing.");
        conditions.retain(|condition| condition.type_ != "Progressing");
        let mut next = condition("Progressing", "True", "ReplicaSetUpdated", message);
        next.last_transition_time =
            current.filter(|old| old.status == "True").and_then(|old| old.last_transition_time);
        set(conditions, next, view.now);
    } else if has_timed_out(view, current.as_ref(), deadline) {
        let message = format!("{subject} has timed out progressing.");
        set(conditions, condition("Progressing", "False", "ProgressDeadlineExceeded", message), view.now);
    }
}

/// All replicas are of the new template and available, no old one is left.
pub(super) fn is_complete(view: &View, status: &DeploymentStatus) -> bool {
    let wanted = view.wanted();
    let new_is_scaled = view.new.as_ref().is_some_and(|set| replicas(set) == wanted);
    new_is_scaled
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    after.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(after) < old(before)
        || after.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || after.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

fn has_timed_out(view: &View, current: Option<&DeploymentCondition>, deadline: i32) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some("NewReplicaSetAvailable") => return false,
        Some("ProgressDeadlineExceeded") => return true,
        _ => {}
    }
    let Some(since) = current.last_update_time.as_ref() else { return false };
    view.now.duration_since(since.0).as_secs() >= i64::from(deadline)
}

/// The new ReplicaSet's complaint (or an old one's) is the Deployment's.
fn replica_failure(view: &View, conditions: &mut Vec<DeploymentCondition>) {
    conditions.retain(|condition| condition.type_ != "ReplicaFailure");
    let sets = view.new.iter().chain(view.old.iter());
    let failures = sets
        .filter_map(|set| set.status.as_ref())
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| condition.type_ == "ReplicaFailure");
    if let Some(failure) = failures.into_iter().next() {
        conditions.push(DeploymentCondition {
            type_: failure.type_.clone(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        });
    }
}

impl View {
    /// The progress deadline in seconds, if there is one.
    pub(super) fn progress_deadline(&self) -> Option<i32> {
        let spec = self.deployment.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.progress_deadline_seconds).unwrap_or(600);
        Some(seconds).filter(|seconds| *seconds != NO_DEADLINE)
    }

    fn deployment_title(&self) -> String {
        format!("Deployment {:?}", self.deployment.metadata.name.as_deref().unwrap_or_default())
    }
}
