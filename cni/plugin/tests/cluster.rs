//! The whole way of a pod network over two nodes: the agent's part installs plugin and configuration, a runtime reads
//! the one and executes the other, and the pods talk.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Stdio;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use seaway_cni_network::netns::Namespace;
use seaway_cni_network::{NodeNetworkConfig, Overlay, cleanup, run};
use seaway_lab::{Lab, LabNode, tcp_exchange, udp_exchange, wait_for};
use seaway_model::{Node, NodeAddress, Snapshot};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn config(node: &LabNode, overlay: Overlay) -> NodeNetworkConfig {
    NodeNetworkConfig::new(node.name(), overlay, env!("CARGO_BIN_EXE_seaway-cni")).below(node.state_dir())
}

fn snapshot(lab: &Lab) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { synced: true, version: 1, ..Snapshot::default() };
    for (index, node) in lab.nodes().iter().enumerate() {
        let addresses = node.addresses().map(NodeAddress::internal);
        let subnets = [format!("10.244.{index}.0/24"), format!("fd00:10:244:{index}::/64")];
        let node = Node {
            addresses: addresses.to_vec(),
            pod_cidrs: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            vtep_mac: Some(seaway_cni_network::vtep_mac(node.name())),
            ..Node::named(node.name())
        };
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    Arc::new(snapshot)
}

fn start_agent(
    node: &LabNode,
    config: NodeNetworkConfig,
    snapshot: Arc<Snapshot>,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    let namespace = Namespace::open(node.namespace().path()).unwrap();
    std::thread::spawn(move || {
        let (_snapshots, receiver) = watch::channel(snapshot);
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(config, receiver, shutdown)).unwrap();
        };
        namespace.run(work).unwrap();
    })
}

/// Executes the first plugin of the installed configuration, as a runtime does.
fn call(node: &LabNode, verb: &str, id: &str, sandbox: &Namespace, prev_result: &Value) -> Value {
    let conflist = std::fs::read_to_string(node.state_dir().join("net.d/10-seaway.conflist")).unwrap();
    let list: Value = serde_json::from_str(&conflist).unwrap();
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = list["cniVersions"].as_array().unwrap().last().unwrap().clone();
    if !prev_result.is_null() {
        config["prevResult"] = prev_result.clone();
    }
    let plugin = node.state_dir().join("bin").join(config["type"].as_str().unwrap());
    let netns = format!("/proc/{}/fd/{}", std::process::id(), sandbox.as_fd().as_raw_fd());
    let mut child = node
        .command(plugin.to_str().unwrap())
        .env_clear()
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_NETNS", &netns), ("CNI_IFNAME", "eth0")])
        .env("CNI_PATH", node.state_dir().join("bin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{verb}: {text}");
    if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

fn pods_talk_across_nodes(overlay: Overlay, mtu: u32) {
    let lab = Lab::new(2).unwrap();
    let (all, shutdown) = (snapshot(&lab), CancellationToken::new());
    let agents: Vec<JoinHandle<()>> = lab
        .nodes()
        .iter()
        .map(|node| start_agent(node, config(node, overlay), Arc::clone(&all), shutdown.clone()))
        .collect();
    for node in lab.nodes() {
        let conflist = node.state_dir().join("net.d/10-seaway.conflist");
        wait_for(Duration::from_secs(10), "the network configuration", || conflist.exists());
    }
    let pods: Vec<(usize, Namespace, Value)> = [("a", 0), ("b", 0), ("c", 1)]
        .into_iter()
        .map(|(id, index)| {
            let sandbox = Namespace::anonymous().unwrap();
            let result = call(lab.node(index), "ADD", id, &sandbox, &Value::Null);
            assert_eq!(result["interfaces"][1]["mtu"], json!(mtu));
            call(lab.node(index), "CHECK", id, &sandbox, &result);
            (index, sandbox, result)
        })
        .collect();
    for (_, from, from_result) in &pods {
        for (_, to, to_result) in &pods {
            for (seen, addr) in addresses(from_result).into_iter().zip(addresses(to_result)) {
                assert_eq!(tcp_exchange(from, to, addr, 100_000).unwrap(), seen);
                assert_eq!(udp_exchange(from, to, addr, 8000).unwrap(), seen, "in fragments");
            }
        }
    }
    shutdown.cancel();
    for agent in agents {
        agent.join().unwrap();
    }
    // Pods come and go without an agent.
    for (id, (index, sandbox, result)) in ["a", "b", "c"].into_iter().zip(&pods) {
        call(lab.node(*index), "DEL", id, sandbox, result);
    }
    for node in lab.nodes() {
        node.run(|| cleanup(&config(node, overlay))).unwrap();
        let mut netlink = node.netlink().unwrap();
        let names: Vec<String> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["lo", "eth0"]);
        let routes = netlink.routes(seaway_cni_network::netlink::RouteQuery::default()).unwrap();
        assert!(!routes.iter().any(|route| matches!(route.protocol, 87 | 88)));
    }
}

#[test]
fn pods_talk_across_nodes_by_direct_routes() {
    pods_talk_across_nodes(Overlay::None, 1500);
}

#[test]
fn pods_talk_across_nodes_in_vxlan() {
    pods_talk_across_nodes(Overlay::Vxlan { vni: 1, port: 8472 }, 1450);
}
