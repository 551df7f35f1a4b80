//! A container runtime and the two plugins that it calls: ours, and bridge with host-local.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use seaway_cni_network::netlink::Netlink;
use seaway_cni_network::netns::Namespace;
use seaway_cni_network::{NodeNetworkConfig, NodeNetworkOptions, Overlay};
use seaway_lab::{LabNode, poll_until};
use seaway_model::{Node, NodeAddress, Snapshot};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where Debian's containernetworking-plugins are.
const REFERENCE: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(20);

/// A plugin on a node, with its configuration.
#[derive(Debug)]
pub struct Plugin {
    executable: PathBuf,
    config: String,
}

/// A network namespace for a pod, and the file that stands for it.
#[derive(Debug)]
pub struct Sandbox {
    /// The namespace.
    pub namespace: Namespace,
    netns: String,
}

impl Sandbox {
    /// A new one.
    pub fn new() -> Result<Self> {
        let namespace = Namespace::anonymous()?;
        let netns = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        Ok(Self { namespace, netns })
    }
}

impl Plugin {
    /// bridge with host-local, as a node of a cluster would have it.
    pub fn bridge(node: &LabNode) -> Result<Self> {
        let executable = Path::new(REFERENCE).join("bridge");
        if !executable.exists() {
            bail!("containernetworking-plugins is not installed");
        }
        let config = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": node.state_dir().join("host-local"),
                      "ranges": [[{ "subnet": "10.244.0.0/22" }]], "routes": [{ "dst": "0.0.0.0/0" }] },
        });
        Ok(Self { executable, config: config.to_string() })
    }

    /// Ours, as an agent has installed it on `node`.
    pub fn installed(node: &LabNode) -> Result<Self> {
        let path = node.state_dir().join("net.d/10-seaway.conflist");
        let list: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let mut config = list["plugins"][0].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        Ok(Self { executable: node.state_dir().join("bin/seaway-cni"), config: config.to_string() })
    }

    /// Starts a call. The calling thread has to be on the node: so nothing runs between fork and exec, and starting
    /// takes what it takes a runtime.
    pub fn start(&self, verb: &str, id: &str, sandbox: &Sandbox) -> Result<Child> {
        let mut child = Command::new(&self.executable)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_NETNS", &sandbox.netns)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", REFERENCE)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.executable.display()))?;
        let mut input = child.stdin.take().context("a pipe to the plugin")?;
        input.write_all(self.config.as_bytes())?;
        Ok(child)
    }

    /// Waits for a call's answer.
    pub fn finish(child: Child) -> Result<Vec<u8>> {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("a plugin failed: {}", String::from_utf8_lossy(&output.stdout));
        }
        Ok(output.stdout)
    }

    /// A whole call, and what it took.
    pub fn call(&self, verb: &str, id: &str, sandbox: &Sandbox) -> Result<(f64, Vec<u8>)> {
        let begun = Instant::now();
        let answer = Self::finish(self.start(verb, id, sandbox)?)?;
        Ok((ms_since(begun), answer))
    }

    /// ADD, and the pod's first address.
    pub fn add(&self, id: &str, sandbox: &Sandbox) -> Result<IpAddr> {
        let result: Value = serde_json::from_slice(&self.call("ADD", id, sandbox)?.1)?;
        let text = result["ips"][0]["address"].as_str().unwrap_or_default();
        let addr = text.split('/').next().unwrap_or_default();
        addr.parse().with_context(|| format!("no address in {result}"))
    }
}

/// A Node of the cluster, for snapshots.
pub fn node_object(name: &str, addresses: &[IpAddr], subnets: &[IpNet]) -> Node {
    let internal = |addr: &IpAddr| NodeAddress::internal(*addr);
    Node {
        addresses: addresses.iter().map(internal).collect(),
        pod_cidrs: subnets.to_vec(),
        ..Node::named(name)
    }
}

/// A cluster of these Nodes.
pub fn snapshot(nodes: impl IntoIterator<Item = Node>) -> Snapshot {
    let mut snapshot = Snapshot { synced: true, version: 1, ..Snapshot::default() };
    for node in nodes {
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    snapshot
}

/// Milliseconds.
pub fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Waits until a node has no more veth pairs than `most`: what a call left for later is over.
pub fn settle(netlink: &mut Netlink, most: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let links = netlink.links()?;
        let pairs = links.iter().filter(|link| link.kind.as_deref() == Some("veth") && link.name != "eth0");
        if pairs.count() <= most {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("links stay on the node");
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// The pod network's part of the agent on a node, running. It ends with this value.
#[derive(Debug)]
pub struct Agent {
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
    _snapshots: watch::Sender<Arc<Snapshot>>,
}

/// What the agent is told.
pub fn config(node: &LabNode, overlay: Overlay) -> Result<NodeNetworkConfig> {
    // `cargo xtask bench cni` builds it as a release carries it, in a profile of its own.
    let program = std::env::current_exe()?;
    let beside = program.with_file_name("../plugin/seaway-cni");
    if !beside.exists() {
        bail!("{} is not there: `cargo xtask bench cni` builds it", beside.display());
    }
    Ok(NodeNetworkConfig::new(node.name(), overlay, beside).below(node.state_dir()))
}

impl Agent {
    /// Starts it and waits until pods may start.
    pub fn start(node: &LabNode, overlay: Overlay, snapshot: Snapshot) -> Result<Self> {
        Self::start_with(node, overlay, snapshot, NodeNetworkOptions::default())
    }

    /// As [`Agent::start`], with choices.
    pub fn start_with(
        node: &LabNode,
        overlay: Overlay,
        snapshot: Snapshot,
        options: NodeNetworkOptions,
    ) -> Result<Self> {
        let config = config(node, overlay)?;
        let conflist = config.cni_conf_dir.join("10-seaway.conflist");
        let (snapshots, receiver) = watch::channel(Arc::new(snapshot));
        let stop = CancellationToken::new();
        let (shutdown, path) = (stop.clone(), node.namespace().path().to_owned());
        let thread = std::thread::spawn(move || {
            let work = || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let running = seaway_cni_network::run_with(config, options, None, receiver, shutdown);
                Ok(runtime.block_on(running)?)
            };
            Namespace::open(&path)?.run(work)?
        });
        let agent = Self { stop, thread: Some(thread), _snapshots: snapshots };
        if !poll_until(PATIENCE, || conflist.exists()) {
            bail!("the pod network of {} is not ready", node.name());
        }
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // How it ended does not matter any more.
            drop(thread.join());
        }
    }
}
