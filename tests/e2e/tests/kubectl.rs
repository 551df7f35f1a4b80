//! kubectl 1.32 as people use it, command by command, against a running cluster.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use seaway_e2e::{Cluster, eventually};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: seaway/echo
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

#[test]
fn every_command_of_everyday_work() {
    let cluster = Cluster::up("e2e-kubectl", &[]);
    discovery(&cluster);
    reading(&cluster);
    writing(&cluster);
    rolling_out(&cluster);
    watching(&cluster);
    logs(&cluster);
    typed_creation(&cluster);
    refusals(&cluster);
    deleting(&cluster);
}

fn discovery(cluster: &Cluster) {
    let version = cluster.kubectl(&["version"]).ok();
    assert!(version.contains("Server Version"), "{version}");
    let resources = cluster.kubectl(&["api-resources"]).ok();
    for kind in [
        "Namespace",
        "Node",
        "Pod",
        "Service",
        "EndpointSlice",
        "Endpoints",
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "Event",
        "Lease",
        "Deployment",
        "ReplicaSet",
        "DaemonSet",
    ] {
        assert!(
            resources.lines().any(|line| line.ends_with(&format!(" {kind}"))),
            "no {kind} in\n{resources}"
        );
    }
    assert!(cluster.kubectl(&["api-versions"]).ok().contains("discovery.k8s.io/v1"));
    assert!(cluster.kubectl(&["get", "--raw", "/readyz"]).ok().contains("ok"));
}

fn reading(cluster: &Cluster) {
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide"]).ok();
    assert_eq!(nodes.matches(" Ready ").count(), 3, "{nodes}");
    let pods = cluster.kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"]).ok();
    assert!(pods.starts_with("NAMESPACE") && pods.contains("1/1") && pods.contains("10.244."), "{pods}");
    let yaml = cluster.kubectl(&["get", "service", "backend", "-n", "demo", "-o", "yaml"]).ok();
    assert!(yaml.contains("kind: Service") && yaml.contains("clusterIP: 10.96."), "{yaml}");
    let one = cluster.kubectl(&["get", "pods", "-n", "demo", "-l", "app=client", "-o", "name"]).ok();
    assert_eq!(one.lines().count(), 1, "{one}");
    let node = ["get", "pods", "-n", "demo", "-l", "app=client", "-o", "jsonpath={.items[0].spec.nodeName}"];
    let node = cluster.kubectl(&node).ok();
    let selector = format!("spec.nodeName={node}");
    let path = "jsonpath={.items[*].spec.nodeName}";
    let found = cluster.kubectl(&["get", "pods", "-A", "--field-selector", &selector, "-o", path]).ok();
    assert!(found.split(' ').all(|name| name == node), "{selector}: {found:?}");
    let described = cluster.kubectl(&["describe", "service", "backend", "-n", "demo"]).ok();
    assert!(described.contains("Endpoints:") && described.contains(":8081"), "{described}");
    let described = cluster.kubectl(&["describe", "pods", "-n", "demo", "-l", "app=client"]).ok();
    assert!(
        described.contains("Scheduled") && described.contains("Started"),
        "events are shown: {described}"
    );
    assert!(cluster.kubectl(&["describe", "node", "node1"]).ok().contains("PodCIDR"));
    assert!(cluster.kubectl(&["get", "events", "-n", "demo"]).ok().contains("Scheduled"));
}

fn writing(cluster: &Cluster) {
    let applied = cluster.kubectl_stdin(&["apply", "-f", "-"], WEB).ok();
    assert!(
        applied.contains("deployment.apps/web created") && applied.contains("service/web created"),
        "{applied}"
    );
    let again = cluster.kubectl_stdin(&["apply", "-f", "-"], WEB).ok();
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");
    let changed = WEB.replace("replicas: 2", "replicas: 3");
    assert!(
        cluster
            .kubectl_stdin(&["apply", "-f", "-"], &changed)
            .ok()
            .contains("deployment.apps/web configured")
    );
    cluster.kubectl(&["wait", "deployment/web", "--for=condition=Available", "--timeout=30s"]).ok();
    cluster.kubectl(&["label", "deployment", "web", "tier=front"]).ok();
    cluster.kubectl(&["annotate", "service", "web", "example.com/why=test"]).ok();
    assert!(cluster.kubectl(&["get", "deployments", "-l", "tier=front"]).ok().contains("web"));
    cluster.kubectl(&["label", "deployment", "web", "tier-"]).ok();
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=2"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=30s"]).ok();
    let count = ["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"];
    eventually("two replicas are ready", 20, || cluster.kubectl(&count).ok() == "2");
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: made-}\ndata: {a: b}\n";
    assert!(cluster.kubectl_stdin(&["create", "-f", "-"], config).ok().contains("configmap/made-"));
    let patch = [
        "patch",
        "service",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/metadata/labels","value":{"x":"y"}}]"#,
    ];
    cluster.kubectl(&patch).ok();
}

