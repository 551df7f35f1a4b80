//! What each kind gets and what it refuses, as tables.
#![allow(clippy::needless_raw_string_hashes, reason = "snapshots are written by expect-test")]
#![allow(clippy::too_many_lines, reason = "tables and snapshots")]

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::{ApiError, CreateContext, Registry};

fn now() -> jiff::Timestamp {
    "2026-11-21T07:00:00Z".parse().unwrap()
}

fn create(api: &str, kind: &str, mut object: Value) -> Result<Value, ApiError> {
    let registry = Registry::builtin();
    let kind = registry.kind(api, kind).unwrap();
    if object["metadata"].is_null() {
        object["metadata"] = json!({"name": "web"});
    }
    let namespace = kind.namespaced.then_some("default");
    let context = CreateContext { namespace, uid: "uid-1", suffix: "x7k2p", now: now() };
    kind.prepare_create(object, &context)
}

fn update(old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, ApiError> {
    let registry = Registry::builtin();
    let kind = registry.kind(old["apiVersion"].as_str().unwrap(), old["kind"].as_str().unwrap()).unwrap();
    let mut new = old.clone();
    change(&mut new);
    kind.prepare_update(new, old, now())
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

fn check(got: &Value, wanted: Expect) {
    wanted.assert_eq(&pretty(got));
}

/// The faults of a refused object, a line each.
fn faults(result: Result<Value, ApiError>) -> String {
    let error = result.expect_err("the object should be refused");
    let causes = error.details.as_ref().and_then(|details| details["causes"].as_array().cloned());
    let lines: Vec<String> = causes
        .unwrap_or_default()
        .iter()
        .map(|cause| {
            let text = |key: &str| cause[key].as_str().unwrap_or_default().to_owned();
            format!("{}: {}: {}", text("field"), text("reason"), text("message"))
        })
        .collect();
    if lines.is_empty() { format!("{} {}", error.code, error.message) } else { lines.join("\n") }
}

fn template(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "seaway/echo"}]}})
}

fn deployment() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(json!({"app": "web"}))}})
}

fn service(spec: Value) -> Result<Value, ApiError> {
    create("v1", "Service", json!({"spec": spec}))
}

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
fn refused_metadata() {
    let table = [
        (json!({"name": "Web"}), "FieldValueInvalid"),
        (json!({"name": ""}), "name or generateName is required"),
        (json!({"name": "a", "labels": {"-x": "b"}}), "metadata.labels"),
        (json!({"name": "a", "labels": {"x": "b c"}}), "metadata.labels"),
        (json!({"name": "a", "annotations": {"/x": "b"}}), "metadata.annotations"),
        (json!({"name": "a", "annotations": {"x": "b".repeat(300_000)}}), "Too long"),
        (json!({"name": "a", "finalizers": ["a b"]}), "metadata.finalizers[0]"),
        (json!({"name": "a", "ownerReferences": [{"kind": "Pod"}]}), "metadata.ownerReferences[0].uid"),
        (json!({"name": "a", "namespace": "other"}), "400 the namespace of the provided object"),
        (json!({"name": "a", "resourceVersion": "7"}), "400 resourceVersion should not be set"),
    ];
    for (metadata, wanted) in table {
        let got = faults(create("v1", "ConfigMap", json!({"metadata": metadata})));
        assert!(got.contains(wanted), "{got} should contain {wanted}");
    }
}

