//! Objects that make no sense, of every kind that a foreign API server may come up with: each is left out and named, and
//! none keeps another from being served.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/server.rs"]
mod server;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use expect_test::expect;
use seaway_model::{ServiceKey, Snapshot};
use serde_json::{Value, json};
use server::Server;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": {"namespace": "default", "name": name, "resourceVersion": "1"}})
}

fn slice(name: &str, service: &str, addrs: &[&str], ports: Value) -> Value {
    let endpoints: Vec<Value> = addrs.iter().map(|addr| json!({"addresses": [addr]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": name, "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports})
}

struct Watched {
    server: Server,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    told: Arc<Mutex<Vec<String>>>,
    counted: prometheus::Registry,
    stop: CancellationToken,
}

impl Watched {
    fn start(server: Server) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&told);
        let on_invalid: seaway_watch::OnInvalid = Arc::new(move |about, error| {
            let about = format!("{} {}", about.kind.unwrap(), about.name.unwrap());
            listener.lock().unwrap().push(format!("{about}: {error}"));
        });
        let counted = prometheus::Registry::new();
        let options = seaway_watch::Options {
            on_invalid: Some(on_invalid),
            metrics: Some(seaway_watch::Metrics::new(&counted)),
            ..Default::default()
        };
        let stop = CancellationToken::new();
        let (snapshots, _) = seaway_watch::spawn_for(server.client(), options, stop.clone());
        Self { server, snapshots, told, counted, stop }
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let waited = tokio::time::timeout(Duration::from_secs(600), self.snapshots.wait_for(holds)).await;
        Arc::clone(&waited.unwrap_or_else(|_| panic!("never: {what}")).unwrap())
    }

    /// What was told, in an order that does not depend on which list came first.
    fn told(&self) -> String {
        let mut told = self.told.lock().unwrap().clone();
        told.sort();
        told.join("\n")
    }

    fn left_out(&self, kind: &str) -> f64 {
        let families = self.counted.gather();
        let family = families.iter().find(|f| f.name() == "seaway_watch_invalid_objects_total").unwrap();
        let of_kind = family.get_metric().iter().find(|m| m.get_label()[0].value() == kind);
        of_kind.map_or(0.0, |metric| metric.get_counter().get_value())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn bad_services(server: &Server) {
    for (name, spec) in [
        ("a-port-that-is-a-word", json!({"clusterIP": "10.96.0.2", "ports": [{"port": "http"}]})),
        ("a-port-out-of-range", json!({"clusterIP": "10.96.0.3", "ports": [{"port": 70_000}]})),
        (
            "a-node-port-out-of-range",
            json!({"type": "NodePort", "clusterIP": "10.96.0.4", "ports": [{"port": 80, "nodePort": 100_000}]}),
        ),
        ("an-address-that-is-none", json!({"clusterIP": "10.96.0.256", "ports": [{"port": 80}]})),
        ("one-port-twice", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}, {"port": 80}]})),
        ("ports-that-are-no-list", json!({"clusterIP": "10.96.0.6", "ports": {"port": 80}})),
    ] {
        server.put("services", service(name, spec));
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_left_out_and_named_and_the_others_are_served() {
    let server = Server::default();
    bad_services(&server);
    server.put("services", service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    let good = json!([{"port": 8080}]);
    server.put("endpointslices", slice("families", "web", &["fd00::1", "10.244.0.1"], good.clone()));
    server.put("endpointslices", slice("port", "web", &["10.244.0.2"], json!([{"port": -1}])));
    server.put("endpointslices", slice("word", "web", &["10.244.0.3"], json!([{"port": "http"}])));
    let mut nameless = slice("nameless", "web", &["10.244.0.4"], good.clone());
    nameless["addressType"] = json!("IPX");
    server.put("endpointslices", nameless);
    let mut watched = Watched::start(server);
    let synced = watched.until("synced", |snapshot| snapshot.synced).await;
    let web = ServiceKey::new("default", "web");
    assert_eq!(synced.services.keys().collect::<Vec<_>>(), [&web]);
    let addrs: Vec<_> = synced.endpoints[&web].endpoints.iter().map(|e| e.addr.to_string()).collect();
    assert_eq!(addrs, ["10.244.0.1"]);
    expect![[r#"
        EndpointSlice families: EndpointSlice default/families: endpoints[0].addresses[0] is "fd00::1": not of the slice's addressType
        EndpointSlice nameless: EndpointSlice default/nameless: addressType is "IPX": want IPv4, IPv6 or FQDN
        EndpointSlice port: EndpointSlice default/port: ports[0].port is "-1": want a port from 1 to 65535
        EndpointSlice word: EndpointSlice default/word: the text up to where it makes no sense is "urceVersion\":\"1\"},\"ports\":[{\"port\":\"http": invalid type: string "http", expected i32 at line 1 column 263
        Service a-node-port-out-of-range: Service default/a-node-port-out-of-range: spec.ports[0].nodePort is "100000": want a port from 1 to 65535
        Service a-port-out-of-range: Service default/a-port-out-of-range: spec.ports[0].port is "70000": want a port from 1 to 65535
        Service a-port-that-is-a-word: Service default/a-port-that-is-a-word: the text up to where it makes no sense is "erIP\":\"10.96.0.2\",\"ports\":[{\"port\":\"http": invalid type: string "http", expected i32 at line 1 column 179
        Service an-address-that-is-none: Service default/an-address-that-is-none: spec.clusterIPs[0] is "10.96.0.256": invalid IP address syntax
        Service one-port-twice: Service default/one-port-twice: spec.ports[1].port is "80": TCP 80 stands twice
        Service ports-that-are-no-list: Service default/ports-that-are-no-list: the text up to where it makes no sense is ",\"spec\":{\"clusterIP\":\"10.96.0.6\",\"ports\"": invalid type: map, expected a sequence at line 1 column 165"#]].assert_eq(&watched.told());
    assert_eq!((watched.left_out("Service"), watched.left_out("EndpointSlice")), (6.0, 4.0));
}

/// An event that cannot be read takes the object out, as one that can be read and makes no sense does; a line that is no
/// event at all is got over by a new list.
#[tokio::test]
async fn events_that_cannot_be_read_hold_nobody_up() {
    let server = Server::default();
    server.put("services", service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    server.put("services", service("api", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]})));
    let mut watched = Watched::start(server);
    watched.until("both", |snapshot| snapshot.synced && snapshot.services.len() == 2).await;
    watched.server.put("services", service("api", json!({"clusterIP": 7})));
    watched.until("one is out", |snapshot| snapshot.services.len() == 1).await;
    watched.server.say("services", r#"{"type":"MODIFIED","object""#);
    watched.server.put("services", service("db", json!({"clusterIP": "10.96.0.3", "ports": [{"port": 80}]})));
    watched.until("another one", |snapshot| snapshot.services.len() == 2).await;
    expect![[r#"Service api: Service default/api: the text up to where it makes no sense is "sourceVersion\":\"1\"},\"spec\":{\"clusterIP\":": invalid type: integer `7`, expected a string at line 1 column 127"#]].assert_eq(&watched.told());
}

/// A slice may come before its Service: only one that stays alone is told of. Nothing is served for it.
#[tokio::test(start_paused = true)]
async fn a_slice_whose_service_does_not_exist_is_named_once() {
    let server = Server::default();
    server.put("services", service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    for name in ["web", "late", "never"] {
        server
            .put("endpointslices", slice(&format!("{name}-1"), name, &["10.244.0.1"], json!([{"port": 80}])));
    }
    let mut watched = Watched::start(server);
    watched.until("synced", |snapshot| snapshot.synced).await;
    watched
        .server
        .put("services", service("late", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]})));
    watched.until("the late one", |snapshot| snapshot.services.len() == 2).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    expect![[r#"EndpointSlice never-1: EndpointSlice default/never-1: metadata.labels[kubernetes.io/service-name] is "never": there is no such Service"#]].assert_eq(&watched.told());
    assert!((watched.left_out("EndpointSlice") - 1.0).abs() < f64::EPSILON);
}

/// Ten thousand endpoints are a lot, and no error.
#[tokio::test]
async fn ten_thousand_endpoints_in_one_service() {
    let server = Server::default();
    server.put("services", service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    for number in 0..100 {
        let addrs: Vec<String> = (0..100).map(|last| format!("10.244.{number}.{last}")).collect();
        let addrs: Vec<&str> = addrs.iter().map(String::as_str).collect();
        let name = format!("web-{number}");
        server.put("endpointslices", slice(&name, "web", &addrs, json!([{"port": 8080}])));
    }
    let mut watched = Watched::start(server);
    let synced = watched.until("synced", |snapshot| snapshot.synced).await;
    assert_eq!(synced.endpoints[&ServiceKey::new("default", "web")].endpoints.len(), 10_000);
    assert_eq!(watched.told(), "");
}
