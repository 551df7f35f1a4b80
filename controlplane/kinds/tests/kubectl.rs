//! The real kubectl against this crate: a server of a few lines that keeps objects in a map and leaves everything else
//! (discovery, OpenAPI, decoding, defaults, rules, patches, tables) to `seaway_kinds`.
//!
//! Needs kubectl 1.32 or newer: the one that `KUBECTL` names, or that `cargo xtask setup` unpacked, or that is on the
//! PATH.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use seaway_kinds::decode::{self, SCALE};
use seaway_kinds::negotiate::{self, DiscoveryOutput};
use seaway_kinds::patch::{self, PatchType};
use seaway_kinds::table::{IncludeObject, TableOptions};
use seaway_kinds::{
    ApiError, CreateContext, FieldSelector, FieldValidation, Kind, LabelSelector, Registry, discovery, error,
    openapi, partial, path, scale, table,
};
use serde_json::{Value, json};

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }
}

struct Response {
    code: u16,
    content_type: String,
    warnings: Vec<String>,
    body: Value,
}

#[derive(Default)]
struct State {
    /// By kind, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    revision: u64,
    /// What was sent as protobuf: the kind and whether it could be decoded.
    protobuf: Vec<String>,
    /// The pods that were evicted.
    evicted: Vec<String>,
}

struct Server {
    registry: Registry,
    state: Mutex<State>,
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (unescape(key), unescape(value)))
        .collect();
    Some(Request { method, path: unescape(path), query, headers, body })
}

fn ok(body: Value) -> Response {
    Response { code: 200, content_type: "application/json".to_owned(), warnings: Vec::new(), body }
}