#[test]
fn refused_pods() {
    let pod = json!({"spec": {
        "restartPolicy": "Sometimes", "nodeSelector": {"a b": "c"}, "hostname": "A",
        "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}, {"name": "v"}],
        "tolerations": [{"key": "a", "operator": "Exists", "value": "b"}],
        "initContainers": [{"name": "c", "image": "x"}],
        "containers": [
            {"name": "c", "image": "", "imagePullPolicy": "Maybe",
             "ports": [{"containerPort": 0}, {"containerPort": 80, "name": "web", "hostPort": 80},
                       {"containerPort": 81, "name": "web", "hostPort": 80, "protocol": "ICMP"}],
             "env": [{"name": "a=b"}],
             "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}},
             "volumeMounts": [{"name": "w", "mountPath": ""}],
             "livenessProbe": {"httpGet": {"port": 70000}}},
        ],
    }});
    expect![[r#"
        spec.restartPolicy: FieldValueNotSupported: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
        spec.hostname: FieldValueInvalid: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name', or '123-abc')
        spec.nodeSelector: FieldValueInvalid: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName', or 'my.name', or '123-abc')
        spec.volumes[0].hostPath: FieldValueForbidden: Forbidden: may not specify more than 1 volume type
        spec.volumes[1].name: FieldValueDuplicate: Duplicate value: "v"
        spec.containers[0].name: FieldValueDuplicate: Duplicate value: "c"
        spec.containers[0].image: FieldValueRequired: Required value
        spec.containers[0].imagePullPolicy: FieldValueNotSupported: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"
        spec.containers[0].env[0].name: FieldValueInvalid: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
        spec.containers[0].resources.requests: FieldValueInvalid: Invalid value: "2": must be less than or equal to cpu limit of 1
        spec.containers[0].livenessProbe.httpGet.port: FieldValueInvalid: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.containers[0].volumeMounts[0].name: FieldValueNotFound: Not found: "w"
        spec.containers[0].volumeMounts[0].mountPath: FieldValueRequired: Required value
        spec.containers[0].ports[0].containerPort: FieldValueRequired: Required value
        spec.containers[0].ports[2].name: FieldValueDuplicate: Duplicate value: "web"
        spec.containers[0].ports[2].protocol: FieldValueNotSupported: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"
        spec.tolerations[0].operator: FieldValueInvalid: Invalid value: "b": value must be empty when `operator` is 'Exists'"#]].assert_eq(&faults(create("v1", "Pod", pod)));
    assert_eq!(faults(create("v1", "Pod", json!({}))), "spec.containers: FieldValueRequired: Required value");
}

#[test]
fn refused_services() {
    let table = [
        json!({}),
        json!({"ports": [{"port": 0}, {"port": 80, "name": "a"}, {"port": 80, "name": "a"}]}),
        json!({"ports": [{"port": 80, "nodePort": 30000, "protocol": "ICMP", "targetPort": "Ä"}]}),
        json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "clusterIP": "10.96.0.9"}),
        json!({"clusterIP": "10.96.0", "externalIPs": ["127.0.0.1"], "ports": [{"port": 80}]}),
        json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"], "ports": [{"port": 80}]}),
        json!({"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
        json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]}),
        json!({"externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/33"], "ports": [{"port": 80}]}),
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
               "ports": [{"port": 80}]}),
    ];
    let lines: Vec<String> = table.into_iter().map(|spec| faults(service(spec))).collect();
    expect![[r#"
        spec.ports: FieldValueRequired: Required value
        --
        spec.ports[0].name: FieldValueRequired: Required value
        spec.ports[0].port: FieldValueInvalid: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.ports[0].targetPort: FieldValueInvalid: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.ports[2].name: FieldValueDuplicate: Duplicate value: "a"
        spec.ports[2]: FieldValueDuplicate: Duplicate value: {"port":80,"protocol":"TCP"}
        --
        spec.ports[0].protocol: FieldValueNotSupported: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"
        spec.ports[0].targetPort: FieldValueInvalid: Invalid value: "Ä": must contain at least one letter (a-z)
        spec.ports[0].nodePort: FieldValueForbidden: Forbidden: may not be used when `type` is 'ClusterIP'
        --
        spec.clusterIPs[0]: FieldValueInvalid: Invalid value: "None": may not be set to 'None' for NodePort services
        --
        spec.externalName: FieldValueRequired: Required value
        spec.clusterIP: FieldValueForbidden: Forbidden: may not be set for ExternalName services
        spec.clusterIPs: FieldValueForbidden: Forbidden: may not be set for ExternalName services
        --
        spec.clusterIPs[0]: FieldValueInvalid: Invalid value: "10.96.0": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        spec.externalIPs[0]: FieldValueInvalid: Invalid value: "127.0.0.1": may not be unspecified, loopback or multicast
        --
        spec.clusterIPs: FieldValueInvalid: Invalid value: ["10.96.0.1","10.96.0.2"]: may only hold up to 2 values, one of each IP family
        --
        spec.clusterIPs[0]: FieldValueInvalid: Invalid value: "10.96.0.1": expected an IPv6 value as indicated by `ipFamilies[0]`
        --
        spec.ipFamilyPolicy: FieldValueInvalid: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple ipFamilies are specified
        --
        spec.externalTrafficPolicy: FieldValueInvalid: Invalid value: "Local": may only be set for externally-accessible services
        --
        spec.loadBalancerSourceRanges[0]: FieldValueInvalid: Invalid value: "10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
        --
        spec.sessionAffinityConfig.clientIP.timeoutSeconds: FieldValueInvalid: Invalid value: 0: must be greater than 0 and less than 86400"#]].assert_eq(&lines.join("\n--\n"));
}

#[test]
fn refused_workloads() {
    let mut mismatched = deployment();
    mismatched["spec"]["template"] = template(json!({"app": "api"}));
    mismatched["spec"]["replicas"] = (-1).into();
    let mut zero = deployment();
    zero["spec"]["strategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}});
    zero["spec"]["minReadySeconds"] = 700.into();
    let mut recreate = deployment();
    recreate["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}});
    recreate["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    let lines: Vec<String> = [mismatched, zero, recreate, json!({})]
        .into_iter()
        .map(|object| faults(create("apps/v1", "Deployment", object)))
        .collect();
    expect![[r#"
        spec.template.metadata.labels: FieldValueInvalid: Invalid value: {"app":"api"}: `selector` does not match template `labels`
        spec.replicas: FieldValueInvalid: Invalid value: -1: must be greater than or equal to 0
        --
        spec.strategy.rollingUpdate.maxUnavailable: FieldValueInvalid: Invalid value: "0%": may not be 0 when `maxSurge` is 0
        spec.progressDeadlineSeconds: FieldValueInvalid: Invalid value: 600: must be greater than minReadySeconds
        --
        spec.template.spec.restartPolicy: FieldValueNotSupported: Unsupported value: "Never": supported values: "Always"
        spec.strategy.rollingUpdate: FieldValueForbidden: Forbidden: may not be specified when strategy `type` is 'Recreate'
        --
        spec.selector: FieldValueRequired: Required value
        spec.template.spec.containers: FieldValueRequired: Required value"#]].assert_eq(&lines.join("\n--\n"));
}

#[test]
fn refused_data_and_endpoints() {
    let lines = [
        faults(create("v1", "ConfigMap", json!({"data": {"a/b": "", "c": ""}, "binaryData": {"c": ""}}))),
        faults(create("v1", "Secret", json!({"type": "kubernetes.io/tls"}))),
        faults(create(
            "v1",
            "Node",
            json!({"spec": {"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"],
            "taints": [{"key": "a", "effect": "Never"}]}}),
        )),
        faults(create(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["::1"]}, {"addresses": ["127.0.0.1"]}, {"addresses": []}],
            "ports": [{"port": 0}, {"port": 1}]}),
        )),
        faults(create("v1", "Endpoints", json!({"subsets": [{"addresses": [{"ip": "x"}]}, {}]}))),
        faults(create("coordination.k8s.io/v1", "Lease", json!({"spec": {"leaseDurationSeconds": 0}}))),
    ];
    expect![[r#"
        data[a/b]: FieldValueInvalid: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name', or 'KEY_NAME', or 'key-name')
        data[c]: FieldValueInvalid: Invalid value: "c": duplicate of key present in binaryData
        --
        data[tls.crt]: FieldValueRequired: Required value
        data[tls.key]: FieldValueRequired: Required value
        --
        spec.podCIDRs: FieldValueInvalid: Invalid value: ["10.0.0.0/24","10.0.1.0/24"]: may specify no more than one CIDR for each IP family
        spec.taints[0].effect: FieldValueNotSupported: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"
        --
        endpoints[0].addresses[0]: FieldValueInvalid: Invalid value: "::1": must be a valid IPv4 address
        endpoints[1].addresses[0]: FieldValueInvalid: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)
        endpoints[2].addresses: FieldValueRequired: Required value: must contain at least 1 address
        ports[0].port: FieldValueInvalid: Invalid value: 0: must be between 1 and 65535, inclusive
        ports[1].name: FieldValueDuplicate: Duplicate value: ""
        --
        subsets[0].addresses[0].ip: FieldValueInvalid: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        subsets[1]: FieldValueRequired: Required value: must specify `addresses` or `notReadyAddresses`
        --
        spec.leaseDurationSeconds: FieldValueInvalid: Invalid value: 0: must be greater than 0"#]].assert_eq(&lines.join("\n--\n"));
}

#[test]
fn updates_keep_what_is_the_servers() {
    let old = create("apps/v1", "Deployment", deployment()).unwrap();
    let mut old = old;
    old["metadata"]["resourceVersion"] = "5".into();
    old["status"] = json!({"replicas": 1});
    let new = update(&old, |new| {
        new["metadata"] = json!({"name": "web", "labels": {"a": "b"}});
        new["status"] = json!({"replicas": 9});
    })
    .unwrap();
    assert_eq!(new["status"], old["status"]);
    assert_eq!(
        (&new["metadata"]["generation"], &new["metadata"]["resourceVersion"], &new["metadata"]["uid"]),
        (&json!(1), &json!("5"), &json!("uid-1"))
    );
    assert_eq!(new["metadata"]["labels"], json!({"a": "b"}));
    let new = update(&old, |new| new["spec"]["replicas"] = 3.into()).unwrap();
    assert_eq!(new["metadata"]["generation"], 2);
    let error = update(&old, |new| new["metadata"]["uid"] = "other".into()).unwrap_err();
    assert_eq!((error.code, error.reason), (409, "Conflict"));
    let got = faults(update(&old, |new| {
        new["spec"]["selector"] = json!({"matchLabels": {"app": "web", "x": "y"}});
        new["spec"]["template"] = template(json!({"app": "web", "x": "y"}));
    }));
    assert!(got.ends_with("field is immutable"), "{got}");
}

#[test]
fn status_updates_change_nothing_else() {
    let registry = Registry::builtin();
    let old = create("apps/v1", "Deployment", deployment()).unwrap();
    let mut new = old.clone();
    new["spec"]["replicas"] = 7.into();
    new["metadata"]["labels"] = json!({"x": "y"});
    new["metadata"]["annotations"] = json!({"revision": "1"});
    new["status"] = json!({"replicas": 1});
    let kind = registry.kind("apps/v1", "Deployment").unwrap();
    let got = kind.prepare_status_update(new, &old, now()).unwrap();
    assert_eq!((&got["spec"], &got["status"]["replicas"]), (&old["spec"], &json!(1)));
    assert_eq!(got["metadata"]["generation"], 1);
    assert!(got["metadata"].get("labels").is_none());
    assert_eq!(got["metadata"]["annotations"]["revision"], "1");
}

#[test]
fn a_status_keeps_what_its_writer_left_out() {
    let registry = Registry::builtin();
    let old = create("v1", "Pod", json!({"spec": {"containers": [{"name": "c", "image": "a"}]}})).unwrap();
    let mut new = old.clone();
    new["status"] = json!({"phase": "Running"});
    let got = registry.kind("v1", "Pod").unwrap().prepare_status_update(new, &old, now()).unwrap();
    assert_eq!(got["status"], json!({"phase": "Running", "qosClass": "BestEffort"}));
    let old = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]})).unwrap();
    let mut new = old.clone();
    new["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.30.0.192"}]}});
    let got = registry.kind("v1", "Service").unwrap().prepare_status_update(new, &old, now()).unwrap();
    assert_eq!(got["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert_eq!(got["spec"], old["spec"]);
}

#[test]
fn pods_hardly_change() {
    let old = create("v1", "Pod", json!({"spec": {"containers": [{"name": "c", "image": "a"}]}})).unwrap();
    let image = update(&old, |new| new["spec"]["containers"][0]["image"] = "b".into()).unwrap();
    assert_eq!(image["spec"]["containers"][0]["image"], "b");
    let toleration = json!({"key": "k", "operator": "Exists"});
    assert!(update(&old, |new| new["spec"]["tolerations"].as_array_mut().unwrap().push(toleration)).is_ok());
    assert!(update(&old, |new| new["spec"]["tolerations"] = json!([])).is_err());
    assert!(update(&old, |new| new["spec"]["activeDeadlineSeconds"] = 5.into()).is_ok());
    let got = faults(update(&old, |new| new["spec"]["containers"][0]["env"] = json!([{"name": "A"}])));
    assert!(got.ends_with("changed: spec.containers[0].env"), "{got}");
    assert!(update(&old, |new| new["spec"]["nodeName"] = "n".into()).is_err());
}

#[test]
fn services_keep_their_addresses() {
    let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    old["spec"]["clusterIP"] = "10.96.0.7".into();
    old["spec"]["clusterIPs"] = json!(["10.96.0.7"]);
    old["spec"]["ipFamilies"] = json!(["IPv4"]);
    old["spec"]["ports"][0]["nodePort"] = 30080.into();
    // kubectl replace with a file that never knew the allocated values.
    let again =
        update(&old, |new| new["spec"] = json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    assert_eq!(again["spec"], old["spec"]);
    let inner = update(&old, |new| new["spec"]["type"] = "ClusterIP".into()).unwrap();
    assert!(inner["spec"]["ports"][0].get("nodePort").is_none());
    assert!(inner["spec"].get("externalTrafficPolicy").is_none());
    assert_eq!(inner["spec"]["clusterIP"], "10.96.0.7");
    let outer = update(&old, |new| {
        new["spec"]["type"] = "ExternalName".into();
        new["spec"]["externalName"] = "example.com".into();
    })
    .unwrap();
    assert!(outer["spec"].get("clusterIP").is_none() && outer["spec"].get("clusterIPs").is_none());
    let got = faults(update(&old, |new| new["spec"]["clusterIP"] = "10.96.0.8".into()));
    assert!(got.contains("may not change once set"), "{got}");
}

#[test]
fn immutable_data_and_finalizers() {
    let old = create("v1", "ConfigMap", json!({"immutable": true, "data": {"a": "1"}})).unwrap();
    assert!(
        faults(update(&old, |new| new["data"]["a"] = "2".into())).starts_with("data: FieldValueForbidden")
    );
    assert!(update(&old, |new| new["metadata"]["labels"] = json!({"x": "y"})).is_ok());
    let mut deleting = create("v1", "ConfigMap", json!({})).unwrap();
    deleting["metadata"]["deletionTimestamp"] = "2026-11-21T07:00:00Z".into();
    let got = faults(update(&deleting, |new| new["metadata"]["finalizers"] = json!(["a/b"])));
    assert!(got.starts_with("metadata.finalizers: FieldValueForbidden"), "{got}");
    let kept = update(&deleting, |new| {
        new["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    })
    .unwrap();
    assert_eq!(kept["metadata"]["deletionTimestamp"], "2026-11-21T07:00:00Z");
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
