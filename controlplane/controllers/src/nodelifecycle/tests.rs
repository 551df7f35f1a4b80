//! Conditions, taints and eviction times on tables of nodes.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::eviction::evict_at;
use super::health::{self, Heartbeat};

fn node(ready: &str, spec: Value) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": "n1"},
        "spec": spec,
        "status": {"conditions": [
            {"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
            {"type": "NetworkUnavailable", "status": "False"},
        ]},
    }))
    .unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn taints(node: &Node) -> Option<Vec<String>> {
    let taints = health::taints(node, at(0))?;
    Some(taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect())
}

#[test]
fn taints_follow_the_conditions_and_leave_others_alone() {
    assert_eq!(taints(&node("True", json!({}))), None);
    let unready = ["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"];
    assert_eq!(taints(&node("False", json!({}))).unwrap(), unready);
    assert_eq!(taints(&Node::default()).unwrap(), unready, "a node that has not reported");
    let lost = ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
    let spec = json!({"taints": [
        {"key": "dedicated", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
    ]});
    let unknown = taints(&node("Unknown", spec.clone())).unwrap();
    assert_eq!(unknown[0], "dedicated:NoSchedule");
    assert_eq!(unknown[1..], lost);
    assert_eq!(taints(&node("True", spec)).unwrap(), ["dedicated:NoSchedule"]);
    let cordoned = node("True", json!({"unschedulable": true}));
    assert_eq!(taints(&cordoned).unwrap(), ["node.kubernetes.io/unschedulable:NoSchedule"]);
}

#[test]
fn a_silent_node_becomes_unknown_once() {
    let mut silent = node("True", json!({}));
    let conditions = health::unknown_conditions(&silent, at(9)).unwrap();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
    let memory = conditions.iter().find(|condition| condition.type_ == "MemoryPressure").unwrap();
    assert_eq!(memory.reason.as_deref(), Some("NodeStatusNeverUpdated"));
    let before = Heartbeat::of(&node("True", json!({})), None);
    silent.status.as_mut().unwrap().conditions = Some(conditions);
    assert!(health::unknown_conditions(&silent, at(10)).is_none());
    assert_ne!(before, Heartbeat::of(&silent, None));
    let again = Heartbeat::of(&silent, None);
    assert_eq!(again, Heartbeat::of(&silent, None), "what we wrote is no sign of life a second time");
}

#[test]
fn a_renewed_lease_is_a_sign_of_life() {
    let lease =
        |time: &str| -> Lease { serde_json::from_value(json!({"spec": {"renewTime": time}})).unwrap() };
    let node = node("True", json!({}));
    let (one, two) = (lease("2026-01-01T00:00:00.000000Z"), lease("2026-01-01T00:00:10.000000Z"));
    assert_eq!(Heartbeat::of(&node, Some(&one)), Heartbeat::of(&node, Some(&one)));
    assert_ne!(Heartbeat::of(&node, Some(&one)), Heartbeat::of(&node, Some(&two)));
}

#[test]
fn pods_leave_when_they_no_longer_tolerate() {
    let taint = |key: &str| json!({"key": key, "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"});
    let node = node("Unknown", json!({"taints": [taint("node.kubernetes.io/unreachable"), taint("other")]}));
    let pod = |tolerations: Value| -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap()
    };
    let for_seconds = |key: &str, seconds: i64| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    let for_ever = |key: &str| json!({"key": key, "operator": "Exists"});
    let unreachable = "node.kubernetes.io/unreachable";
    let cases = [
        (json!([]), Some(at(500))),
        (json!([for_seconds(unreachable, 900)]), Some(at(500))),
        (json!([for_seconds(unreachable, 300), for_ever("other")]), Some(at(400))),
        (json!([for_seconds(unreachable, 300), for_seconds("other", 30)]), Some(at(130))),
        (json!([{"operator": "Exists"}]), None),
    ];
    for (tolerations, expected) in cases {
        assert_eq!(evict_at(&pod(tolerations.clone()), &node, at(500)), expected, "{tolerations}");
    }
}

#[test]
fn only_ready_pods_are_made_unready() {
    let pod = |ready: &str| -> Pod {
        serde_json::from_value(json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": ready}, {"type": "Initialized", "status": "True"},
        ]}}))
        .unwrap()
    };
    let conditions = health::not_ready(&pod("True"), at(5)).unwrap();
    assert_eq!((conditions[0].status.as_str(), conditions[1].status.as_str()), ("False", "True"));
    assert!(health::not_ready(&pod("False"), at(5)).is_none());
}
