//! The server as programs see it, through the kube crate and plain requests: consistency, watches, deletion, permission.

#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/server.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod server;

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all};
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use server::Server;

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"v": value}}))
        .unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("no error of the API: {other:?}"),
    }
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: impl Into<Vec<u8>>,
) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    let request = request.body(kube::client::Body::from(body.into())).unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect_bytes().await.unwrap();
    (
        code,
        serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()),
    )
}

async fn next(
    stream: &mut (impl futures::Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin),
) -> String {
    let event = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap().unwrap().unwrap();
    let named =
        |word: &str, object: &ConfigMap| format!("{word} {}", object.metadata.name.as_deref().unwrap());
    match &event {
        WatchEvent::Added(object) => named("ADDED", object),
        WatchEvent::Modified(object) => named("MODIFIED", object),
        WatchEvent::Deleted(object) => named("DELETED", object),
        WatchEvent::Bookmark(bookmark) => {
            let end = bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end");
            format!("BOOKMARK{}", if end { " end" } else { "" })
        }
        WatchEvent::Error(status) => format!("ERROR {}", status.code),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn optimistic_concurrency() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let first = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert_eq!(code(api.create(&PostParams::default(), &config_map("a", "1")).await), 409);
    let mut second = first.clone();
    second.data.as_mut().unwrap().insert("v".into(), "2".into());
    api.replace("a", &PostParams::default(), &second).await.unwrap();
    assert_eq!(code(api.replace("a", &PostParams::default(), &second).await), 409);
    // Without a version the last writer wins.
    api.replace("a", &PostParams::default(), &config_map("a", "3")).await.unwrap();
    // Patches of one object by many at once all arrive.
    let patches = (0..20).map(|at| {
        let api = api.clone();
        async move {
            let patch = json!({"data": {format!("k{at}"): "x"}});
            api.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        }
    });
    join_all(patches).await;
    assert_eq!(api.get("a").await.unwrap().data.unwrap().len(), 21);
    assert_eq!(code(api.get("b").await), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_names_and_uids_differ() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let object: ConfigMap = serde_json::from_value(json!({"metadata": {"generateName": "x-"}})).unwrap();
    let post = PostParams::default();
    let made = join_all((0..20).map(|_| api.create(&post, &object))).await;
    let names: BTreeSet<_> =
        made.iter().map(|made| made.as_ref().unwrap().metadata.name.clone().unwrap()).collect();
    let uids: BTreeSet<_> =
        made.iter().map(|made| made.as_ref().unwrap().metadata.uid.clone().unwrap()).collect();
    assert_eq!((names.len(), uids.len()), (20, 20));
    assert!(names.iter().all(|name| name.starts_with("x-") && name.len() == 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_in_pages_are_of_one_moment() {
    let server = Server::start_with(|config| config.history_events = 12).await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    for at in 0..7 {
        api.create(&PostParams::default(), &config_map(&format!("c{at}"), &(at % 2).to_string()))
            .await
            .unwrap();
    }
    let first = api.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (3, Some(4)));
    let token = first.metadata.continue_.clone().unwrap();
    api.delete("c5", &DeleteParams::default()).await.unwrap();
    let rest = api.list(&ListParams::default().continue_token(&token)).await.unwrap();
    let names: Vec<_> = rest.items.iter().map(|item| item.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, ["c3", "c4", "c5", "c6"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    let odd = api.list(&ListParams::default().labels("v=1").limit(1)).await.unwrap();
    assert_eq!((odd.items.len(), odd.metadata.remaining_item_count), (1, None));
    let odd_token = odd.metadata.continue_.clone().unwrap();
    let odd =
        api.list(&ListParams::default().labels("v=1").limit(5).continue_token(&odd_token)).await.unwrap();
    assert_eq!((odd.items.len(), odd.metadata.continue_), (1, None));
    // The history moves on; then the token is worth a 410 with another one inside.
    for at in 0..20 {
        api.patch("c0", &PatchParams::default(), &Patch::Merge(json!({"data": {"v": at.to_string()}})))
            .await
            .unwrap();
    }
    let client = server.client().await;
    let path = format!("/api/v1/namespaces/default/configmaps?limit=3&continue={token}");
    let (status, body) = send(&client, "GET", &path, "", "").await;
    assert_eq!((status, body["reason"].as_str()), (410, Some("Expired")), "{body}");
    let token = body["metadata"]["continue"].as_str().unwrap();
    let rest = api.list(&ListParams::default().continue_token(token)).await.unwrap();
    assert_eq!(rest.items.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_resume_select_and_expire() {
    let server = Server::start_with(|config| config.history_events = 12).await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let first = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let version = first.metadata.resource_version.unwrap();
    api.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
    let mut all = Box::pin(api.watch(&WatchParams::default(), &version).await.unwrap());
    let mut ones = Box::pin(api.watch(&WatchParams::default().labels("v=1"), "0").await.unwrap());
    assert_eq!(next(&mut all).await, "ADDED b");
    assert_eq!([next(&mut ones).await, next(&mut ones).await], ["ADDED a", "ADDED b"]);
    let relabel = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"v": value}}}));
    api.patch("a", &PatchParams::default(), &relabel("2")).await.unwrap();
    api.patch("a", &PatchParams::default(), &relabel("1")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(
        [next(&mut all).await, next(&mut all).await, next(&mut all).await],
        ["MODIFIED a", "MODIFIED a", "DELETED a"]
    );
    // Leaving the selection looks like a deletion, coming back like a creation.
    let seen = [next(&mut ones).await, next(&mut ones).await, next(&mut ones).await];
    assert_eq!(seen, ["DELETED a", "ADDED a", "DELETED a"]);
    for at in 0..20 {
        api.patch("b", &PatchParams::default(), &relabel(&format!("x{at}"))).await.unwrap();
    }
    let mut late = Box::pin(api.watch(&WatchParams::default(), &version).await.unwrap());
    assert_eq!(next(&mut late).await, "ERROR 410");
    assert!(late.next().await.is_none());
    // A version that this store never had: the client belongs to another one and has to list again.
    let mut foreign = Box::pin(api.watch(&WatchParams::default(), "99999").await.unwrap());
    assert_eq!(next(&mut foreign).await, "ERROR 410");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streaming_lists_end_with_a_bookmark() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let params = WatchParams { send_initial_events: true, ..WatchParams::default() };
    let mut watch = Box::pin(api.watch(&params, "0").await.unwrap());
    assert_eq!([next(&mut watch).await, next(&mut watch).await], ["ADDED a", "BOOKMARK end"]);
    assert_eq!(next(&mut watch).await, "BOOKMARK");
    // kube's reflector lives on it.
    let config = watcher::Config::default().streaming_lists();
    let mut objects = Box::pin(watcher(api.clone(), config).applied_objects());
    let seen =
        tokio::time::timeout(Duration::from_secs(10), objects.try_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(seen.metadata.name.as_deref(), Some("a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_on_time_and_with_the_server() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let mut short =
        Box::pin(api.watch(&WatchParams::default().timeout(1).disable_bookmarks(), "0").await.unwrap());
    assert!(tokio::time::timeout(Duration::from_secs(10), short.next()).await.unwrap().is_none());
    let mut long = Box::pin(api.watch(&WatchParams::default().disable_bookmarks(), "0").await.unwrap());
    let ended = tokio::spawn(async move { long.next().await.is_none() });
    let took = server.stop().await;
    assert!(ended.await.unwrap());
    assert!(took < Duration::from_secs(8), "{took:?}");
}

fn pod(name: &str, node: Option<&str>) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "seaway/pause"}]},
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_once_and_go_gracefully() {
    let server = Server::start().await;
    let client = server.client().await;
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    api.create(&PostParams::default(), &pod("a", None)).await.unwrap();
    let path = "/api/v1/namespaces/default/pods/a/binding";
    let binding = |node: &str| {
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": node}}).to_string()
    };
    let json = "application/json";
    assert_eq!(send(&client, "POST", path, json, binding("n1")).await.0, 201);
    assert_eq!(send(&client, "POST", path, json, binding("n2")).await.0, 409);
    let bound = api.get("a").await.unwrap();
    assert_eq!(bound.spec.unwrap().node_name.as_deref(), Some("n1"));
    let conditions = bound.status.unwrap().conditions.unwrap();
    assert!(
        conditions.iter().any(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
    );
    // A pod that runs somewhere is only marked, and goes when its node says so.
    let marked = api.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    let shorter = api.delete("a", &DeleteParams::default().grace_period(5)).await.unwrap().left().unwrap();
    assert_eq!(shorter.metadata.deletion_grace_period_seconds, Some(5));
    assert!(shorter.metadata.deletion_timestamp < marked.metadata.deletion_timestamp);
    api.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(code(api.get("a").await), 404);
    // One that runs nowhere goes at once; an eviction is a deletion.
    api.create(&PostParams::default(), &pod("b", None)).await.unwrap();
    api.evict("b", &EvictParams::default()).await.unwrap();
    assert_eq!(code(api.get("b").await), 404);
    api.create(&PostParams::default(), &pod("c", None)).await.unwrap();
    assert_eq!(code(api.logs("c", &kube::api::LogParams::default()).await), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_and_propagation_hold_an_object() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let mut object = config_map("a", "1");
    object.metadata.finalizers = Some(vec!["example.com/wait".into()]);
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    let wrong = DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: Some("no".into()), resource_version: None }),
        ..DeleteParams::default()
    };
    assert_eq!(code(api.delete("a", &wrong).await), 409);
    let marked = api.delete("a", &DeleteParams::foreground()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    assert_eq!(marked.metadata.finalizers.unwrap(), ["example.com/wait", "foregroundDeletion"]);
    let patch = |list: Value| Patch::Merge(json!({"metadata": {"finalizers": list}}));
    api.patch("a", &PatchParams::default(), &patch(json!(["foregroundDeletion"]))).await.unwrap();
    assert_eq!(api.get("a").await.unwrap().metadata.uid, made.metadata.uid);
    api.patch("a", &PatchParams::default(), &patch(json!([]))).await.unwrap();
    assert_eq!(code(api.get("a").await), 404);
    for at in 0..3 {
        api.create(&PostParams::default(), &config_map(&format!("m{at}"), "x")).await.unwrap();
    }
    let gone =
        api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("v=x")).await.unwrap();
    assert_eq!(gone.left().unwrap().items.len(), 3);
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_wait_for_their_content() {
    let server = Server::start().await;
    let client = server.client().await;
    let json = "application/json";
    let namespace = json!({"metadata": {"name": "x"}}).to_string();
    assert_eq!(send(&client, "POST", "/api/v1/namespaces", json, namespace).await.0, 201);
    let (status, body) = send(&client, "DELETE", "/api/v1/namespaces/x", json, "").await;
    assert_eq!((status, body["status"]["phase"].as_str()), (200, Some("Terminating")));
    let inside: Api<ConfigMap> = Api::namespaced(client.clone(), "x");
    assert_eq!(code(inside.create(&PostParams::default(), &config_map("a", "1")).await), 403);
    let mut finalized = body.clone();
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(
        send(&client, "PUT", "/api/v1/namespaces/x/finalize", json, finalized.to_string()).await.0,
        200
    );
    assert_eq!(send(&client, "GET", "/api/v1/namespaces/x", json, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watchers_see_every_event_in_order() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let mut watches = Vec::new();
    for _ in 0..50 {
        watches.push(Box::pin(api.watch(&WatchParams::default().disable_bookmarks(), "1").await.unwrap()));
    }
    for at in 0..20 {
        api.create(&PostParams::default(), &config_map(&format!("c{at:02}"), "1")).await.unwrap();
    }
    for watch in &mut watches {
        for at in 0..20 {
            assert_eq!(next(watch).await, format!("ADDED c{at:02}"));
        }
    }
}

/// A node agent takes another node's DNS server out of service when nobody hears of that node, and not before.
async fn dns_of_another_node(admin: &Client, agent: &Client) {
    let (slices, nodes): (Api<EndpointSlice>, Api<Node>) =
        (Api::namespaced(admin.clone(), "kube-system"), Api::all(admin.clone()));
    let slice = json!({"metadata": {"name": "kube-dns-n3-ipv4"}, "addressType": "IPv4", "endpoints": [
        {"addresses": ["192.0.2.3"], "nodeName": "n3", "conditions": {"ready": true}}]});
    slices.create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    let node = json!({"metadata": {"name": "n3"}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let is = async |ready: &str| {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        nodes.patch_status("n3", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    };
    let others: Api<EndpointSlice> = Api::namespaced(agent.clone(), "kube-system");
    let write = async |address: &str, up: bool| {
        let conditions = json!({"ready": up, "serving": up, "terminating": false});
        let endpoints = json!([{"addresses": [address], "nodeName": "n3", "conditions": conditions}]);
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        others.patch("kube-dns-n3-ipv4", &PatchParams::default(), &patch).await
    };
    is("True").await;
    assert_eq!(code(write("192.0.2.3", false).await), 403);
    is("Unknown").await;
    assert_eq!(code(write("192.0.2.1", false).await), 403);
    assert_eq!(code(others.delete("kube-dns-n3-ipv4", &DeleteParams::default()).await), 403);
    write("192.0.2.3", false).await.unwrap();
    assert_eq!(code(write("192.0.2.3", true).await), 403);
    nodes.delete("n3", &DeleteParams::default()).await.unwrap();
    write("192.0.2.3", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions() {
    let server = Server::start().await;
    let admin = server.client().await;
    let pods: Api<Pod> = Api::default_namespaced(admin.clone());
    pods.create(&PostParams::default(), &pod("mine", Some("n1"))).await.unwrap();
    pods.create(&PostParams::default(), &pod("other", Some("n2"))).await.unwrap();
    let node = server.client_as("system:node:n1", &["system:nodes"]).await;
    let own: Api<Pod> = Api::default_namespaced(node.clone());
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
    own.patch_status("mine", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(code(own.patch_status("other", &PatchParams::default(), &status).await), 403);
    assert_eq!(code(own.create(&PostParams::default(), &pod("new", Some("n1"))).await), 403);
    let nodes: Api<Node> = Api::all(node);
    let object = |name: &str| serde_json::from_value::<Node>(json!({"metadata": {"name": name}})).unwrap();
    nodes.create(&PostParams::default(), &object("n1")).await.unwrap();
    assert_eq!(code(nodes.create(&PostParams::default(), &object("n2")).await), 403);
    let proxy = server.client_as("proxy", &["seaway:data-plane"]).await;
    Api::<Service>::all(proxy.clone()).list(&ListParams::default()).await.unwrap();
    assert_eq!(code(Api::<Secret>::all(proxy).list(&ListParams::default()).await), 403);

    dns_of_another_node(&admin, &server.client_as("system:node:n1", &["system:nodes"]).await).await;

    // Nobody in particular: health and version, no more.
    let mut config = kube::Config::new(format!("https://{}", server.address).parse().unwrap());
    config.accept_invalid_certs = true;
    let nobody = Client::try_from(config).unwrap();
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(send(&nobody, "GET", path, "", "").await.0, 200, "{path}");
    }
    for path in
        ["/api", "/apis", "/metrics", "/openapi/v3", "/api/v1/pods", "/api/v1/namespaces/default/secrets/a"]
    {
        assert_eq!(send(&nobody, "GET", path, "", "").await.0, 403, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_get_a_status() {
    let server = Server::start().await;
    let client = server.client().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let json = "application/json";
    let big = vec![b' '; 3 * 1024 * 1024 + 1];
    let table: Vec<(&str, &str, &str, Vec<u8>, u16)> = vec![
        ("POST", maps, json, b"{".to_vec(), 400),
        ("POST", maps, json, b"[]".to_vec(), 400),
        ("POST", maps, json, b"".to_vec(), 400),
        ("POST", maps, "application/yaml", b"a: [".to_vec(), 400),
        ("POST", maps, "application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff".to_vec(), 400),
        ("POST", maps, "text/plain", b"hello".to_vec(), 415),
        ("POST", maps, json, big, 413),
        ("POST", maps, json, b"{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}".to_vec(), 400),
        ("POST", maps, json, b"{\"metadata\":{\"name\":\"a/b\"}}".to_vec(), 422),
        ("PATCH", "/api/v1/namespaces/default", json, b"{}".to_vec(), 415),
        ("PATCH", "/api/v1/namespaces/default", "application/merge-patch+json", b"nonsense".to_vec(), 400),
        (
            "DELETE",
            "/api/v1/namespaces/default/configmaps/a",
            json,
            b"{\"propagationPolicy\":\"Sideways\"}".to_vec(),
            400,
        ),
        ("GET", "/api/v1/pods?labelSelector=a%3D%3D%3Db", "", b"".to_vec(), 400),
        ("GET", "/api/v1/pods?fieldSelector=spec.colour%3Dred", "", b"".to_vec(), 400),
        ("GET", "/api/v1/pods?limit=x", "", b"".to_vec(), 400),
        ("GET", "/api/v1/pods?resourceVersion=x", "", b"".to_vec(), 400),
        ("GET", "/api/v1/unicorns", "", b"".to_vec(), 404),
        ("GET", "/apis/example.com/v1/unicorns", "", b"".to_vec(), 404),
        ("GET", "/nothing/here", "", b"".to_vec(), 404),
        ("PUT", "/api/v1/pods", json, b"{}".to_vec(), 405),
        ("DELETE", "/version", "", b"".to_vec(), 405),
    ];
    for (method, path, content_type, body, wanted) in table {
        let (status, answer) = send(&client, method, path, content_type, body).await;
        assert_eq!((status, answer["kind"].as_str()), (wanted, Some("Status")), "{method} {path}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        assert_eq!(answer["code"], wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_representations() {
    let server = Server::start().await;
    let client = server.client().await;
    let get = |path: &'static str, accept: &'static str| {
        let client = client.clone();
        async move {
            let request =
                Request::get(path).header("accept", accept).body(kube::client::Body::empty()).unwrap();
            let response = client.send(request).await.unwrap();
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body = response.into_body().collect_bytes().await.unwrap();
            (status, headers, String::from_utf8_lossy(&body).into_owned())
        }
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let (_, _, body) = get("/api/v1/namespaces", table).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((body["kind"].as_str(), body["rows"].as_array().map(Vec::len)), (Some("Table"), Some(4)));
    let (_, _, body) = get("/api/v1/namespaces?watch=1&timeoutSeconds=1", table).await;
    let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0]["object"]["columnDefinitions"].as_array().is_some_and(|columns| !columns.is_empty()));
    assert!(lines[1]["object"]["columnDefinitions"].as_array().is_none_or(Vec::is_empty));
    let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, _, body) = get("/api/v1/namespaces", metadata).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (body["kind"].as_str(), body["items"][0]["spec"].is_null()),
        (Some("PartialObjectMetadataList"), true)
    );
    let (_, headers, body) = get("/api/v1/namespaces/default", "application/yaml").await;
    assert!(body.contains("kind: Namespace") && headers["content-type"] == "application/yaml");
    assert_eq!(get("/api/v1/namespaces", "application/cbor").await.0, 406);
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (_, headers, _) = get("/apis", aggregated).await;
    assert_eq!(headers["content-type"], aggregated);
    let request =
        Request::get("/apis").header("accept", aggregated).header("if-none-match", &headers["etag"]);
    let response = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 304);
}

/// A node agent that tells what it was asked and by whom.
async fn agent(credentials: seaway_apiserver::NodeCredentials) -> std::net::SocketAddr {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(credentials.ca_pem.as_bytes()).unwrap()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder(roots.into()).build().unwrap();
    let cert = CertificateDer::from_pem_slice(credentials.serving_cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(credentials.serving_key_pem.as_bytes()).unwrap();
    let config =
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(vec![cert], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config.unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let der = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            let caller = String::from_utf8_lossy(&der).contains("kube-apiserver-kubelet-client");
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    let text = format!("{} {caller}\n", request.uri());
                    Ok::<_, std::convert::Infallible>(http::Response::new(
                        http_body_util::Full::<bytes::Bytes>::from(text),
                    ))
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_node() {
    let server = Server::start().await;
    let client = server.client().await;
    let pki = seaway_apiserver::Pki::open_or_create(server.dir.path().join("pki")).unwrap();
    let credentials =
        pki.node_credentials("n1", &["127.0.0.1".parse().unwrap()], "https://127.0.0.1:1").unwrap();
    let agent = agent(credentials).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": agent.port()}},
    }});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client);
    pods.create(&PostParams::default(), &pod("a", Some("n1"))).await.unwrap();
    let params =
        kube::api::LogParams { tail_lines: Some(5), timestamps: true, ..kube::api::LogParams::default() };
    let text = pods.logs("a", &params).await.unwrap();
    assert_eq!(text, "/containerLogs/default/a/c?tailLines=5&timestamps=true true\n");
    let wrong = kube::api::LogParams { container: Some("x".into()), ..kube::api::LogParams::default() };
    assert_eq!(code(pods.logs("a", &wrong).await), 400);
    let text = server.kubectl("logs a -f").await;
    assert_eq!(text, "/containerLogs/default/a/c?follow=true true\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_private_and_outlive_a_restart() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Server::start().await;
    let dir = server.dir.path().to_owned();
    let files = || -> std::collections::BTreeMap<_, _> {
        let entries = std::fs::read_dir(dir.join("pki")).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
    };
    let before = files();
    assert_eq!(before.len(), 6);
    for path in before.keys().chain([&server.kubeconfig()]) {
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            path.display()
        );
    }
    let old_client = server.client().await;
    let address = server.address;
    let kept = server.stop_keeping().await;
    let config = server::config(kept.path(), std::net::TcpListener::bind(address).unwrap());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(seaway_apiserver::run(config, shutdown.clone()));
    // The client of before still works: same CA, same objects.
    let maps: Api<ConfigMap> = Api::default_namespaced(old_client);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while maps.list(&ListParams::default()).await.is_err() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(files(), before);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