impl Server {
    /// Serves until the test ends; returns the address.
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Arc::new(Self { registry: Registry::builtin(), state: Mutex::default() });
        let shared = Arc::clone(&server);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(&stream));
            }
        });
        (server, address)
    }

    fn serve(&self, mut stream: &TcpStream) {
        let Some(request) = read(stream) else { return };
        let response =
            self.answer(&request).unwrap_or_else(|error| Response { code: error.code, ..ok(error.status()) });
        let body = response.body.to_string();
        let warnings: Vec<String> =
            response.warnings.iter().map(|text| format!("Warning: 299 - {text:?}\r\n")).collect();
        let warnings = warnings.concat();
        let head = format!(
            "HTTP/1.1 {} X\r\nContent-Type: {}\r\nContent-Length: {}\r\n{warnings}Connection: close\r\n\r\n",
            response.code,
            response.content_type,
            body.len()
        );
        // A client that went away is none of this test's business.
        drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())));
    }

    fn answer(&self, request: &Request) -> Result<Response, ApiError> {
        let Some(target) = path::parse(&request.path) else { return self.documents(request) };
        let kind = self
            .registry
            .resource(target.group, target.version, target.resource)
            .ok_or_else(ApiError::no_such_resource)?;
        let namespace = if kind.namespaced { target.namespace.unwrap_or_default() } else { "" };
        match (request.method.as_str(), target.name, target.subresource) {
            ("GET", None, _) => self.list(request, kind, namespace),
            ("POST", None, _) => self.create(request, kind, namespace),
            ("GET", Some(name), sub) => {
                let object = self.find(kind, namespace, name)?;
                let object = if sub == Some("scale") { scale::read(&object) } else { object };
                Ok(show(request, kind, object))
            }
            ("POST", Some(name), Some("eviction")) => {
                self.decode(request, &decode::EVICTION)?;
                let mut state = self.state.lock().unwrap();
                state.objects.remove(&key(kind, namespace, name));
                state.evicted.push(name.to_owned());
                Ok(ok(error::success(201)))
            }
            ("PUT" | "PATCH", Some(name), sub) => self.update(request, kind, namespace, name, sub),
            ("DELETE", Some(name), _) => {
                decode::decode(
                    &decode::DELETE_OPTIONS,
                    request.header("content-type"),
                    &request.body,
                    FieldValidation::Warn,
                )?;
                let object = self.find(kind, namespace, name)?;
                self.state.lock().unwrap().objects.remove(&key(kind, namespace, name));
                Ok(ok(error::deleted(kind, name, object["metadata"]["uid"].as_str().unwrap())))
            }
            (method, ..) => Err(ApiError::method_not_allowed(kind, method)),
        }
    }

    fn documents(&self, request: &Request) -> Result<Response, ApiError> {
        let registry = &self.registry;
        let wanted = negotiate::negotiate_discovery(request.header("accept"));
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let body = match (parts.as_slice(), wanted) {
            (["api"], DiscoveryOutput::Legacy) => Some(discovery::api_versions("127.0.0.1")),
            (["apis"], DiscoveryOutput::Legacy) => Some(discovery::group_list(registry)),
            (["api"], DiscoveryOutput::Aggregated(version)) => {
                return Ok(Response {
                    content_type: wanted.content_type(),
                    ..ok(discovery::aggregated_core(registry, version))
                });
            }
            (["apis"], DiscoveryOutput::Aggregated(version)) => {
                return Ok(Response {
                    content_type: wanted.content_type(),
                    ..ok(discovery::aggregated_groups(registry, version))
                });
            }
            (["api", version], _) => discovery::resource_list(registry, "", version),
            (["apis", group], _) => discovery::group(registry, group),
            (["apis", group, version], _) => discovery::resource_list(registry, group, version),
            (["openapi", "v3"], _) => Some(openapi::index(registry)),
            (["openapi", "v3", "api", version], _) => openapi::document(registry, "", version),
            (["openapi", "v3", "apis", group, version], _) => openapi::document(registry, group, version),
            (["version"], _) => Some(json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})),
            _ => None,
        };
        body.map(ok).ok_or_else(ApiError::no_such_resource)
    }

    fn find(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let state = self.state.lock().unwrap();
        state.objects.get(&key(kind, namespace, name)).cloned().ok_or_else(|| ApiError::not_found(kind, name))
    }

    fn put(&self, kind: &Kind, namespace: &str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        state.objects.insert(key(kind, namespace, &name), object.clone());
        object
    }

    fn list(&self, request: &Request, kind: &Kind, namespace: &str) -> Result<Response, ApiError> {
        let labels = LabelSelector::parse(request.query("labelSelector").unwrap_or_default())?;
        let fields = FieldSelector::parse(kind, request.query("fieldSelector").unwrap_or_default())?;
        let state = self.state.lock().unwrap();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|((plural, space, _), object)| {
                *plural == kind.plural
                    && (namespace.is_empty() || space == namespace)
                    && labels.matches(object)
                    && fields.matches(object)
            })
            .map(|(_, object)| object)
            .collect();
        let metadata = json!({"resourceVersion": state.revision.to_string()});
        let (output, _) = negotiate::negotiate(request.header("accept"))?;
        Ok(ok(match output {
            negotiate::Output::Table(version) => {
                let include = IncludeObject::parse(request.query("includeObject"))?;
                let options = TableOptions { version, include, now: now(), omit_columns: false };
                table::render(kind, items, metadata, &options)
            }
            negotiate::Output::Metadata(version) => {
                let items: Vec<Value> =
                    items.into_iter().map(|item| partial::metadata(item, version)).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": partial::api_version(version), "metadata": metadata, "items": items})
            }
            negotiate::Output::Object => json!({
                "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata,
                "items": items,
            }),
        }))
    }

    fn decode(&self, request: &Request, body: &decode::BodyType) -> Result<decode::Decoded, ApiError> {
        let media = request.header("content-type");
        let validation = FieldValidation::parse(request.query("fieldValidation"))?;
        let decoded = decode::decode(body, media, &request.body, validation);
        if media.is_some_and(|media| media.contains("protobuf")) {
            let word = if decoded.is_ok() { "" } else { " failed" };
            self.state.lock().unwrap().protobuf.push(format!("{}{word}", body.kind));
        }
        decoded
    }

    fn create(&self, request: &Request, kind: &Kind, namespace: &str) -> Result<Response, ApiError> {
        let decoded = self.decode(request, &kind.body())?;
        let uid = format!("uid-{}", self.state.lock().unwrap().revision);
        let context = CreateContext { namespace: Some(namespace), uid: &uid, suffix: "bcdfg", now: now() };
        let object = kind.prepare_create(decoded.object, &context)?;
        let name = object["metadata"]["name"].as_str().unwrap();
        if self.find(kind, namespace, name).is_ok() {
            return Err(ApiError::already_exists(kind, name));
        }
        let dry = request.query("dryRun").is_some();
        let object = if dry { object } else { self.put(kind, namespace, object) };
        Ok(Response { code: 201, warnings: decoded.warnings, ..ok(object) })
    }

    fn update(
        &self,
        request: &Request,
        kind: &Kind,
        namespace: &str,
        name: &str,
        sub: Option<&str>,
    ) -> Result<Response, ApiError> {
        let old = self.find(kind, namespace, name)?;
        let scaled = sub == Some("scale");
        let (current, body) = if scaled { (scale::read(&old), SCALE) } else { (old.clone(), kind.body()) };
        let decoded = if request.method == "PUT" {
            self.decode(request, &body)?
        } else {
            let patch_type = PatchType::parse(request.header("content-type"))?;
            let validation = FieldValidation::parse(request.query("fieldValidation"))?;
            patch::apply(&body, patch_type, &current, &request.body, validation)?
        };
        let said = decoded.object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !said.is_empty() && old["metadata"]["resourceVersion"] != said {
            return Err(ApiError::modified(kind, name));
        }
        let new = match sub {
            Some("scale") => kind.prepare_update(scale::write(&old, &decoded.object)?, &old, now())?,
            Some("status") => kind.prepare_status_update(decoded.object, &old, now())?,
            _ => kind.prepare_update(decoded.object, &old, now())?,
        };
        let new = self.put(kind, namespace, new);
        let shown = if scaled { scale::read(&new) } else { new };
        Ok(Response { warnings: decoded.warnings, ..ok(shown) })
    }
}

