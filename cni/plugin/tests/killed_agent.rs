//! The agent's part of the pod network, killed before every single write of a file and every request to the kernel: the
//! next start completes what was begun, and nothing is left twice.
//!
//! One test, because the place where the work is broken off is one for the process.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use seaway_cni_network::ipam::{Ipam, Owner, Range, Request};
use seaway_cni_network::netlink::{Netlink, Route, RouteQuery, Vxlan};
use seaway_cni_network::netns::Namespace;
use seaway_cni_network::pod::{Attachment, Bandwidth, RETIRED_GROUP, Wiring};
use seaway_cni_network::{NodeNetworkConfig, NodeNetworkOptions, Overlay, cleanup, fault, run_with};
use seaway_lab::{Lab, LabNode, poll_until};
use seaway_model::{Node, NodeAddress, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
const MOST_STEPS: u64 = 300;
/// The protocol number of routes to other nodes.
const PROTOCOL: u8 = 88;

fn member(name: &str, addresses: [&str; 2], subnets: [&str; 2]) -> (Arc<str>, Arc<Node>) {
    let internal = |addr: &str| NodeAddress::internal(addr.parse().unwrap());
    let node = Node {
        addresses: addresses.map(internal).to_vec(),
        pod_cidrs: subnets.map(|subnet| subnet.parse().unwrap()).to_vec(),
        ..Node::named(name)
    };
    (node.name.clone(), Arc::new(node))
}

fn snapshot(node: &LabNode) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { synced: true, version: 1, ..Snapshot::default() };
    let own = node.addresses().map(|addr| addr.to_string());
    snapshot.nodes.extend([
        member(node.name(), [&own[0], &own[1]], ["10.244.1.0/24", "fd00:10:244:1::/64"]),
        member("peer", ["172.30.0.77", "fd00:10:30::77"], ["10.244.2.0/24", "fd00:10:244:2::/64"]),
    ]);
    Arc::new(snapshot)
}

fn config(node: &LabNode) -> NodeNetworkConfig {
    let plugin_source = node.state_dir().join("plugin");
    if !plugin_source.exists() {
        std::fs::write(&plugin_source, "a plugin").unwrap();
    }
    NodeNetworkConfig {
        resync_interval: Duration::from_millis(50),
        ..NodeNetworkConfig::new(node.name(), Overlay::Vxlan { vni: 1, port: 8472 }, plugin_source)
            .below(node.state_dir())
    }
}

/// Runs the part until `done`, or until it is killed; says whether it was.
fn run_until(node: &LabNode, mut done: impl FnMut() -> bool + Send) -> bool {
    let options = NodeNetworkOptions { leak_grace: Duration::ZERO, ..NodeNetworkOptions::default() };
    let (_snapshots, receiver) = watch::channel(snapshot(node));
    let stop = CancellationToken::new();
    let namespace = Namespace::open(node.namespace().path()).unwrap();
    let (config, shutdown) = (config(node), stop.clone());
    std::thread::scope(|scope| {
        let part = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            namespace.run(|| runtime.block_on(run_with(config, options, None, receiver, shutdown))).unwrap()
        });
        assert!(poll_until(PATIENCE, || part.is_finished() || done()), "it neither ends nor is done");
        stop.cancel();
        part.join().unwrap().is_err()
    })
}

/// What the part is responsible for, in words.
fn state(node: &LabNode) -> BTreeMap<&'static str, String> {
    let mut netlink = node.netlink().unwrap();
    let query = RouteQuery { protocol: Some(PROTOCOL), ..RouteQuery::default() };
    let mut routes: Vec<String> =
        netlink.routes(query).unwrap().iter().map(|route| route.destination.to_string()).collect();
    routes.sort();
    let device = netlink.link("seaway-vxlan").unwrap();
    let entries = device.as_ref().map(|device| netlink.fdb(device.index).unwrap().len());
    let retired = netlink.links().unwrap().iter().filter(|link| link.group == RETIRED_GROUP).count();
    // Without opening the reservations, which takes a step itself.
    let owners = std::fs::read_dir(node.state_dir().join("ipam/seaway/owners")).into_iter().flatten();
    let owners: Vec<String> =
        owners.flatten().map(|owner| owner.file_name().into_string().unwrap()).collect();
    let read = |path: &str| std::fs::read_to_string(node.state_dir().join(path)).unwrap_or_default();
    let mut files: Vec<PathBuf> = ["net.d", "bin"]
        .iter()
        .flat_map(|name| std::fs::read_dir(node.state_dir().join(name)).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().into())
        .collect();
    files.sort();
    BTreeMap::from([
        ("routes", routes.join(" ")),
        ("device", format!("{:?} {entries:?}", device.map(|link| (link.up, link.mtu, link.alias)))),
        ("retired", retired.to_string()),
        ("owners", owners.join(" ")),
        ("files", format!("{files:?}")),
        ("plugin", read("bin/seaway-cni")),
        ("conflist", read("net.d/10-seaway.conflist")),
        ("ready", read("ipam/.ready")),
        ("former", format!("{:?}", netlink.link("former").unwrap())),
        ("mtus", mtus(node)),
        ("rules", node.ok(&["nft", "list", "ruleset"])),
    ])
}

