//! The tables by which pods reach the world as their node, on nodes that are network namespaces.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use seaway_cni_network::netlink::Route;
use seaway_cni_network::{NodeNetworkConfig, NodeNetworkOptions, Overlay};
use seaway_lab::{Lab, tcp_exchange, wait_for};

#[path = "support/agent.rs"]
mod agent;

use agent::{Agent, PATIENCE, add_pod, config, conflist, snapshot};

#[test]
fn the_masquerade_comes_back_and_others_tables_are_left_alone() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    node.ok(&[
        "nft",
        "add table inet foreign; add chain inet foreign input { type filter hook input priority 0; }",
    ]);
    let all = snapshot(&lab, &[1], true);
    let agent = Agent::start(node, config(node, Overlay::None), Arc::clone(&all));
    wait_for(PATIENCE, "the network configuration", || conflist(node).exists());
    let rules = || node.ok(&["nft", "list", "ruleset"]);
    let complete =
        || rules().matches("daddr != @cluster masquerade to :32768-65535 fully-random").count() == 2;
    wait_for(PATIENCE, "the rules", complete);
    let before = rules();
    for spoil in ["delete table ip seaway-masq", "flush chain ip6 seaway-masq postrouting", "flush ruleset"] {
        node.ok(&["nft", spoil]);
        wait_for(PATIENCE, "the rules to come back", complete);
    }
    assert!(before.contains("table inet foreign") && !rules().contains("foreign"));
    node.ok(&["nft", "add table inet foreign"]);
    drop(agent);
    let off = NodeNetworkConfig { masquerade: false, ..config(node, Overlay::None) };
    let _agent = Agent::start(node, off, all);
    wait_for(PATIENCE, "the tables to go", || !rules().contains("seaway-masq"));
    assert!(rules().contains("table inet foreign"));
}

/// The client outside knows the way to pods of the first node.
fn show_pods(lab: &Lab) {
    let mut netlink = lab.client().netlink().unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap();
    let subnets = ["10.244.1.0/24", "fd00:10:244:1::/64"];
    for (subnet, via) in subnets.into_iter().zip(lab.node(0).addresses()) {
        netlink.add_route(&Route::to(subnet.parse().unwrap()).via(via).on(eth0.index)).unwrap();
    }
}

/// As after a restart without the tables, or when packets that went past the stack begin to go through it.
#[test]
fn a_connection_that_is_open_keeps_its_addresses_when_the_masquerade_comes() {
    let lab = Lab::new(1).unwrap();
    let (node, client) = (lab.node(0), lab.client());
    show_pods(&lab);
    let pod = add_pod(&lab, 1, 5);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.run(|| seaway_cni_network::netns::sysctl::write(key, "1")).unwrap();
    }
    let connect = |family: usize| {
        let addr = (client.addresses()[family], 0);
        let listener = client.run(|| TcpListener::bind(addr)).unwrap();
        let to = listener.local_addr().unwrap();
        let near = pod.namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
        let (far, from) = listener.accept().unwrap();
        (near, far, from.ip())
    };
    let open = [0, 1].map(connect);
    let _agent = Agent::start(node, config(node, Overlay::None), snapshot(&lab, &[1], true));
    let rules = || node.ok(&["nft", "list", "ruleset"]).matches("fully-random").count();
    wait_for(PATIENCE, "the tables", || rules() == 2);
    for (family, (near, far, from)) in open.into_iter().enumerate() {
        assert_eq!(from, pod.addresses[family]);
        // The pod is the first to speak: tracking takes what it says for the beginning.
        for (mut sender, mut receiver) in [(&near, &far), (&far, &near)] {
            sender.write_all(b"on").unwrap();
            receiver.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut heard = [0; 2];
            receiver.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"on");
        }
        assert_eq!(connect(family).2, node.addresses()[family], "new ones are masqueraded");
    }
}

#[test]
fn destinations_that_are_left_out_see_the_pod_and_all_others_the_node() {
    let lab = Lab::new(1).unwrap();
    let (node, client) = (lab.node(0), lab.client());
    let outside = client.addresses();
    show_pods(&lab);
    let pod = add_pod(&lab, 1, 5);
    let seen = |family: usize| tcp_exchange(&pod.namespace, client.namespace(), outside[family], 100).ok();
    for (left_out, destination) in outside.into_iter().enumerate() {
        let not_masqueraded = vec![destination.into()];
        let options = NodeNetworkOptions { not_masqueraded, ..NodeNetworkOptions::default() };
        let all = snapshot(&lab, &[1], true);
        let _agent = Agent::start_with(node, config(node, Overlay::None), options, all);
        wait_for(PATIENCE, "the tables", || seen(left_out) == Some(pod.addresses[left_out]));
        wait_for(PATIENCE, "the tables", || seen(1 - left_out) == Some(node.addresses()[1 - left_out]));
    }
}
