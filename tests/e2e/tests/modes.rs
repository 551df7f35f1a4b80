//! A whole cluster in each mode of the service proxy: every row of `check` passes that the mode can serve, what it
//! cannot serve is said with an Event on the Service, and the switches of the proxy reach it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;

use seaway_e2e::{Cluster, eventually, run};

/// The rows of `check` that fail.
fn failing(cluster: &Cluster) -> BTreeSet<String> {
    let ran = cluster.seaway(&["check", "--json"]);
    let rows: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() > 40, "only {} rows: {}", rows.len(), ran.stderr);
    let failed = rows.iter().filter(|row| row["ok"] != true);
    failed.map(|row| format!("{}: {}", row["name"].as_str().unwrap(), row["detail"])).collect()
}

fn status(cluster: &Cluster) -> String {
    cluster.seaway(&["status", "--json"]).ok()
}

#[test]
fn every_row_passes_with_nftables() {
    let cluster = Cluster::up("e2e-nftables", &["--nodes", "2", "--no-demo", "--proxy-mode", "nftables"]);
    assert!(status(&cluster).contains("nftables"), "{}", status(&cluster));
    assert_eq!(failing(&cluster), BTreeSet::new());
}

#[test]
fn every_row_passes_with_iptables() {
    let cluster = Cluster::up("e2e-iptables", &["--nodes", "2", "--no-demo", "--proxy-mode", "iptables"]);
    assert!(status(&cluster).contains("iptables"), "{}", status(&cluster));
    assert_eq!(failing(&cluster), BTreeSet::new());
}

const LOCAL: &str = "
apiVersion: v1
kind: Service
metadata: {name: local, namespace: demo}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: frontend}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

/// In user space the client's address does not reach a backend, so externalTrafficPolicy Local is refused: that row,
/// and no other, fails.
#[test]
fn in_user_space_all_rows_pass_but_those_that_need_the_clients_address() {
    let cluster = Cluster::up("e2e-userspace", &["--nodes", "2", "--proxy-mode", "userspace"]);
    let failing = failing(&cluster);
    let expected = "externalTrafficPolicy Local keeps the source";
    assert!(failing.iter().all(|row| row.starts_with(expected)), "{failing:#?}");
    assert_eq!(failing.len(), 2, "both families: {failing:#?}");
    cluster.kubectl_stdin(&["apply", "-f", "-"], LOCAL).ok();
    eventually("an Event tells it", 20, || {
        let events = cluster.kubectl(&["-n", "demo", "get", "events"]).stdout;
        events.contains("NotSupportedByProxy") && events.contains("service/local")
    });
}

/// The cluster's switch and the Service's annotation, where they can be followed and where not; and what is counted.
#[test]
fn maglev_and_counters_are_switches_of_the_cluster() {
    let more = ["--nodes", "1", "--proxy-mode", "ebpf", "--load-balancing", "maglev", "--traffic-metrics"];
    let cluster = Cluster::up("e2e-switches", &more);
    let wrong = ["-n", "demo", "annotate", "service", "frontend", "seaway.dev/load-balancing=magleev"];
    cluster.kubectl(&wrong).ok();
    eventually("an Event tells it", 20, || {
        let events = cluster.kubectl(&["-n", "demo", "get", "events"]).stdout;
        events.contains("want maglev or random")
    });
    run(Command::new("curl").args(["-sS", "--max-time", "5", &format!("http://{}/", cluster.publish)])).ok();
    eventually("connections are counted by name", 20, || {
        let mut page = cluster.in_netns("node1", &["curl", "-sS", "http://127.0.0.1:10249/metrics"]);
        let page = run(&mut page).ok();
        let counted = |line: &str| {
            line.starts_with("seaway_proxy_backend_connections_total{")
                && line.contains(r#"service="frontend""#)
        };
        page.lines().any(counted)
    });
}

/// Where backends answer clients outside directly, every row passes as well, and a backend on another node than the one
/// that was asked sees the client's address.
#[test]
fn every_row_passes_with_dsr_and_backends_elsewhere_see_the_client() {
    let cluster = Cluster::up("e2e-dsr", &["--nodes", "2", "--proxy-mode", "ebpf", "--north-south", "dsr"]);
    let names = "jsonpath={range .items[?(@.spec.nodeName=='node2')]}{.metadata.name}{'\\n'}{end}";
    let there = cluster.kubectl(&["-n", "demo", "get", "pods", "-l", "app=backend", "-o", names]).ok();
    let there: BTreeSet<&str> = there.lines().collect();
    assert!(!there.is_empty(), "no backend on node2");
    let addrs = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
    let addrs = cluster.kubectl(&["get", "node", "node1", "-o", addrs]).ok();
    for node in addrs.split_whitespace() {
        let host = if node.contains(':') { format!("[{node}]") } else { node.to_owned() };
        let url = format!("http://{host}:30080/json");
        let mut answered = BTreeSet::new();
        eventually("a backend on node2 answers what node1 was asked", 20, || {
            let curl = ["curl", "-sS", "--max-time", "5", "-w", "\\n%{local_ip}", &url];
            let said = run(&mut cluster.in_netns("client", &curl)).ok();
            let (page, own) = said.rsplit_once('\n').unwrap();
            let page: serde_json::Value = serde_json::from_str(page).unwrap();
            let client: std::net::SocketAddr = page["client"].as_str().unwrap().parse().unwrap();
            let pod = page["pod"].as_str().unwrap().to_owned();
            let elsewhere = there.contains(pod.as_str());
            // On node1 itself clients keep their address in any case.
            assert_eq!(client.ip().to_canonical().to_string(), own, "{pod} through {node}");
            answered.insert(pod);
            elsewhere && answered.len() > 1
        });
        // To the backend's own node this answer would be one to itself.
        eventually("a backend on node2 answers what node2 asks at node1", 20, || {
            let curl = ["curl", "-sS", "--max-time", "2", &url];
            let page = run(&mut cluster.in_netns("node2", &curl)).ok();
            let page: serde_json::Value = serde_json::from_str(&page).unwrap();
            there.contains(page["pod"].as_str().unwrap())
        });
    }
    assert_eq!(failing(&cluster), BTreeSet::new());
}
