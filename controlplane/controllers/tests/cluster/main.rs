//! Scheduler and controllers against Seaway's API server over HTTPS: what a user of the cluster would see.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::collections::BTreeSet;
use std::time::Duration;

use harness::{Cluster, deployment, eventually, list_until, object};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &object(value)).await.unwrap()
}

async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> K
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
}

/// What `kubectl rollout status` waits for.
async fn rolled_out(api: &Api<Deployment>, name: &str) -> Deployment {
    eventually(&format!("deployment {name} to roll out"), || async {
        let one = api.get(name).await.unwrap();
        let (wanted, status) =
            (one.spec.as_ref().unwrap().replicas.unwrap(), one.status.clone().unwrap_or_default());
        let done = status.observed_generation >= one.metadata.generation
            && [status.replicas, status.updated_replicas, status.available_replicas]
                .iter()
                .all(|count| count.unwrap_or(0) == wanted);
        done.then_some(one)
    })
    .await
}

fn alive(pods: &[Pod]) -> Vec<&Pod> {
    pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
}

/// Addresses of the ready endpoints of one family.
fn ready(slices: &[EndpointSlice], service: &str, family: &str) -> BTreeSet<String> {
    slices
        .iter()
        .filter(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == service))
        .filter(|slice| slice.address_type == family)
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| {
            endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
        })
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_comes_up_rolls_scales_and_goes() {
    let cluster = Cluster::start(3).await;
    let (deployments, pods) = (cluster.api::<Deployment>(), cluster.api::<Pod>());
    let (services, slices) = (cluster.api::<Service>(), cluster.api::<EndpointSlice>());
    create(&deployments, deployment("web", 3, "v1")).await;
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}]);
    let spec = json!({"selector": {"app": "web"}, "ports": ports, "ipFamilyPolicy": "RequireDualStack"});
    create(
        &services,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}),
    )
    .await;
    let up = rolled_out(&deployments, "web").await;
    assert_eq!(up.annotations()["deployment.kubernetes.io/revision"], "1");
    let running = pods.list(&ListParams::default()).await.unwrap().items;
    let nodes: BTreeSet<_> =
        running.iter().map(|pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap()).collect();
    assert_eq!((running.len(), nodes.len()), (3, 3), "exactly three, spread over the nodes");
    for family in ["IPv4", "IPv6"] {
        let found = list_until("endpoints", &slices, |all| ready(all, "web", family).len() == 3).await;
        assert!(found.iter().filter(|slice| slice.address_type == family).count() >= 1);
    }
    let classic = cluster.api::<Endpoints>();
    eventually("Endpoints", || async {
        let endpoints = classic.get_opt("web").await.unwrap()?;
        (endpoints.subsets?.first()?.addresses.as_ref()?.len() == 3).then_some(())
    })
    .await;

    let containers = deployment("web", 3, "v2")["spec"]["template"]["spec"]["containers"].clone();
    merge(&deployments, "web", json!({"spec": {"template": {"spec": {"containers": containers}}}})).await;
    let updated = rolled_out(&deployments, "web").await;
    assert_eq!(updated.annotations()["deployment.kubernetes.io/revision"], "2");
    let now = list_until("the old pods to go", &pods, |pods| pods.len() == 3).await;
    assert!(now.iter().all(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("v2")));
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(sets.len(), 2);

    for size in [5_usize, 1, 0, 2] {
        merge(&deployments, "web", json!({"spec": {"replicas": size}})).await;
        rolled_out(&deployments, "web").await;
        list_until("endpoints to follow", &slices, |all| ready(all, "web", "IPv4").len() == size).await;
    }

    deployments.delete("web", &DeleteParams::background()).await.unwrap();
    list_until("pods to be collected", &pods, <[Pod]>::is_empty).await;
    list_until("replica sets to be collected", &cluster.api::<ReplicaSet>(), <[ReplicaSet]>::is_empty).await;
    services.delete("web", &DeleteParams::default()).await.unwrap();
    list_until("slices to be collected", &slices, |all| {
        ready(all, "web", "IPv4").is_empty() && !all.iter().any(|slice| slice.name_any().starts_with("web-"))
    })
    .await;
    eventually("Endpoints to go", || async { classic.get_opt("web").await.unwrap().is_none().then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cluster_needs_is_there() {
    let cluster = Cluster::start(3).await;
    let nodes = list_until("pod CIDRs", &cluster.all::<Node>(), |nodes| {
        nodes.len() == 3
            && nodes.iter().all(|node| node.spec.as_ref().is_some_and(|spec| spec.pod_cidrs.is_some()))
    })
    .await;
    let cidrs: BTreeSet<_> =
        nodes.iter().flat_map(|node| node.spec.clone().unwrap().pod_cidrs.unwrap()).collect();
    assert_eq!(cidrs.len(), 6, "two each, none twice: {cidrs:?}");
    assert!(cidrs.contains("10.244.0.0/24") && cidrs.contains("fd00:10:244::/64"), "{cidrs:?}");
    let dns = eventually("kube-dns", || async {
        cluster.within::<Service>("kube-system").get_opt("kube-dns").await.unwrap()
    })
    .await;
    assert_eq!(dns.spec.unwrap().cluster_ips.unwrap(), ["10.96.0.10", "fd00:10:96::a"]);
    eventually("service account", || async {
        cluster.api::<ServiceAccount>().get_opt("default").await.unwrap()
    })
    .await;
    let ca = eventually("root CA", || async {
        cluster.api::<ConfigMap>().get_opt("kube-root-ca.crt").await.unwrap()
    });
    assert_eq!(ca.await.data.unwrap()["ca.crt"], "the CA");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_emptied_before_it_goes() {
    let cluster = Cluster::start(1).await;
    let namespaces = cluster.all::<Namespace>();
    create(&namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).await;
    create(&cluster.within::<Deployment>("shop"), deployment("web", 2, "v1")).await;
    create(&cluster.within::<ConfigMap>("shop"), json!({"metadata": {"name": "settings"}})).await;
    rolled_out(&cluster.within("shop"), "web").await;
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    eventually("the namespace to go", || async {
        namespaces.get_opt("shop").await.unwrap().is_none().then_some(())
    })
    .await;
    let left = cluster.within::<Pod>("shop").list(&ListParams::default()).await.unwrap().items;
    assert!(left.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_loses_its_endpoints_and_a_vanished_one_its_pods() {
    let mut cluster = Cluster::server().await;
    cluster.config.node_grace_period = Duration::from_secs(3);
    cluster.controllers();
    cluster.scheduler();
    cluster.node("n1").await;
    let doomed = cluster.node("n2").await;
    create(&cluster.api::<Deployment>(), deployment("web", 2, "v1")).await;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    create(&cluster.api::<Service>(), json!({"metadata": {"name": "web"}, "spec": spec})).await;
    rolled_out(&cluster.api(), "web").await;
    let slices = cluster.api::<EndpointSlice>();
    list_until("endpoints", &slices, |all| ready(all, "web", "IPv4").len() == 2).await;
    doomed.cancel();
    let nodes = cluster.all::<Node>();
    let node = eventually("n2 to be unreachable", || async {
        let node = nodes.get("n2").await.unwrap();
        let taints = node.spec.as_ref()?.taints.clone()?;
        taints
            .iter()
            .any(|taint| taint.key == "node.kubernetes.io/unreachable" && taint.effect == "NoExecute")
            .then_some(node)
    })
    .await;
    let conditions = node.status.unwrap().conditions.unwrap();
    let is_ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!(
        (is_ready.status.as_str(), is_ready.reason.as_deref()),
        ("Unknown", Some("NodeStatusUnknown"))
    );
    list_until("its endpoint to go", &slices, |all| ready(all, "web", "IPv4").len() == 1).await;
    nodes.delete("n2", &DeleteParams::default()).await.unwrap();
    list_until("its pod to be replaced", &cluster.api::<Pod>(), |pods| {
        pods.len() == 2
            && pods.iter().all(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1"))
    })
    .await;
    list_until("two endpoints again", &slices, |all| ready(all, "web", "IPv4").len() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_runs_on_every_node_also_on_new_ones() {
    let cluster = Cluster::start(2).await;
    let (sets, pods) = (cluster.api::<DaemonSet>(), cluster.api::<Pod>());
    let mut agent = deployment("agent", 0, "v1");
    agent["kind"] = json!("DaemonSet");
    agent["spec"].as_object_mut().unwrap().remove("replicas");
    create(&sets, agent).await;
    let on_nodes = |pods: &[Pod], image: &str| -> BTreeSet<String> {
        let current = alive(pods)
            .into_iter()
            .filter(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image));
        current.filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect()
    };
    list_until("daemons", &pods, |pods| on_nodes(pods, "v1").len() == 2 && pods.len() == 2).await;
    cluster.node("n3").await;
    list_until("the new node's daemon", &pods, |pods| on_nodes(pods, "v1").len() == 3 && pods.len() == 3)
        .await;
    merge(
        &sets,
        "agent",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
    )
    .await;
    list_until("the update", &pods, |pods| on_nodes(pods, "v2").len() == 3 && pods.len() == 3).await;
    eventually("the status", || async {
        let status = sets.get("agent").await.unwrap().status?;
        (status.number_ready == 3 && status.updated_number_scheduled == Some(3)).then_some(())
    })
    .await;
    let revisions = cluster.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap().items;
    let numbers: BTreeSet<_> = revisions.iter().map(|revision| revision.revision).collect();
    assert_eq!(numbers, [1, 2].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_it_can() {
    let cluster = Cluster::start(1).await;
    let pods = cluster.api::<Pod>();
    let container = |cpu: &str| json!({"name": "c", "image": "x", "resources": {"requests": {"cpu": cpu}}});
    let pod = |name: &str, cpu: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container(cpu)]}});
    create(&pods, pod("first", "3")).await;
    eventually("the first pod", || async { pods.get("first").await.unwrap().spec.unwrap().node_name }).await;
    create(&pods, pod("second", "2")).await;
    let condition = eventually("the condition", || async {
        let conditions = pods.get("second").await.unwrap().status?.conditions?;
        conditions
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
    })
    .await;
    assert_eq!(condition.reason.as_deref(), Some("Unschedulable"));
    assert_eq!(condition.message.as_deref(), Some("0/1 nodes are available: 1 Insufficient cpu."));
    let events = cluster.api::<Event>();
    list_until("the event", &events, |events| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some("FailedScheduling")
                && event.involved_object.name.as_deref() == Some("second")
        })
    })
    .await;
    pods.delete("first", &DeleteParams::default()).await.unwrap();
    eventually("the second pod", || async { pods.get("second").await.unwrap().spec.unwrap().node_name })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_and_scheduler_that_are_killed_leave_nothing_doubled() {
    let cluster = Cluster::server().await;
    for n in 1..=3 {
        cluster.node(&format!("n{n}")).await;
    }
    create(&cluster.api::<Deployment>(), deployment("web", 20, "v1")).await;
    for round in 0..6 {
        let (controllers, scheduler) = (cluster.controllers(), cluster.scheduler());
        tokio::time::sleep(Duration::from_millis(60 * round)).await;
        controllers.cancel();
        scheduler.cancel();
    }
    cluster.controllers();
    cluster.scheduler();
    rolled_out(&cluster.api(), "web").await;
    let pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(pods.len(), 20);
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(sets.len(), 1);
    let nodes = cluster.all::<Node>().list(&ListParams::default()).await.unwrap().items;
    let cidrs: BTreeSet<_> =
        nodes.iter().flat_map(|node| node.spec.clone().unwrap().pod_cidrs.unwrap()).collect();
    assert_eq!(cidrs.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_and_orphan_deletion() {
    let cluster = Cluster::start(1).await;
    let (deployments, pods) = (cluster.api::<Deployment>(), cluster.api::<Pod>());
    for name in ["held", "kept"] {
        create(&deployments, deployment(name, 2, "v1")).await;
        rolled_out(&deployments, name).await;
    }
    deployments.delete("held", &DeleteParams::foreground()).await.unwrap();
    eventually("the deployment to go", || async {
        deployments.get_opt("held").await.unwrap().is_none().then_some(())
    })
    .await;
    let left = pods.list(&ListParams::default().labels("app=held")).await.unwrap().items;
    assert!(left.is_empty(), "it waited for its pods");
    deployments.delete("kept", &DeleteParams::orphan()).await.unwrap();
    eventually("the deployment to go", || async {
        deployments.get_opt("kept").await.unwrap().is_none().then_some(())
    })
    .await;
    let sets = cluster.api::<ReplicaSet>();
    let set = list_until("the replica set to be let go", &sets, |sets| {
        sets.len() == 1 && sets[0].owner_references().is_empty()
    })
    .await;
    assert_eq!(set[0].status.as_ref().unwrap().replicas, 2);
    create(&deployments, deployment("kept", 2, "v1")).await;
    list_until("the replica set to be adopted", &sets, |sets| {
        sets.len() == 1 && sets[0].owner_references().iter().any(|owner| owner.name == "kept")
    })
    .await;
}
