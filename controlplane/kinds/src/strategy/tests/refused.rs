//! What is refused, and in which words.
#![allow(clippy::needless_raw_string_hashes, reason = "snapshots are written by expect-test")]
#![allow(clippy::too_many_lines, reason = "tables and snapshots")]

use expect_test::expect;
use serde_json::json;

use super::{create, deployment, faults, service, template};

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
