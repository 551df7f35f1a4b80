//! kill -9 of each process of a cluster, under traffic: connections go on, the process comes back and takes over.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use seaway_e2e::{Cluster, eventually, run, seaway_bin};
use serde_json::{Value, json};

/// Exchanges on one connection, and fresh connections, while something is killed.
const INTERVAL_MS: u64 = 20;
const COUNT: u64 = 300;

struct Traffic {
    what: String,
    probe: Child,
}

impl Traffic {
    /// Starts a probe inside the namespace `netns`, executed by the client pod at `via` where one is named.
    fn start(cluster: &Cluster, what: &str, netns: &str, via: Option<&str>, request: &Value) -> Self {
        let mut args =
            vec!["probe".to_owned(), "--netns".into(), format!("/run/netns/{}-{netns}", cluster.name)];
        if let Some(via) = via {
            args.extend(["--via".into(), via.into()]);
        }
        let mut command = Command::new(seaway_bin());
        let mut probe = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        probe.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        Self { what: what.to_owned(), probe }
    }

    /// Waits for its end: nothing may have failed.
    fn finish(self, during: &str) {
        let output = self.probe.wait_with_output().unwrap();
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let what = self.what;
        assert_eq!(result["failed"], 0, "{what} during {during}: {}", summary(&result));
        assert_eq!(result["reconnects"], 0, "{what} during {during}: {}", summary(&result));
        assert!(result["good"].as_u64().unwrap() >= COUNT, "{what} during {during}: {}", summary(&result));
    }
}

fn summary(result: &Value) -> String {
    let mut short = result.clone();
    short.as_object_mut().unwrap().remove("attempts");
    short.to_string()
}

fn get(cluster: &Cluster, what: &[&str], path: &str) -> String {
    let mut args = vec!["get", "-n", "demo"];
    args.extend(what);
    let path = format!("jsonpath={path}");
    args.extend(["-o", &path]);
    cluster.kubectl(&args).ok()
}

fn all_traffic(cluster: &Cluster) -> Vec<Traffic> {
    let service: IpAddr = get(cluster, &["service", "backend"], "{.spec.clusterIP}").parse().unwrap();
    let client = get(cluster, &["pods", "-l", "app=client"], "{.items[0].status.podIP}");
    let node = get(cluster, &["pods", "-l", "app=client"], "{.items[0].spec.nodeName}");
    let balancer = get(cluster, &["service", "frontend"], "{.status.loadBalancer.ingress[0].ip}");
    let via = format!("{client}:8080");
    let via = Some(via.as_str());
    let hold = json!({"kind": "hold", "target": format!("{service}:81"), "send": "ping",
        "interval_ms": INTERVAL_MS, "count": COUNT, "timeout_ms": 3000});
    let fresh = json!({"kind": "tcp", "target": format!("{service}:81"), "greeting": true,
        "interval_ms": INTERVAL_MS, "count": COUNT, "timeout_ms": 3000});
    let node_port = json!({"kind": "http", "target": "http://172.30.0.11:30080/hostname",
        "interval_ms": INTERVAL_MS, "count": COUNT, "timeout_ms": 3000});
    let outside = json!({"kind": "http", "target": format!("http://{balancer}/hostname"),
        "interval_ms": INTERVAL_MS, "count": COUNT, "timeout_ms": 3000});
    vec![
        Traffic::start(cluster, "one connection of a pod", &node, via, &hold),
        Traffic::start(cluster, "new connections of a pod", &node, via, &fresh),
        Traffic::start(cluster, "new connections to a NodePort", "client", None, &node_port),
        Traffic::start(cluster, "new connections to a LoadBalancer", "client", None, &outside),
    ]
}

#[test]
fn killing_any_process_disturbs_no_connection() {
    let cluster = Cluster::up("e2e-crashes", &[]);
    for component in ["server", "node1", "node2", "node3", "supervisor"] {
        kill_under_traffic(&cluster, component);
    }
    // What came back has taken over: changes are followed again.
    cluster.kubectl(&["scale", "-n", "demo", "deployment/backend", "--replicas=5"]).ok();
    cluster.kubectl(&["rollout", "status", "-n", "demo", "deployment/backend", "--timeout=30s"]).ok();
    let restarts = get(&cluster, &["pods"], "{.items[*].status.containerStatuses[*].restartCount}");
    assert!(restarts.split(' ').all(|count| count == "0"), "pods outlive their agent: {restarts}");
    cluster.seaway(&["check", "--only", "ClusterIP"]).ok();
}

