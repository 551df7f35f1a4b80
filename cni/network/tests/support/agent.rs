//! The node part of a node of the lab, and pods that are wired as the plugin does it.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests are broken off by nobody")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use seaway_cni_network::netns::Namespace;
use seaway_cni_network::pod::{Attachment, Bandwidth, Wiring};
use seaway_cni_network::{NodeNetworkConfig, NodeNetworkOptions, Overlay, run_with};
use seaway_lab::{Lab, LabNode};
use seaway_model::{Node, NodeAddress, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const VXLAN: Overlay = Overlay::Vxlan { vni: 1, port: 8472 };
pub fn config(node: &LabNode, overlay: Overlay) -> NodeNetworkConfig {
    let plugin_source = node.state_dir().join("plugin");
    std::fs::write(&plugin_source, "a plugin").unwrap();
    NodeNetworkConfig {
        resync_interval: Duration::from_secs(2),
        ..NodeNetworkConfig::new(node.name(), overlay, plugin_source).below(node.state_dir())
    }
}

/// The Nodes of the lab. Node N (from 1) has the pod subnets 10.244.N.0/24 and fd00:10:244:N::/64.
pub fn snapshot(lab: &Lab, numbers: &[usize], synced: bool) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { synced, version: 1, ..Snapshot::default() };
    for number in numbers {
        let node = lab.node(number - 1);
        let addresses = node.addresses().map(NodeAddress::internal);
        let subnets = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
        let node = Node {
            addresses: addresses.to_vec(),
            pod_cidrs: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            ..Node::named(node.name())
        };
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    Arc::new(snapshot)
}

/// The node part of one node, running.
pub struct Agent {
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub fn start(node: &LabNode, config: NodeNetworkConfig, snapshot: Arc<Snapshot>) -> Self {
        Self::start_with(node, config, NodeNetworkOptions::default(), snapshot)
    }

    pub fn start_with(
        node: &LabNode,
        config: NodeNetworkConfig,
        options: NodeNetworkOptions,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        let (snapshots, receiver) = watch::channel(snapshot);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let namespace = Namespace::open(node.namespace().path()).unwrap();
        let thread = std::thread::spawn(move || {
            namespace
                .run(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(run_with(config, options, None, receiver, stop)).unwrap();
                })
                .unwrap();
        });
        Self { snapshots, shutdown, thread: Some(thread) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let outcome = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            outcome.unwrap();
        }
    }
}

/// A pod that is wired as the plugin does it.
pub struct Pod {
    pub namespace: Namespace,
    pub addresses: [IpAddr; 2],
}

pub fn add_pod(lab: &Lab, number: usize, host: u8) -> Pod {
    let namespace = Namespace::anonymous().unwrap();
    let addresses = [
        format!("10.244.{number}.{host}").parse().unwrap(),
        format!("fd00:10:244:{number}::{host}").parse().unwrap(),
    ];
    let attachment = Attachment::new("seaway", &format!("pod{host}"), "eth0");
    let wiring =
        Wiring { addresses: addresses.to_vec(), mtu: Some(1400), mac: None, bandwidth: Bandwidth::default() };
    lab.node(number - 1).run(|| attachment.wire(&namespace, &wiring)).unwrap();
    Pod { namespace, addresses }
}

pub fn conflist(node: &LabNode) -> PathBuf {
    node.state_dir().join("net.d/10-seaway.conflist")
}
