//! Nodes and pods as a person would set them up with `ip`: veth pairs and routes, and nothing else. No programs, no
//! tables of nftables. That is what our way of packets is held against; and, as pods are to reach what is outside, the
//! same with the one rule that it takes.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use seaway_cni_network::netlink::{
    FdbEntry, Mac, Neighbour, NeighbourKind, Netlink, Route, Veth, VethPeer, Vxlan,
};
use seaway_cni_network::netns::{Namespace, sysctl};
use seaway_lab::LabNode;

/// Pods that leave the cluster get the node's address.
const MASQUERADE: &str = "table ip by-hand {
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade fully-random
    }
}";

/// How a packet gets to the other node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a route.
    Direct,
    /// In VXLAN.
    Vxlan,
}

/// A pod's namespace and its address.
#[derive(Debug)]
pub struct Pod {
    /// The namespace.
    pub namespace: Namespace,
    /// The address.
    pub addr: IpAddr,
}

/// The subnet of pods of the node with this number.
pub fn subnet(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24)
}

/// A pod with address `10.244.<number>.<host>` and a subnet of its own towards the node.
pub fn pod(node: &LabNode, number: u8, host: u8, mtu: u32) -> Result<Pod> {
    node.run(|| sysctl::write("net/ipv4/ip_forward", "1"))?;
    let namespace = Namespace::anonymous()?;
    let mut outer = node.netlink()?;
    let name = format!("hand{host}");
    let peer = VethPeer { name: "eth0", mac: None, netns: Some(namespace.as_fd()) };
    let link = outer.create_veth(&Veth { name: &name, mac: None, mtu: Some(mtu), group: 0, peer })?;
    let gateway = Ipv4Addr::new(169, 254, number, host);
    outer.add_address(link.index, IpNet::from(IpAddr::from(gateway)))?;
    outer.set_up(link.index)?;
    let addr = IpAddr::from(Ipv4Addr::new(10, 244, number, host));
    let mut inner = Netlink::open_in(&namespace)?;
    let eth0 = inner.link("eth0")?.context("the pod's link")?;
    inner.add_address(eth0.index, addr.into())?;
    inner.set_up(eth0.index)?;
    inner.add_route(&Route::to(IpNet::from(IpAddr::from(gateway))).on(eth0.index))?;
    inner.add_route(&Route::default_via(gateway.into()).on(eth0.index))?;
    outer.replace_route(&Route::to(addr.into()).on(link.index))?;
    Ok(Pod { namespace, addr })
}

/// Masquerades what leaves the cluster.
pub fn masquerade(node: &LabNode) -> Result<()> {
    let output = node.output(&["nft", MASQUERADE]);
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Joins two nodes, whose pods have the subnets of these numbers.
pub fn join(nodes: [(&LabNode, u8); 2], way: Way) -> Result<()> {
    let [one, two] = nodes;
    for ((node, number), (other, others)) in [(one, two), (two, one)] {
        let mut netlink = node.netlink()?;
        let uplink = netlink.link("eth0")?.context("the node's link")?;
        let destination = IpNet::from(subnet(others));
        if way == Way::Direct {
            let gateway = other.address_v4().into();
            netlink.replace_route(&Route::to(destination).via(gateway).on(uplink.index))?;
            continue;
        }
        let device = netlink.create_vxlan(&Vxlan {
            name: "hand-vxlan",
            vni: 7,
            port: 4789,
            local: node.address_v4().into(),
            link: Some(uplink.index),
            mac: Some(mac(number)),
            mtu: Some(1450),
        })?;
        netlink.set_up(device.index)?;
        let (link, addr, mac) = (device.index, IpAddr::from(subnet(others).network()), mac(others));
        let kind = NeighbourKind::Permanent;
        netlink.set_neighbour(&Neighbour { link, addr, mac: Some(mac), kind })?;
        netlink.set_fdb(&FdbEntry { link, mac, remote: other.address_v4().into() })?;
        netlink.replace_route(&Route { onlink: true, ..Route::to(destination).via(addr).on(link) })?;
    }
    Ok(())
}

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}
