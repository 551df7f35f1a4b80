//! The node part on nodes that are network namespaces: pods reach each other across nodes, and the kernel follows
//! the snapshot whatever happens to it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use seaway_cni_network::ipam::{Ipam, Owner, Range, Request};
use seaway_cni_network::netlink::{Netlink, Route, RouteQuery};
use seaway_cni_network::netns::{Namespace, sysctl};
use seaway_cni_network::pod::{Attachment, Bandwidth, Wiring};
use seaway_cni_network::{NodeNetworkConfig, NodeNetworkOptions, Overlay, cleanup, ready};
use seaway_lab::{Lab, LabNode, tcp_exchange, udp_exchange, wait_for};
use seaway_model::{Node, NodeAddress, Snapshot};

#[path = "support/agent.rs"]
mod agent;

use agent::{Agent, PATIENCE, VXLAN, add_pod, config, conflist, snapshot};

/// The protocol number of routes to other nodes.
const PROTOCOL: u8 = 88;

fn routes(node: &LabNode) -> Vec<Route> {
    let query = RouteQuery { protocol: Some(PROTOCOL), ..RouteQuery::default() };
    node.netlink().unwrap().routes(query).unwrap()
}

fn has_route(node: &LabNode, destination: &str) -> bool {
    let destination = destination.parse().unwrap();
    routes(node).iter().any(|route| route.destination == destination)
}

fn pods_reach_each_other_across_nodes(overlay: Overlay) {
    let lab = Lab::new(2).unwrap();
    let all = snapshot(&lab, &[1, 2], true);
    let agents: Vec<Agent> =
        lab.nodes().iter().map(|node| Agent::start(node, config(node, overlay), Arc::clone(&all))).collect();
    for node in lab.nodes() {
        wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    }
    let (a, b) = (add_pod(&lab, 1, 5), add_pod(&lab, 2, 6));
    let converse = || {
        for (addr_a, addr_b) in a.addresses.into_iter().zip(b.addresses) {
            assert_eq!(tcp_exchange(&a.namespace, &b.namespace, addr_b, 300_000).unwrap(), addr_a);
            assert_eq!(udp_exchange(&b.namespace, &a.namespace, addr_a, 1300).unwrap(), addr_b);
            tcp_exchange(lab.node(0).namespace(), &b.namespace, addr_b, 10_000).unwrap();
        }
    };
    converse();
    // To nodes pods speak as themselves, to the world as their node.
    for (family, addr) in lab.node(1).addresses().into_iter().enumerate() {
        assert_eq!(
            tcp_exchange(&a.namespace, lab.node(1).namespace(), addr, 100).unwrap(),
            a.addresses[family]
        );
        let outside = lab.client().addresses()[family];
        let seen = tcp_exchange(&a.namespace, lab.client().namespace(), outside, 100).unwrap();
        assert_eq!(seen, lab.node(0).addresses()[family]);
    }
    drop(agents);
    converse();
    for node in lab.nodes() {
        node.run(|| cleanup(&config(node, overlay))).unwrap();
        assert_eq!(routes(node), []);
        assert!(!conflist(node).exists() && !node.state_dir().join("bin/seaway-cni").exists());
        assert!(node.netlink().unwrap().link("seaway-vxlan").unwrap().is_none());
    }
    assert!(tcp_exchange(&a.namespace, &b.namespace, b.addresses[0], 100).is_err());
}

/// All network sysctls of the calling thread's namespace that can be read, but those that count.
fn sysctls() -> BTreeMap<PathBuf, String> {
    let mut held = BTreeMap::new();
    let mut directories = vec![PathBuf::from("/proc/sys/net")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if !path.ends_with("nf_conntrack_count")
                && let Ok(value) = std::fs::read_to_string(&path)
            {
                held.insert(path, value);
            }
        }
    }
    held
}

