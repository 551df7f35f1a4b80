//! What new objects get.
#![allow(clippy::needless_raw_string_hashes, reason = "snapshots are written by expect-test")]
#![allow(clippy::too_many_lines, reason = "tables and snapshots")]

use expect_test::expect;
use serde_json::json;

use super::{check, create, deployment, service};
use crate::Registry;

#[test]
fn a_new_pod() {
    let pod = create(
        "v1",
        "Pod",
        json!({
            "metadata": {"generateName": "web-", "creationTimestamp": "2000-01-01T00:00:00Z", "uid": "mine"},
            "spec": {"containers": [{
                "name": "c", "image": "seaway/echo:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}}}]},
            "status": {"phase": "Running"},
        }),
    )
    .unwrap();
    check(
        &pod,
        expect![[r#"
            {
              "apiVersion": "v1",
              "kind": "Pod",
              "metadata": {
                "creationTimestamp": "2026-11-21T07:00:00Z",
                "generateName": "web-",
                "name": "web-x7k2p",
                "namespace": "default",
                "uid": "uid-1"
              },
              "spec": {
                "containers": [
                  {
                    "image": "seaway/echo:1",
                    "imagePullPolicy": "IfNotPresent",
                    "name": "c",
                    "ports": [
                      {
                        "containerPort": 80,
                        "protocol": "TCP"
                      }
                    ],
                    "readinessProbe": {
                      "failureThreshold": 3,
                      "httpGet": {
                        "path": "/",
                        "port": 80,
                        "scheme": "HTTP"
                      },
                      "periodSeconds": 10,
                      "successThreshold": 1,
                      "timeoutSeconds": 1
                    },
                    "resources": {
                      "limits": {
                        "cpu": "1"
                      },
                      "requests": {
                        "cpu": "1"
                      }
                    },
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File"
                  }
                ],
                "dnsPolicy": "ClusterFirst",
                "enableServiceLinks": true,
                "preemptionPolicy": "PreemptLowerPriority",
                "priority": 0,
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
                "securityContext": {},
                "serviceAccount": "default",
                "serviceAccountName": "default",
                "terminationGracePeriodSeconds": 30,
                "tolerations": [
                  {
                    "effect": "NoExecute",
                    "key": "node.kubernetes.io/not-ready",
                    "operator": "Exists",
                    "tolerationSeconds": 300
                  },
                  {
                    "effect": "NoExecute",
                    "key": "node.kubernetes.io/unreachable",
                    "operator": "Exists",
                    "tolerationSeconds": 300
                  }
                ]
              },
              "status": {
                "phase": "Pending",
                "qosClass": "Burstable"
              }
            }"#]],
    );
}

#[test]
fn a_new_deployment() {
    let deployment = create("apps/v1", "Deployment", deployment()).unwrap();
    check(
        &deployment["spec"],
        expect![[r#"
        {
          "progressDeadlineSeconds": 600,
          "replicas": 1,
          "revisionHistoryLimit": 10,
          "selector": {
            "matchLabels": {
              "app": "web"
            }
          },
          "strategy": {
            "rollingUpdate": {
              "maxSurge": "25%",
              "maxUnavailable": "25%"
            },
            "type": "RollingUpdate"
          },
          "template": {
            "metadata": {
              "labels": {
                "app": "web"
              }
            },
            "spec": {
              "containers": [
                {
                  "image": "seaway/echo",
                  "imagePullPolicy": "Always",
                  "name": "c",
                  "resources": {},
                  "terminationMessagePath": "/dev/termination-log",
                  "terminationMessagePolicy": "File"
                }
              ],
              "dnsPolicy": "ClusterFirst",
              "restartPolicy": "Always",
              "schedulerName": "default-scheduler",
              "securityContext": {},
              "terminationGracePeriodSeconds": 30
            }
          }
        }"#]],
    );
    assert_eq!(deployment["metadata"]["generation"], 1);
}

#[test]
fn a_new_daemon_set() {
    let set = create("apps/v1", "DaemonSet", deployment()).unwrap();
    assert_eq!(
        set["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
    );
    assert_eq!(set["spec"]["revisionHistoryLimit"], 10);
}

#[test]
fn ports_on_the_hosts_network() {
    let spec = json!({"hostNetwork": true, "containers": [
        {"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]});
    let pod = create("v1", "Pod", json!({"spec": spec})).unwrap();
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    let mut set = deployment();
    set["spec"]["template"]["spec"] = spec;
    let set = create("apps/v1", "DaemonSet", set).unwrap();
    let port = &set["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!(*port, json!({"containerPort": 80, "protocol": "TCP"}));
}

#[test]
fn new_services() {
    let balancer = service(json!({
        "type": "LoadBalancer", "sessionAffinity": "ClientIP", "selector": {"app": "web"},
        "ports": [{"port": 80}],
    }))
    .unwrap();
    check(
        &balancer["spec"],
        expect![[r#"
        {
          "allocateLoadBalancerNodePorts": true,
          "externalTrafficPolicy": "Cluster",
          "internalTrafficPolicy": "Cluster",
          "ports": [
            {
              "port": 80,
              "protocol": "TCP",
              "targetPort": 80
            }
          ],
          "selector": {
            "app": "web"
          },
          "sessionAffinity": "ClientIP",
          "sessionAffinityConfig": {
            "clientIP": {
              "timeoutSeconds": 10800
            }
          },
          "type": "LoadBalancer"
        }"#]],
    );
    let plain = service(json!({"clusterIP": "None", "selector": {"app": "web"}})).unwrap();
    check(
        &plain["spec"],
        expect![[r#"
        {
          "clusterIP": "None",
          "clusterIPs": [
            "None"
          ],
          "internalTrafficPolicy": "Cluster",
          "selector": {
            "app": "web"
          },
          "sessionAffinity": "None",
          "type": "ClusterIP"
        }"#]],
    );
}

#[test]
fn small_kinds() {
    let namespace = create("v1", "Namespace", json!({})).unwrap();
    check(
        &namespace,
        expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "Namespace",
          "metadata": {
            "creationTimestamp": "2026-11-21T07:00:00Z",
            "labels": {
              "kubernetes.io/metadata.name": "web"
            },
            "name": "web",
            "uid": "uid-1"
          },
          "spec": {
            "finalizers": [
              "kubernetes"
            ]
          },
          "status": {
            "phase": "Active"
          }
        }"#]],
    );
    let secret = create("v1", "Secret", json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}})).unwrap();
    assert_eq!((&secret["type"], &secret["data"]), (&json!("Opaque"), &json!({"a": "Yg==", "c": "ZA=="})));
    assert!(secret.get("stringData").is_none());
    let node =
        create("v1", "Node", json!({"spec": {"podCIDRs": ["10.244.0.0/24"]}, "status": {"phase": "x"}}));
    let node = node.unwrap();
    assert_eq!((&node["spec"]["podCIDR"], &node["status"]["phase"]), (&json!("10.244.0.0/24"), &json!("x")));
    let slice = create(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        json!({"addressType": "IPv4", "ports": [{"port": 1}]}),
    );
    assert_eq!(slice.unwrap()["ports"], json!([{"name": "", "port": 1, "protocol": "TCP"}]));
}

#[test]
fn events_have_two_faces() {
    let registry = Registry::builtin();
    let new = registry.kind("events.k8s.io/v1", "Event").unwrap();
    let event = create("events.k8s.io/v1", "Event", json!({
        "regarding": {"kind": "Pod", "name": "a", "namespace": "default"}, "note": "hello", "type": "Normal",
        "reason": "Started", "action": "Start", "reportingController": "x", "reportingInstance": "y",
    }))
    .unwrap();
    let stored = new.to_storage(event.clone());
    assert_eq!((&stored["apiVersion"], &stored["message"]), (&json!("v1"), &json!("hello")));
    assert_eq!(stored["involvedObject"]["name"], "a");
    assert_eq!(new.from_storage(stored), event);
    assert_eq!(registry.storage_of(new).group, "");
}
