//! Objects as the API shows them, and what becomes of them.
#![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::wire;

fn service_of(spec: Value) -> Result<seaway_model::Service, InvalidObject> {
    let object = json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": "u1",
            "annotations": {"seaway.dev/load-balancing": "maglev", "seaway.dev/north-south": "dsr"}},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}},
    });
    let object = wire::Service::deserialize(&object).unwrap();
    service(&object, &mut Names::default())
}

fn refused(spec: Value, expected: Expect) {
    expected.assert_eq(&service_of(spec).unwrap_err().to_string());
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn a_service_of_every_field() {
    let converted = service_of(json!({
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"],
        "externalIPs": ["198.51.100.4"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080, "appProtocol": "http"},
                  {"name": "dns", "port": 80, "protocol": "UDP"}],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000, "loadBalancerSourceRanges": [" 203.0.113.0/24"],
        "publishNotReadyAddresses": true, "trafficDistribution": "PreferClose",
    }))
    .unwrap();
    expect![[r#"
        Service {
            key: ServiceKey {
                namespace: "shop",
                name: "web",
            },
            uid: "u1",
            kind: LoadBalancer,
            cluster_ips: [
                10.96.0.9,
                fd00::9,
            ],
            headless: false,
            external_name: None,
            ports: [
                ServicePort {
                    name: "http",
                    protocol: Tcp,
                    port: 80,
                    node_port: Some(
                        30080,
                    ),
                    app_protocol: Some(
                        "http",
                    ),
                },
                ServicePort {
                    name: "dns",
                    protocol: Udp,
                    port: 80,
                    node_port: None,
                    app_protocol: None,
                },
            ],
            external_ips: [
                198.51.100.4,
            ],
            load_balancer: [
                LoadBalancerIngress {
                    addr: 192.0.2.7,
                    mode: Vip,
                },
                LoadBalancerIngress {
                    addr: 192.0.2.8,
                    mode: Proxy,
                },
            ],
            load_balancer_class: None,
            source_ranges: [
                203.0.113.0/24,
            ],
            session_affinity: Some(
                60s,
            ),
            external_policy: Local,
            internal_policy: Local,
            health_check_node_port: Some(
                31000,
            ),
            publish_not_ready: true,
            traffic_distribution: Some(
                PreferSameZone,
            ),
            balancing: Some(
                Maglev,
            ),
            forwarding: Some(
                Dsr,
            ),
            proxy_name: None,
        }
    "#]]
    .assert_debug_eq(&converted);
}

#[test]
fn headless_and_external_name() {
    let headless = service_of(json!({"clusterIP": "None", "clusterIPs": ["None"]})).unwrap();
    assert!(headless.headless && headless.cluster_ips.is_empty());
    let alias = service_of(json!({"type": "ExternalName", "externalName": "example.org"})).unwrap();
    assert_eq!(alias.external_name.as_deref(), Some("example.org"));
    assert!(!alias.headless && alias.load_balancer.is_empty());
}

#[test]
fn defaults_of_session_affinity() {
    let converted = service_of(json!({"sessionAffinity": "ClientIP"})).unwrap();
    assert_eq!(converted.session_affinity.unwrap().as_secs(), 10_800);
}

#[test]
fn senseless_services_name_field_and_value() {
    refused(
        json!({"clusterIP": "10.96.0.999"}),
        expect!["Service shop/web: spec.clusterIPs[0] is \"10.96.0.999\": invalid IP address syntax"],
    );
    refused(
        json!({"clusterIPs": ["127.0.0.1"]}),
        expect![
            "Service shop/web: spec.clusterIPs[0] is \"127.0.0.1\": not an address that a Service can use"
        ],
    );
    refused(
        json!({"ports": [{"port": 70000}]}),
        expect!["Service shop/web: spec.ports[0].port is \"70000\": want a port from 1 to 65535"],
    );
    refused(
        json!({"ports": [{"port": 80}, {"port": 80}]}),
        expect!["Service shop/web: spec.ports[1].port is \"80\": TCP 80 stands twice"],
    );
    refused(
        json!({"ports": [{"port": 80, "protocol": "tcp"}]}),
        expect![
            "Service shop/web: spec.ports[0].protocol is \"tcp\": unknown protocol \"tcp\": want TCP, UDP or SCTP"
        ],
    );
    refused(
        json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/40"]}),
        expect![
            "Service shop/web: spec.loadBalancerSourceRanges[0] is \"10.0.0.0/40\": invalid IP address syntax"
        ],
    );
    refused(
        json!({"externalTrafficPolicy": "Nearby"}),
        expect!["Service shop/web: spec.externalTrafficPolicy is \"Nearby\": want Cluster or Local"],
    );
}

fn slice_of(address_type: &str, endpoints: Value) -> Result<Option<ConvertedSlice>, InvalidObject> {
    let object = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"}},
        "addressType": address_type,
        "ports": [{"name": "http", "port": 8080}, {"name": "all"}],
        "endpoints": endpoints,
    });
    let object = wire::EndpointSlice::deserialize(&object).unwrap();
    endpoint_slice(&object, &mut Names::default())
}

