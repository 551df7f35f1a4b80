//! A cluster in one process: the API server on loopback, scheduler and controllers as its clients, and nodes that only
//! pretend to run pods.

use std::fmt::Debug;
use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config, Resource, ResourceExt};
use seaway_controllers::ControllersConfig;
use seaway_scheduler::SchedulerConfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often nodes renew their leases.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The cluster. What it started ends when it is dropped.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) config: ControllersConfig,
    shutdown: CancellationToken,
    addresses: Arc<AtomicU32>,
    _guard: DropGuard,
    _data: tempfile::TempDir,
}

impl Cluster {
    /// An API server alone.
    pub(crate) async fn server() -> Self {
        // Another test of this process may have been first.
        rustls::crypto::ring::default_provider().install_default().ok();
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init().ok();
        let data = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = seaway_apiserver::ServerConfig::new(data.path(), vec![listener]);
        server.advertise_addresses = vec![address.ip()];
        server.advertise_port = address.port();
        server.service_cidrs = ["10.96.0.0/16", "fd00:10:96::/112"].map(|cidr| cidr.parse().unwrap()).into();
        let config = ControllersConfig {
            cluster_cidrs: ["10.244.0.0/16", "fd00:10:244::/56"].map(|cidr| cidr.parse().unwrap()).into(),
            service_cidrs: server.service_cidrs.clone(),
            root_ca_pem: Some("the CA".to_owned()),
            ..ControllersConfig::default()
        };
        let shutdown = CancellationToken::new();
        let running = seaway_apiserver::run(server, shutdown.clone());
        tokio::spawn(async move { running.await.unwrap() });
        let client = client(&data.path().join("admin.kubeconfig")).await;
        let guard = shutdown.clone().drop_guard();
        Self { client, config, shutdown, addresses: Arc::default(), _guard: guard, _data: data }
    }

    /// An API server with scheduler, controllers and nodes `n1`, `n2`, ….
    pub(crate) async fn start(nodes: usize) -> Self {
        let cluster = Self::server().await;
        cluster.controllers();
        cluster.scheduler();
        for n in 1..=nodes {
            cluster.node(&format!("n{n}")).await;
        }
        cluster
    }

    /// Starts the controllers; they end with the cluster or with the token.
    pub(crate) fn controllers(&self) -> CancellationToken {
        let token = self.shutdown.child_token();
        let running = seaway_controllers::run(self.client.clone(), self.config.clone(), token.clone());
        tokio::spawn(async move { running.await.unwrap() });
        token
    }

    /// Starts the scheduler; it ends with the cluster or with the token.
    pub(crate) fn scheduler(&self) -> CancellationToken {
        let token = self.shutdown.child_token();
        let running = seaway_scheduler::run(self.client.clone(), SchedulerConfig::default(), token.clone());
        tokio::spawn(async move { running.await.unwrap() });
        token
    }

    /// Registers a node and keeps it alive until the token is cancelled.
    pub(crate) async fn node(&self, name: &str) -> CancellationToken {
        let nodes: Api<Node> = self.all();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "zone-a"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        report_ready(&nodes, name).await;
        let token = self.shutdown.child_token();
        let pretended = pretend(self.client.clone(), name.to_owned(), Arc::clone(&self.addresses));
        let ended = token.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = pretended => {}
            }
        });
        token
    }

    /// The API of a kind in namespace `default`.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        self.within("default")
    }

    /// The API of a kind in a namespace.
    pub(crate) fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The API of a kind of the whole cluster.
    pub(crate) fn all<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }
}

/// A client by the kubeconfig that the server writes when it is up.
async fn client(path: &std::path::Path) -> Client {
    eventually("the server to answer", || async {
        let kubeconfig = Kubeconfig::read_from(path).ok()?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.ok()?;
        let client = Client::try_from(config).ok()?;
        client.apiserver_version().await.is_ok().then_some(client)
    })
    .await
}

async fn report_ready(nodes: &Api<Node>, name: &str) {
    let status = json!({"status": {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                        "lastHeartbeatTime": Timestamp::now().to_string()}],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// What a node agent does, as far as the control plane sees it.
async fn pretend(client: Client, node: String, addresses: Arc<AtomicU32>) {
    let heartbeats = {
        let (client, node) = (client.clone(), node.clone());
        async move {
            loop {
                renew(&client, &node).await;
                sleep(HEARTBEAT).await;
            }
        }
    };
    let pods: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let kubelet = watcher::watcher(pods, config).try_for_each(|event| {
        let (client, addresses) = (client.clone(), Arc::clone(&addresses));
        async move {
            if let Event::InitApply(pod) | Event::Apply(pod) = event {
                run_pod(&client, &pod, &addresses).await;
            }
            Ok(())
        }
    });
    tokio::select! {
        () = heartbeats => {}
        ended = kubelet => ended.unwrap(),
    }
}

async fn renew(client: &Client, node: &str) {
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": node, "renewTime": format!("{:.6}", Timestamp::now())}});
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(client.clone(), "kube-node-lease");
    let spec = json!({"spec": lease["spec"]});
    let renewed = leases.patch(node, &PatchParams::default(), &Patch::Merge(spec)).await;
    if renewed.is_err() {
        leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await.unwrap();
    }
}

/// Pods run at once, are ready unless their image is `broken`, and go at once.
async fn run_pod(client: &Client, pod: &Pod, addresses: &AtomicU32) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
    if pod.metadata.deletion_timestamp.is_some() {
        // It may be gone already.
        api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.ok();
        return;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Running") {
        return;
    }
    let broken = pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("broken");
    let number = addresses.fetch_add(1, Ordering::Relaxed) + 1;
    let ip = format!("10.244.{}.{}", number / 256, number % 256);
    let status = json!({"metadata": {"uid": pod.uid()}, "status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": format!("fd00:10:244::{number:x}")}],
        "conditions": [{"type": "Ready", "status": if broken { "False" } else { "True" },
                        "lastTransitionTime": Timestamp::now().to_string()}],
    }});
    api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await.ok();
}

/// Parses an object.
pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A Deployment of pods with the label `app: NAME`.
pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [
            {"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}},
    }})
}

/// Asks until there is an answer, and panics when there is none in the end.
pub(crate) async fn eventually<T, F, R>(what: &str, ask: F) -> T
where
    F: Fn() -> R,
    R: Future<Output = Option<T>>,
{
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Ok(Some(answer)) = timeout(PATIENCE, ask()).await {
            return answer;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("waited for {what} in vain");
}

/// Lists until the list is as wanted; shows what there was instead when it never is.
pub(crate) async fn list_until<K>(what: &str, api: &Api<K>, wanted: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Clone + DeserializeOwned + Debug + Resource,
{
    let started = Instant::now();
    loop {
        let items = api.list(&kube::api::ListParams::default()).await.unwrap().items;
        if wanted(&items) {
            return items;
        }
        assert!(started.elapsed() < PATIENCE, "waited for {what} in vain; there is {items:#?}");
        sleep(Duration::from_millis(20)).await;
    }
}