/// What `all` and `default` say stays as its owner wants it, and so does what the uplink says: a Kubernetes node forwards
/// before we come, and where it does not, forwarding is all that is switched on.
#[test]
fn sysctls_are_set_for_links_of_its_own_only() {
    let lab = Lab::new(2).unwrap();
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    for (node, forwards) in lab.nodes().iter().zip([true, false]) {
        let set = |key: &str| sysctl::write(key, "1").unwrap();
        node.run(|| forwarding.iter().filter(|_| forwards).for_each(|key| set(key)));
        let before = node.run(sysctls);
        let agent = Agent::start(node, config(node, VXLAN), snapshot(&lab, &[1, 2], true));
        wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
        let pod = add_pod(&lab, if forwards { 1 } else { 2 }, 5);
        let after = node.run(sysctls);
        let changed: Vec<String> = before
            .iter()
            .filter(|(path, value)| after.get(*path) != Some(value))
            .map(|(path, _)| path.strip_prefix("/proc/sys").unwrap().display().to_string())
            .collect();
        if forwards {
            assert_eq!(changed, [""; 0]);
        } else {
            let about_forwarding = |key: &String| key.ends_with("forwarding") || key.ends_with("ip_forward");
            // A host takes redirects and router advertisements, a router does not: the kernel keeps these in step.
            let follows = |key: &String| key.ends_with("/accept_redirects") || key.ends_with("/accept_ra");
            assert!(changed.iter().all(|key| about_forwarding(key) || follows(key)), "{changed:?}");
            assert!(forwarding.iter().all(|key| changed.iter().any(|changed| changed == key)), "{changed:?}");
        }
        let new = after.keys().filter(|path| !before.contains_key(*path));
        let own = |path: &PathBuf| {
            let mut names = path.iter().map(|name| name.to_string_lossy());
            names.any(|name| name == "seaway-vxlan" || name.starts_with("sw"))
        };
        assert!(new.clone().count() > 0 && new.clone().all(own), "{:?}", new.collect::<Vec<_>>());
        drop((agent, pod));
    }
}

#[test]
fn pods_reach_each_other_across_nodes_by_direct_routes() {
    pods_reach_each_other_across_nodes(Overlay::None);
}

#[test]
fn pods_reach_each_other_where_direct_and_vxlan_are_mixed() {
    pods_reach_each_other_across_nodes(Overlay::VxlanAcrossLinks { vni: 7, port: 4789 });
}

/// A pod with a reservation, as the plugin makes one.
fn add_reserved(node: &LabNode, id: &str, addr: &str) -> (Namespace, Owner) {
    let namespace = Namespace::anonymous().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&namespace));
    let netns = format!("/proc/{}/fd/{fd}", std::process::id());
    let owner = Owner::new(id, "eth0");
    let pools = [vec![Range::new("10.244.1.0/24".parse().unwrap())]];
    let wanted: [IpAddr; 1] = [addr.parse().unwrap()];
    let request = Request { wanted: &wanted, netns: Some(&netns), ..Request::default() };
    let mut ipam = Ipam::open(&node.state_dir().join("ipam"), "seaway").unwrap();
    ipam.reserve_for(&owner, &pools, request).unwrap();
    drop(ipam);
    let wiring =
        Wiring { addresses: wanted.to_vec(), mtu: Some(1450), mac: None, bandwidth: Bandwidth::default() };
    node.run(|| Attachment::new("seaway", id, "eth0").wire(&namespace, &wiring)).unwrap();
    (namespace, owner)
}

#[test]
fn addresses_of_pods_that_are_gone_are_freed_and_no_others() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let (kept, kept_owner) = add_reserved(node, "kept", "10.244.1.10");
    let (gone, gone_owner) = add_reserved(node, "gone", "10.244.1.11");
    let (routed, routed_owner) = add_reserved(node, "routed", "10.244.1.12");
    let options =
        NodeNetworkOptions { leak_grace: Duration::from_millis(300), ..NodeNetworkOptions::default() };
    let config = NodeNetworkConfig { resync_interval: Duration::from_millis(100), ..config(node, VXLAN) };
    let _agent = Agent::start_with(node, config, options, snapshot(&lab, &[1], true));
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    let held = || -> Vec<Owner> {
        let ipam = Ipam::open(&node.state_dir().join("ipam"), "seaway").unwrap();
        ipam.owners().unwrap().into_iter().map(|(owner, _)| owner).collect()
    };
    // The sandboxes end without DEL: their namespaces go, and with them the links.
    drop(gone);
    drop(routed);
    let mut netlink = node.netlink().unwrap();
    let wired = |netlink: &mut Netlink| {
        netlink
            .links()
            .unwrap()
            .iter()
            .filter(|link| link.name.starts_with("sw") && link.kind.as_deref() == Some("veth"))
            .count()
    };
    wait_for(PATIENCE, "the links to go", || wired(&mut netlink) == 1);
    // Somebody else leads packets to the address: it is in use.
    let eth0 = netlink.link("eth0").unwrap().unwrap();
    netlink.add_route(&Route::to("10.244.1.12/32".parse().unwrap()).on(eth0.index)).unwrap();
    assert!(held().contains(&gone_owner));
    wait_for(PATIENCE, "the leak to be freed", || !held().contains(&gone_owner));
    let after = held();
    assert!(after.contains(&kept_owner), "{after:?}");
    assert!(after.contains(&routed_owner), "{after:?}");
    drop(kept);
}

