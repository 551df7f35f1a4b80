//! Nodes that are not on one link: routes to some and VXLAN to others, underlays of either family, addresses that
//! change, devices with other names, and other agents' rules on the way.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers")]

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use seaway_cni_network::netlink::{Netlink, Route, RouteQuery, Veth, VethPeer};
use seaway_cni_network::netns::{Namespace, sysctl};
use seaway_cni_network::pod::{Attachment, Bandwidth, Wiring};
use seaway_cni_network::{NodeNetworkConfig, NodeNetworkOptions, Overlay, cleanup, run_with};
use seaway_lab::{Lab, tcp_exchange, udp_exchange, wait_for};
use seaway_model::{Node, NodeAddress, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
/// The protocol number of routes to other nodes.
const PROTOCOL: u8 = 88;
const MIXED: Overlay = Overlay::VxlanAcrossLinks { vni: 7, port: 4789 };

/// A node's place: where its namespace is, where its files go, and the number of its pods' subnets.
#[derive(Clone)]
struct Place {
    netns: PathBuf,
    state: PathBuf,
    number: u8,
}

impl Place {
    fn namespace(&self) -> Namespace {
        Namespace::open(&self.netns).unwrap()
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace()).unwrap()
    }

    fn config(&self, overlay: Overlay) -> NodeNetworkConfig {
        let plugin_source = self.state.join("plugin");
        std::fs::write(&plugin_source, "a plugin").unwrap();
        NodeNetworkConfig {
            resync_interval: Duration::from_secs(2),
            ..NodeNetworkConfig::new(self.name(), overlay, plugin_source).below(&self.state)
        }
    }

    fn name(&self) -> String {
        format!("node{}", self.number)
    }

    fn member(&self, addresses: &[IpAddr]) -> Node {
        let internal = |addr: &IpAddr| NodeAddress::internal(*addr);
        let number = self.number;
        let subnets = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
        Node {
            addresses: addresses.iter().map(internal).collect(),
            pod_cidrs: subnets.map(|subnet| subnet.parse().unwrap()).to_vec(),
            ..Node::named(self.name())
        }
    }

    fn pod(&self, host: u8) -> Pod {
        let number = self.number;
        let addresses = [format!("10.244.{number}.{host}"), format!("fd00:10:244:{number}::{host}")];
        let addresses = addresses.map(|addr| addr.parse().unwrap());
        let namespace = Namespace::anonymous().unwrap();
        let wiring = Wiring {
            addresses: addresses.to_vec(),
            mtu: Some(1280),
            mac: None,
            bandwidth: Bandwidth::default(),
        };
        let attachment = Attachment::new("seaway", &format!("pod{host}"), "eth0");
        self.namespace().run(|| attachment.wire(&namespace, &wiring)).unwrap().unwrap();
        Pod { namespace, addresses }
    }

    /// Through which link the pods of another node are reached.
    fn way_to(&self, number: u8) -> Vec<String> {
        let mut netlink = self.netlink();
        let query = RouteQuery { protocol: Some(PROTOCOL), ..RouteQuery::default() };
        let routes = netlink.routes(query).unwrap();
        let subnets = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
        let theirs = routes.iter().filter(|route| subnets.contains(&route.destination.to_string()));
        theirs.map(|route| netlink.link_by_index(route.link.unwrap()).unwrap().unwrap().name).collect()
    }
}

struct Pod {
    namespace: Namespace,
    addresses: [IpAddr; 2],
}

fn assert_they_talk(a: &Pod, b: &Pod) {
    for (addr_a, addr_b) in a.addresses.into_iter().zip(b.addresses) {
        assert_eq!(tcp_exchange(&a.namespace, &b.namespace, addr_b, 300_000).unwrap(), addr_a);
        assert_eq!(udp_exchange(&b.namespace, &a.namespace, addr_a, 1200).unwrap(), addr_b);
    }
}

