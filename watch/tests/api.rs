//! The watch room against a small API server in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/server.rs"]
mod server;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use seaway_model::{ServiceKey, Snapshot};
use serde_json::{Value, json};
use server::Server;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn service(name: &str, version: u32, port: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "resourceVersion": version.to_string()},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
}

fn slice(name: &str, version: u32, addr: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": name, "resourceVersion": version.to_string(),
            "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [addr]}], "ports": [{"port": 8080}]})
}

struct Watched {
    server: Server,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    fn start(server: Server) -> Self {
        let stop = CancellationToken::new();
        let (snapshots, task) = seaway_watch::spawn(server.client(), stop.clone());
        Self { server, snapshots, stop, task }
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let waited = tokio::time::timeout(Duration::from_secs(10), self.snapshots.wait_for(holds)).await;
        Arc::clone(&waited.unwrap_or_else(|_| panic!("never: {what}")).unwrap())
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn web() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn port(snapshot: &Snapshot) -> Option<u16> {
    Some(snapshot.services.get(&web())?.ports.first()?.port)
}

#[tokio::test]
async fn lists_then_follows() {
    let server = Server::default();
    server.put("services", service("web", 1, 80));
    server.put("endpointslices", slice("web-1", 1, "10.244.1.1"));
    let mut watched = Watched::start(server);
    let first = watched.until("synced", |s| s.synced).await;
    assert_eq!(port(&first), Some(80));
    assert_eq!(first.endpoints[&web()].endpoints.len(), 1);
    watched.server.put("services", service("web", 2, 81));
    watched.until("the change", |s| port(s) == Some(81)).await;
    watched.server.put("endpointslices", slice("web-2", 3, "10.244.1.2"));
    watched.until("the second slice", |s| s.endpoints[&web()].endpoints.len() == 2).await;
    watched.server.delete("services", "web");
    watched.until("the deletion", |s| s.services.is_empty()).await;
    watched.end().await;
}

#[tokio::test]
async fn an_object_that_makes_no_sense_is_left_out_and_others_are_not() {
    let server = Server::default();
    server.put("services", service("bad", 1, 70_000));
    server.put("services", service("web", 1, 80));
    let mut watched = Watched::start(server);
    let first = watched.until("synced", |s| s.synced).await;
    assert_eq!(first.services.keys().collect::<Vec<_>>(), [&web()]);
    watched.server.put("services", service("bad", 2, 90));
    watched.until("the mended one", |s| s.services.len() == 2).await;
    watched.server.put("services", service("bad", 3, 0));
    watched.until("the broken one gone", |s| s.services.len() == 1).await;
    watched.end().await;
}

#[tokio::test]
async fn nothing_vanishes_while_the_server_is_away() {
    let server = Server::default();
    server.put("services", service("web", 1, 80));
    server.put("endpointslices", slice("web-1", 1, "10.244.1.1"));
    let mut watched = Watched::start(server);
    watched.until("synced", |s| s.synced).await;
    // Every snapshot from here on is looked at: none may lack the Service or its endpoint.
    let mut seen = watched.snapshots.clone();
    let observer = tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            let snapshot = seen.borrow_and_update().clone();
            assert!(snapshot.synced && snapshot.services.contains_key(&web()));
            assert_eq!(snapshot.endpoints[&web()].endpoints.len(), 1);
        }
    });
    // The server goes, its history with it; it comes back with another object beside the old ones.
    watched.server.0.lock().unwrap().down = true;
    watched.server.hang_up();
    tokio::time::sleep(Duration::from_millis(200)).await;
    {
        let mut state = watched.server.0.lock().unwrap();
        state.gone = vec!["services".into(), "endpointslices".into(), "nodes".into()];
        state.objects.insert(("services".into(), "new".into()), service("new", 5, 90));
        state.down = false;
    }
    watched.until("the relist", |s| s.services.len() == 2).await;
    assert!(watched.server.0.lock().unwrap().lists >= 4);
    watched.end().await;
    observer.await.unwrap();
}

/// The host ports of the own node's pods belong to a whole snapshot; where they may not be read nobody waits for them.
#[tokio::test]
async fn host_ports_are_waited_for_unless_forbidden() {
    let options = || seaway_watch::Options { own_node: Some("node1".to_owned()), ..Default::default() };
    let server = Server::default();
    server.put("services", service("web", 1, 80));
    server.put("pods", pod(8080));
    let stop = CancellationToken::new();
    let (mut snapshots, task) = seaway_watch::spawn_for(server.client(), options(), stop.clone());
    let synced = tokio::time::timeout(Duration::from_secs(10), snapshots.wait_for(|s| s.synced)).await;
    let first = Arc::clone(&synced.unwrap().unwrap());
    assert_eq!(first.host_pods.values().next().unwrap().ports[0].container_port, 8080);
    server.delete("pods", "web");
    let gone = snapshots.wait_for(|s| s.host_pods.is_empty());
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap().unwrap();
    stop.cancel();
    task.await.unwrap();

    let server = Server::default();
    server.0.lock().unwrap().forbidden = Some("pods".to_owned());
    let stop = CancellationToken::new();
    let (mut snapshots, task) = seaway_watch::spawn_for(server.client(), options(), stop.clone());
    let synced = tokio::time::timeout(Duration::from_secs(10), snapshots.wait_for(|s| s.synced)).await;
    assert!(synced.unwrap().unwrap().host_pods.is_empty());
    stop.cancel();
    task.await.unwrap();
}

