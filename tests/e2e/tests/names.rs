//! Cluster DNS of the node: pods are answered without leaving it, and by another node's server when their own one ends.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::process::{Child, Command, Stdio};

use seaway_e2e::{Cluster, eventually, run, seaway_bin};
use serde_json::{Value, json};

const INTERVAL_MS: u64 = 20;

/// The pod that asks, and its node.
struct Client {
    address: String,
    node: String,
}

impl Client {
    fn of(cluster: &Cluster) -> Self {
        let get = |path: &str| {
            let path = format!("jsonpath={{.items[0].{path}}}");
            cluster.kubectl(&["get", "-n", "demo", "pods", "-l", "app=client", "-o", &path]).ok()
        };
        Self { address: get("status.podIP"), node: get("spec.nodeName") }
    }

    /// Has the pod ask `count` questions of the cluster's DNS address, each with one packet.
    fn ask(&self, cluster: &Cluster, count: u64) -> Child {
        let request = json!({"kind": "dns", "target": "backend.demo.svc.cluster.local", "count": count,
            "interval_ms": INTERVAL_MS, "timeout_ms": 2000});
        let netns = format!("/run/netns/{}-{}", cluster.name, self.node);
        let mut command = Command::new(seaway_bin());
        command.args(["probe", "--netns", &netns, "--via", &format!("{}:8080", self.address)]);
        let mut probe = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        probe.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        probe
    }
}

/// Every question was answered.
#[track_caller]
fn assert_answered(probe: Child, count: u64) {
    let output = probe.wait_with_output().unwrap();
    let mut result: Value = serde_json::from_slice(&output.stdout).unwrap();
    result.as_object_mut().unwrap().remove("attempts");
    assert_eq!((&result["failed"], &result["good"]), (&json!(0), &json!(count)), "{result}");
}

/// How many questions were not answered.
fn failed(probe: Child) -> u64 {
    let output = probe.wait_with_output().unwrap();
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["failed"].as_u64().unwrap()
}

/// What the agent of a node counts.
fn metrics(cluster: &Cluster, node: &str) -> String {
    run(&mut cluster.in_netns(node, &["curl", "-sS", "http://127.0.0.1:10249/metrics"])).ok()
}

