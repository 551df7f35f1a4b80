//! Decisions on small clusters, and laws on random ones.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PodInfo};
use crate::decide::{Chooser, Decision};

fn node(name: &str, cpu: &str, extra: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    merge(&mut node, extra);
    node
}

fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    pod_with(name, spec, json!({}))
}

fn pod_with(name: &str, spec: Value, meta: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]},
    });
    merge(&mut pod["spec"], spec);
    merge(&mut pod["metadata"], meta);
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn cluster(nodes: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(Arc::new(serde_json::from_value(node.clone()).unwrap()));
    }
    cluster
}

fn decide(cluster: &Cluster, pod: &PodInfo) -> Decision {
    Chooser::new(1).decide(pod, cluster)
}

fn message(cluster: &Cluster, pod: &PodInfo) -> String {
    match decide(cluster, pod) {
        Decision::Nowhere { message, .. } => message,
        Decision::Node(node) => panic!("goes to {node}"),
    }
}

fn to(name: &str) -> Decision {
    Decision::Node(name.to_owned())
}

#[test]
fn the_message_names_every_reason_with_its_count() {
    let taint = json!({"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]});
    let cluster = cluster(&[
        node("n1", "50m", json!({})),
        node("n2", "50m", json!({})),
        node("n3", "4", json!({"spec": {"unschedulable": true}})),
        node("n4", "4", json!({"spec": taint})),
        node("n5", "4", json!({"status": {"conditions": []}})),
    ]);
    assert_eq!(
        message(&cluster, &pod("p", json!({}))),
        "0/5 nodes are available: 1 node(s) had untolerated taint {dedicated: db}, 1 node(s) were not ready, \
         1 node(s) were unschedulable, 2 Insufficient cpu.",
    );
    assert_eq!(message(&Cluster::default(), &pod("p", json!({}))), "no nodes available to schedule pods");
}

#[test]
fn filters() {
    let nodes =
        [node("n1", "4", json!({})), node("n2", "4", json!({"metadata": {"labels": {"disk": "ssd"}}}))];
    let mut cluster = cluster(&nodes);
    assert_eq!(decide(&cluster, &pod("a", json!({"nodeSelector": {"disk": "ssd"}}))), to("n2"));
    let none = message(&cluster, &pod("a", json!({"nodeSelector": {"disk": "hdd"}})));
    assert_eq!(none, "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.");
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]});
    cluster.place(pod("web-1", port.clone()), "n1");
    assert_eq!(decide(&cluster, &pod("web-2", port.clone())), to("n2"));
    cluster.assume(pod("web-2", port.clone()), "n2");
    let none = message(&cluster, &pod("web-3", port));
    assert_eq!(
        none,
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."
    );
    assert!(cluster.is_assumed("web-2"));
    cluster.forget("web-2");
    cluster.forget("web-1");
    assert!(cluster.node("n2").is_some_and(|node| node.pods.is_empty()));
    assert!(
        cluster.node("n1").is_some_and(|node| node.pods.len() == 1),
        "what the server said is not forgotten"
    );
}

#[test]
fn the_number_of_pods_is_a_quantity_too() {
    let many = json!({"status": {"allocatable": {"pods": "1k"}}});
    assert_eq!(decide(&cluster(&[node("n1", "4", many)]), &pod("p", json!({}))), to("n1"));
}

#[test]
fn pods_of_one_owner_spread_over_zones_then_nodes() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
    let nodes = [
        node("a1", "8", zone("a")),
        node("a2", "8", zone("a")),
        node("b1", "8", zone("b")),
        node("b2", "8", zone("b")),
    ];
    let mut cluster = cluster(&nodes);
    let mut chooser = Chooser::new(3);
    let owner = json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "w", "uid": "rs", "controller": true}]});
    let mut placed = Vec::new();
    for n in 0..4 {
        let pod = pod_with(&format!("w{n}"), json!({}), owner.clone());
        let Decision::Node(node) = chooser.decide(&pod, &cluster) else { panic!("fits") };
        cluster.assume(pod, &node);
        placed.push(node);
    }
    assert_ne!(placed[0][..1], placed[1][..1], "the second goes to the other zone: {placed:?}");
    placed.sort();
    assert_eq!(placed, ["a1", "a2", "b1", "b2"]);
}