#[test]
fn conditions_that_are_absent() {
    let converted = slice_of(
        "IPv4",
        json!([
            {"addresses": ["10.0.0.1"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]),
    )
    .unwrap()
    .unwrap();
    let states: Vec<_> =
        converted.slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(states, [(true, true, false), (false, false, false), (false, true, true)]);
    assert_eq!(converted.slice.endpoints[0].ports.len(), 1);
    assert!(converted.triggered_at.is_some());
}

#[test]
fn one_bad_endpoint_does_not_take_the_others_along() {
    let converted = slice_of("IPv4", json!([
        {"addresses": ["fd00::1"]}, {"addresses": []}, {"addresses": ["10.0.0.1"]}, {"addresses": ["0.0.0.0"]},
    ]))
    .unwrap()
    .unwrap();
    assert_eq!(converted.slice.endpoints.len(), 1);
    let reasons: Vec<String> = converted.left_out.iter().map(ToString::to_string).collect();
    expect![[r#"
        [
            "EndpointSlice shop/web-1: endpoints[0].addresses[0] is \"fd00::1\": not of the slice's addressType",
            "EndpointSlice shop/web-1: endpoints[1].addresses[0] is \"\": an endpoint needs an address",
            "EndpointSlice shop/web-1: endpoints[3].addresses[0] is \"0.0.0.0\": not an address that a Service can use",
        ]
    "#]]
    .assert_debug_eq(&reasons);
}

#[test]
fn slices_of_names_are_nobodys_concern() {
    assert_eq!(slice_of("FQDN", json!([{"addresses": ["example.org"]}])), Ok(None));
    assert!(slice_of("IPX", json!([])).is_err());
}

#[test]
fn a_node_of_every_field() {
    let object = json!({
        "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z1",
            "node.kubernetes.io/exclude-from-external-load-balancers": ""},
            "annotations": {"seaway.dev/vtep-mac": "02:00:00:00:00:0a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let object = wire::Node::deserialize(&object).unwrap();
    let converted = node(&object, &mut Names::default()).unwrap();
    assert!(converted.ready && converted.excluded_from_load_balancers);
    assert_eq!(converted.addr(seaway_model::Family::V4), Some("192.0.2.1".parse().unwrap()));
    assert_eq!(converted.pod_cidrs.len(), 2);
    assert_eq!(converted.vtep_mac, Some([2, 0, 0, 0, 0, 10]));
}

#[test]
fn a_node_that_nobody_hears_of() {
    let node = |status: &str| {
        let conditions =
            json!([{"type": "MemoryPressure", "status": "Unknown"}, {"type": "Ready", "status": status}]);
        let object = json!({"metadata": {"name": "a"}, "status": {"conditions": conditions}});
        let node = node(&wire::Node::deserialize(&object).unwrap(), &mut Names::default()).unwrap();
        (node.ready, node.unreachable)
    };
    assert_eq!(node("True"), (true, false));
    assert_eq!(node("False"), (false, false));
    assert_eq!(node("Unknown"), (false, true));
}

#[test]
fn a_mac_that_is_none_is_refused() {
    let object = json!({
        "metadata": {"name": "a", "annotations": {"seaway.dev/vtep-mac": "02:00:00:00:00:+a"}},
    });
    let object = wire::Node::deserialize(&object).unwrap();
    assert!(node(&object, &mut Names::default()).is_err());
}

#[test]
fn a_node_that_is_about_to_go() {
    let node = |taint: &str, deleted: Option<&str>| {
        let object = json!({
            "metadata": {"name": "a", "deletionTimestamp": deleted},
            "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
        });
        node(&wire::Node::deserialize(&object).unwrap(), &mut Names::default()).unwrap().draining
    };
    assert!(!node("some-other", None));
    assert!(node("ToBeDeletedByClusterAutoscaler", None));
    assert!(node("some-other", Some("2026-01-01T00:00:00Z")));
}

#[test]
fn host_ports_of_pods_that_run() {
    let pod = |phase: &str, host_network: bool, port: Value| {
        let object = json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u"},
            "spec": {"nodeName": "node1", "hostNetwork": host_network, "containers": [{"name": "a", "ports": [port]}, {"name": "b"}]},
            "status": {"phase": phase, "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00:10:244:1::5"}]},
        });
        host_pod(&wire::Pod::deserialize(&object).unwrap(), Some("node1"), &mut Names::default())
    };
    let port = || json!({"containerPort": 8080, "hostPort": 80, "hostIP": "0.0.0.0"});
    let found = pod("Running", false, port()).unwrap().unwrap();
    assert_eq!(found.addrs.len(), 2);
    assert_eq!(
        (found.ports[0].host_port, found.ports[0].container_port, found.ports[0].host_ip),
        (80, 8080, None)
    );
    assert_eq!(pod("Succeeded", false, port()), Ok(None), "its containers have ended");
    assert_eq!(pod("Running", true, port()), Ok(None), "it listens there itself");
    assert!(pod("Running", false, json!({"containerPort": 8080})).unwrap().unwrap().ports.is_empty());
    let one = pod(
        "Running",
        false,
        json!({"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"}),
    );
    assert_eq!(one.unwrap().unwrap().ports[0].host_ip, Some("127.0.0.1".parse().unwrap()));
    let error = pod("Running", false, json!({"containerPort": 8080, "hostPort": 70_000})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Pod default/web: spec.containers[].ports[].hostPort is \"70000\": want a port from 1 to 65535"
    );
}
