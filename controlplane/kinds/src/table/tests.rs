//! What `kubectl get -o wide` prints, as snapshots.
#![allow(clippy::needless_raw_string_hashes, reason = "snapshots are written by expect-test")]
#![allow(clippy::too_many_lines, reason = "tables and snapshots")]

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::Registry;

fn options(include: IncludeObject) -> TableOptions {
    TableOptions { version: "v1", include, now: "2026-11-21T07:00:00Z".parse().unwrap(), omit_columns: false }
}

/// Renders like kubectl: columns padded to the widest cell.
fn wide(api: &str, kind: &str, objects: &[Value]) -> String {
    let registry = Registry::builtin();
    let kind = registry.kind(api, kind).unwrap();
    let table = render(kind, objects, json!({}), &options(IncludeObject::None));
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let head: Vec<String> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap().to_uppercase())
        .collect();
    let mut lines = vec![head];
    for row in table["rows"].as_array().unwrap() {
        let cells: Vec<String> = row["cells"].as_array().unwrap().iter().map(cell).collect();
        assert_eq!(cells.len(), lines[0].len(), "a cell for each column");
        lines.push(cells);
    }
    let widths: Vec<usize> =
        (0..lines[0].len()).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0)).collect();
    let text: Vec<String> = lines
        .iter()
        .map(|line| {
            let padded: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            padded.join("   ").trim_end().to_owned()
        })
        .collect();
    text.join("\n")
}

fn check(api: &str, kind: &str, objects: &[Value], wanted: Expect) {
    wanted.assert_eq(&wide(api, kind, objects));
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "default", "creationTimestamp": "2026-11-21T06:55:00Z"})
}

fn pod(name: &str, spec: Value, status: Value) -> Value {
    let mut pod = json!({"metadata": meta(name), "spec": spec, "status": status});
    pod["spec"]["containers"] = json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]);
    pod
}

