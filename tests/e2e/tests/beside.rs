//! An agent beside a kubelet, as `deploy/` runs it: the Node is another's, and the agent adds the pod network and DNS.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::{Child, Command};

use seaway_e2e::{Cluster, eventually, run, seaway_bin};
use serde_json::{Value, json};

const NODE: &str = "guest";

/// An agent that ends with the test, and its log.
struct Agent(Child, PathBuf);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.1).unwrap_or_default());
        }
    }
}

/// Starts it at a client outside, which becomes the node. It is told neither its addresses nor, by the credentials, where
/// the API server is.
fn start(cluster: &Cluster, api_server: &str) -> Agent {
    let dir = cluster.dir().join(NODE);
    std::fs::create_dir_all(&dir).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &format!("{}-client", cluster.name)]).arg(seaway_bin());
    command.args(["node", "--no-proxy", "--api-server", api_server, "--state-dir", &at("state")]);
    command.args(["--cni-conf-dir", &at("net.d"), "--cni-bin-dir", &at("bin")]);
    let log = dir.join("log");
    command.stderr(std::fs::File::create(&log).unwrap());
    command.env("NODE_NAME", NODE).env("KUBECONFIG", cluster.kubeconfig());
    Agent(command.spawn().unwrap(), log)
}

/// What the kubelet of this node would write.
fn register(cluster: &Cluster, address: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
    cluster.kubectl_stdin(&["apply", "-f", "-"], &node.to_string()).ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"},
            {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}],
        "nodeInfo": {"kubeletVersion": "v1.33.1"},
    }});
    let patch = ["patch", "node", NODE, "--subresource=status", "--type=merge", "-p", &status.to_string()];
    cluster.kubectl(&patch).ok();
}

fn node(cluster: &Cluster) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", "node", NODE, "-o", "json"]).ok()).unwrap()
}

fn condition(node: &Value, kind: &str) -> Value {
    let all = node["status"]["conditions"].as_array().unwrap();
    all.iter().find(|one| one["type"] == kind).cloned().unwrap_or_default()
}

#[test]
fn a_node_of_a_kubelet_gets_a_pod_network_and_dns_and_stays_the_kubelets() {
    let cluster = Cluster::up("e2e-beside", &["--nodes", "1", "--no-demo"]);
    let first = "jsonpath={.items[0].endpoints[0].addresses[0]}";
    let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", first];
    let api_server = format!("https://{}:6443", cluster.kubectl(&slices).ok());
    let addresses = ["ip", "-4", "-json", "addr", "show", "scope", "global"];
    let addresses = run(&mut cluster.in_netns("client", &addresses)).ok();
    let addresses: Value = serde_json::from_str(&addresses).unwrap();
    let address = addresses[0]["addr_info"][0]["local"].as_str().unwrap().to_owned();
    // It may be there before the kubelet has said who it is.
    let _agent = start(&cluster, &api_server);
    register(&cluster, &address);
    eventually("the Node says that its pod network is there", 30, || {
        condition(&node(&cluster), "NetworkUnavailable")["reason"] == "SeawayIsUp"
    });
    let told = node(&cluster);
    assert_eq!(condition(&told, "NetworkUnavailable")["status"], "False");
    assert_eq!(condition(&told, "Ready")["reason"], "KubeletReady", "the kubelet's to tell");
    assert_eq!(told["status"]["nodeInfo"]["kubeletVersion"], "v1.33.1");
    assert_eq!(told["metadata"]["annotations"]["seaway.dev/vtep-mac"].as_str().unwrap().len(), 17);
    let conflist = cluster.dir().join(NODE).join("net.d/10-seaway.conflist");
    assert!(conflist.exists(), "{}", conflist.display());
    assert!(cluster.dir().join(NODE).join("bin/seaway-cni").exists());
    eventually("the Service leads to its DNS server, too", 30, || {
        let slice = ["-n", "kube-system", "get", "endpointslice", "kube-dns-guest-ipv4", "-o", "json"];
        cluster.kubectl(&slice).stdout.contains(&address)
    });
}
