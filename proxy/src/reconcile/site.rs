//! The node as it is: what its Node object and its links say, for the desired state and for the data plane.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use seaway_model::{Family, Node, Snapshot};

use crate::ProxyConfig;
use crate::desired::NodeView;
use crate::links::Link;
use crate::plan::{ClusterNets, Device, Host, Masquerading};

/// What CNI plugins that route to each pod (Seaway's, Calico) give the node's ends of links, as all are gateways.
const POD_LINK_MAC: [u8; 6] = [0xee; 6];

/// The families by kube-proxy's names.
pub(super) const IP_FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The families that the node has addresses of; before those are known, both.
pub(super) fn ip_families(host: &Host) -> &'static [&'static str] {
    match (host.node_v4, host.node_v6) {
        (Some(_), None) => &IP_FAMILIES[..1],
        (None, Some(_)) => &IP_FAMILIES[1..],
        _ => &IP_FAMILIES,
    }
}

/// The node as the desired state sees it.
pub fn view(config: &ProxyConfig, node: Option<&Node>, links: &[Link]) -> NodeView {
    let said = &config.node_port_addresses;
    let mut node_port_addresses = Vec::new();
    if said.primary || said.ranges.is_empty() {
        node_port_addresses.extend(node.into_iter().flat_map(|node| &node.addresses).map(|a| a.addr));
    }
    let own = links.iter().flat_map(|link| link.addrs.iter().copied()).filter(|addr| !addr.is_loopback());
    for addr in own.filter(|addr| said.ranges.iter().any(|range| range.contains(addr))) {
        if !node_port_addresses.contains(&addr) {
            node_port_addresses.push(addr);
        }
    }
    NodeView {
        name: config.node_name.as_str().into(),
        zone: node.and_then(|node| node.zone.clone()),
        node_port_addresses,
        known_by: Family::ALL.into_iter().filter_map(|family| node?.addr(family)).collect(),
        node_port_loopback: config.node_port_loopback,
        maglev_default: config.maglev,
        dsr_default: config.dsr,
        // Only the data plane knows.
        maglev_offered: false,
        dsr_offered: false,
        masquerade_all: config.masquerade_all,
    }
}

/// The pod subnets and addresses of all nodes.
pub(super) fn cluster(snapshot: &Snapshot) -> Arc<ClusterNets> {
    let nodes = || snapshot.nodes.values();
    Arc::new(ClusterNets {
        pods: nodes().flat_map(|node| &node.pod_cidrs).map(IpNet::trunc).collect(),
        nodes: nodes().flat_map(|node| &node.addresses).map(|address| address.addr).collect(),
    })
}

/// The tunnels to other nodes that there are.
pub(super) fn tunnels(config: &ProxyConfig, links: &[Link]) -> impl Iterator<Item = Device> {
    links.iter().filter(|link| config.tunnels.iter().any(|name| **name == *link.name)).map(Link::device)
}

/// The node as packets see it.
pub fn host(config: &ProxyConfig, node: Option<&Node>, links: &[Link]) -> Host {
    let own: BTreeSet<IpAddr> = node.iter().flat_map(|node| &node.addresses).map(|a| a.addr).collect();
    let is_uplink = |link: &&Link| {
        if config.devices.is_empty() {
            link.addrs.iter().any(|addr| own.contains(addr))
        } else {
            config.devices.iter().any(|name| **name == *link.name)
        }
    };
    let uplinks: BTreeSet<Device> = links.iter().filter(&is_uplink).map(Link::device).collect();
    let is_pods = |link: &&Link| {
        let named = config.pod_link_prefixes.iter().any(|prefix| link.name.starts_with(prefix));
        (named || link.mac == Some(POD_LINK_MAC)) && !is_uplink(link)
    };
    let pod_links = || links.iter().filter(is_pods);
    let addr = |family| node.and_then(|node| node.addr(family));
    Host {
        node_v4: addr(Family::V4).and_then(|addr| match addr {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }),
        node_v6: addr(Family::V6).and_then(|addr| match addr {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }),
        uplinks,
        pod_links: pod_links().map(Link::device).collect(),
        shaped_links: pod_links().filter(|link| link.shaped).map(Link::device).collect(),
        // Only the rules of others tell.
        hand_over: false,
        tunnel_port: config.tunnel_port,
        cluster: Arc::default(),
        masquerading: Masquerading::default(),
    }
}