fn key(kind: &Kind, namespace: &str, name: &str) -> (String, String, String) {
    (kind.plural.to_string(), namespace.to_owned(), name.to_owned())
}

fn show(request: &Request, kind: &Kind, object: Value) -> Response {
    match negotiate::negotiate(request.header("accept")) {
        Ok((negotiate::Output::Table(version), _)) => {
            let options =
                TableOptions { version, include: IncludeObject::Metadata, now: now(), omit_columns: false };
            ok(table::render(kind, [&object], json!({}), &options))
        }
        _ => ok(object),
    }
}

/// Where kubectl is.
fn program() -> PathBuf {
    if let Ok(named) = std::env::var("KUBECTL") {
        return named.into();
    }
    let own = std::env::current_exe().unwrap();
    let unpacked = own.ancestors().nth(3).map(|target| target.join("tools/kubectl/usr/bin/kubectl"));
    unpacked.filter(|path| path.exists()).unwrap_or_else(|| "kubectl".into())
}

struct Kubectl {
    server: Arc<Server>,
    address: String,
    home: tempfile::TempDir,
}

impl Kubectl {
    fn new() -> Self {
        let (server, address) = Server::start();
        Self { server, address, home: tempfile::tempdir().unwrap() }
    }

    fn output(&self, arguments: &str, input: &str) -> Output {
        let program = program();
        let mut child = Command::new(&program)
            .args(arguments.split(' '))
            .arg(format!("--server=http://{}", self.address))
            .env("HOME", self.home.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "this test needs kubectl (`cargo xtask setup` installs it): {}: {error}",
                    program.display()
                )
            });
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs a command that must succeed; returns what it printed.
    fn run(&self, arguments: &str, input: &str) -> String {
        let output = self.output(arguments, input);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments}: {err}");
        format!("{out}{err}")
    }

    /// Runs a command that must fail; returns why it says it did.
    fn fail(&self, arguments: &str, input: &str) -> String {
        let output = self.output(arguments, input);
        assert!(!output.status.success(), "kubectl {arguments} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn get(&self, resource: &str) -> Value {
        serde_json::from_str(&self.run(&format!("get {resource} -o json"), "")).unwrap()
    }
}