/// Connections live in a process of their own, which outlives the agent and ends with the cluster.
#[test]
fn in_user_space_killing_an_agent_disturbs_no_connection_either() {
    let cluster = Cluster::up("e2e-crashes-us", &["--nodes", "2", "--proxy-mode", "userspace"]);
    let before = workers(&cluster);
    assert_eq!(before.len(), 2, "a worker for each node: {before:?}");
    assert_eq!(told_workers(&cluster), before, "status tells of them");
    let table = cluster.seaway(&["status"]).stdout;
    assert!(before.iter().all(|pid| table.contains(&format!("userspace worker {pid} with "))), "{table}");
    for component in ["node1", "node2"] {
        kill_under_traffic(&cluster, component);
    }
    assert_eq!(workers(&cluster), before, "the same ones serve");
    cluster.kubectl(&["scale", "-n", "demo", "deployment/backend", "--replicas=5"]).ok();
    cluster.kubectl(&["rollout", "status", "-n", "demo", "deployment/backend", "--timeout=30s"]).ok();
    cluster.seaway(&["check", "--only", "ClusterIP"]).ok();
    cluster.seaway(&["down"]).ok();
    assert_eq!(workers(&cluster), Vec::<String>::new());
}

/// The process ids of the workers that serve, as the agents tell them.
fn told_workers(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.seaway(&["status", "--json"]).stdout;
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |row: Value| row["agent"]["workers"].as_array().cloned().unwrap_or_default();
    let serving = rows.flat_map(of).filter(|worker| worker["serving"] == true);
    let mut pids: Vec<String> = serving.map(|worker| worker["pid"].to_string()).collect();
    pids.sort();
    pids
}

/// The process ids of the cluster's workers of the userspace mode.
fn workers(cluster: &Cluster) -> Vec<String> {
    let place = cluster.dir().display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap());
    let is_worker = |path: std::path::PathBuf| {
        let words = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        words.contains(" userspace-worker ") && words.contains(&place)
    };
    let workers = processes.filter(|entry| is_worker(entry.path()));
    let mut pids: Vec<String> =
        workers.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    pids.sort();
    pids
}

/// kill -9 while connections of all kinds are open and made; nothing may fail.
fn kill_under_traffic(cluster: &Cluster, component: &str) {
    let before = cluster.pid(component);
    let traffic = all_traffic(cluster);
    cluster.kill(component);
    eventually(&format!("{component} is back"), 20, || {
        let now = cluster.pid(component);
        now.is_some() && now != before && cluster.seaway(&["status"]).code == Some(0)
    });
    for stream in traffic {
        stream.finish(&format!("kill -9 of {component}"));
    }
}

#[test]
fn a_killed_server_has_lost_no_acknowledged_write() {
    let cluster = Cluster::up("e2e-durable", &["--nodes", "1", "--no-demo"]);
    for round in 0..3 {
        for index in 0..10 {
            cluster.kubectl(&["create", "configmap", &format!("kept-{round}-{index}")]).ok();
        }
        cluster.kill("server");
        eventually("the server is back", 20, || {
            cluster.kubectl(&["get", "--raw", "/readyz"]).code == Some(0)
        });
    }
    let kept = cluster.kubectl(&["get", "configmaps", "-o", "name"]).ok();
    assert_eq!(kept.matches("kept-").count(), 30, "{kept}");
}

#[test]
fn down_removes_a_cluster_whose_supervisor_and_server_were_killed() {
    let cluster = Cluster::up("e2e-halfdead", &["--nodes", "1", "--no-demo"]);
    let (supervisor, server) = (cluster.pid("supervisor").unwrap(), cluster.pid("server").unwrap());
    run(Command::new("kill").args(["-9", &supervisor.to_string(), &server.to_string()])).ok();
    cluster.seaway(&["down"]).ok();
    assert!(!cluster.dir().exists());
}

#[test]
fn a_second_up_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::up("e2e-second", &["--nodes", "1", "--no-demo"]);
    cluster.seaway(&["up", "--detach"]).fails_with("already running");
    cluster.kubectl(&["get", "nodes"]).ok();
}