#[test]
fn pods() {
    let running = |restarts: u32| {
        json!({"ready": true, "restartCount": restarts, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2026-11-21T06:58:00Z"}}})
    };
    let ended = |reason: &str, code: i32| {
        json!({"ready": false, "restartCount": 0,
        "state": {"terminated": {"reason": reason, "exitCode": code}}})
    };
    let mut leaving = pod(
        "leaving",
        json!({}),
        json!({"phase": "Running",
        "containerStatuses": [running(0), running(0)]}),
    );
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T06:59:00Z".into();
    let sidecar = json!({"initContainers": [{"name": "i", "restartPolicy": "Always"}, {"name": "j"}]});
    let objects = [
        pod("pending", json!({}), json!({"phase": "Pending"})),
        pod(
            "running",
            json!({"nodeName": "n1", "readinessGates": [{"conditionType": "g"}]}),
            json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                   "containerStatuses": [running(2), running(1)]}),
        ),
        pod(
            "creating",
            json!({}),
            json!({"phase": "Pending", "containerStatuses": [
            {"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
        ),
        pod(
            "crashing",
            json!({}),
            json!({"phase": "Running", "containerStatuses": [
            {"restartCount": 5, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}, running(0)]}),
        ),
        pod("done", json!({}), json!({"phase": "Succeeded", "containerStatuses": [ended("Completed", 0)]})),
        pod("failed", json!({}), json!({"phase": "Failed", "containerStatuses": [ended("", 3)]})),
        pod("evicted", json!({}), json!({"phase": "Failed", "reason": "Evicted"})),
        leaving,
        pod(
            "init",
            json!({"initContainers": [{"name": "i"}, {"name": "j"}]}),
            json!({"phase": "Pending",
            "initContainerStatuses": [ended("Completed", 0), {"state": {"waiting": {"reason": "PodInitializing"}}}]}),
        ),
        pod(
            "init-failed",
            json!({"initContainers": [{"name": "i"}]}),
            json!({"phase": "Pending",
            "initContainerStatuses": [ended("Error", 1)]}),
        ),
        pod(
            "sidecar",
            sidecar,
            json!({"phase": "Running", "conditions": [{"type": "Initialized", "status": "True"}],
            "initContainerStatuses": [{"name": "i", "started": true, "ready": true, "restartCount": 1},
                {"name": "j", "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [running(0), running(0)]}),
        ),
    ];
    check(
        "v1",
        "Pod",
        &objects,
        expect![[r#"
        NAME          READY   STATUS              RESTARTS     AGE   IP         NODE     NOMINATED NODE   READINESS GATES
        pending       0/2     Pending             0            5m    <none>     <none>   <none>           <none>
        running       2/2     Running             3 (2m ago)   5m    10.0.0.1   n1       <none>           0/1
        creating      0/2     ContainerCreating   0            5m    <none>     <none>   <none>           <none>
        crashing      1/2     CrashLoopBackOff    5 (2m ago)   5m    <none>     <none>   <none>           <none>
        done          0/2     Completed           0            5m    <none>     <none>   <none>           <none>
        failed        0/2     ExitCode:3          0            5m    <none>     <none>   <none>           <none>
        evicted       0/2     Evicted             0            5m    <none>     <none>   <none>           <none>
        leaving       2/2     Terminating         0            5m    <none>     <none>   <none>           <none>
        init          0/2     Init:1/2            0            5m    <none>     <none>   <none>           <none>
        init-failed   0/2     Init:Error          0            5m    <none>     <none>   <none>           <none>
        sidecar       3/3     Running             1 (2m ago)   5m    <none>     <none>   <none>           <none>"#]],
    );
}

#[test]
fn network() {
    let service = |name: &str, spec: Value, ingress: Value| json!({"metadata": meta(name), "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
    let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]);
    let objects = [
        service(
            "plain",
            json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.1"], "ports": ports,
            "selector": {"app": "web", "tier": "x"}}),
            json!([]),
        ),
        service("headless", json!({"type": "ClusterIP", "clusterIPs": ["None"]}), json!([])),
        service(
            "waiting",
            json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.2"], "ports": ports}),
            json!([]),
        ),
        service(
            "balanced",
            json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"], "ports": ports,
            "externalIPs": ["1.2.3.4"]}),
            json!([{"ip": "172.30.0.192"}, {"ip": "fd00::1"}]),
        ),
        service("named", json!({"type": "ExternalName", "externalName": "example.com"}), json!([])),
    ];
    check(
        "v1",
        "Service",
        &objects,
        expect![[r#"
        NAME       TYPE           CLUSTER-IP   EXTERNAL-IP                    PORT(S)               AGE   SELECTOR
        plain      ClusterIP      10.96.0.1    <none>                         80:30080/TCP,53/UDP   5m    app=web,tier=x
        headless   ClusterIP      None         <none>                         <none>                5m    <none>
        waiting    LoadBalancer   10.96.0.2    <pending>                      80:30080/TCP,53/UDP   5m    <none>
        balanced   LoadBalancer   10.96.0.3    172.30.0.192,fd00::1,1.2.3.4   80:30080/TCP,53/UDP   5m    <none>
        named      ExternalName   <none>       example.com                    <none>                5m    <none>"#]],
    );
    let slice = json!({"metadata": meta("s"), "addressType": "IPv4",
        "ports": [{"port": 80}, {"name": "any"}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]},
            {"addresses": ["10.0.0.4"]}]});
    let empty = json!({"metadata": meta("e"), "addressType": "IPv6"});
    check(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        &[slice, empty],
        expect![[r#"
        NAME   ADDRESSTYPE   PORTS     ENDPOINTS                                AGE
        s      IPv4          80,any    10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...   5m
        e      IPv6          <unset>   <unset>                                  5m"#]],
    );
    let endpoints = json!({"metadata": meta("e"), "subsets": [
        {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]});
    check(
        "v1",
        "Endpoints",
        &[endpoints, json!({"metadata": meta("none")})],
        expect![[r#"
        NAME   ENDPOINTS                                          AGE
        e      10.0.0.1:80,10.0.0.1:81,[fd00::1]:80 + 1 more...   5m
        none   <none>                                             5m"#]],
    );
}

#[test]
fn workloads() {
    let object = json!({
        "metadata": meta("web"),
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"nodeSelector": {"os": "linux"}, "containers": [
                {"name": "a", "image": "x:1"}, {"name": "b", "image": "y:2"}]}}},
        "status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 1, "availableReplicas": 2,
            "desiredNumberScheduled": 3, "currentNumberScheduled": 3, "numberReady": 2, "updatedNumberScheduled": 3,
            "numberAvailable": 1},
    });
    let new = json!({"metadata": meta("new"), "spec": {"replicas": 1}});
    check(
        "apps/v1",
        "Deployment",
        &[object.clone(), new.clone()],
        expect![[r#"
        NAME   READY   UP-TO-DATE   AVAILABLE   AGE   CONTAINERS   IMAGES    SELECTOR
        web    2/3     1            2           5m    a,b          x:1,y:2   app=web
        new    0/1     0            0           5m                           <none>"#]],
    );
    check(
        "apps/v1",
        "ReplicaSet",
        &[object.clone(), new],
        expect![[r#"
        NAME   DESIRED   CURRENT   READY   AGE   CONTAINERS   IMAGES    SELECTOR
        web    3         3         2       5m    a,b          x:1,y:2   app=web
        new    1         0         0       5m                           <none>"#]],
    );
    check(
        "apps/v1",
        "DaemonSet",
        &[object],
        expect![[r#"
        NAME   DESIRED   CURRENT   READY   UP-TO-DATE   AVAILABLE   NODE SELECTOR   AGE   CONTAINERS   IMAGES    SELECTOR
        web    3         3         2       3            1           os=linux        5m    a,b          x:1,y:2   app=web"#]],
    );
}

#[test]
fn cluster() {
    let node = json!({
        "metadata": {"name": "n1", "creationTimestamp": "2026-11-11T06:55:00Z",
            "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "worker"}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "172.30.0.11"}],
            "nodeInfo": {"kubeletVersion": "v1.33.0", "osImage": "Debian 12", "kernelVersion": "6.18"}},
    });
    let gone = json!({"metadata": {"name": "n2"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    check(
        "v1",
        "Node",
        &[node, gone, json!({"metadata": {"name": "n3"}})],
        expect![[r#"
        NAME   STATUS                     ROLES                  AGE         VERSION   INTERNAL-IP   EXTERNAL-IP   OS-IMAGE    KERNEL-VERSION   CONTAINER-RUNTIME
        n1     Ready,SchedulingDisabled   control-plane,worker   10d         v1.33.0   172.30.0.11   <none>        Debian 12   6.18             <unknown>
        n2     NotReady                   <none>                 <unknown>             <none>        <none>        <unknown>   <unknown>        <unknown>
        n3     Unknown                    <none>                 <unknown>             <none>        <none>        <unknown>   <unknown>        <unknown>"#]],
    );
    check(
        "v1",
        "Namespace",
        &[json!({"metadata": meta("a"), "status": {"phase": "Active"}})],
        expect![[r#"
            NAME   STATUS   AGE
            a      Active   5m"#]],
    );
    check(
        "v1",
        "ConfigMap",
        &[json!({"metadata": meta("a"), "data": {"x": "", "y": ""}})],
        expect![[r#"
        NAME   DATA   AGE
        a      2      5m"#]],
    );
    check(
        "v1",
        "Secret",
        &[json!({"metadata": meta("a"), "type": "Opaque", "data": {"x": ""}})],
        expect![[r#"
            NAME   TYPE     DATA   AGE
            a      Opaque   1      5m"#]],
    );
    check(
        "v1",
        "ServiceAccount",
        &[json!({"metadata": meta("a")})],
        expect![[r#"
        NAME   SECRETS   AGE
        a      0         5m"#]],
    );
    let lease = json!({"metadata": meta("a"), "spec": {"holderIdentity": "n1"}});
    check(
        "coordination.k8s.io/v1",
        "Lease",
        &[lease],
        expect![[r#"
        NAME   HOLDER   AGE
        a      n1       5m"#]],
    );
    let mut owned = json!({"metadata": meta("a"), "revision": 2});
    owned["metadata"]["ownerReferences"] =
        json!([{"controller": true, "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d"}]);
    check(
        "apps/v1",
        "ControllerRevision",
        &[owned],
        expect![[r#"
        NAME   CONTROLLER         REVISION   AGE
        a      daemonset.apps/d   2          5m"#]],
    );
}

#[test]
fn events() {
    let old = json!({"metadata": meta("a"), "type": "Normal", "reason": "Pulled", "message": " pulled \n",
        "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}"}, "count": 4,
        "firstTimestamp": "2026-11-21T06:00:00Z", "lastTimestamp": "2026-11-21T06:59:30Z",
        "source": {"component": "kubelet", "host": "n1"}});
    let new = json!({"metadata": meta("b"), "type": "Warning", "reason": "FailedScheduling", "message": "no node",
        "involvedObject": {"kind": "Pod", "name": "web"}, "eventTime": "2026-11-21T06:50:00.000000Z",
        "reportingComponent": "scheduler", "series": {"count": 7, "lastObservedTime": "2026-11-21T06:59:00.000000Z"}});
    check(
        "v1",
        "Event",
        &[old.clone(), new],
        expect![[r#"
        LAST SEEN   TYPE      REASON             OBJECT    SUBOBJECT            SOURCE        MESSAGE   FIRST SEEN   COUNT   NAME
        30s         Normal    Pulled             pod/web   spec.containers{a}   kubelet, n1   pulled    60m          4       a
        60s         Warning   FailedScheduling   pod/web                        scheduler     no node   10m          7       b"#]],
    );
    let registry = Registry::builtin();
    let shown = registry.kind("events.k8s.io/v1", "Event").unwrap().from_storage(old.clone());
    assert_eq!(wide("events.k8s.io/v1", "Event", &[shown]), wide("v1", "Event", &[old]));
}

#[test]
fn what_goes_along() {
    let registry = Registry::builtin();
    let kind = registry.kind("v1", "ConfigMap").unwrap();
    let object = json!({"metadata": meta("a"), "data": {"x": ""}});
    let along = |include| {
        let table = render(kind, [&object], json!({"resourceVersion": "5"}), &options(include));
        assert_eq!(table["metadata"]["resourceVersion"], "5");
        table["rows"][0]["object"].clone()
    };
    assert_eq!(along(IncludeObject::None), Value::Null);
    assert_eq!(along(IncludeObject::Object), object);
    assert_eq!(
        along(IncludeObject::Metadata),
        json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta("a")})
    );
    let later = TableOptions { omit_columns: true, ..options(IncludeObject::None) };
    assert_eq!(render(kind, [&object], json!({}), &later)["columnDefinitions"], json!([]));
}