#[test]
fn the_mtu_follows_the_uplink_also_in_pods_that_exist() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let (pod, _owner) = add_reserved(node, "pod", "10.244.1.10");
    let _agent = Agent::start(node, config(node, VXLAN), snapshot(&lab, &[1], true));
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    let mut inner = Netlink::open_in(&pod).unwrap();
    let mtu = |netlink: &mut Netlink, name: &str| netlink.link(name).unwrap().unwrap().mtu;
    assert_eq!(mtu(&mut inner, "eth0"), 1450);
    let mut netlink = node.netlink().unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap();
    netlink.set_mtu(eth0.index, 1400).unwrap();
    wait_for(PATIENCE, "the device's MTU", || mtu(&mut netlink, "seaway-vxlan") == 1350);
    wait_for(PATIENCE, "the pod's MTU", || mtu(&mut inner, "eth0") == 1350);
    wait_for(PATIENCE, "the configuration's MTU", || {
        std::fs::read_to_string(conflist(node)).is_ok_and(|text| text.contains("\"mtu\": 1350"))
    });
    netlink.set_mtu(eth0.index, 1500).unwrap();
    wait_for(PATIENCE, "the pod's MTU to come back", || mtu(&mut inner, "eth0") == 1450);
}

#[test]
fn the_configuration_goes_when_the_node_cannot_serve_for_long() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let options =
        NodeNetworkOptions { withdraw_after: Duration::from_millis(300), ..NodeNetworkOptions::default() };
    let config = NodeNetworkConfig { resync_interval: Duration::from_millis(100), ..config(node, VXLAN) };
    let agent = Agent::start_with(node, config, options, snapshot(&lab, &[1], true));
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    // An identifier that the kernel does not take stands for whatever keeps the device from being made.
    drop(agent);
    let impossible = Overlay::Vxlan { vni: 1 << 25, port: 8472 };
    let options =
        NodeNetworkOptions { withdraw_after: Duration::from_millis(300), ..NodeNetworkOptions::default() };
    let broken =
        NodeNetworkConfig { resync_interval: Duration::from_millis(100), ..self::config(node, impossible) };
    let agent = Agent::start_with(node, broken, options, snapshot(&lab, &[1], true));
    wait_for(PATIENCE, "the configuration to go", || !conflist(node).exists());
    drop(agent);
    let options =
        NodeNetworkOptions { withdraw_after: Duration::from_millis(300), ..NodeNetworkOptions::default() };
    let config =
        NodeNetworkConfig { resync_interval: Duration::from_millis(100), ..self::config(node, VXLAN) };
    let agent = Agent::start_with(node, config, options, snapshot(&lab, &[1], true));
    wait_for(PATIENCE, "the configuration to come back", || conflist(node).exists());
    // Without an API server the last known state serves. Without a Node its subnets may be another's.
    let mark = node.state_dir().join("ipam/.ready");
    assert!(node.run(|| ready::is_set_up(&mark)));
    agent.snapshots.send(snapshot(&lab, &[], false)).unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        // Each of these takes a round.
        node.run(|| sysctl::write("net/ipv4/ip_forward", "0").unwrap());
        let forwards = || node.run(|| sysctl::read("net/ipv4/ip_forward").unwrap()) == "1";
        wait_for(PATIENCE, "a round", forwards);
        assert!(conflist(node).exists() && node.run(|| ready::is_set_up(&mark)));
    }
    agent.snapshots.send(snapshot(&lab, &[], true)).unwrap();
    wait_for(PATIENCE, "the configuration to go", || !conflist(node).exists() && !mark.exists());
    agent.snapshots.send(snapshot(&lab, &[1], true)).unwrap();
    wait_for(PATIENCE, "the configuration to come back", || conflist(node).exists());
    assert!(node.run(|| ready::is_set_up(&mark)));
}

