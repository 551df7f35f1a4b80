//! The real kubectl against the server: what people type.

#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/server.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod server;

use std::time::Duration;

use server::Server;

const MANIFEST: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: echo, image: seaway/echo, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop, labels: {app: one}}
spec:
  containers: [{name: pause, image: seaway/pause}]
";

/// Commands in a row, each with what its output must contain. `!` in front: the command must fail.
const WALK: &[(&str, &str)] = &[
    ("version", "Server Version: v1.33"),
    ("api-resources", "endpointslices"),
    ("api-versions", "discovery.k8s.io/v1"),
    ("cluster-info", "Kubernetes control plane"),
    ("get namespaces", "kube-node-lease"),
    ("get service kubernetes -o jsonpath={.spec.clusterIPs}", r#"["10.96.0.1","fd00:10:96::1"]"#),
    ("get all --all-namespaces", "service/kubernetes"),
    ("-n shop get pods -o wide", "NOMINATED NODE"),
    ("-n shop get pod one -o yaml", "kind: Pod"),
    ("-n shop get pod one -o jsonpath={.status.phase}", "Pending"),
    ("-n shop get pods -l app=one -o name", "pod/one"),
    ("-n shop get pods -l app!=one", "No resources found"),
    ("-n shop get pods --field-selector=status.phase=Pending -o name", "pod/one"),
    ("get pods -A --sort-by=.metadata.name", "one"),
    ("-n shop describe pod one", "Image:        seaway/pause"),
    ("-n shop describe service web", "30080/TCP"),
    ("-n shop describe deployment web", "RollingUpdate"),
    ("-n shop label pod one tier=front", "labeled"),
    ("!-n shop label pod one tier=back", "--overwrite is false"),
    ("-n shop annotate pod one note=yes", "annotated"),
    ("-n shop scale deployment web --replicas=4", "scaled"),
    ("-n shop get deployment web", "0/4"),
    ("!-n shop scale deployment web --current-replicas=9 --replicas=1", "Expected replicas to be 9"),
    ("-n shop set image deployment/web echo=seaway/client", "image updated"),
    ("-n shop get deployment web -o jsonpath={..image}", "seaway/client"),
    ("-n shop rollout pause deployment/web", "paused"),
    ("-n shop rollout resume deployment/web", "resumed"),
    ("-n shop rollout restart deployment/web", "restarted"),
    ("-n shop patch deployment web -p {\"spec\":{\"replicas\":1}}", "patched"),
    ("-n shop patch pod one --type=merge -p {\"metadata\":{\"labels\":{\"tier\":null}}}", "patched"),
    (
        "-n shop patch pod one --type=json -p [{\"op\":\"add\",\"path\":\"/metadata/labels/x\",\"value\":\"y\"}]",
        "patched",
    ),
    ("!-n shop patch pod one --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/zz\"}]", "error"),
    ("-n shop wait pod/one --for=jsonpath={.status.phase}=Pending --timeout=5s", "condition met"),
    ("-n shop explain pod.spec.nodeName", "nodeName <string>"),
    ("create configmap c --from-literal=a=b", "created"),
    ("create secret generic s --from-literal=a=b", "created"),
    ("create serviceaccount bob", "created"),
    ("create namespace other", "created"),
    ("create deployment d --image=seaway/echo --replicas=2", "created"),
    ("expose deployment d --port=80 --type=LoadBalancer", "exposed"),
    ("get service d", "192.0.2."),
    ("run p --image=seaway/pause", "created"),
    ("!create configmap c --from-literal=a=b", "already exists"),
    ("!get configmap nothing", "configmaps \"nothing\" not found"),
    ("!get unicorns", "the server doesn't have a resource type"),
    ("!-n nowhere create configmap c", "namespaces \"nowhere\" not found"),
    ("create configmap dry --from-literal=a=b --dry-run=server", "server dry run"),
    ("!get configmap dry", "not found"),
    ("auth can-i create pods", "yes"),
    ("auth whoami", "kubernetes-admin"),
    ("explain deployment.spec.replicas --output=plaintext-openapiv2", "replicas <integer>"),
    ("!exec p -- ls", "exec is not supported"),
    ("!attach p", "attach is not supported"),
    ("!delete namespace kube-system", "this namespace may not be deleted"),
    ("get events -A", "No resources found"),
    ("get --raw /readyz?verbose", "[+]store ok"),
    ("get --raw /metrics", "apiserver_request_total"),
    ("-n shop delete pod one --timeout=10s", "deleted"),
    ("delete service d --timeout=10s", "deleted"),
    ("delete deployment,pod --all --timeout=10s", "deleted"),
    ("-n shop delete service -l app=web --timeout=10s", "deleted"),
    ("!get service d", "not found"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_type() {
    let server = Server::start().await;
    let (ok, text) = server.try_kubectl("apply -f -", MANIFEST).await;
    assert!(ok && text.matches("created").count() == 4, "{text}");
    let (ok, text) = server.try_kubectl("apply -f -", MANIFEST).await;
    assert!(ok && text.matches("unchanged").count() == 4, "{text}");
    let changed = MANIFEST.replace("replicas: 2", "replicas: 3");
    let (ok, text) = server.try_kubectl("diff -f -", &changed).await;
    assert!(!ok && text.contains("+  replicas: 3"), "{text}");
    for (args, wanted) in WALK {
        let (args, must_fail) = args.strip_prefix('!').map_or((*args, false), |args| (args, true));
        let (ok, text) = server.try_kubectl(args, "").await;
        assert!(ok != must_fail && text.contains(wanted), "kubectl {args}: wanted {wanted:?}, got\n{text}");
    }
}

/// The Deployment of [`MANIFEST`] alone.
fn deployment(replicas: &str) -> String {
    let found = MANIFEST.split("---").find(|part| part.contains("kind: Deployment")).unwrap();
    found.replace("replicas: 2", replicas).replace("namespace: shop", "namespace: default")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply_knows_who_owns_what() {
    let server = Server::start().await;
    let apply = async |args: &str, manifest: &str| server.try_kubectl(args, manifest).await;
    let (two, three) = (deployment("replicas: 2"), deployment("replicas: 3"));
    let owners = "get deployment web -o jsonpath={range.metadata.managedFields[*]}{.manager}/{.operation}/{.subresource},{end}";
    // From client-side to server-side apply without a conflict, as kubectl migrates it.
    assert!(apply("apply -f -", &two).await.0);
    let (ok, text) = apply("apply --server-side -f -", &three).await;
    assert!(ok && text.contains("serverside-applied"), "{text}");
    let text = server.kubectl(owners).await;
    assert!(text.contains("kubectl/Apply/,") && !text.contains("kubectl-client-side-apply"), "{text}");
    let text = server.kubectl("get deployment web -o yaml --show-managed-fields").await;
    assert!(text.contains(r#"k:{"containerPort":8080,"protocol":"TCP"}:"#), "{text}");
    assert!(!server.kubectl("get deployment web -o yaml").await.contains("managedFields"));
    // What somebody else set since is not overwritten by accident, but by force.
    server.kubectl("scale deployment web --replicas=5 --v=0").await;
    let (ok, text) = apply("apply --server-side -f -", &three).await;
    assert!(!ok && text.contains("Apply failed with 1 conflict: conflict with"), "{text}");
    assert!(text.contains("with subresource \"scale\" using apps/v1: .spec.replicas"), "{text}");
    assert!(apply("apply --server-side --force-conflicts -f -", &three).await.0);
    assert_eq!(server.kubectl("get deployment web -o jsonpath={.spec.replicas}").await, "3");
    // An applier of its own adds, and takes away again what it no longer says.
    let labels = |labels: &str| {
        format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, labels: {{{labels}}}}}\n")
    };
    let other = "apply --server-side --field-manager=other -f -";
    assert!(apply(other, &labels("tier: front, app: web")).await.0);
    let shown = "get deployment web -o jsonpath={.metadata.labels}";
    assert_eq!(server.kubectl(shown).await, r#"{"app":"web","tier":"front"}"#);
    assert!(apply(other, &labels("")).await.0);
    assert_eq!(server.kubectl(shown).await, r#"{"app":"web"}"#, "the other one owned app as well");
    let (ok, text) = apply("apply --server-side --field-manager=third -f -", &labels("app: db")).await;
    assert!(!ok && text.contains("conflict with \"kubectl\": .metadata.labels.app"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_follows() {
    let server = Server::start().await;
    let mut command = server::kubectl(&server.kubeconfig(), "get configmaps -w --output-watch-events");
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let lines = tokio::task::spawn_blocking(move || {
        use std::io::BufRead as _;
        let lines = std::io::BufReader::new(stdout).lines().map_while(Result::ok);
        let lines = lines.filter(|line| line.contains(" w ")).take(3);
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    });
    server.kubectl("create configmap w").await;
    server.kubectl("label configmap w a=b").await;
    server.kubectl("delete configmap w").await;
    let lines = tokio::time::timeout(Duration::from_secs(20), lines).await.unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let words: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(words, ["ADDED", "MODIFIED", "DELETED"], "{lines:?}");
}

const UNKNOWN_KIND: &str =
    "no matches for kind \"Foo\" in version \"example.com/v1\"\nensure CRDs are installed first";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_made_item_by_item() {
    let server = Server::start().await;
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: one}}\n\
                - {apiVersion: v1, kind: ConfigMap, metadata: {name: two}}\n";
    let (ok, text) = server.try_kubectl("apply -f -", list).await;
    assert!(ok && text == "configmap/one created\nconfigmap/two created\n", "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_with_one_clear_sentence() {
    let server = Server::start().await;
    let table = [
        (
            "apply --validate=false -f -",
            "kind: Pod\napiVersion: v1\nmetadata: {name: Bad_Name}\nspec: {containers: [{name: a, image: b}]}",
            "RFC 1123",
        ),
        (
            "apply -f -",
            "kind: Service\napiVersion: v1\nmetadata: {name: s}\nspec: {ports: [{port: 80, nodePort: 80}], type: NodePort}",
            "valid range",
        ),
        (
            "apply -f -",
            "kind: Service\napiVersion: v1\nmetadata: {name: s}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}",
            "already allocated",
        ),
        (
            "apply -f -",
            "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\ndatum: {a: b}",
            "unknown field",
        ),
        (
            "create -f -",
            "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c, namespace: nowhere}",
            "namespaces \"nowhere\" not found",
        ),
        ("apply -f -", "kind: Foo\napiVersion: example.com/v1\nmetadata: {name: x}", UNKNOWN_KIND),
        ("create -f -", "kind: Foo\napiVersion: example.com/v1\nmetadata: {name: x}", UNKNOWN_KIND),
        (
            "apply --server-side -f -",
            "kind: Foo\napiVersion: v1\nmetadata: {name: x}",
            "no matches for kind \"Foo\"",
        ),
        (
            "apply --server-side -f -",
            "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c, managedFields: [{manager: x, operation: Apply}]}",
            "managedFields must be nil",
        ),
    ];
    for (args, manifest, wanted) in table {
        let (ok, text) = server.try_kubectl(args, manifest).await;
        assert!(!ok && text.contains(wanted), "wanted {wanted:?}, got\n{text}");
    }
}