/// A pod that runs, from a time when the MTU was another.
fn add_running(node: &LabNode) {
    let pod = Namespace::anonymous().unwrap();
    let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
    let pools = [vec![Range::new("10.244.1.0/24".parse().unwrap())]];
    let mut ipam = Ipam::open(&node.state_dir().join("ipam"), "seaway").unwrap();
    let request = Request { netns: Some(&netns), ..Request::default() };
    let addresses = ipam.reserve_for(&Owner::new("runs", "eth0"), &pools, request).unwrap().addresses;
    drop(ipam);
    let wiring = Wiring { addresses, mtu: Some(1400), mac: None, bandwidth: Bandwidth::default() };
    node.run(|| Attachment::new("seaway", "runs", "eth0").wire(&pod, &wiring).unwrap());
    // It lives as long as the process.
    std::mem::forget(pod);
}

/// The MTU of both ends of the pod that runs.
fn mtus(node: &LabNode) -> String {
    let link = node.netlink().unwrap().link(&Attachment::new("seaway", "runs", "eth0").host_link()).unwrap();
    let Some(link) = link else { return String::new() };
    let directory = node.state_dir().join("ipam");
    let held = Ipam::peek(&directory, "seaway", &Owner::new("runs", "eth0")).unwrap();
    let pod = Namespace::open(held.netns.unwrap().as_ref()).unwrap();
    let end = Netlink::open_in(&pod).unwrap().link("eth0").unwrap().unwrap();
    format!("{} {}", link.mtu, end.mtu)
}

/// What somebody, a former agent with other settings and calls of the plugin have left: a route to a node that is gone, a
/// device, a pod that runs, a reservation whose pod is gone, and a link that is done with.
fn spoil(node: &LabNode) {
    let mut netlink = node.netlink().unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap();
    let stale = Route { protocol: PROTOCOL, ..Route::to("10.244.9.0/24".parse().unwrap()) };
    netlink.replace_route(&stale.via("172.30.0.99".parse().unwrap()).on(eth0.index)).unwrap();
    if netlink.link("former").unwrap().is_none() {
        let (local, link) = (node.addresses()[0], Some(eth0.index));
        let former = Vxlan { name: "former", vni: 9, port: 8472, local, link, mac: None, mtu: Some(1450) };
        let former = netlink.create_vxlan(&former).unwrap();
        netlink.set_alias(former.index, "seaway:vxlan").unwrap();
    }
    add_running(node);
    let pools = [vec![Range::new("10.244.1.0/24".parse().unwrap())]];
    let mut ipam = Ipam::open(&node.state_dir().join("ipam"), "seaway").unwrap();
    ipam.reserve(&Owner::new("leaked", "eth0"), &pools).unwrap();
    drop(ipam);
    let (pod, done_with) = (Namespace::anonymous().unwrap(), Attachment::new("seaway", "done-with", "eth0"));
    let addresses = vec!["10.244.1.200".parse().unwrap()];
    let wiring = Wiring { addresses, mtu: None, mac: None, bandwidth: Bandwidth::default() };
    node.run(|| {
        done_with.wire(&pod, &wiring).unwrap();
        assert!(done_with.retire(&wiring.addresses, None).unwrap());
    });
    // The namespace lives on as long as the process: it does not do the agent's work.
    std::mem::forget(pod);
}

#[test]
fn every_step_of_the_agent_may_be_the_last() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    spoil(node);
    let clean = |state: &BTreeMap<&str, String>| {
        state["retired"] == "0"
            && state["owners"] == "runs:eth0"
            && state["mtus"] == "1450 1450"
            && state["former"] == "None"
    };
    assert!(!run_until(node, || clean(&state(node)) && !state(node)["conflist"].is_empty()));
    let whole = state(node);
    assert!(whole["rules"].contains("masquerade") && whole["plugin"] == "a plugin", "{whole:#?}");
    assert!(whole["routes"].contains("fd00:10:244:2::/64") && !whole["routes"].contains("10.244.9"));
    for steps in 1..MOST_STEPS {
        node.run(|| cleanup(&config(node))).unwrap();
        std::fs::remove_dir_all(node.state_dir().join("ipam")).unwrap();
        spoil(node);
        fault::arm(steps);
        let killed = run_until(node, || clean(&state(node)) && !state(node)["conflist"].is_empty());
        fault::arm(0);
        if !killed {
            assert!(steps > 12, "{steps} steps");
            return;
        }
        // As soon as the configuration is there, pods may start: all else has to be there before.
        let found = state(node);
        if !found["conflist"].is_empty() {
            for before in ["plugin", "conflist", "ready"] {
                assert_eq!(found[before], whole[before]);
            }
            assert!(found["routes"] == whole["routes"] && found["device"] == whole["device"], "{found:#?}");
        }
        run_until(node, || state(node) == whole);
        assert_eq!(state(node), whole, "killed after {steps} steps");
    }
    panic!("the round has no end");
}