#[test]
fn preferences_decide_among_nodes_that_do() {
    let tainted = json!({"spec": {"taints": [{"key": "slow", "effect": "PreferNoSchedule"}]}});
    let taints = cluster(&[node("n1", "4", tainted), node("n2", "4", json!({}))]);
    assert_eq!(decide(&taints, &pod("p", json!({}))), to("n2"));
    let ssd = json!({"metadata": {"labels": {"disk": "ssd"}}});
    let disks = cluster(&[node("n1", "4", json!({})), node("n2", "4", ssd)]);
    let term =
        json!({"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}});
    let spec =
        json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}});
    assert_eq!(decide(&disks, &pod("p", spec)), to("n2"));
    let mut full = cluster(&[node("n1", "4", json!({})), node("n2", "4", json!({}))]);
    let big =
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "4Gi"}}}]});
    full.place(pod("big", big), "n1");
    assert_eq!(decide(&full, &pod("p", json!({}))), to("n2"), "the emptier one");
}

#[test]
fn pods_keep_away_from_each_other_and_close_to_each_other() {
    let mut cluster = cluster(&[node("n1", "4", json!({})), node("n2", "4", json!({}))]);
    let web = json!({"labels": {"app": "web"}});
    let term =
        json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let anti =
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let close =
        json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let none = message(&cluster, &pod("c", close.clone()));
    assert_eq!(none, "0/2 nodes are available: 2 node(s) didn't match pod affinity rules.");
    cluster.place(pod_with("w1", anti.clone(), web.clone()), "n1");
    assert_eq!(decide(&cluster, &pod("c", close)), to("n1"));
    assert_eq!(decide(&cluster, &pod_with("plain", json!({}), web.clone())), to("n2"), "w1 does not want it");
    cluster.place(pod_with("w2", anti.clone(), web.clone()), "n2");
    let none = message(&cluster, &pod_with("w3", anti, web));
    assert_eq!(none, "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.");
}

#[test]
fn hard_topology_spread() {
    let mut cluster = cluster(&[node("n1", "4", json!({})), node("n2", "4", json!({}))]);
    let web = json!({"labels": {"app": "web"}});
    let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    cluster.place(pod_with("w1", spec.clone(), web.clone()), "n2");
    assert_eq!(decide(&cluster, &pod_with("w2", spec, web)), to("n1"));
}

/// CPU in thousandths of each pod; which of those placed so far ends before it comes.
type Script = Vec<(u32, Option<prop::sample::Index>)>;

fn play(seed: u64, nodes: &[u32], script: &Script) -> (Cluster, Vec<Decision>) {
    let nodes: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(n, cpu)| node(&format!("n{n:03}"), &format!("{cpu}m"), json!({})))
        .collect();
    let mut cluster = cluster(&nodes);
    let mut chooser = Chooser::new(seed);
    let (mut decisions, mut placed): (_, Vec<String>) = (Vec::new(), Vec::new());
    for (n, (cpu, ends)) in script.iter().enumerate() {
        if let Some(index) = ends.filter(|_| !placed.is_empty()) {
            let uid = placed.swap_remove(index.index(placed.len()));
            cluster.remove(&uid);
        }
        let requests = json!({"requests": {"cpu": format!("{cpu}m")}});
        let pod = pod(&format!("p{n}"), json!({"containers": [{"name": "c", "resources": requests}]}));
        let decision = chooser.decide(&pod, &cluster);
        if let Decision::Node(node) = &decision {
            placed.push(pod.uid.clone());
            cluster.assume(pod, node);
        }
        decisions.push(decision);
    }
    (cluster, decisions)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_node_is_ever_over_committed(
        nodes in prop::collection::vec(0..2000_u32, 0..8),
        script in prop::collection::vec((0..900_u32, any::<Option<prop::sample::Index>>()), 0..60),
    ) {
        let (cluster, decisions) = play(7, &nodes, &script);
        for node in cluster.nodes() {
            let used: i64 = node.pods.values().map(|pod| pod.requests.cpu_millis).sum();
            prop_assert_eq!(used, node.requested.cpu_millis);
            prop_assert!(used <= node.allocatable.cpu_millis);
            prop_assert!(node.pods.len() <= 10);
        }
        // Nobody is turned away while there is room: the last one, for whom the cluster is as it was.
        if let (Some(Decision::Nowhere { .. }), Some((cpu, _))) = (decisions.last(), script.last()) {
            let room = |node: &crate::cluster::NodeInfo| node.pods.len() < 10
                && node.allocatable.cpu_millis - node.requested.cpu_millis >= i64::from(*cpu);
            prop_assert!(!cluster.nodes().any(room));
        }
    }

    #[test]
    fn the_same_seed_decides_the_same(
        seed: u64,
        nodes in prop::collection::vec(0..2000_u32, 0..8),
        script in prop::collection::vec((0..900_u32, any::<Option<prop::sample::Index>>()), 0..40),
    ) {
        prop_assert_eq!(play(seed, &nodes, &script).1, play(seed, &nodes, &script).1);
    }
}
