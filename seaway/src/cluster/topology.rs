//! The network that joins a cluster's nodes: a namespace with a bridge (where the control plane lives as well), a
//! namespace per node with one uplink to the bridge, and one for a client outside of the cluster.
//!
//! All links and addresses are inside namespaces of our own; the machine's own network is not touched.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use seaway_cni_network::netlink::{Bridge, Netlink, Route, RouteKind, Veth, VethPeer};
use seaway_cni_network::netns::{Namespace, sysctl};

use seaway_node::ProxyMode;

use super::spec::NETNS_DIR;
use super::{ClusterSpec, Layout};

/// The namespace with the bridge.
pub const LAN: &str = "lan";
/// The namespace of the client outside.
pub const CLIENT: &str = "client";
/// The uplink's name in every namespace but the LAN's.
pub const UPLINK: &str = "eth0";
const BRIDGE: &str = "lan0";
/// Addresses that the client reaches through the first node, for Services with externalIPs.
pub const EXTERNAL_NETS: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];

/// Makes namespaces, links, addresses and routes. On failure the caller tears down by name.
pub fn build(spec: &ClusterSpec, layout: &Layout) -> Result<()> {
    let lan = create(layout, LAN)?;
    let mut netlink = Netlink::open_in(&lan)?;
    let bridge = netlink.create_bridge(&Bridge { name: BRIDGE, mac: None, mtu: None })?;
    for ip in spec.server_ips() {
        netlink.add_address(bridge.index, lan_address(spec, ip)?)?;
    }
    netlink.set_up(bridge.index)?;
    for index in 0..spec.nodes {
        let node = attach(
            spec,
            layout,
            &mut netlink,
            bridge.index,
            &ClusterSpec::node_name(index),
            spec.node_ips(index),
        )?;
        service_routes(spec, &node)?;
    }
    let client = attach(spec, layout, &mut netlink, bridge.index, CLIENT, spec.client_ips())?;
    external_routes(spec, &client)
}

fn create(layout: &Layout, what: &str) -> Result<Namespace> {
    let namespace = Namespace::create(Path::new(NETNS_DIR), &layout.netns_name(what))?;
    // Addresses are ours to give: no router advertisements, no wait for duplicate address detection.
    namespace.run(|| {
        for family in ["all", "default"] {
            sysctl::write(&format!("net/ipv6/conf/{family}/accept_ra"), "0")?;
            sysctl::write(&format!("net/ipv6/conf/{family}/accept_dad"), "0")?;
        }
        Ok::<_, sysctl::SysctlError>(())
    })??;
    Ok(namespace)
}

/// A new namespace, joined to the bridge.
fn attach(
    spec: &ClusterSpec,
    layout: &Layout,
    lan: &mut Netlink,
    bridge: u32,
    name: &str,
    ips: [IpAddr; 2],
) -> Result<Namespace> {
    let namespace = create(layout, name)?;
    let peer = VethPeer { name: UPLINK, mac: None, netns: Some(namespace.as_fd()) };
    let port = lan.create_veth(&Veth { name, mac: None, mtu: None, group: 0, peer })?;
    lan.set_controller(port.index, Some(bridge))?;
    lan.set_up(port.index)?;
    let mut netlink = Netlink::open_in(&namespace)?;
    let uplink = netlink.link(UPLINK)?.context("the veth's far end did not appear")?;
    for ip in ips {
        netlink.add_address(uplink.index, lan_address(spec, ip)?)?;
    }
    netlink.set_up(uplink.index)?;
    Ok(namespace)
}

/// Before a proxy that works on packets translates what the node itself sends to a Service, the kernel must have found
/// a route for it: on most nodes that is the default route, which nodes here do not have. The proxy in user space needs
/// the addresses to be the node's own.
fn service_routes(spec: &ClusterSpec, node: &Namespace) -> Result<()> {
    let mut netlink = Netlink::open_in(node)?;
    let userspace = spec.proxy_mode == ProxyMode::Userspace.name();
    let link = netlink.link(if userspace { "lo" } else { UPLINK })?.context("a link did not appear")?;
    let mut ranges = spec.service_cidrs.clone();
    if userspace {
        ranges.extend(&spec.load_balancer_pools);
        for net in EXTERNAL_NETS {
            ranges.push(net.parse()?);
        }
    }
    for range in ranges {
        let route = Route::to(range).on(link.index);
        let kind = if userspace { RouteKind::Local } else { RouteKind::Unicast };
        netlink.add_route(&Route { kind, ..route })?;
    }
    Ok(())
}

fn external_routes(spec: &ClusterSpec, client: &Namespace) -> Result<()> {
    let mut netlink = Netlink::open_in(client)?;
    for (net, gateway) in EXTERNAL_NETS.iter().zip(spec.node_ips(0)) {
        netlink.add_route(&Route::to(net.parse()?).via(gateway))?;
    }
    Ok(())
}

fn lan_address(spec: &ClusterSpec, ip: IpAddr) -> Result<IpNet> {
    let (addr, prefix_len) = spec.on_lan(ip);
    Ok(IpNet::new(addr, prefix_len)?)
}