#[test]
fn pods_reach_each_other_across_nodes_in_vxlan() {
    pods_reach_each_other_across_nodes(VXLAN);
}

#[test]
fn nothing_is_installed_before_the_subnets_are_known_and_nothing_pruned_before_all_is() {
    let lab = Lab::new(2).unwrap();
    let node = lab.node(0);
    let stale = Route { protocol: PROTOCOL, ..Route::to("10.244.9.0/24".parse().unwrap()) };
    let mut netlink = node.netlink().unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap();
    netlink.add_route(&stale.via("172.30.0.99".parse().unwrap()).on(eth0.index)).unwrap();
    let foreign =
        Route::to("10.99.0.0/24".parse().unwrap()).via("172.30.0.99".parse().unwrap()).on(eth0.index);
    netlink.add_route(&foreign).unwrap();

    let agent = Agent::start(node, config(node, Overlay::None), snapshot(&lab, &[2], false));
    let forwarding = || node.run(|| sysctl::read("net/ipv6/conf/all/forwarding").unwrap());
    wait_for(PATIENCE, "forwarding", || forwarding() == "1");
    assert!(!has_route(node, "10.244.2.0/24") && !conflist(node).exists());
    agent.snapshots.send(snapshot(&lab, &[1, 2], false)).unwrap();
    wait_for(PATIENCE, "the route to node 2", || has_route(node, "10.244.2.0/24"));
    assert!(has_route(node, "10.244.9.0/24") && !conflist(node).exists());
    agent.snapshots.send(snapshot(&lab, &[1, 2], true)).unwrap();
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    assert!(!has_route(node, "10.244.9.0/24"), "the node that it led to has vanished while nobody looked");
    assert!(
        node.netlink()
            .unwrap()
            .routes(RouteQuery::default())
            .unwrap()
            .contains(&Route { metric: None, ..foreign })
    );
    let text = std::fs::read_to_string(conflist(node)).unwrap();
    assert!(
        text.contains("10.244.1.0/24")
            && text.contains("fd00:10:244:1::/64")
            && text.contains("\"mtu\": 1500"),
        "{text}"
    );
    agent.snapshots.send(snapshot(&lab, &[1], true)).unwrap();
    wait_for(PATIENCE, "node 2 to be forgotten", || !has_route(node, "10.244.2.0/24"));
}

#[test]
fn what_somebody_deletes_comes_back() {
    let lab = Lab::new(3).unwrap();
    let node = lab.node(0);
    let all = snapshot(&lab, &[1, 2, 3], true);
    let agent = Agent::start(node, config(node, VXLAN), Arc::clone(&all));
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    let whole = |netlink: &mut Netlink| {
        netlink.link("seaway-vxlan").unwrap().is_some_and(|link| {
            link.up
                && link.mtu == 1450
                && netlink.fdb(link.index).is_ok_and(|fdb| fdb.len() == 2)
                && netlink
                    .routes(RouteQuery {
                        link: Some(link.index),
                        protocol: Some(PROTOCOL),
                        ..RouteQuery::default()
                    })
                    .is_ok_and(|routes| routes.len() == 4)
        })
    };
    let mut netlink = node.netlink().unwrap();
    assert!(whole(&mut netlink));
    let before = netlink.link("seaway-vxlan").unwrap().unwrap();
    netlink.delete_link(before.index).unwrap();
    wait_for(PATIENCE, "the device to come back with its peers", || whole(&mut netlink));
    let after = netlink.link("seaway-vxlan").unwrap().unwrap();
    assert_eq!(before.mac, after.mac, "other nodes know it by its address");
    let route = routes(node).into_iter().find(|route| route.gateway.is_some()).unwrap();
    netlink.delete_route(&route).unwrap();
    wait_for(PATIENCE, "the route to come back", || whole(&mut netlink));
    let entry = netlink.fdb(after.index).unwrap().remove(0);
    netlink.delete_fdb(&entry).unwrap();
    wait_for(PATIENCE, "the forwarding entry to come back", || whole(&mut netlink));
    std::fs::remove_file(conflist(node)).unwrap();
    wait_for(PATIENCE, "the network configuration to come back", || conflist(node).exists());
    drop(agent);
    // The same device serves another start: the switch to direct routes takes it away.
    let agent = Agent::start(node, config(node, VXLAN), all);
    wait_for(PATIENCE, "a round", || whole(&mut netlink));
    assert_eq!(netlink.link("seaway-vxlan").unwrap().unwrap().index, after.index);
    drop(agent);
    let direct = Agent::start(node, config(node, Overlay::None), snapshot(&lab, &[1, 2], true));
    wait_for(PATIENCE, "the device to go", || netlink.link("seaway-vxlan").unwrap().is_none());
    let nodes = lab.node(1).addresses();
    wait_for(PATIENCE, "direct routes", || {
        routes(node).iter().filter(|route| route.gateway.is_some_and(|via| nodes.contains(&via))).count() == 2
    });
    drop(direct);
    let _vxlan = Agent::start(node, config(node, VXLAN), snapshot(&lab, &[1, 2, 3], true));
    wait_for(PATIENCE, "the device in the place of direct routes", || whole(&mut netlink));
}

