//! Revisions: each template of a Deployment has a number, kept as annotations on its ReplicaSet and itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

/// The number of the template, on ReplicaSets and (the newest) on the Deployment.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Numbers that the same template had before a rollback gave it a new one.
pub(super) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How many replicas the Deployment had when the ReplicaSet was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The same plus the surge that was allowed.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// An annotation of a ReplicaSet, as a number.
pub(super) fn number(set: &ReplicaSet, annotation: &str) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(annotation)?.parse().ok()
}

/// The number that the new ReplicaSet must have: above all others.
pub(super) fn next(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter().filter_map(|set| number(set, REVISION)).max().unwrap_or(0) + 1
}

/// The annotations of the new ReplicaSet: the Deployment's own, the revision, and what it was scaled by.
pub(super) fn annotations(
    deployment: &Deployment,
    set: Option<&ReplicaSet>,
    next: i64,
    scale: (i32, i32),
) -> BTreeMap<String, String> {
    let mut annotations = set.and_then(|set| set.metadata.annotations.clone()).unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if ![REVISION, HISTORY, DESIRED, MAX, LAST_APPLIED, ROLLBACK_TO].contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let before = set.and_then(|set| number(set, REVISION));
    if before.is_none_or(|before| before < next) {
        if let Some(before) = before {
            let mut history =
                annotations.get(HISTORY).filter(|text| !text.is_empty()).cloned().unwrap_or_default();
            if !history.split(',').any(|earlier| earlier == before.to_string()) {
                history = if history.is_empty() { before.to_string() } else { format!("{history},{before}") };
            }
            annotations.insert(HISTORY.to_owned(), history);
        }
        annotations.insert(REVISION.to_owned(), next.to_string());
    }
    scaled(&mut annotations, scale);
    annotations
}

/// Notes by which Deployment size and limit a ReplicaSet was scaled.
pub(super) fn scaled(annotations: &mut BTreeMap<String, String>, (desired, max): (i32, i32)) {
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
}
