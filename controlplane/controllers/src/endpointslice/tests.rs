//! Endpoints on tables of pods, and the laws of the diff.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::desired::{groups, look_the_same};
use super::diff::{Changes, MAX_ENDPOINTS, diff, trigger_time};

fn service(spec: Value) -> Service {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "svc", "labels": {"team": "x"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "clusterIP": "10.96.0.1",
                 "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    });
    service["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(service).unwrap()
}

fn pod(number: u16, port: i32, ready: bool, extra: Value) -> Arc<Pod> {
    let name = format!("p{number}");
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": format!("10.0.{}.{}", number / 256, number % 256)}, {"ip": format!("fd00::{number:x}")}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    });
    for (section, values) in extra.as_object().unwrap() {
        pod[section].as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn plan(service: &Service, pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Changes {
    let zone = |node: &str| (node == "n1").then(|| "zone-a".to_owned());
    diff(service, groups(service, pods, &zone), existing, Some(Timestamp::UNIX_EPOCH))
}

/// What the server would hold after `changes`.
fn apply(existing: &[Arc<EndpointSlice>], changes: Changes, serial: &mut u32) -> Vec<Arc<EndpointSlice>> {
    let name = |slice: &EndpointSlice| slice.metadata.name.clone();
    let gone: BTreeSet<_> = changes.delete.iter().map(|slice| name(slice)).collect();
    let mut slices: Vec<Arc<EndpointSlice>> = existing
        .iter()
        .filter(|slice| !gone.contains(&name(slice)))
        .map(|slice| {
            let update = changes.update.iter().find(|update| name(update) == name(slice));
            update.map_or_else(|| Arc::clone(slice), |update| Arc::new(update.clone()))
        })
        .collect();
    for mut slice in changes.create {
        *serial += 1;
        slice.metadata.name = Some(format!("web-{serial}"));
        slices.push(Arc::new(slice));
    }
    slices
}

#[test]
fn one_slice_per_family_and_conditions_by_the_pods_state() {
    let service = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let pods = [
        pod(1, 8080, true, json!({})),
        pod(2, 8080, false, json!({})),
        pod(3, 8080, true, going),
        pod(4, 8080, true, json!({"status": {"phase": "Succeeded"}})),
    ];
    let changes = plan(&service, &pods, &[]);
    let families: Vec<_> = changes.create.iter().map(|slice| slice.address_type.as_str()).collect();
    assert_eq!(families, ["IPv4", "IPv6"]);
    let states: Vec<_> = changes.create[1]
        .endpoints
        .iter()
        .map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            (
                &*endpoint.addresses[0],
                conditions.ready.unwrap(),
                conditions.serving.unwrap(),
                conditions.terminating.unwrap(),
            )
        })
        .collect();
    let expected =
        [("fd00::1", true, true, false), ("fd00::2", false, false, false), ("fd00::3", false, true, true)];
    assert_eq!(states, expected);
    let slice = &changes.create[0];
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("zone-a"));
    assert_eq!(slice.metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"], "web");
    assert_eq!(slice.metadata.labels.as_ref().unwrap()["team"], "x");
    assert_eq!(trigger_time(slice), Some(Timestamp::UNIX_EPOCH));
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
}

#[test]
fn a_named_port_may_differ_from_pod_to_pod() {
    let pods = [pod(1, 8080, true, json!({})), pod(2, 9090, true, json!({})), pod(3, 8080, true, json!({}))];
    let changes = plan(&service(json!({})), &pods, &[]);
    let ports: Vec<_> = changes
        .create
        .iter()
        .map(|slice| (slice.ports.as_ref().unwrap()[0].port.unwrap(), slice.endpoints.len()))
        .collect();
    assert_eq!(ports, [(8080, 2), (9090, 1)]);
}

#[test]
fn unready_pods_can_be_published_and_hints_follow_the_distribution() {
    let spec = json!({"publishNotReadyAddresses": true, "trafficDistribution": "PreferSameZone"});
    let changes = plan(&service(spec), &[pod(1, 80, false, json!({}))], &[]);
    let endpoint = &changes.create[0].endpoints[0];
    let conditions = endpoint.conditions.as_ref().unwrap();
    assert_eq!((conditions.ready, conditions.serving), (Some(true), Some(false)));
    assert_eq!(endpoint.hints.as_ref().unwrap().for_zones.as_ref().unwrap()[0].name, "zone-a");
    let same_node = service(json!({"trafficDistribution": "PreferSameNode"}));
    let changes = plan(&same_node, &[pod(1, 80, true, json!({}))], &[]);
    let hints = changes.create[0].endpoints[0].hints.as_ref().unwrap();
    assert_eq!(hints.for_nodes.as_ref().unwrap()[0].name, "n1");
}

#[test]
fn pods_of_a_headless_service_have_host_names() {
    let spec = json!({"clusterIP": "None", "ports": []});
    let named = json!({"spec": {"hostname": "db-0", "subdomain": "web"}});
    let elsewhere = json!({"spec": {"hostname": "db-1", "subdomain": "other"}});
    let changes = plan(&service(spec), &[pod(1, 80, true, named), pod(2, 80, true, elsewhere)], &[]);
    let slice = &changes.create[0];
    let hostnames: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.hostname.as_deref()).collect();
    assert_eq!(hostnames, [Some("db-0"), None]);
    assert!(slice.metadata.labels.as_ref().unwrap().contains_key("service.kubernetes.io/headless"));
    assert!(slice.ports.as_ref().unwrap().is_empty());
}

#[test]
fn a_service_without_pods_has_an_empty_slice_that_goes_when_the_first_comes() {
    let service = service(json!({}));
    let mut serial = 0;
    let empty = apply(&[], plan(&service, &[], &[]), &mut serial);
    assert_eq!((empty.len(), empty[0].endpoints.len()), (1, 0));
    let again = plan(&service, &[], &empty);
    assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
    let first = apply(&empty, plan(&service, &[pod(1, 80, true, json!({}))], &empty), &mut serial);
    assert_eq!((first.len(), first[0].endpoints.len()), (1, 1));
}

#[test]
fn one_pod_more_or_less_writes_one_slice() {
    let service = service(json!({}));
    let pods: Vec<_> = (0..250).map(|n| pod(n, 80, true, json!({}))).collect();
    let mut serial = 0;
    let slices = apply(&[], plan(&service, &pods, &[]), &mut serial);
    let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    let writes = |changes: &Changes| (changes.create.len(), changes.update.len(), changes.delete.len());
    assert_eq!(writes(&plan(&service, &pods[1..], &slices)), (0, 1, 0));
    let mut more = pods.clone();
    more.push(pod(300, 80, true, json!({})));
    assert_eq!(writes(&plan(&service, &more, &slices)), (0, 1, 0));
    more[7] = pod(7, 80, false, json!({}));
    assert_eq!(writes(&plan(&service, &more[..250], &slices)), (0, 1, 0));
    more[7] = pod(301, 80, true, json!({}));
    assert_eq!(writes(&plan(&service, &more[..250], &slices)), (0, 1, 0), "the gap is filled");
}

#[test]
fn what_no_endpoint_can_show_is_not_looked_at() {
    let one = pod(1, 80, true, json!({}));
    let mut other = one.as_ref().clone();
    other.metadata.resource_version = Some("9".into());
    other.status.as_mut().unwrap().message = Some("fine".into());
    assert!(look_the_same(&one, &other));
    assert!(!look_the_same(&one, &pod(1, 80, false, json!({}))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn slices_show_exactly_the_pods_whatever_came_before(
        steps in prop::collection::vec(prop::collection::btree_map(0..400_u16, (any::<bool>(), any::<bool>()), 0..260), 1..5),
    ) {
        let service = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
        let (mut slices, mut serial) = (Vec::new(), 0);
        for step in steps {
            let pods: Vec<_> = step
                .iter()
                .map(|(n, (ready, other))| pod(*n, if *other { 8080 } else { 9090 }, *ready, json!({})))
                .collect();
            slices = apply(&slices, plan(&service, &pods, &slices), &mut serial);
            for family in ["IPv4", "IPv6"] {
                let mut shown = BTreeSet::new();
                let mut count = 0;
                for slice in slices.iter().filter(|slice| slice.address_type == family) {
                    prop_assert!(slice.endpoints.len() <= MAX_ENDPOINTS);
                    let port = slice.ports.as_ref().and_then(|ports| ports.first()).and_then(|port| port.port);
                    for endpoint in &slice.endpoints {
                        count += 1;
                        let name = endpoint.target_ref.as_ref().unwrap().name.clone().unwrap();
                        shown.insert((name, endpoint.conditions.as_ref().unwrap().ready.unwrap(), port == Some(8080)));
                    }
                }
                let wanted: BTreeSet<_> =
                    step.iter().map(|(n, (ready, other))| (format!("p{n}"), *ready, *other)).collect();
                prop_assert_eq!(count, wanted.len());
                prop_assert_eq!(shown, wanted);
            }
            let again = plan(&service, &pods, &slices);
            prop_assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        }
    }
}
