//! How many pods a second are bound, everything included: `throughput [PODS] [NODES]` starts an API server on loopback,
//! fills it with nodes and pending pods, then starts the scheduler.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on fails, and its figures are rough"
)]

use std::net::TcpListener;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use seaway_scheduler::SchedulerConfig;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const AT_ONCE: usize = 32;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().unwrap());
    let (pods, nodes) = (args.next().unwrap_or(2000), args.next().unwrap_or(100));
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let data = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = seaway_apiserver::ServerConfig::new(data.path(), vec![listener]);
    server.advertise_addresses = vec![address.ip()];
    server.advertise_port = address.port();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(seaway_apiserver::run(server, shutdown.clone()));
    let kubeconfig = data.path().join("admin.kubeconfig");
    while !kubeconfig.exists() {
        sleep(Duration::from_millis(10)).await;
    }
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();

    let api: Api<Node> = Api::all(client.clone());
    stream::iter(0..nodes).for_each_concurrent(AT_ONCE, |n| add_node(&api, n)).await;
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    stream::iter(0..pods).for_each_concurrent(AT_ONCE, |n| add_pod(&api, n)).await;

    let started = Instant::now();
    let running = seaway_scheduler::run(client.clone(), SchedulerConfig::default(), shutdown.clone());
    let running = tokio::spawn(running);
    let unbound = ListParams::default().fields("spec.nodeName=").limit(1);
    let bound = stream::repeat(()).then(|()| async {
        sleep(Duration::from_millis(20)).await;
        api.list(&unbound).await
    });
    let mut lists = Box::pin(bound);
    while !lists.try_next().await.unwrap().unwrap().items.is_empty() {}
    let seconds = started.elapsed().as_secs_f64();
    println!("{pods} pods on {nodes} nodes in {seconds:.2} s: {:.0} pods/s", pods as f64 / seconds);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    serving.await.unwrap().unwrap();
}

async fn add_node(api: &Api<Node>, n: usize) {
    let name = format!("n{n:05}");
    let node =
        json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": format!("z{}", n % 3)}}});
    api.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let amounts = json!({"cpu": "32", "memory": "256Gi", "pods": "1000"});
    let conditions = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"status": {"allocatable": amounts, "capacity": amounts, "conditions": conditions}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    // No controllers run here that would take the taint of a new node away.
    let untainted = json!({"spec": {"taints": null}});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(untainted)).await.unwrap();
}

async fn add_pod(api: &Api<Pod>, n: usize) {
    let requests = json!({"requests": {"cpu": "10m", "memory": "16Mi"}});
    let pod = json!({
        "metadata": {"name": format!("p{n:05}")},
        "spec": {"containers": [{"name": "c", "image": "x", "resources": requests}]},
    });
    api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}