fn rolling_out(cluster: &Cluster) {
    cluster.kubectl(&["set", "image", "deployment/web", "echo=seaway/echo:2"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let image = ["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"];
    assert_eq!(cluster.kubectl(&image).ok(), "seaway/echo");
    cluster.kubectl(&["rollout", "restart", "deployment/web"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
}

fn watching(cluster: &Cluster) {
    let mut command = cluster.kubectl_command(&["get", "configmaps", "-w", "--output-watch-events"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    // The list comes first; a change made after it must follow.
    assert!(lines.next().unwrap().unwrap().starts_with("EVENT"));
    cluster.kubectl(&["create", "configmap", "watched", "--from-literal=a=b"]).ok();
    let seen = lines.map_while(Result::ok).find(|line| line.contains("watched")).unwrap();
    assert!(seen.starts_with("ADDED"), "{seen}");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

fn logs(cluster: &Cluster) {
    let all = cluster.kubectl(&["logs", "-n", "demo", "deployment/backend"]).ok();
    assert!(all.contains("listens on"), "{all}");
    let pod = cluster.kubectl(&["get", "pods", "-n", "demo", "-l", "app=backend", "-o", "name"]).ok();
    let pod = pod.lines().next().unwrap().to_owned();
    let one = cluster.kubectl(&["logs", "-n", "demo", &pod, "--tail=1", "--timestamps"]).ok();
    assert_eq!(one.lines().count(), 1, "{one}");
    cluster.kubectl(&["logs", "-n", "demo", "no-such-pod"]).fails_with("not found");
}

/// These send Kubernetes' protobuf.
fn typed_creation(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "typed"]).ok();
    cluster.kubectl(&["create", "deployment", "made", "-n", "typed", "--image=seaway/echo"]).ok();
    cluster.kubectl(&["expose", "deployment", "made", "-n", "typed", "--port=80", "--target-port=8080"]).ok();
    cluster.kubectl(&["create", "secret", "generic", "key", "-n", "typed", "--from-literal=a=b"]).ok();
    cluster.kubectl(&["create", "serviceaccount", "robot", "-n", "typed"]).ok();
    cluster
        .kubectl(&["wait", "deployment/made", "-n", "typed", "--for=condition=Available", "--timeout=30s"])
        .ok();
    cluster.kubectl(&["delete", "namespace", "typed", "--timeout=60s"]).ok();
    cluster.kubectl(&["get", "namespace", "typed"]).fails_with("NotFound");
}

fn refusals(cluster: &Cluster) {
    cluster.kubectl_stdin(&["apply", "-f", "-"], "{ not yaml: [").fails_with("error");
    let port = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n";
    cluster.kubectl_stdin(&["create", "-f", "-"], port).fails_with("spec.ports[0].port");
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\ndatta: {a: b}\n";
    cluster.kubectl_stdin(&["create", "-f", "-"], unknown).fails_with("unknown field");
    cluster.kubectl(&["get", "pod", "nobody"]).fails_with("NotFound");
    cluster.kubectl(&["create", "configmap", "watched"]).fails_with("already exists");
    let immutable = WEB.replace("matchLabels: {app: web}", "matchLabels: {app: other}");
    cluster.kubectl_stdin(&["apply", "-f", "-"], &immutable).fails_with("selector");
}

fn deleting(cluster: &Cluster) {
    cluster.kubectl_stdin(&["delete", "-f", "-", "--timeout=60s"], WEB).ok();
    let left = ["get", "pods,replicasets", "-l", "app=web", "-o", "name"];
    eventually("the Deployment's pods are collected", 30, || cluster.kubectl(&left).ok().is_empty());
    cluster.kubectl(&["delete", "configmap", "--all"]).ok();
}
