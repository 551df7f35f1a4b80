//! How many pods to make, which ones to delete, what the status says. Pure.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::pod::{self, Availability};

/// What brings the number of pods to what the spec says.
#[derive(Debug)]
pub(super) enum Scale {
    Keep,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// How many replicas the spec asks for.
pub(super) fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

/// Compares the set's own pods with what the spec asks for.
pub(super) fn scale(set: &ReplicaSet, own: &[Arc<Pod>], siblings: &[Arc<Pod>]) -> Scale {
    let active: Vec<_> = own.iter().filter(|pod| pod::is_active(pod)).cloned().collect();
    match wanted(set).cmp(&active.len()) {
        Ordering::Equal => Scale::Keep,
        Ordering::Greater => Scale::Create(wanted(set) - active.len()),
        Ordering::Less => {
            let surplus = active.len() - wanted(set);
            let mut ranked = rank(active, siblings);
            ranked.truncate(surplus);
            Scale::Delete(ranked)
        }
    }
}

/// Orders pods for deletion, the least valuable first: unassigned, pending, not ready, cheap, crowded, fresh.
fn rank(mut pods: Vec<Arc<Pod>>, siblings: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for sibling in siblings {
        if let Some(node) = pod::node_name(sibling) {
            *on_node.entry(node).or_default() += 1;
        }
    }
    pods.sort_by_cached_key(|pod| {
        let crowd = pod::node_name(pod).and_then(|node| on_node.get(node)).copied().unwrap_or(0);
        let phase = match pod::phase(pod) {
            "Pending" => 0,
            "Running" => 2,
            _ => 1,
        };
        (
            pod::node_name(pod).is_some(),
            phase,
            pod::is_ready(pod),
            deletion_cost(pod),
            Reverse(crowd),
            Reverse(pod::ready_since(pod)),
            Reverse(pod::restarts(pod)),
            Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            pod.metadata.name.clone(),
        )
    });
    pods
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations.and_then(|map| map.get("controller.kubernetes.io/pod-deletion-cost"));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The status by the set's own pods, and when it changes by the passing of time alone.
pub(super) fn status(
    set: &ReplicaSet,
    own: &[Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let template = spec.template.unwrap_or_default();
    let labels = template.metadata.and_then(|meta| meta.labels).unwrap_or_default();
    let (mut replicas, mut full, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in own {
        if pod.metadata.deletion_timestamp.is_some() && !pod::is_terminal(pod) {
            terminating += 1;
        }
        if !pod::is_active(pod) {
            continue;
        }
        replicas += 1;
        let pod_labels = pod.metadata.labels.as_ref();
        full += i32::from(
            labels.iter().all(|(key, value)| pod_labels.and_then(|map| map.get(key)) == Some(value)),
        );
        ready += i32::from(pod::is_ready(pod));
        match pod::availability(pod, min_ready, now) {
            Availability::Available => available += 1,
            Availability::In(wait) => again = Some(again.map_or(wait, |earlier| earlier.min(wait))),
            Availability::NotReady => {}
        }
    }
    let count = |number: i32| Some(number).filter(|number| *number != 0);
    let before = set.status.as_ref();
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: count(full),
        ready_replicas: count(ready),
        available_replicas: count(available),
        terminating_replicas: before.and_then(|status| status.terminating_replicas).map(|_| terminating),
        observed_generation: set.metadata.generation,
        conditions: None,
    };
    (status, again)
}