/// How many questions of this type the server of a node has been asked over UDP.
fn asked(cluster: &Cluster, node: &str) -> f64 {
    let page = metrics(cluster, node);
    let counts = page.lines().filter(|line| {
        line.starts_with("coredns_dns_requests_total{")
            && line.contains(r#"proto="udp""#)
            && line.contains(r#"type="A""#)
    });
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Keeps a process from doing anything, until dropped: the supervisor, so that it starts nothing.
struct Paused(u32);

impl Paused {
    fn supervisor(cluster: &Cluster) -> Self {
        Self::of(cluster, "supervisor")
    }

    fn of(cluster: &Cluster, component: &str) -> Self {
        let pid = cluster.pid(component).unwrap();
        signal("-STOP", pid);
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        signal("-CONT", self.0);
    }
}

fn signal(which: &str, pid: u32) {
    run(Command::new("kill").args([which, &pid.to_string()])).ok();
}

/// Whether a process has ended. Its parent, which is paused, has not heard of it.
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

#[test]
fn pods_are_answered_on_their_node_and_by_another_one_while_theirs_is_down() {
    let cluster = Cluster::up("e2e-names", &["--nodes", "2"]);
    let client = Client::of(&cluster);
    let other = if client.node == "node1" { "node2" } else { "node1" };

    let (own_before, other_before) = (asked(&cluster, &client.node), asked(&cluster, other));
    assert_answered(client.ask(&cluster, 50), 50);
    eventually("the node's own server has answered them", 10, || {
        asked(&cluster, &client.node) >= own_before + 50.0
    });
    assert!(asked(&cluster, other) < other_before + 50.0, "questions have left the node");
    for path in ["health", "ready"] {
        let url = format!("http://127.0.0.1:10256/{path}");
        assert_eq!(run(&mut cluster.in_netns(other, &["curl", "-sSf", &url])).ok(), "OK");
    }
    let page = metrics(&cluster, other);
    for shown in [
        r#"coredns_kubernetes_rest_client_requests_total{code="200","#,
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
    ] {
        assert!(page.contains(shown), "{page}");
    }

    // While questions are asked, the agent ends. Nobody starts it again.
    let agent = cluster.pid(&client.node).unwrap();
    let paused = Paused::supervisor(&cluster);
    let probe = client.ask(&cluster, 250);
    signal("-TERM", agent);
    eventually("the agent has ended", 15, || has_ended(agent));
    assert_answered(probe, 250);
    let other_before = asked(&cluster, other);
    assert_answered(client.ask(&cluster, 50), 50);
    eventually("the other node's server has answered them", 10, || {
        asked(&cluster, other) >= other_before + 50.0
    });

    // It comes back, and the node is on its own again.
    drop(paused);
    await_own_server(&cluster, &client, agent, other);
}

/// Waits until a new agent is there in the place of `former`, and the other node is asked no more.
fn await_own_server(cluster: &Cluster, client: &Client, former: u32, other: &str) {
    eventually("the node's own server answers again", 30, || {
        let back = cluster.pid(&client.node).is_some_and(|pid| pid != former);
        let before = back.then(|| asked(cluster, other));
        assert_answered(client.ask(cluster, 10), 10);
        before.is_some_and(|before| asked(cluster, other) < before + 10.0)
    });
}

/// The process ids of the processes that hold the sockets of the nodes' DNS servers.
fn standbys(cluster: &Cluster) -> Vec<String> {
    let place = cluster.dir().display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap());
    let is_standby = |path: std::path::PathBuf| {
        let words = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        words.contains(" dns-standby ") && words.contains(&place)
    };
    let found = processes.filter(|entry| is_standby(entry.path()));
    found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether each of them, of two nodes, has been told of the other node's server, at both its addresses.
fn know_each_other(standbys: &[String]) -> bool {
    let peers = |pid: &String| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let directory = words.split('\0').rfind(|word| !word.is_empty()).unwrap_or_default();
        std::fs::read_to_string(std::path::Path::new(directory).join("peers")).unwrap_or_default()
    };
    let ready = |pid: &String| peers(pid).lines().filter(|line| line.ends_with(" ready")).count();
    standbys.len() == 2 && standbys.iter().all(|pid| ready(pid) == 2)
}

#[test]
fn pods_are_answered_while_their_agent_is_dead() {
    let cluster = Cluster::up("e2e-standby", &["--nodes", "2"]);
    let client = Client::of(&cluster);
    let other = if client.node == "node1" { "node2" } else { "node1" };
    assert_answered(client.ask(&cluster, 10), 10);
    assert_eq!(standbys(&cluster).len(), 2, "one for each node");
    eventually("they know of each other's servers", 10, || know_each_other(&standbys(&cluster)));

    // Nobody has told the Service, and nobody starts the agent again: its stand-by hands on what its pods ask.
    let agent = cluster.pid(&client.node).unwrap();
    let paused = Paused::supervisor(&cluster);
    let probe = client.ask(&cluster, 100);
    signal("-9", agent);
    eventually("the agent has ended", 15, || has_ended(agent));
    assert!(failed(probe) <= 1, "only what the agent had in hand is lost");
    assert_eq!(led_to(&cluster, &client.node), "true true");
    let other_before = asked(&cluster, other);
    assert_answered(client.ask(&cluster, 100), 100);
    eventually("the other node's server has answered them", 10, || {
        asked(&cluster, other) >= other_before + 100.0
    });

    // The next agent takes the sockets over, while questions are asked.
    let probe = client.ask(&cluster, 250);
    drop(paused);
    await_own_server(&cluster, &client, agent, other);
    assert_answered(probe, 250);
    eventually("the former stand-by has ended", 10, || standbys(&cluster).len() == 2);

    // So it is while the next agent cannot learn of the cluster, longer than anybody would wait for that.
    eventually("they know of each other's servers", 10, || know_each_other(&standbys(&cluster)));
    let former = cluster.pid(&client.node).unwrap();
    let api_server = Paused::of(&cluster, "server");
    signal("-9", former);
    eventually("the next agent is there", 15, || {
        cluster.pid(&client.node).is_some_and(|pid| pid != former && !has_ended(pid))
    });
    assert!(failed(client.ask(&cluster, 700)) <= 1, "only what the agent had in hand is lost");
    drop(api_server);
    await_own_server(&cluster, &client, former, other);

    // Both at once: then the node has none, until its agent is back.
    for standby in standbys(&cluster) {
        signal("-9", standby.parse().unwrap());
    }
    cluster.kill(&client.node);
    eventually("the node's own server is back", 30, || asked_ok(client.ask(&cluster, 1)));
    cluster.seaway(&["down"]).ok();
    assert_eq!(standbys(&cluster), Vec::<String>::new());
}

/// Whether the one question of a probe that has ended was answered.
fn asked_ok(probe: Child) -> bool {
    let output = probe.wait_with_output().unwrap();
    serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|result| result["good"] == 1)
}

/// What the Service is told of the DNS servers of a node: whether they are ready, one word per family, if any.
fn led_to(cluster: &Cluster, node: &str) -> String {
    let of = |family| {
        let slice = format!("endpointslice/kube-dns-{node}-{family}");
        let path = "jsonpath={.endpoints[*].conditions.ready}";
        cluster.kubectl(&["get", "-n", "kube-system", "--ignore-not-found", &slice, "-o", path]).ok()
    };
    format!("{} {}", of("ipv4"), of("ipv6"))
}

#[test]
fn the_dns_server_of_a_silent_node_is_taken_out_until_it_is_back() {
    let cluster = Cluster::up("e2e-silent", &["--nodes", "3", "--no-demo"]);
    eventually("all servers are led to", 10, || {
        ["node1", "node2", "node3"].iter().all(|node| led_to(&cluster, node) == "true true")
    });
    // It keeps its sockets, and says and answers nothing: to its neighbours the machine has died.
    let silent = Paused::of(&cluster, "node3");
    eventually("the silent node's server is taken out", 120, || led_to(&cluster, "node3") == "false false");
    for node in ["node1", "node2"] {
        assert_eq!(led_to(&cluster, node), "true true", "{node} can be heard");
    }
    drop(silent);
    eventually("the node is back, and so is its server", 60, || led_to(&cluster, "node3") == "true true");
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    eventually("the node is ready", 30, || {
        cluster.kubectl(&["get", "node", "node3", "-o", ready]).ok() == "True"
    });
    // A Node that goes takes what belongs to it along; a living agent registers anew, and its server with it.
    let uid = |what: &str| {
        cluster.kubectl(&["get", "-n", "kube-system", what, "-o", "jsonpath={.metadata.uid}"]).ok()
    };
    let before = uid("node/node3");
    cluster.kubectl(&["delete", "node", "node3"]).ok();
    eventually("the slice belongs to the Node that is there now", 60, || {
        let owner = "jsonpath={.metadata.ownerReferences[0].uid}";
        let get = [
            "get",
            "-n",
            "kube-system",
            "--ignore-not-found",
            "endpointslice/kube-dns-node3-ipv4",
            "-o",
            owner,
        ];
        let owner = cluster.kubectl(&get).ok();
        !owner.is_empty() && owner != before && led_to_again(&cluster)
    });
}

/// Whether the server of a node whose slice may just have been deleted is led to.
fn led_to_again(cluster: &Cluster) -> bool {
    let path = "jsonpath={.items[*].endpoints[*].conditions.ready}";
    let get = [
        "get",
        "-n",
        "kube-system",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=kube-dns",
        "-o",
        path,
    ];
    cluster.kubectl(&get).ok() == ["true"; 6].join(" ")
}