/// The node part of one node, running.
struct Agent {
    snapshots: watch::Sender<Arc<Snapshot>>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(place: &Place, overlay: Overlay, options: NodeNetworkOptions, snapshot: &Arc<Snapshot>) -> Self {
        let (snapshots, receiver) = watch::channel(Arc::clone(snapshot));
        let shutdown = CancellationToken::new();
        let (stop, namespace, config) = (shutdown.clone(), place.namespace(), place.config(overlay));
        let conflist = config.cni_conf_dir.join("10-seaway.conflist");
        let thread = std::thread::spawn(move || {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(run_with(config, options, None, receiver, stop)).unwrap();
            };
            namespace.run(work).unwrap();
        });
        wait_for(PATIENCE, "the network configuration", || conflist.exists());
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

fn snapshot(members: &[Node]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { synced: true, version: 1, ..Snapshot::default() };
    snapshot.nodes.extend(members.iter().map(|node| (node.name.clone(), Arc::new(node.clone()))));
    Arc::new(snapshot)
}

fn place_in_lab(lab: &Lab, number: u8) -> Place {
    let node = lab.node(usize::from(number) - 1);
    Place { netns: node.namespace().path().to_owned(), state: node.state_dir().to_owned(), number }
}

/// A node behind a router, which is the lab's client.
struct Far {
    place: Place,
    link: u32,
    _namespace: Namespace,
}

const FAR: [&str; 2] = ["172.29.0.2", "fd00:10:29::2"];
const FAR_LATER: [&str; 2] = ["172.29.0.3", "fd00:10:29::3"];
const FAR_ROUTER: [&str; 2] = ["172.29.0.1", "fd00:10:29::1"];
const FAR_NETS: [&str; 2] = ["172.29.0.0/24", "fd00:10:29::/64"];

fn parsed(addresses: [&str; 2]) -> [IpAddr; 2] {
    addresses.map(|addr| addr.parse().unwrap())
}

fn in_net(addr: IpAddr) -> ipnet::IpNet {
    ipnet::IpNet::new(addr, if addr.is_ipv4() { 24 } else { 64 }).unwrap()
}

impl Far {
    fn new(lab: &Lab, number: u8) -> Self {
        let namespace = Namespace::anonymous().unwrap();
        let netns =
            PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()));
        let state = lab.directory().join("far");
        std::fs::create_dir_all(&state).unwrap();
        let mut router = lab.client().netlink().unwrap();
        lab.client().run(|| {
            sysctl::write("net/ipv4/ip_forward", "1").unwrap();
            sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        let peer = VethPeer { name: "eth0", mac: None, netns: Some(namespace.as_fd()) };
        let near = router.create_veth(&Veth { name: "far", mac: None, mtu: None, group: 0, peer }).unwrap();
        router.set_up(near.index).unwrap();
        let mut inner = Netlink::open_in(&namespace).unwrap();
        let eth0 = inner.link("eth0").unwrap().unwrap();
        inner.set_up(eth0.index).unwrap();
        for (own, gateway) in parsed(FAR).into_iter().zip(parsed(FAR_ROUTER)) {
            router.add_address(near.index, in_net(gateway)).unwrap();
            inner.add_address(eth0.index, in_net(own)).unwrap();
            inner.add_route(&Route::default_via(gateway).on(eth0.index)).unwrap();
        }
        for node in lab.nodes() {
            let mut netlink = node.netlink().unwrap();
            let uplink = netlink.link("eth0").unwrap().unwrap();
            for (net, via) in FAR_NETS.iter().zip(lab.client().addresses()) {
                netlink.replace_route(&Route::to(net.parse().unwrap()).via(via).on(uplink.index)).unwrap();
            }
        }
        Self { place: Place { netns, state, number }, link: eth0.index, _namespace: namespace }
    }

    /// The node gets other addresses.
    fn renumber(&self) {
        let mut netlink = self.place.netlink();
        for (old, new) in parsed(FAR).into_iter().zip(parsed(FAR_LATER)) {
            // The other way round the kernel would take the new one away together with the old.
            netlink.delete_address(self.link, in_net(old)).unwrap();
            netlink.add_address(self.link, in_net(new)).unwrap();
        }
        for gateway in parsed(FAR_ROUTER) {
            netlink.replace_route(&Route::default_via(gateway).on(self.link)).unwrap();
        }
    }
}

#[test]
fn routes_on_the_link_and_vxlan_across_links_in_one_cluster() {
    let lab = Lab::new(2).unwrap();
    let far = Far::new(&lab, 3);
    let places = [place_in_lab(&lab, 1), place_in_lab(&lab, 2), far.place.clone()];
    let near = [places[0].member(&lab.node(0).addresses()), places[1].member(&lab.node(1).addresses())];
    let cluster = |far: Node| snapshot(&[near[0].clone(), near[1].clone(), far]);
    let all = cluster(places[2].member(&parsed(FAR)));
    let start = |place: &Place| Agent::start(place, MIXED, NodeNetworkOptions::default(), &all);
    let agents: Vec<Agent> = places.iter().map(start).collect();
    let pods = [places[0].pod(5), places[1].pod(6), places[2].pod(7)];
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert_they_talk(&pods[a], &pods[b]);
    }
    assert_eq!(places[0].way_to(2), ["eth0", "eth0"]);
    assert_eq!(places[0].way_to(3), ["seaway-vxlan", "seaway-vxlan"]);
    assert_eq!(places[2].way_to(1), ["seaway-vxlan", "seaway-vxlan"]);
    // A node's address changes: everyone follows, also its own device.
    far.renumber();
    let moved = cluster(places[2].member(&parsed(FAR_LATER)));
    for agent in &agents {
        agent.snapshots.send_replace(Arc::clone(&moved));
    }
    let follows = |place: &Place| {
        let mut netlink = place.netlink();
        let device = netlink.link("seaway-vxlan").unwrap()?;
        let remotes: Vec<IpAddr> =
            netlink.fdb(device.index).unwrap().iter().map(|entry| entry.remote).collect();
        Some((device.vxlan?.local?, remotes))
    };
    let (old, new) = (parsed(FAR)[0], parsed(FAR_LATER)[0]);
    wait_for(PATIENCE, "the other nodes to follow", || {
        places[..2].iter().all(|place| {
            follows(place).is_some_and(|(_, remotes)| remotes.contains(&new) && !remotes.contains(&old))
        })
    });
    wait_for(PATIENCE, "the node's own device to follow", || {
        follows(&places[2]).is_some_and(|(local, remotes)| local == new && remotes.len() == 2)
            && places[2].way_to(1).len() == 2
    });
    assert_they_talk(&pods[0], &pods[2]);
    assert_they_talk(&pods[1], &pods[2]);
}