const DEPLOYMENT: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: a, image: 'seaway/echo:1', ports: [{containerPort: 80}]}
      - {name: b, image: 'seaway/echo:1'}
";

#[test]
fn typed_commands_send_protobuf() {
    let kubectl = Kubectl::new();
    kubectl.run("create namespace team", "");
    kubectl.run("create deployment web --image=seaway/echo:1 --replicas=3 --port=80", "");
    kubectl.run("create configmap settings --from-literal=a=b", "");
    kubectl.run("create secret generic keys --from-literal=password=geheim", "");
    kubectl.run("create serviceaccount robot", "");
    kubectl.run("create service clusterip web --tcp=80:8080", "");
    kubectl.run("create service externalname out --external-name=example.com", "");
    kubectl.run("run one --image=seaway/client --env=A=b --labels=app=one", "");
    let mut sent = kubectl.server.state.lock().unwrap().protobuf.clone();
    sent.sort();
    sent.dedup();
    assert_eq!(sent, ["ConfigMap", "Deployment", "Namespace", "Secret", "Service", "ServiceAccount"]);
    let deployment = kubectl.get("deployment web");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["spec"]["selector"], json!({"matchLabels": {"app": "web"}}));
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["name"], &container["ports"][0]["containerPort"]), (&json!("echo"), &json!(80)));
    assert_eq!(kubectl.get("secret keys")["data"]["password"], "Z2VoZWlt");
    assert_eq!(kubectl.get("configmap settings")["data"], json!({"a": "b"}));
    let service = kubectl.get("service web");
    let port = json!([{"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": 8080}]);
    assert_eq!(service["spec"]["ports"], port);
    let pod = kubectl.get("pod one");
    assert_eq!(pod["spec"]["containers"][0]["env"], json!([{"name": "A", "value": "b"}]));
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
}

#[test]
fn apply_merges_by_the_keys_of_the_schema() {
    let kubectl = Kubectl::new();
    assert_eq!(kubectl.run("apply -f -", DEPLOYMENT).trim(), "deployment.apps/web created");
    assert_eq!(kubectl.run("apply -f -", DEPLOYMENT).trim(), "deployment.apps/web unchanged");
    kubectl.run("set image deployment/web b=seaway/echo:2", "");
    kubectl.run("scale deployment/web --replicas=5", "");
    let changed = DEPLOYMENT
        .replace("replicas: 2", "replicas: 4")
        .replace("name: a, image: 'seaway/echo:1'", "name: a, image: 'seaway/echo:3'");
    assert_eq!(kubectl.run("apply -f -", &changed).trim(), "deployment.apps/web configured");
    let deployment = kubectl.get("deployment web");
    let images: Vec<&Value> = deployment["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| &container["image"])
        .collect();
    assert_eq!(
        (images, &deployment["spec"]["replicas"]),
        (vec![&json!("seaway/echo:3"), &json!("seaway/echo:1")], &json!(4))
    );
    assert_eq!(deployment["metadata"]["generation"], 4);
    kubectl.run("label deployment web tier=front", "");
    kubectl.run("annotate deployment web note=hello", "");
    kubectl.run(
        "patch deployment web --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":1}]",
        "",
    );
    let deployment = kubectl.get("deployment web");
    assert_eq!(
        (&deployment["metadata"]["labels"]["tier"], &deployment["spec"]["replicas"]),
        (&json!("front"), &json!(1))
    );
    let gone = DEPLOYMENT.replace("      - {name: b, image: 'seaway/echo:1'}\n", "");
    kubectl.run("apply -f -", &gone);
    assert_eq!(
        kubectl.get("deployment web")["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(),
        1
    );
    kubectl.run("replace -f -", &gone);
    kubectl.run("delete deployment web --wait=false", "");
    assert!(kubectl.fail("get deployment web", "").contains("deployments.apps \"web\" not found"));
}