#[test]
fn another_projects_device_is_left_alone_and_ours_comes_when_it_is_gone() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    node.ok(&[
        "ip",
        "link",
        "add",
        "flannel.1",
        "type",
        "vxlan",
        "id",
        "1",
        "dstport",
        "8472",
        "dev",
        "eth0",
    ]);
    node.ok(&["ip", "link", "set", "flannel.1", "up"]);
    node.ok(&["ip", "link", "add", "mine", "type", "bridge"]);
    let mut netlink = node.netlink().unwrap();
    let options = NodeNetworkOptions { vxlan_device: "mine".to_owned(), ..NodeNetworkOptions::default() };
    let all = snapshot(&lab, &[1], true);
    let start = |options| Agent::start_with(node, config(node, VXLAN), options, Arc::clone(&all));
    // An agent that is told to stop ends its round first.
    drop(start(options));
    assert_eq!(netlink.link("mine").unwrap().unwrap().kind.as_deref(), Some("bridge"));
    drop(start(NodeNetworkOptions::default()));
    let other = netlink.link("flannel.1").unwrap().unwrap();
    assert!(!conflist(node).exists());
    let _agent = start(NodeNetworkOptions::default());
    netlink.delete_link(other.index).unwrap();
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    assert!(netlink.link("seaway-vxlan").unwrap().unwrap().up);
}

#[test]
fn two_thousand_peers_come_and_go() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let mut many = Snapshot::clone(&snapshot(&lab, &[1], true));
    for number in 0..2000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let addr = |text: String| NodeAddress::internal(text.parse().unwrap());
        // Every second subnet: nothing of it can be joined.
        let subnets = [
            format!("10.{}.{}.0/24", 64 + high * 2 + low / 128, low % 128 * 2),
            format!("fd00:9:{number:x}::/64"),
        ];
        let peer = Node {
            addresses: vec![
                addr(format!("172.30.{}.{low}", 64 + high)),
                addr(format!("fd00:10:30::{number:x}:1")),
            ],
            pod_cidrs: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            ..Node::named(format!("peer{number}"))
        };
        many.nodes.insert(peer.name.clone(), Arc::new(peer));
    }
    let agent = Agent::start(node, config(node, VXLAN), Arc::new(many));
    wait_for(Duration::from_secs(60), "the network configuration", || conflist(node).exists());
    assert_eq!(routes(node).len(), 2 * 2001);
    let rules = node.ok(&["nft", "list", "table", "ip", "seaway-masq"]);
    assert!(rules.contains("10.64.0.0/24") && rules.contains("10.79.158.0/24"), "{rules}");
    agent.snapshots.send(snapshot(&lab, &[1], true)).unwrap();
    wait_for(Duration::from_secs(60), "the peers to go", || routes(node).len() == 2);
    let mut netlink = node.netlink().unwrap();
    let device = netlink.link("seaway-vxlan").unwrap().unwrap();
    wait_for(PATIENCE, "the device to be empty", || netlink.fdb(device.index).unwrap().is_empty());
}
