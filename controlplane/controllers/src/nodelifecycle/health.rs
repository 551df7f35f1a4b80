//! What a node's (and its pods') conditions and taints should be. Pure.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use seaway_client::placement::{NO_EXECUTE, NO_SCHEDULE};

use crate::pod;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const CORDONED: &str = "node.kubernetes.io/unschedulable";
/// Conditions that, when true, keep new pods away.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// What changes whenever a node gives a sign of life.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heartbeat {
    renewed: Option<MicroTime>,
    reported: Vec<(String, String, Option<Time>)>,
}

impl Heartbeat {
    /// The newest sign of life of `node`. Conditions that we made Unknown are none.
    pub(super) fn of(node: &Node, lease: Option<&Lease>) -> Self {
        let reported = conditions(node).iter().filter(|condition| condition.status != "Unknown");
        Self {
            renewed: lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone()),
            reported: reported
                .map(|one| (one.type_.clone(), one.status.clone(), one.last_heartbeat_time.clone()))
                .collect(),
        }
    }
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn status_of<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    conditions(node)
        .iter()
        .find(|condition| condition.type_ == kind)
        .map(|condition| condition.status.as_str())
}

/// The status of the condition Ready; `Missing` when there is none.
pub(super) fn ready_status(node: &Node) -> &str {
    status_of(node, "Ready").unwrap_or("Missing")
}

/// Whether the node's agent has ever reported.
pub(super) fn has_reported(node: &Node) -> bool {
    conditions(node).iter().any(|condition| condition.type_ == "Ready")
}

/// The conditions of a node that has fallen silent; nothing if they say so already.
pub(super) fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut updated = conditions(node).to_vec();
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match updated.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) if condition.status == "Unknown" => continue,
            Some(condition) => {
                "Unknown".clone_into(&mut condition.status);
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            None => updated.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_transition_time: Some(Time(now)),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            }),
        }
        changed = true;
    }
    changed.then_some(updated)
}

/// The taints that the node should have; nothing if it has them.
pub(super) fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready_status(node) {
        "True" => {}
        "Unknown" => wanted.extend([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
        _ => wanted.extend([(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
    }
    for (condition, taint) in PRESSURES {
        if status_of(node, condition) == Some("True") {
            wanted.push((taint, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((CORDONED, NO_SCHEDULE));
    }
    let ours = |taint: &Taint| {
        let keys = PRESSURES.iter().map(|(_, key)| *key).chain([NOT_READY, UNREACHABLE, CORDONED]);
        keys.into_iter().any(|key| key == taint.key)
    };
    let is_wanted =
        |taint: &Taint| wanted.iter().any(|(key, effect)| *key == taint.key && *effect == taint.effect);
    let mut updated: Vec<Taint> =
        current.iter().filter(|taint| !ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !updated.iter().any(|taint| taint.key == key && taint.effect == effect) {
            updated.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (updated != current).then_some(updated)
}

/// The conditions of a ready pod that is to be ready no more; nothing if it is not ready.
pub(super) fn not_ready(pod: &Pod, now: Timestamp) -> Option<Vec<PodCondition>> {
    if !pod::is_ready(pod) || pod::is_terminal(pod) {
        return None;
    }
    let mut conditions = pod.status.as_ref()?.conditions.clone()?;
    for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
        "False".clone_into(&mut condition.status);
        condition.last_transition_time = Some(Time(now));
    }
    Some(conditions)
}