#[test]
fn faults_read_like_kubernetes() {
    let kubectl = Kubectl::new();
    let unknown =
        kubectl.fail("apply -f -", &DEPLOYMENT.replace("replicas: 2", "replicas: 2\n  colour: red"));
    assert!(unknown.contains("strict decoding error: unknown field \"spec.colour\""), "{unknown}");
    let warned = kubectl
        .run("apply --validate=warn -f -", &DEPLOYMENT.replace("replicas: 2", "replicas: 2\n  colour: red"));
    assert!(warned.contains("Warning: unknown field \"spec.colour\""), "{warned}");
    let wrong = kubectl.fail("create -f -", &DEPLOYMENT.replace("name: web", "name: Web"));
    assert!(
        wrong.contains("The Deployment \"Web\" is invalid: metadata.name: Invalid value: \"Web\""),
        "{wrong}"
    );
    let number = kubectl.fail("create -f -", &DEPLOYMENT.replace("replicas: 2", "replicas: two"));
    assert!(number.contains("spec.replicas: expected int32, got string"), "{number}");
    let selector = kubectl.fail("get pods -l a=b=c", "");
    assert!(selector.contains("unable to parse"), "{selector}");
    let field = kubectl.fail("get pods --field-selector=spec.colour=red", "");
    assert!(field.contains("field label not supported: spec.colour"), "{field}");
}

#[test]
fn tables_discovery_and_explain() {
    let kubectl = Kubectl::new();
    kubectl.run("apply -f -", DEPLOYMENT);
    kubectl.run("run one --image=seaway/client", "");
    let wide = kubectl.run("get deployments -o wide", "");
    assert!(wide.starts_with("NAME   READY   UP-TO-DATE   AVAILABLE   AGE   CONTAINERS   IMAGES"), "{wide}");
    let pods = kubectl.run("get pods,deploy -A", "");
    assert!(pods.contains("pod/one") && pods.contains("deployment.apps/web"), "{pods}");
    let resources = kubectl.run("api-resources --sort-by=name", "");
    for line in ["deployments", "endpointslices", "leases", "nodes"] {
        assert!(resources.contains(line), "{resources}");
    }
    assert!(kubectl.run("api-versions", "").contains("coordination.k8s.io/v1"));
    let explained = kubectl.run("explain deployment.spec.template.spec.containers", "");
    assert!(
        explained.contains("imagePullPolicy\t<string>") || explained.contains("imagePullPolicy"),
        "{explained}"
    );
    let explained = kubectl.run("explain pods", "");
    assert!(explained.contains("KIND:       Pod"), "{explained}");
    kubectl.run("get all", "");
    assert!(kubectl.run("get pods --sort-by=.metadata.name", "").contains("one"));
    assert!(kubectl.run("get pods --field-selector=metadata.name=two", "").contains("No resources found"));
}

#[test]
fn drain_evicts() {
    let kubectl = Kubectl::new();
    kubectl.run("create -f -", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: default}\n\
               spec: {nodeName: n1, containers: [{name: c, image: x}]}\n";
    kubectl.run("create -f -", pod);
    kubectl.run("create -f -", &pod.replace("name: a", "name: b").replace("nodeName: n1", "nodeName: n2"));
    let drained = kubectl.run("drain n1 --force --timeout=20s", "");
    assert!(drained.contains("node/n1 drained"), "{drained}");
    assert_eq!(kubectl.server.state.lock().unwrap().evicted, ["a"]);
    assert_eq!(kubectl.get("pods")["items"].as_array().unwrap().len(), 1);
    assert!(kubectl.run("get nodes", "").contains("SchedulingDisabled"));
    kubectl.run("uncordon n1", "");
}
