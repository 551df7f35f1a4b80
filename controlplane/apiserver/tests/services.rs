//! Addresses and ports of Services: each given out once, kept, changed and given back.

#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/server.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod server;

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use server::Server;

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("no error of the API: {other:?}"),
    }
}

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_and_ports_are_given_out_once() {
    let server = Server::start().await;
    let client = server.client().await;
    let api: Api<Service> = Api::default_namespaced(client.clone());
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack", "externalTrafficPolicy": "Local"});
    let services: Vec<Service> = (0..30).map(|at| service(&format!("s{at}"), spec.clone())).collect();
    let post = PostParams::default();
    let made: Vec<Service> = join_all(services.iter().map(|service| api.create(&post, service)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let (mut cluster_ips, mut ports, mut virtual_ips) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for service in &made {
        let spec = service.spec.as_ref().unwrap();
        cluster_ips.extend(spec.cluster_ips.clone().unwrap());
        ports.insert(spec.ports.as_ref().unwrap()[0].node_port.unwrap());
        ports.insert(spec.health_check_node_port.unwrap());
        let balancer = service.status.clone().unwrap_or_default().load_balancer.unwrap_or_default();
        virtual_ips.extend(
            balancer
                .ingress
                .unwrap_or_default()
                .into_iter()
                .map(|ingress| (ingress.ip.unwrap(), ingress.ip_mode)),
        );
    }
    assert_eq!((cluster_ips.len(), ports.len()), (60, 60));
    // Six addresses are in the pool of IPv4, and enough in that of IPv6.
    assert_eq!(virtual_ips.len(), 36);
    assert!(virtual_ips.iter().all(|(_, mode)| mode.as_deref() == Some("VIP")));
    // What is wanted is given or refused, and freed with its Service.
    let taken = made[0].spec.as_ref().unwrap().cluster_ip.clone().unwrap();
    let wanted = service("wanted", json!({"clusterIP": taken, "ports": [{"port": 80}]}));
    assert_eq!(code(api.create(&post, &wanted).await), 422);
    api.delete("s0", &DeleteParams::default()).await.unwrap();
    api.create(&post, &wanted).await.unwrap();
    for spec in [
        json!({"clusterIP": "10.97.0.1"}),
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 99}]}),
    ] {
        let mut spec = spec;
        if spec["ports"].is_null() {
            spec["ports"] = json!([{"port": 80}]);
        }
        assert_eq!(code(api.create(&post, &service("bad", spec)).await), 422);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_load_balancer_address_gets_the_next_free_one() {
    let server = Server::start().await;
    let api: Api<Service> = Api::default_namespaced(server.client().await);
    let address = |service: &Service| {
        let balancer = service.status.clone().and_then(|status| status.load_balancer).unwrap_or_default();
        balancer.ingress.unwrap_or_default().first().and_then(|ingress| ingress.ip.clone())
    };
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
    let mut made = Vec::new();
    for at in 0..7 {
        made.push(
            api.create(&PostParams::default(), &service(&format!("s{at}"), spec.clone())).await.unwrap(),
        );
    }
    assert_eq!(made.iter().filter_map(address).count(), 6);
    assert_eq!(address(&made[6]), None);
    api.delete("s2", &DeleteParams::default()).await.unwrap();
    let given = async {
        loop {
            match address(&api.get("s6").await.unwrap()) {
                Some(ip) => return ip,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let given = tokio::time::timeout(Duration::from_secs(10), given).await.unwrap();
    assert_eq!(Some(given), address(&made[2]));
}

/// What the Service was told, once it was.
async fn told(client: &kube::Client, name: &str) -> String {
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let about = ListParams::default().fields(&format!("involvedObject.name={name},reason=AllocationFailed"));
    let told = async {
        loop {
            match &events.list(&about).await.unwrap().items[..] {
                [] => tokio::time::sleep(Duration::from_millis(5)).await,
                [event] => return event.message.clone().unwrap_or_default(),
                more => panic!("told {} times", more.len()),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_gets_no_address_is_told_why() {
    let server = Server::start_with(|config| {
        config.load_balancer_pools = vec!["192.0.2.8/32".parse().unwrap()];
    })
    .await;
    let client = server.client().await;
    let api: Api<Service> = Api::default_namespaced(client.clone());
    let create = async |name: &str, more: Value| {
        let mut spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api.create(&PostParams::default(), &service(name, spec)).await.unwrap();
    };
    create("first", json!({})).await;
    create("late", json!({})).await;
    create("wants", json!({"loadBalancerIP": "192.0.2.8"})).await;
    create("far", json!({"loadBalancerIP": "203.0.113.1"})).await;
    create("six", json!({"ipFamilies": ["IPv6"]})).await;
    create("other", json!({"loadBalancerClass": "example.com/other"})).await;
    for (name, why) in [
        ("late", "no IPv4 address is free in the pools (192.0.2.8/32)"),
        ("wants", "192.0.2.8 is taken by the Service default/first"),
        ("far", "203.0.113.1 is in none of the pools (192.0.2.8/32)"),
        ("six", "there is no pool of IPv6 addresses"),
    ] {
        let told = told(&client, name).await;
        assert_eq!(told, format!("Failed to allocate a load balancer address: {why}"), "{name}");
    }
    // Somebody else's, and one that has all it wants: nothing is said.
    let events: Api<Event> = Api::default_namespaced(client.clone());
    assert_eq!(events.list(&ListParams::default()).await.unwrap().items.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_go_away_leave_nothing_given_out_twice() {
    let server = Server::start().await;
    let api: Api<Service> = Api::default_namespaced(server.client().await);
    let post = PostParams::default();
    let object = |name: &str| service(name, json!({"type": "NodePort", "ports": [{"port": 80}]}));
    for at in 0..60 {
        let object = object(&format!("hasty-{at}"));
        // Given up at a different moment each time; whether it was stored is left open.
        drop(tokio::time::timeout(Duration::from_micros(at * 60), api.create(&post, &object)).await);
    }
    for at in 0..30 {
        api.create(&post, &object(&format!("patient-{at}"))).await.unwrap();
    }
    let services = api.list(&ListParams::default().fields("spec.type=NodePort")).await.unwrap().items;
    let ips: BTreeSet<_> = services.iter().map(|service| service.spec.clone().unwrap().cluster_ip).collect();
    let ports: BTreeSet<_> =
        services.iter().map(|service| service.spec.clone().unwrap().ports.unwrap()[0].node_port).collect();
    assert!(services.len() >= 30);
    assert_eq!((ips.len(), ports.len()), (services.len(), services.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_keep_and_change() {
    let server = Server::start().await;
    let api: Api<Service> = Api::default_namespaced(server.client().await);
    let post = PostParams::default();
    let made =
        api.create(&post, &service("s", json!({"type": "NodePort", "ports": [{"port": 80}]}))).await.unwrap();
    let (ip, node_port) =
        (made.spec.clone().unwrap().cluster_ip, made.spec.unwrap().ports.unwrap()[0].node_port);
    // A replacement that does not mention them keeps both.
    let kept = api
        .replace("s", &post, &service("s", json!({"type": "NodePort", "ports": [{"port": 80}]})))
        .await
        .unwrap();
    assert_eq!(
        (kept.spec.clone().unwrap().cluster_ip, kept.spec.unwrap().ports.unwrap()[0].node_port),
        (ip, node_port)
    );
    let patch = |spec: Value| Patch::Merge(json!({"spec": spec}));
    let params = PatchParams::default();
    let plain = api.patch("s", &params, &patch(json!({"type": "ClusterIP"}))).await.unwrap();
    assert_eq!(plain.spec.unwrap().ports.unwrap()[0].node_port, None);
    assert_eq!(
        code(
            api.patch("s", &params, &patch(json!({"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"]})))
                .await
        ),
        422
    );
    let both = api.patch("s", &params, &patch(json!({"ipFamilyPolicy": "RequireDualStack"}))).await.unwrap();
    let first = both.spec.unwrap().cluster_ips.unwrap();
    assert_eq!(first.len(), 2);
    let single = api.patch("s", &params, &patch(json!({"ipFamilyPolicy": "SingleStack"}))).await.unwrap();
    assert_eq!(single.spec.unwrap().cluster_ips.unwrap(), first[..1]);
    let name =
        json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null});
    let name = api.patch("s", &params, &patch(name)).await.unwrap();
    assert_eq!(name.spec.unwrap().cluster_ip, None);
    let headless = service("h", json!({"clusterIP": "None", "selector": {"a": "b"}}));
    let headless = api.create(&post, &headless).await.unwrap().spec.unwrap();
    assert_eq!(
        (headless.cluster_ips, headless.ip_families),
        (Some(vec!["None".into()]), Some(vec!["IPv4".into()]))
    );
}
