//! Pods on a real kernel: an API server in the test's process, an agent as a process of its own, the real CNI plugin,
//! all inside a network namespace that the test made.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, LogParams, PostParams};
use seaway_apiserver::{Pki, ServerConfig};
use seaway_cni_network::netlink::{Bridge, Netlink};
use seaway_cni_network::netns::Namespace;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NODE_IPS: [&str; 2] = ["172.30.0.11", "fd00:10:30::b"];
const PATIENCE: Duration = Duration::from_secs(60);

/// One node with its API server. Everything of it is gone when it is dropped.
struct Lab {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    agent: Option<Child>,
    client: kube::Client,
    stop: CancellationToken,
}

impl Lab {
    async fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(&format!("seaway-node-{name}-")).tempdir().unwrap();
        let cgroup = cgroup2().join(format!("seaway-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(cgroup.join("agent")).unwrap();
        let (client, stop) = api_server(dir.path()).await;
        network(dir.path());
        let mut lab = Self { dir, cgroup, agent: None, client, stop };
        lab.start_agent();
        let nodes: Api<Node> = Api::all(lab.client.clone());
        eventually("the node is ready", || async {
            let node = nodes.get_opt("n1").await.unwrap()?;
            let conditions = node.status?.conditions?;
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
        })
        .await;
        lab
    }

    fn start_agent(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"))
            .unwrap();
        let mut command = Command::new(fixture());
        command.arg("agent").arg(self.dir.path()).arg(&self.cgroup).stdin(Stdio::null()).stderr(log);
        self.agent = Some(command.spawn().unwrap());
    }

    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        pod["spec"]["nodeName"] = "n1".into();
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// The pod, once `want` finds in it what it looks for.
    async fn pod<T>(&self, name: &str, what: &str, want: impl Fn(&Pod) -> Option<T>) -> T {
        eventually(what, || async {
            let pod = self.pods().get_opt(name).await.unwrap()?;
            want(&pod)
        })
        .await
    }

    async fn ready(&self, name: &str) -> Pod {
        self.pod(name, "the pod is ready", |pod| is_ready(pod).then(|| pod.clone())).await
    }

    async fn gone(&self, name: &str) {
        eventually("the pod is gone", || async {
            self.pods().get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// Neither processes nor cgroups nor files of any pod are left.
    async fn nothing_left(&self) {
        let pods = self.dir.path().join("state/pods");
        eventually("nothing is left of the pods", || async {
            let cgroups = std::fs::read_dir(self.cgroup.join("pods"))
                .map_or(0, |entries| entries.flatten().filter(|e| e.path().is_dir()).count());
            let files = std::fs::read_dir(&pods).unwrap().count();
            (cgroups == 0 && files == 0 && !mounts().contains(&*self.dir.path().to_string_lossy()))
                .then_some(())
        })
        .await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default();
            eprintln!("agent:\n{log}");
        }
        self.stop.cancel();
        if let Some(mut agent) = self.agent.take() {
            agent.kill().ok();
            agent.wait().ok();
        }
        for entry in std::fs::read_dir(self.cgroup.join("pods")).into_iter().flatten().flatten() {
            remove_cgroup(&entry.path());
        }
        for path in [self.cgroup.join("pods"), self.cgroup.join("agent"), self.cgroup.clone()] {
            remove_cgroup(&path);
        }
    }
}

fn remove_cgroup(path: &Path) {
    if !path.is_dir() {
        return;
    }
    std::fs::write(path.join("cgroup.kill"), "1").ok();
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::fs::remove_dir(path).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn cgroup2() -> PathBuf {
    let mounts = mounts();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
    PathBuf::from(line.split(' ').nth(4).unwrap())
}

fn fixture() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/pod_fixture");
    assert!(path.exists(), "{} is missing: cargo test builds it with the package's tests", path.display());
    path
}

async fn api_server(dir: &Path) -> (kube::Client, CancellationToken) {
    rustls::crypto::ring::default_provider().install_default().ok();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let pki = Pki::open_or_create(dir.join("api/pki")).unwrap();
    let node = pki.node_credentials("n1", &NODE_IPS.map(|ip| ip.parse().unwrap()), &url).unwrap();
    for (name, text) in [
        ("kubeconfig", &node.kubeconfig),
        ("ca.crt", &node.ca_pem),
        ("serving.crt", &node.serving_cert_pem),
        ("serving.key", &node.serving_key_pem),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let admin = pki.kubeconfig(&url, "admin", &["system:masters"]).unwrap();
    let stop = CancellationToken::new();
    let mut config = ServerConfig::new(dir.join("api"), vec![listener]);
    config.drain_timeout = Duration::from_millis(10);
    tokio::spawn(seaway_apiserver::run(config, stop.clone()));
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&admin).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    (kube::Client::try_from(config).unwrap(), stop)
}

/// The real plugin, as the agent would install it.
fn network(dir: &Path) {
    std::fs::create_dir_all(dir.join("net.d")).unwrap();
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    std::os::unix::fs::symlink(fixture(), dir.join("bin/seaway-cni")).unwrap();
    let conflist = json!({"cniVersion": "1.0.0", "name": "seaway", "plugins": [{
        "type": "seaway-cni", "dataDir": dir.join("ipam"),
        "ranges": [{"subnet": "10.244.1.0/24"}, {"subnet": "fd00:10:244:1::/64"}],
    }]});
    std::fs::write(dir.join("net.d/10-seaway.conflist"), conflist.to_string()).unwrap();
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a test inside a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make namespaces and cgroups: run them as root"
    );
    let namespace = Namespace::anonymous().unwrap();
    namespace
        .run(|| {
            node_addresses();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(test());
        })
        .unwrap();
}

/// The node's own addresses, on a bridge that leads nowhere.
fn node_addresses() {
    let mut netlink = Netlink::open().unwrap();
    let bridge = netlink.create_bridge(&Bridge { name: "lan", ..Bridge::default() }).unwrap();
    let net = |address, bits| format!("{address}/{bits}").parse().unwrap();
    netlink.add_address(bridge.index, net(NODE_IPS[0], 24)).unwrap();
    netlink.add_silent_address(bridge.index, net(NODE_IPS[1], 64)).unwrap();
    netlink.set_up(bridge.index).unwrap();
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn ips(pod: &Pod) -> Vec<IpAddr> {
    pod.status.as_ref().unwrap().pod_ips.iter().flatten().map(|ip| ip.ip.parse().unwrap()).collect()
}

fn restarts(pod: &Pod) -> i32 {
    pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()).map_or(0, |list| list[0].restart_count)
}

/// The state of the first container, as kubectl shows it.
fn state(pod: &Pod) -> Option<String> {
    let state = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.clone()?;
    let waiting = state.waiting.and_then(|w| w.reason);
    let running = state.running.map(|_| "Running".to_owned());
    waiting.or(running).or(state.terminated.map(|t| format!("Exit {}", t.exit_code)))
}

fn get(ip: IpAddr, port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect((ip, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Processes whose cgroup is the pod's.
fn processes(lab: &Lab, uid: &str) -> Vec<i32> {
    let procs =
        std::fs::read_to_string(lab.cgroup.join("pods").join(uid).join("cgroup.procs")).unwrap_or_default();
    procs.lines().map(|line| line.parse().unwrap()).collect()
}

fn container_process(lab: &Lab, uid: &str) -> i32 {
    let is_image = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/seaway\0image"))
    };
    processes(lab, uid).into_iter().find(is_image).expect("a container runs")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn echo(name: &str) -> Value {
    json!({"name": name, "image": "seaway/echo", "ports": [{"name": "http", "containerPort": 8080}],
           "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}}})
}

#[test]
fn a_pod_lives_and_ends() {
    in_namespace(|| async {
        let lab = Lab::new("life").await;
        let begin = Instant::now();
        let created = lab.create("web", json!({"containers": [echo("web")]})).await;
        let pod = lab.ready("web").await;
        println!("ready after {:?}", begin.elapsed());
        let ips = ips(&pod);
        assert_eq!(ips.len(), 2, "{ips:?}");
        for ip in &ips {
            assert!(get(*ip, 8080, "/hostname").ends_with("web\n"), "{ip}");
        }
        let uid = created.metadata.uid.unwrap();
        let pid = container_process(&lab, &uid);
        let file = |path: &str| std::fs::read_to_string(format!("/proc/{pid}/root{path}")).unwrap();
        assert!(file("/etc/hosts").contains(&format!("{}\tweb", ips[0])));
        assert!(file("/etc/resolv.conf").starts_with("search default.svc.cluster.local svc.cluster.local"));
        assert!(
            !Path::new(&format!("/proc/{pid}/root/work")).exists()
                && !Path::new(&format!("/proc/{pid}/root/home")).exists()
        );
        let log =
            lab.pods().logs("web", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await.unwrap();
        assert!(!log.is_empty());

        lab.pods().delete("web", &DeleteParams::default()).await.unwrap();
        lab.gone("web").await;
        lab.nothing_left().await;
        assert!(TcpStream::connect_timeout(&(ips[0], 8080).into(), Duration::from_millis(500)).is_err());
    });
}

#[test]
fn a_crash_is_answered_with_a_restart_and_back_off() {
    in_namespace(|| async {
        let lab = Lab::new("crash").await;
        let created = lab.create("web", json!({"containers": [echo("web")]})).await;
        let uid = created.metadata.uid.unwrap();
        let first = lab.ready("web").await;
        kill(container_process(&lab, &uid));
        let again =
            lab.pod("web", "it runs again", |p| (restarts(p) == 1 && is_ready(p)).then(|| p.clone())).await;
        assert_eq!(ips(&first), ips(&again));
        let status = again.status.unwrap().container_statuses.unwrap().remove(0);
        assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 137);
        let previous = LogParams { previous: true, ..LogParams::default() };
        assert!(!lab.pods().logs("web", &previous).await.unwrap().is_empty());
        kill(container_process(&lab, &uid));
        lab.pod("web", "it backs off", |p| (state(p)? == "CrashLoopBackOff").then_some(())).await;
        lab.pods().delete("web", &DeleteParams::default()).await.unwrap();
        lab.gone("web").await;
        lab.nothing_left().await;
    });
}

#[test]
fn pods_outlive_the_agent_and_the_next_one_takes_them_over() {
    in_namespace(|| async {
        let mut lab = Lab::new("adopt").await;
        let kept = lab.create("kept", json!({"containers": [echo("web")]})).await;
        lab.create("gone", json!({"containers": [echo("web")]})).await;
        let ip = ips(&lab.ready("kept").await)[0];
        lab.ready("gone").await;
        let uid = kept.metadata.uid.unwrap();
        let pid = container_process(&lab, &uid);
        lab.kill_agent();
        assert!(get(ip, 8080, "/hostname").ends_with("kept\n"));
        let force = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        lab.pods().delete("gone", &force).await.unwrap();
        lab.start_agent();
        let pods = lab.cgroup.join("pods");
        eventually("the pod that is gone is cleared away", || async {
            (std::fs::read_dir(&pods).unwrap().flatten().filter(|e| e.path().is_dir()).count() == 1)
                .then_some(())
        })
        .await;
        assert_eq!(container_process(&lab, &uid), pid);
        // It is held again: a crash is seen.
        kill(pid);
        lab.pod("kept", "it runs again", |p| (restarts(p) == 1 && is_ready(p)).then_some(())).await;
        // And so is the end of everything that holds it.
        for pid in processes(&lab, &uid) {
            kill(pid);
        }
        let renewed = |p: &Pod| (restarts(p) == 2 && is_ready(p)).then(|| p.clone());
        let pod = lab.pod("kept", "it runs in a new sandbox", renewed).await;
        assert!(get(ips(&pod)[0], 8080, "/hostname").ends_with("kept\n"));
        lab.pods().delete("kept", &DeleteParams::default()).await.unwrap();
        lab.gone("kept").await;
        lab.nothing_left().await;
    });
}

#[test]
fn what_cannot_run_says_why() {
    in_namespace(|| async {
        let lab = Lab::new("refused").await;
        lab.create("image", json!({"containers": [{"name": "a", "image": "nginx"}]})).await;
        lab.create(
            "command",
            json!({"containers": [{"name": "a", "image": "seaway/echo", "command": ["sh"]}]}),
        )
        .await;
        lab.create(
            "volume",
            json!({"containers": [{"name": "a", "image": "seaway/echo",
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
        )
        .await;
        for (name, want) in [
            ("image", "ErrImagePull"),
            ("command", "CreateContainerConfigError"),
            ("volume", "CreateContainerConfigError"),
        ] {
            lab.pod(name, want, |pod| (state(pod)? == want).then_some(())).await;
        }
        let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
        eventually("an event says so", || async {
            let list = events.list(&kube::api::ListParams::default()).await.unwrap();
            let told: Vec<String> = list.items.into_iter().filter_map(|e| e.message).collect();
            told.iter().any(|m| m.contains("nginx")).then_some(())
        })
        .await;
    });
}

#[test]
fn hooks_run_and_say_when_they_fail() {
    in_namespace(|| async {
        let lab = Lab::new("hooks").await;
        let with = |hooks: Value| {
            json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
                "containers": [{"name": "a", "image": "seaway/echo", "lifecycle": hooks}]})
        };
        let here = |port: u16| json!({"exec": {"command": ["/probe", "tcp", format!("localhost:{port}")]}});
        lab.create("started", with(json!({"postStart": {"exec": {"command": ["ls"]}}}))).await;
        // It is told to end: perhaps before it knows how to do that well.
        lab.pod("started", "the failed hook ends it", |pod| {
            matches!(pod.status.as_ref()?.phase.as_deref()?, "Succeeded" | "Failed").then_some(())
        })
        .await;
        lab.create("stopped", with(json!({"preStop": here(9)}))).await;
        lab.create("slept", with(json!({"preStop": {"sleep": {"seconds": 1}}}))).await;
        for name in ["stopped", "slept"] {
            lab.ready(name).await;
            lab.pods().delete(name, &DeleteParams::default()).await.unwrap();
            lab.gone(name).await;
        }
        let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
        let told = eventually("both failures are told", || async {
            let list = events.list(&kube::api::ListParams::default()).await.unwrap();
            let hooks =
                list.items.into_iter().filter(|event| event.reason.iter().any(|r| r.ends_with("Hook")));
            let told: BTreeMap<_, _> = hooks
                .map(|e| (e.involved_object.name.unwrap(), (e.reason.unwrap(), e.message.unwrap())))
                .collect();
            (told.len() >= 2).then_some(told)
        })
        .await;
        assert_eq!(told.keys().collect::<Vec<_>>(), ["started", "stopped"]);
        let (reason, message) = &told["started"];
        assert!(reason == "FailedPostStartHook" && message.contains("can execute only /probe"), "{message}");
        assert_eq!(told["stopped"].0, "FailedPreStopHook");
    });
}

#[test]
fn jobs_init_containers_environment_volumes_and_probes() {
    in_namespace(|| async {
        let lab = Lab::new("whole").await;
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(lab.client.clone(), "default");
        let mut map = k8s_openapi::api::core::v1::ConfigMap::default();
        map.metadata.name = Some("conf".into());
        map.data = Some(BTreeMap::from([("key".to_owned(), "value".to_owned())]));
        maps.create(&PostParams::default(), &map).await.unwrap();
        // An unknown flag makes the image end with 2: Never means Failed.
        let broken = json!({"name": "a", "image": "seaway/echo", "args": ["--nonsense"]});
        lab.create("job", json!({"restartPolicy": "Never", "containers": [broken]})).await;
        lab.create("full", json!({
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "web", "image": "seaway/echo:latest", "command": ["/echo"], "args": ["--http-port=$(PORT)"],
                "env": [{"name": "PORT", "value": "9090"}, {"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "key"}}}],
                "volumeMounts": [{"name": "conf", "mountPath": "/etc/conf"}, {"name": "tmp", "mountPath": "/data"}],
                "startupProbe": {"tcpSocket": {"port": 9090}},
                "readinessProbe": {"exec": {"command": ["/probe", "http", "http://127.0.0.1:9090/healthz"]}},
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": 9090}, "periodSeconds": 1},
            }],
            "volumes": [{"name": "conf", "configMap": {"name": "conf"}}, {"name": "tmp", "emptyDir": {}}],
        })).await;
        let pod = lab.ready("full").await;
        let pid = container_process(&lab, pod.metadata.uid.as_deref().unwrap());
        let env = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        let env: Vec<&str> = env.split('\0').collect();
        let my_ip = format!("MY_IP={}", ips(&pod)[0]);
        for want in ["KEY=value", "HOSTNAME=full", my_ip.as_str()] {
            assert!(env.contains(&want), "{want} in {env:?}");
        }
        assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/root/etc/conf/key")).unwrap(), "value");
        lab.pod("job", "the job failed", |p| {
            (p.status.as_ref()?.phase.as_deref() == Some("Failed") && state(p)? == "Exit 2").then_some(())
        })
        .await;
        assert!(lab.pods().logs("job", &LogParams::default()).await.unwrap().contains("nonsense"));
        lab.create("host", json!({"hostNetwork": true, "containers": [
            {"name": "web", "image": "seaway/echo", "args": ["--http-port=7070", "--tcp-port=7071", "--udp-port=7072"]}]})).await;
        let pod = lab.ready("host").await;
        assert_eq!(ips(&pod)[0].to_string(), NODE_IPS[0]);
        eventually("it serves on the node's address", || async {
            TcpStream::connect((NODE_IPS[0], 7070)).ok().map(drop)
        })
        .await;
        for name in ["full", "job", "host"] {
            lab.pods().delete(name, &DeleteParams::default()).await.unwrap();
        }
        for name in ["full", "job", "host"] {
            lab.gone(name).await;
        }
        lab.nothing_left().await;
    });
}