#[test]
fn an_underlay_of_ipv6_carries_both_families() {
    let lab = Lab::new(2).unwrap();
    let places = [place_in_lab(&lab, 1), place_in_lab(&lab, 2)];
    let member = |place: &Place| place.member(&[lab.node(usize::from(place.number) - 1).address_v6().into()]);
    let all = snapshot(&[member(&places[0]), member(&places[1])]);
    let overlay = Overlay::Vxlan { vni: 1, port: 8472 };
    let start = |place: &Place| Agent::start(place, overlay, NodeNetworkOptions::default(), &all);
    let _agents: Vec<Agent> = places.iter().map(start).collect();
    let pods = [places[0].pod(5), places[1].pod(6)];
    assert_they_talk(&pods[0], &pods[1]);
    let device = places[0].netlink().link("seaway-vxlan").unwrap().unwrap();
    assert_eq!(device.mtu, 1430, "70 bytes less than the uplink");
}

#[test]
fn the_device_has_the_name_that_it_is_given_and_the_former_one_goes() {
    let lab = Lab::new(1).unwrap();
    let place = place_in_lab(&lab, 1);
    let all = snapshot(&[place.member(&lab.node(0).addresses())]);
    let overlay = Overlay::Vxlan { vni: 3, port: 4800 };
    let named = |name: &str| NodeNetworkOptions { vxlan_device: name.to_owned(), ..Default::default() };
    let devices = || {
        let links = place.netlink().links().unwrap().into_iter();
        let vxlan = links.filter_map(|link| Some((link.name, link.vxlan.map(|info| (info.vni, info.port))?)));
        vxlan.collect::<Vec<_>>()
    };
    drop(Agent::start(&place, overlay, named("one"), &all));
    assert_eq!(devices(), [("one".to_owned(), (3, 4800))]);
    let agent = Agent::start(&place, overlay, named("two"), &all);
    wait_for(PATIENCE, "the new name", || devices() == [("two".to_owned(), (3, 4800))]);
    let conflist = Path::new(&place.state).join("net.d/10-seaway.conflist");
    wait_for(PATIENCE, "the configuration", || {
        std::fs::read_to_string(&conflist).is_ok_and(|text| text.contains("\"two\""))
    });
    drop(agent);
    // Port and network are settings as well.
    let other = Overlay::Vxlan { vni: 4, port: 4801 };
    let agent = Agent::start(&place, other, named("two"), &all);
    wait_for(PATIENCE, "other numbers", || devices() == [("two".to_owned(), (4, 4801))]);
    drop(agent);
    place.namespace().run(|| cleanup(&place.config(other))).unwrap().unwrap();
    assert_eq!(devices(), []);
}

