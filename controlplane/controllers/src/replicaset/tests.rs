//! Scaling decisions and status counts on tables of pods.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::decide::{Scale, scale, status};

fn set(replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "rs", "generation": 3},
        "spec": {"replicas": replicas, "minReadySeconds": 10, "selector": {"matchLabels": {"app": "web"}},
                 "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
    }))
    .unwrap()
}

fn pod(name: &str, node: Option<&str>, phase: &str, ready_at: Option<i64>, extra: Value) -> Arc<Pod> {
    let mut conditions = json!([]);
    if let Some(second) = ready_at {
        let at = Timestamp::from_second(second).unwrap().to_string();
        conditions = json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
    }
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [], "nodeName": node},
        "status": {"phase": phase, "conditions": conditions},
    });
    if let (Some(meta), Some(extra)) = (value["metadata"].as_object_mut(), extra.as_object()) {
        meta.extend(extra.clone());
    }
    Arc::new(serde_json::from_value(value).unwrap())
}

#[test]
fn the_least_valuable_pods_go_first() {
    let cost = json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}});
    let pods = vec![
        pod("oldest", Some("n1"), "Running", Some(10), json!({})),
        pod("crowded-new", Some("n2"), "Running", Some(90), json!({})),
        pod("crowded-old", Some("n2"), "Running", Some(20), json!({})),
        pod("cheap", Some("n1"), "Running", Some(5), cost),
        pod("unready", Some("n1"), "Running", None, json!({})),
        pod("pending", Some("n1"), "Pending", None, json!({})),
        pod("unassigned", None, "Pending", None, json!({})),
        pod("going", Some("n1"), "Running", None, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        pod("failed", Some("n1"), "Failed", None, json!({})),
    ];
    // Two of the siblings are another set's, so that n2 is the more crowded node.
    let mut siblings = pods[..4].to_vec();
    siblings.push(pod("other-1", Some("n2"), "Running", None, json!({})));
    let Scale::Delete(victims) = scale(&set(0), &pods, &siblings) else { panic!("surplus") };
    let names: Vec<_> = victims.iter().map(|pod| pod.name_any()).collect();
    assert_eq!(names, ["unassigned", "pending", "unready", "cheap", "crowded-new", "crowded-old", "oldest"]);
    let Scale::Delete(victims) = scale(&set(5), &pods, &siblings) else { panic!("surplus") };
    assert_eq!(victims.len(), 2);
}

#[test]
fn missing_pods_are_made_and_dying_ones_do_not_count() {
    let pods = vec![
        pod("a", Some("n1"), "Running", Some(1), json!({})),
        pod("b", Some("n1"), "Running", Some(1), json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        pod("c", Some("n1"), "Succeeded", None, json!({})),
    ];
    assert!(matches!(scale(&set(3), &pods, &[]), Scale::Create(2)));
    assert!(matches!(scale(&set(1), &pods, &[]), Scale::Keep));
}

#[test]
fn status_counts_and_asks_to_come_back_when_a_pod_becomes_available() {
    let now = Timestamp::from_second(100).unwrap();
    let pods = vec![
        pod("available", Some("n1"), "Running", Some(90), json!({})),
        pod("ready", Some("n1"), "Running", Some(96), json!({})),
        pod("unready", Some("n1"), "Running", None, json!({})),
        pod("failed", Some("n1"), "Failed", None, json!({})),
    ];
    let (status, again) = status(&set(3), &pods, now);
    assert_eq!(status.replicas, 3);
    assert_eq!(status.fully_labeled_replicas, Some(3));
    assert_eq!((status.ready_replicas, status.available_replicas), (Some(2), Some(1)));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(again, Some(Duration::from_secs(6)));
}

proptest! {
    #[test]
    fn scaling_reaches_exactly_what_is_wanted(wanted in 0..20_i32, phases in prop::collection::vec(0..4_usize, 0..20)) {
        let pods: Vec<_> = phases
            .iter()
            .enumerate()
            .map(|(n, phase)| {
                let phase = ["Pending", "Running", "Failed", "Succeeded"][*phase];
                pod(&format!("p{n}"), (n % 2 == 0).then_some("n1"), phase, None, json!({}))
            })
            .collect();
        let active = pods.iter().filter(|pod| crate::pod::is_active(pod)).count();
        let after = match scale(&set(wanted), &pods, &pods) {
            Scale::Keep => active,
            Scale::Create(count) => active + count,
            Scale::Delete(victims) => {
                prop_assert!(victims.iter().all(|pod| crate::pod::is_active(pod)));
                active - victims.len()
            }
        };
        prop_assert_eq!(after, usize::try_from(wanted).unwrap());
    }
}
