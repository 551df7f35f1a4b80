//! Where daemon pods belong and how they are replaced.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::{Plan, hash_of, plan, pod, status};

fn set(image: &str, rolling: Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "agent", "namespace": "default", "uid": "ds", "generation": 2},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {
                "nodeSelector": {"os": "linux"}, "containers": [{"name": "c", "image": image}]}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        },
    }))
    .unwrap()
}

fn node(name: &str, taints: Value) -> Arc<Node> {
    let node = json!({"metadata": {"name": name, "labels": {"os": "linux"}}, "spec": {"taints": taints}});
    Arc::new(serde_json::from_value(node).unwrap())
}

fn placed(set: &DaemonSet, node: &str, ready: bool) -> Arc<Pod> {
    let mut pod = pod(set, node, &hash_of(set));
    pod.metadata.name = Some(format!("agent-{node}-{}", &hash_of(set)[..3]));
    pod.metadata.uid = pod.metadata.name.clone();
    let ready = if ready { "True" } else { "False" };
    pod.status = serde_json::from_value(
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}),
    )
    .unwrap();
    Arc::new(pod)
}

fn decide(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> (Vec<String>, Vec<String>) {
    let Plan { mut create, delete, failed } = plan(set, nodes, pods, &hash_of(set), Timestamp::now());
    let mut gone: Vec<_> = delete.iter().chain(&failed).map(|pod| pod.name_any()).collect();
    create.sort();
    gone.sort();
    (create, gone)
}

#[test]
fn every_node_that_qualifies_gets_one_pod() {
    let set = set("a", json!({}));
    let windows: Node =
        serde_json::from_value(json!({"metadata": {"name": "n4", "labels": {"os": "windows"}}})).unwrap();
    let nodes = [
        node("n1", json!([])),
        node("n2", json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}])),
        node("n3", json!([{"key": "dedicated", "effect": "NoSchedule"}])),
        Arc::new(windows),
    ];
    assert_eq!(decide(&set, &nodes, &[]).0, ["n1", "n2"]);
    let pods = [
        placed(&set, "n1", true),
        placed(&set, "n2", true),
        placed(&set, "n3", true),
        placed(&set, "n4", true),
    ];
    let (create, delete) = decide(&set, &nodes, &pods);
    assert_eq!(create, Vec::<String>::new());
    assert_eq!(delete, [pods[3].name_any()], "n3 keeps what it has: NoSchedule only turns away");
    let (status, _) = status(&set, &nodes, &pods, &hash_of(&set), Timestamp::now());
    assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 2));
    assert_eq!((status.number_ready, status.number_misscheduled), (2, 2));
    assert_eq!((status.updated_number_scheduled, status.number_unavailable), (Some(2), None));
}

#[test]
fn pods_are_pinned_and_tolerate_their_node() {
    let pod = pod(&set("a", json!({})), "n1", "hash");
    let spec = pod.spec.unwrap();
    let tolerated: Vec<_> = spec.tolerations.unwrap().into_iter().filter_map(|one| one.key).collect();
    assert!(tolerated.contains(&"node.kubernetes.io/unschedulable".to_owned()), "{tolerated:?}");
    let required = spec.affinity.unwrap().node_affinity.unwrap();
    let terms = required.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
    assert_eq!(terms[0].match_fields.as_ref().unwrap()[0].values.as_ref().unwrap(), &["n1"]);
    assert_eq!(pod.metadata.labels.unwrap()["controller-revision-hash"], "hash");
}

#[test]
fn an_update_goes_node_by_node_and_replaces_what_does_not_serve_first() {
    let (old, new) = (set("a", json!({})), set("b", json!({})));
    let nodes = ["n1", "n2", "n3"].map(|name| node(name, json!([])));
    let pods = ["n1", "n2", "n3"].map(|name| placed(&old, name, true));
    let (create, delete) = decide(&new, &nodes, &pods);
    assert_eq!((create.len(), delete.len()), (0, 1), "one at a time");
    let pods = [placed(&new, "n1", false), placed(&old, "n2", true), placed(&old, "n3", true)];
    assert_eq!(decide(&new, &nodes, &pods), (vec![], vec![]), "not before the first one serves");
    let pods = [placed(&new, "n1", false), placed(&old, "n2", false), placed(&old, "n3", true)];
    assert_eq!(decide(&new, &nodes, &pods).1, [pods[1].name_any()]);
    let many = set("b", json!({"maxUnavailable": "50%"}));
    let pods = ["n1", "n2", "n3"].map(|name| placed(&old, name, true));
    assert_eq!(decide(&many, &nodes, &pods).1.len(), 2);
}

#[test]
fn with_a_surge_the_old_pod_stays_until_the_new_one_serves() {
    let (old, new) = (set("a", json!({})), set("b", json!({"maxSurge": 1, "maxUnavailable": 0})));
    let nodes = ["n1", "n2"].map(|name| node(name, json!([])));
    let pods = ["n1", "n2"].map(|name| placed(&old, name, true));
    assert_eq!(decide(&new, &nodes, &pods), (vec!["n1".to_owned()], vec![]));
    let both = [placed(&old, "n1", true), placed(&new, "n1", false), placed(&old, "n2", true)];
    assert_eq!(decide(&new, &nodes, &both), (vec![], vec![]));
    let both = [placed(&old, "n1", true), placed(&new, "n1", true), placed(&old, "n2", true)];
    assert_eq!(decide(&new, &nodes, &both), (vec![], vec![both[0].name_any()]));
}
