//! A container runtime for tests: it calls the plugin on a node, as the specification says, and looks at what is there.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by tests that each use a part"
)]

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use seaway_cni_network::netlink::RouteQuery;
use seaway_cni_network::netns::Namespace;
use seaway_cni_network::pod::{RETIRED_GROUP, ROUTE_PROTOCOL};
use seaway_lab::{LabNode, wait_for};
use serde_json::{Value, json};

/// Ranges of both families.
pub const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// A runtime on one node.
pub struct Runtime<'a> {
    /// The node.
    pub node: &'a LabNode,
    /// The configuration of its network.
    pub config: Value,
}

/// A pod's sandbox.
pub struct Sandbox {
    /// CNI_CONTAINERID
    pub id: String,
    /// Its network namespace.
    pub namespace: Namespace,
    /// CNI_NETNS
    pub netns: String,
}

impl Sandbox {
    pub fn new(id: &str) -> Self {
        let namespace = Namespace::anonymous().unwrap();
        // The plugin opens it through this process's descriptor.
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&namespace));
        let netns = format!("/proc/{}/fd/{fd}", std::process::id());
        Self { id: id.to_owned(), namespace, netns }
    }
}

impl<'a> Runtime<'a> {
    pub fn new(node: &'a LabNode, ranges: &[&str]) -> Self {
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!({ "subnet": subnet })).collect();
        let config = json!({
            "cniVersion": "1.1.0", "name": "seaway", "type": "seaway-cni",
            "dataDir": node.state_dir().join("cni"), "ranges": ranges, "mtu": 1450,
        });
        Self { node, config }
    }

    pub fn start(&self, verb: &str, sandbox: &Sandbox, stdin: &[u8]) -> Child {
        self.start_for("eth0", verb, sandbox, stdin)
    }

    pub fn start_for(&self, ifname: &str, verb: &str, sandbox: &Sandbox, stdin: &[u8]) -> Child {
        let mut command = self.node.command(env!("CARGO_BIN_EXE_seaway-cni"));
        command
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", &sandbox.id), ("CNI_NETNS", &sandbox.netns)])
            .envs([("CNI_IFNAME", ifname), ("CNI_PATH", "/opt/cni/bin")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A plugin that was killed does not read on.
        drop(child.stdin.take().unwrap().write_all(stdin));
        child
    }

    pub fn call(&self, verb: &str, sandbox: &Sandbox, extra: Value) -> Result<Value, Value> {
        let mut config = self.config.clone();
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        outcome(self.start(verb, sandbox, config.to_string().as_bytes()).wait_with_output().unwrap())
    }

    /// A call about an interface of this name.
    pub fn call_for(&self, ifname: &str, verb: &str, sandbox: &Sandbox) -> Result<Value, Value> {
        let config = self.config.to_string();
        outcome(self.start_for(ifname, verb, sandbox, config.as_bytes()).wait_with_output().unwrap())
    }

    pub fn add(&self, sandbox: &Sandbox) -> Value {
        self.call("ADD", sandbox, json!({})).unwrap()
    }

    pub fn del(&self, sandbox: &Sandbox) {
        self.call("DEL", sandbox, json!({})).unwrap();
    }

    pub fn held(&self) -> usize {
        let owners = PathBuf::from(self.config["dataDir"].as_str().unwrap()).join("seaway/owners");
        std::fs::read_dir(owners).map_or(0, Iterator::count)
    }

    /// Links that are done with.
    pub fn retired(&self) -> usize {
        let links = self.node.netlink().unwrap().links().unwrap();
        links.iter().filter(|link| link.group == RETIRED_GROUP).count()
    }

    /// Links of pods and routes to them, when those are gone that are done with.
    pub fn in_kernel(&self) -> (usize, usize) {
        wait_for(Duration::from_secs(20), "the deletion of retired links", || self.retired() == 0);
        let mut netlink = self.node.netlink().unwrap();
        let links = netlink.links().unwrap().iter().filter(|link| link.name.starts_with("sw")).count();
        let query = RouteQuery { protocol: Some(ROUTE_PROTOCOL), ..RouteQuery::default() };
        (links, netlink.routes(query).unwrap().len())
    }
}

/// Success has nothing or JSON on stdout; failure has an error with code and sentence there.
pub fn outcome(output: Output) -> Result<Value, Value> {
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.success() {
        return Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() });
    }
    let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| {
        panic!("no error on stdout: {text:?} {:?}", String::from_utf8_lossy(&output.stderr))
    });
    assert!(error["code"].is_u64() && !error["msg"].as_str().unwrap().is_empty(), "{error}");
    Err(error)
}

pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}
