//! Measures the plugin against bridge + host-local, in turn in one run, and prints a JSON object per row
//! (`cargo xtask bench cni`). Arguments: `[--quick] [PLUGIN]`; the plugin is the `seaway-cni` built beside this.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a measurement ends at the first surprise"
)]

#[path = "bench_cni/traffic.rs"]
mod traffic;

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use seaway_cni_network::netns::{Namespace, sysctl};
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";

/// One plugin on the node.
struct Plugin {
    executable: PathBuf,
    config: String,
}

/// A node: a namespace, and a directory for what plugins keep.
struct Node {
    namespace: Namespace,
    directory: tempfile::TempDir,
}

struct Sandbox {
    id: String,
    namespace: Namespace,
}

impl Sandbox {
    fn new(id: usize) -> Self {
        Self { id: format!("bench{id}"), namespace: Namespace::anonymous().unwrap() }
    }
}

impl Node {
    fn start(&self, plugin: &Plugin, verb: &str, sandbox: &Sandbox) -> Child {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), sandbox.namespace.as_fd().as_raw_fd());
        let mut child = self
            .namespace
            .command(&plugin.executable)
            .unwrap()
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", &sandbox.id), ("CNI_NETNS", &netns)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", REFERENCE)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(plugin.config.as_bytes()).unwrap();
        child
    }

    fn call(&self, plugin: &Plugin, verb: &str, sandbox: &Sandbox) -> (Duration, Vec<u8>) {
        let before = Instant::now();
        let output = self.start(plugin, verb, sandbox).wait_with_output().unwrap();
        let took = before.elapsed();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
        (took, output.stdout)
    }

    fn plugins(&self, ours: PathBuf) -> [Plugin; 2] {
        let data = |name: &str| self.directory.path().join(name);
        let own = json!({
            "cniVersion": "1.0.0", "name": "seaway", "type": "seaway-cni", "dataDir": data("ours"), "mtu": 1500,
            "ranges": [{ "subnet": "10.244.0.0/22" }],
        });
        let bridge = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": data("theirs"), "ranges": [[{ "subnet": "10.88.0.0/22" }]],
                      "routes": [{ "dst": "0.0.0.0/0" }] },
        });
        [
            Plugin { executable: ours, config: own.to_string() },
            Plugin { executable: format!("{REFERENCE}/bridge").into(), config: bridge.to_string() },
        ]
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a short list")]
    let index = ((values.len() - 1) as f64 * part).round() as usize;
    values[index]
}

/// A row in the form that all benches print. `target` is the most that ours may be of theirs.
fn row(case: &str, size: usize, unit: &str, peer: &str, [ours, theirs]: [f64; 2], target: Option<f64>) {
    let ratio = ours / theirs;
    let ok = target.is_none_or(|target| ratio <= target);
    println!(
        "{}",
        json!({ "bench": "cni", "case": case, "size": size, "unit": unit, "ours": ours, "peer": peer,
                "theirs": theirs, "ratio": ratio, "target": target, "ok": ok })
    );
}

fn one_at_a_time(node: &Node, plugins: &[Plugin; 2], count: usize) {
    let mut add = [Vec::new(), Vec::new()];
    let mut del = [Vec::new(), Vec::new()];
    for number in 0..count {
        for (side, plugin) in plugins.iter().enumerate() {
            let sandbox = Sandbox::new(number);
            add[side].push(ms(node.call(plugin, "ADD", &sandbox).0));
            del[side].push(ms(node.call(plugin, "DEL", &sandbox).0));
        }
    }
    for (verb, target, times) in [("add", 1.0 / 3.0, &mut add), ("del", 0.25, &mut del)] {
        let both = |times: &mut [Vec<f64>; 2], part| {
            [percentile(&mut times[0], part), percentile(&mut times[1], part)]
        };
        row(&format!("{verb}-p50"), 1, "ms", "bridge", both(times, 0.5), Some(target));
        row(&format!("{verb}-p99"), 1, "ms", "bridge", both(times, 0.99), None);
    }
}

fn at_once(node: &Node, plugins: &[Plugin; 2], count: usize, rounds: usize) {
    let mut total = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..rounds {
        for (side, plugin) in plugins.iter().enumerate() {
            let sandboxes: Vec<Sandbox> = (0..count).map(Sandbox::new).collect();
            for (which, verb) in ["ADD", "DEL"].into_iter().enumerate() {
                let before = Instant::now();
                let children: Vec<Child> =
                    sandboxes.iter().map(|one| node.start(plugin, verb, one)).collect();
                for child in children {
                    let output = child.wait_with_output().unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
                }
                total[which][side].push(ms(before.elapsed()));
            }
        }
    }
    for (which, verb) in ["add", "del"].into_iter().enumerate() {
        let [ours, theirs] = &mut total[which];
        let both = [percentile(ours, 0.5), percentile(theirs, 0.5)];
        row(&format!("{verb}-at-once"), count, "ms", "bridge", both, Some(0.25));
    }
}

fn churn(node: &Node, plugins: &[Plugin; 2], count: usize) {
    const ALIVE: usize = 100;
    let mut total = [0.0; 2];
    for (side, plugin) in plugins.iter().enumerate() {
        let mut alive = std::collections::VecDeque::new();
        for number in 0..count {
            let sandbox = Sandbox::new(number);
            total[side] += ms(node.call(plugin, "ADD", &sandbox).0);
            alive.push_back(sandbox);
            if alive.len() > ALIVE {
                total[side] += ms(node.call(plugin, "DEL", &alive.pop_front().unwrap()).0);
            }
        }
        for sandbox in alive {
            total[side] += ms(node.call(plugin, "DEL", &sandbox).0);
        }
    }
    row("churn", count, "ms", "bridge", total, None);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("seaway-cni");
    let ours =
        arguments.iter().find(|argument| !argument.starts_with("--")).map_or_else(beside, PathBuf::from);
    assert!(ours.exists(), "{} is not there: cargo build -p seaway-cni", ours.display());
    assert!(PathBuf::from(REFERENCE).join("bridge").exists(), "containernetworking-plugins is not installed");
    let node = Node { namespace: Namespace::anonymous().unwrap(), directory: tempfile::tempdir().unwrap() };
    node.namespace.run(|| sysctl::write("net/ipv4/ip_forward", "1").unwrap()).unwrap();
    let plugins = node.plugins(ours);
    one_at_a_time(&node, &plugins, if quick { 40 } else { 200 });
    at_once(&node, &plugins, 100, if quick { 1 } else { 3 });
    churn(&node, &plugins, if quick { 120 } else { 1000 });
    traffic::measure(&node, &plugins, if quick { 3 } else { 7 });
}

fn pod_address(result: &[u8]) -> std::net::IpAddr {
    let result: Value = serde_json::from_slice(result).unwrap();
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}