/// Every node's pods are listed while somebody wants them, without a moment in which the cluster is not known.
#[tokio::test]
async fn all_pods_come_and_go_as_they_are_wanted() {
    let server = Server::default();
    server.put("services", service("web", 1, 80));
    let of = |name: &str, node: &str, addr: &str| {
        let mut pod = pod(8080);
        pod["metadata"]["name"] = name.into();
        pod["spec"]["nodeName"] = node.into();
        pod["status"]["podIPs"][0]["ip"] = addr.into();
        pod
    };
    server.put("pods", of("own", "node1", "10.244.1.5"));
    server.put("pods", of("other", "node2", "10.244.2.5"));
    let (wants, all_pods) = watch::channel(false);
    for own_node in [Some("node1".to_owned()), None] {
        let own = usize::from(own_node.is_some());
        let options =
            seaway_watch::Options { own_node, all_pods: Some(all_pods.clone()), ..Default::default() };
        let stop = CancellationToken::new();
        let (snapshots, task) = seaway_watch::spawn_for(server.client(), options, stop.clone());
        let mut watched = Watched { server: server.clone(), snapshots, stop, task };
        let first = watched.until("synced", |s| s.synced).await;
        assert_eq!((first.pods.len(), first.all_pods), (own, false));
        let mut seen = watched.snapshots.clone();
        let observer = tokio::spawn(async move {
            while seen.changed().await.is_ok() {
                let snapshot = seen.borrow_and_update().clone();
                assert!(snapshot.synced && snapshot.pods.len() >= own);
                assert!(!snapshot.all_pods || snapshot.pods.len() == 2);
                assert!(snapshot.host_pods.len() >= own);
            }
        });
        wants.send_replace(true);
        watched.until("all", |s| s.all_pods).await;
        wants.send_replace(false);
        watched.until("fewer", |s| !s.all_pods && s.pods.len() == own).await;
        if own == 1 {
            // Where they may not be listed, one's own are followed all the same, until it is asked for anew.
            let lists = || server.0.lock().unwrap().lists;
            let before = lists();
            server.0.lock().unwrap().all_pods_forbidden = true;
            wants.send_replace(true);
            let listed = async {
                while lists() == before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), listed).await.unwrap();
            server.put("pods", of("third", "node1", "10.244.1.6"));
            watched.until("one's own", |s| s.pods.len() == 2 && !s.all_pods).await;
            server.delete("pods", "third");
            wants.send_replace(false);
            server.0.lock().unwrap().all_pods_forbidden = false;
            watched.until("one's own again", |s| s.pods.len() == 1).await;
        }
        watched.end().await;
        observer.await.unwrap();
    }
}

fn pod(container_port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": "web", "uid": "u", "resourceVersion": "1"},
        "spec": {"nodeName": "node1", "containers": [
            {"name": "web", "ports": [{"containerPort": container_port, "hostPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}]}})
}

/// Whoever asked is told once about each version of an object that makes no sense.
#[tokio::test]
async fn senseless_objects_are_told_about_once() {
    let server = Server::default();
    server.put("services", service("bad", 1, 70_000));
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let on_invalid: seaway_watch::OnInvalid = Arc::new(move |about, error| {
        listener.lock().unwrap().push(format!("{} {}: {error}", about.kind.unwrap(), about.name.unwrap()));
    });
    let options = seaway_watch::Options { on_invalid: Some(on_invalid), ..Default::default() };
    let stop = CancellationToken::new();
    let (mut snapshots, task) = seaway_watch::spawn_for(server.client(), options, stop.clone());
    tokio::time::timeout(Duration::from_secs(10), snapshots.wait_for(|s| s.synced)).await.unwrap().unwrap();
    server.put("services", service("bad", 1, 70_000));
    server.put("services", service("web", 2, 80));
    let seen = snapshots.wait_for(|s| s.services.contains_key(&web()));
    tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap().unwrap();
    assert_eq!(
        *told.lock().unwrap(),
        ["Service bad: Service default/bad: spec.ports[0].port is \"70000\": want a port from 1 to 65535"]
    );
    stop.cancel();
    task.await.unwrap();
}