#[test]
fn a_subnet_that_is_the_nodes_own_network_cuts_nobody_off() {
    let lab = Lab::new(2).unwrap();
    let place = place_in_lab(&lab, 1);
    let addresses = lab.node(0).addresses();
    let lan = Namespace::open(&place.netns).unwrap();
    let on_link = Netlink::open_in(&lan).unwrap().addresses(None).unwrap();
    let lan = on_link.iter().find(|address| address.net.addr() == addresses[0]).unwrap().net.trunc();
    let mut taken = place.member(&addresses);
    taken.pod_cidrs = vec![lan];
    let (snapshots, receiver) = watch::channel(snapshot(&[taken]));
    let (shutdown, config) = (CancellationToken::new(), place.config(Overlay::None));
    let (conflist, stop) = (config.cni_conf_dir.join("10-seaway.conflist"), shutdown.clone());
    let namespace = place.namespace();
    let part = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        namespace
            .run(|| runtime.block_on(run_with(config, NodeNetworkOptions::default(), None, receiver, stop)))
    });
    let forwards = || place.namespace().run(|| sysctl::read("net/ipv4/ip_forward").unwrap()).unwrap() == "1";
    wait_for(PATIENCE, "a round", forwards);
    // An agent that is told to stop ends its round first.
    shutdown.cancel();
    part.join().unwrap().unwrap().unwrap();
    assert!(!conflist.exists());
    let way = place.netlink().route_to(lab.node(1).addresses()[0]).unwrap().unwrap();
    assert_eq!(way.gateway, None, "{way}");
    drop(snapshots);
}

/// Packets that somebody's rule marks for masquerading keep the mark when they are wrapped into VXLAN, so that the
/// packet around is masqueraded as well. Where checksums are left to a device that does not see both, none arrives.
#[test]
fn a_packet_whose_wrapping_is_masqueraded_by_others_has_right_checksums() {
    let lab = Lab::new(2).unwrap();
    let places = [place_in_lab(&lab, 1), place_in_lab(&lab, 2)];
    let member = |place: &Place| place.member(&lab.node(usize::from(place.number) - 1).addresses());
    let all = snapshot(&[member(&places[0]), member(&places[1])]);
    let overlay = Overlay::Vxlan { vni: 1, port: 8472 };
    let start = |place: &Place| Agent::start(place, overlay, NodeNetworkOptions::default(), &all);
    let _agents: Vec<Agent> = places.iter().map(start).collect();
    let pods = [places[0].pod(5), places[1].pod(6)];
    let rules = "table inet others {
        chain tagged { type filter hook forward priority mangle; ip saddr 10.244.1.0/24 meta mark set 0x4000; }
        chain source { type nat hook postrouting priority 90; meta mark 0x4000 masquerade fully-random; }
    }";
    lab.node(0).ok(&["nft", rules]);
    let to = pods[1].addresses[0];
    // The node's address on the device is what both packets are masqueraded to.
    let seen = tcp_exchange(&pods[0].namespace, &pods[1].namespace, to, 300_000).unwrap();
    assert_eq!(seen, "10.244.1.0".parse::<IpAddr>().unwrap());
    assert_eq!(udp_exchange(&pods[0].namespace, &pods[1].namespace, to, 1200).unwrap(), seen);
    assert!(lab.node(0).ok(&["nft", "list", "table", "inet", "others"]).contains("masquerade"));
}
