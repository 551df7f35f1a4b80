//! What the node's pod network should be, from the snapshot: a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use seaway_model::{Family, Masquerade, Node, NodeAddressKind, Snapshot};

use crate::netlink::Mac;
use crate::{NodeNetworkConfig, Overlay, vtep_mac};

/// What a VXLAN packet has more than the packet within, over IPv4 and IPv6: Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40.
const VXLAN_OVERHEAD_V4: u32 = 50;
const VXLAN_OVERHEAD_V6: u32 = 70;
/// The MTU if nothing is known about the uplink.
const DEFAULT_MTU: u32 = 1500;
/// IPv6 does not work below.
const SMALLEST_MTU: u32 = 1280;

/// The link towards the other nodes, of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uplink {
    pub(super) index: u32,
    pub(super) mtu: u32,
    /// The subnets on it: what is in them is reached without a router.
    pub(super) on_link: Vec<IpNet>,
}

/// The VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VxlanDevice {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) local: IpAddr,
    pub(super) link: Option<u32>,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    /// The first address of each own pod subnet: the source of what the node itself sends to pods elsewhere.
    pub(super) addresses: Vec<IpNet>,
}

/// How the pods of a subnet are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the node's own address.
    Direct { gateway: IpAddr, link: Option<u32> },
    /// In VXLAN packets to `remote`, behind which is the device with address `mac`.
    Vxlan { mac: Mac, remote: IpAddr },
}

/// A pod subnet of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) subnet: IpNet,
    pub(super) way: Way,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Desired {
    /// The own pod subnets.
    pub(super) own: Vec<IpNet>,
    pub(super) peers: Vec<Peer>,
    pub(super) vxlan: Option<VxlanDevice>,
    pub(super) masquerade: Option<Masquerade>,
    /// The MTU of pods.
    pub(super) mtu: u32,
    /// Nodes and subnets that are left out, with the reason.
    pub(super) skipped: Vec<String>,
}

/// What should be, or none as long as the own Node has no pod subnets.
pub(super) fn desired(
    config: &NodeNetworkConfig,
    snapshot: &Snapshot,
    uplinks: &BTreeMap<Family, Uplink>,
) -> Option<Desired> {
    let own = snapshot.nodes.get(config.node_name.as_str())?;
    let subnets: Vec<IpNet> = own.pod_cidrs.iter().map(IpNet::trunc).collect();
    if subnets.is_empty() {
        return None;
    }
    let overlay = config.overlay.vxlan();
    let vxlan = overlay.and_then(|(vni, port)| vxlan_device(own, vni, port, &subnets, uplinks));
    let uplink_mtu = uplinks.values().map(|uplink| uplink.mtu).min().unwrap_or(DEFAULT_MTU);
    let mut desired = Desired {
        mtu: vxlan.as_ref().map_or(uplink_mtu, |device| device.mtu),
        own: subnets,
        vxlan,
        ..Desired::default()
    };
    if desired.vxlan.is_none() && config.overlay != Overlay::None {
        desired.skipped.push(format!("VXLAN: node {} has no address", config.node_name));
    }
    if let Some(name) = config.uplink.as_ref().filter(|_| uplinks.is_empty()) {
        desired.skipped.push(format!("uplink: there is no link {name}; its MTU and subnets are not known"));
    }
    let mut taken = Taken::default();
    for subnet in &desired.own {
        taken.take(*subnet);
    }
    for node in snapshot.nodes.values().filter(|node| node.name != own.name) {
        add_peer(&mut desired, &mut taken, config, node, uplinks);
    }
    if config.masquerade {
        desired.masquerade = Some(masquerade(&desired, snapshot));
    }
    Some(desired)
}

fn vxlan_device(
    own: &Node,
    vni: u32,
    port: u16,
    subnets: &[IpNet],
    uplinks: &BTreeMap<Family, Uplink>,
) -> Option<VxlanDevice> {
    let (family, local) = Family::ALL.into_iter().find_map(|family| Some((family, own.addr(family)?)))?;
    let uplink = uplinks.get(&family);
    let overhead = if family == Family::V4 { VXLAN_OVERHEAD_V4 } else { VXLAN_OVERHEAD_V6 };
    let mtu = uplink.map_or(DEFAULT_MTU, |uplink| uplink.mtu).saturating_sub(overhead).max(SMALLEST_MTU);
    Some(VxlanDevice {
        vni,
        port,
        local,
        link: uplink.map(|uplink| uplink.index),
        mac: Mac(vtep_mac(&own.name)),
        mtu,
        addresses: subnets.iter().map(|subnet| IpNet::from(subnet.network())).collect(),
    })
}

/// Subnets that are apart from each other, by their last address.
#[derive(Debug, Default)]
struct Taken(BTreeMap<IpAddr, IpNet>);

impl Taken {
    /// Takes a subnet, or returns the one that it overlaps with.
    fn take(&mut self, subnet: IpNet) -> Option<IpNet> {
        // Subnets lie within each other or apart: if one of them reaches into this one, it is the next.
        let next = self.0.range(subnet.network()..).next().map(|(_, held)| *held);
        let overlapping = next.filter(|held| held.contains(&subnet) || subnet.contains(held));
        if overlapping.is_none() {
            self.0.insert(subnet.broadcast(), subnet);
        }
        overlapping
    }
}

/// The first network of the nodes' own that lies within one of the subnets: a route to that subnet would take its place,
/// and cut the node off.
pub(super) fn usurped(subnets: &[IpNet], uplinks: &BTreeMap<Family, Uplink>) -> Option<(IpNet, IpNet)> {
    let networks = uplinks.values().flat_map(|uplink| &uplink.on_link);
    let mut pairs = networks.flat_map(|network| subnets.iter().map(move |subnet| (*subnet, *network)));
    pairs.find(|(subnet, network)| subnet.contains(network))
}

fn add_peer(
    desired: &mut Desired,
    taken: &mut Taken,
    config: &NodeNetworkConfig,
    node: &Node,
    uplinks: &BTreeMap<Family, Uplink>,
) {
    for subnet in node.pod_cidrs.iter().map(IpNet::trunc) {
        if let Some((_, network)) = usurped(&[subnet], uplinks) {
            desired.skipped.push(format!(
                "node {}: in its pod subnet {subnet} lies {network}, the network of the nodes",
                node.name
            ));
            continue;
        }
        if let Some(other) = taken.take(subnet) {
            desired
                .skipped
                .push(format!("node {}: its pod subnet {subnet} overlaps with {other}", node.name));
            continue;
        }
        let family = Family::of(subnet.addr());
        let direct = || {
            node.addr(family)
                .map(|gateway| Way::Direct { gateway, link: uplinks.get(&family).map(|uplink| uplink.index) })
        };
        let on_link = node.addr(family).is_some_and(|addr| {
            uplinks.get(&family).is_some_and(|uplink| uplink.on_link.iter().any(|net| net.contains(&addr)))
        });
        let way = match (config.overlay, &desired.vxlan) {
            (Overlay::None, _) => direct(),
            (Overlay::VxlanAcrossLinks { .. }, _) if on_link => direct(),
            (_, Some(device)) => node.addr(Family::of(device.local)).map(|remote| Way::Vxlan {
                mac: Mac(node.vtep_mac.unwrap_or_else(|| vtep_mac(&node.name))),
                remote,
            }),
            (_, None) => None,
        };
        match way {
            Some(way) => desired.peers.push(Peer { subnet, way }),
            None => desired
                .skipped
                .push(format!("node {}: no address that leads to its pod subnet {subnet}", node.name)),
        }
    }
}

fn masquerade(desired: &Desired, snapshot: &Snapshot) -> Masquerade {
    let mut cluster = desired.own.clone();
    cluster.extend(desired.peers.iter().map(|peer| peer.subnet));
    let addresses = snapshot.nodes.values().flat_map(|node| cluster_addresses(node));
    cluster.extend(addresses.map(IpNet::from));
    Masquerade::new(desired.own.clone(), &cluster)
}

/// The addresses that a node has within the cluster. Behind its external ones there may be somebody who translates them
/// for the world and knows no way back to a pod, unless they are all that it has.
fn cluster_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let internal = node.addresses.iter().filter(|address| address.kind == NodeAddressKind::Internal);
    internal.map(|address| address.addr).chain(Family::ALL.into_iter().filter_map(|family| node.addr(family)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use seaway_model::NodeAddress;

    use super::*;

    pub(crate) fn config(overlay: Overlay) -> NodeNetworkConfig {
        NodeNetworkConfig {
            node_name: "a".to_owned(),
            overlay,
            uplink: None,
            cni_conf_dir: "/conf".into(),
            cni_bin_dir: "/bin".into(),
            data_dir: "/data".into(),
            plugin_source: "/plugin".into(),
            masquerade: true,
            resync_interval: Duration::from_secs(5),
        }
    }

    pub(crate) fn node(name: &str, addresses: &[&str], subnets: &[&str]) -> Node {
        let address = |addr: &&str| NodeAddress::internal(addr.parse().unwrap());
        Node {
            addresses: addresses.iter().map(address).collect(),
            pod_cidrs: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            ..Node::named(name)
        }
    }

    pub(crate) fn snapshot(nodes: Vec<Node>) -> Snapshot {
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        for node in nodes {
            snapshot.nodes.insert(node.name.clone(), Arc::new(node));
        }
        snapshot
    }

    pub(crate) fn uplinks() -> BTreeMap<Family, Uplink> {
        let uplink = |family| {
            let on_link = if family == Family::V4 { "192.0.2.0/24" } else { "2001:db8::/64" };
            (family, Uplink { index: 2, mtu: 1500, on_link: vec![on_link.parse().unwrap()] })
        };
        Family::ALL.into_iter().map(uplink).collect()
    }

    fn three() -> Snapshot {
        snapshot(vec![
            node("a", &["192.0.2.1", "2001:db8::1"], &["10.244.0.0/24", "fd00:0:0:0::/64"]),
            node("b", &["192.0.2.2", "2001:db8::2"], &["10.244.1.0/24", "fd00:0:0:1::/64"]),
            node("c", &["192.0.2.3"], &["10.244.2.0/24", "fd00:0:0:2::/64"]),
        ])
    }

    #[test]
    fn direct_routes_go_through_the_address_of_their_family() {
        let desired = desired(&config(Overlay::None), &three(), &uplinks()).unwrap();
        let ways: Vec<String> =
            desired.peers.iter().map(|peer| format!("{} {:?}", peer.subnet, peer.way)).collect();
        assert_eq!(
            ways,
            [
                "10.244.1.0/24 Direct { gateway: 192.0.2.2, link: Some(2) }",
                "fd00:0:0:1::/64 Direct { gateway: 2001:db8::2, link: Some(2) }",
                "10.244.2.0/24 Direct { gateway: 192.0.2.3, link: Some(2) }",
            ]
        );
        assert_eq!(desired.skipped, ["node c: no address that leads to its pod subnet fd00:0:0:2::/64"]);
        assert_eq!(desired.mtu, 1500);
        let masquerade = desired.masquerade.unwrap();
        assert_eq!(masquerade.pods, desired.own);
        assert!(masquerade.kept.contains(&"10.244.0.0/23".parse().unwrap()));
    }

    #[test]
    fn vxlan_carries_both_families_over_one() {
        let overlay = Overlay::Vxlan { vni: 1, port: 8472 };
        let desired = desired(&config(overlay), &three(), &uplinks()).unwrap();
        assert_eq!((desired.peers.len(), desired.mtu, desired.skipped.len()), (4, 1450, 0));
        let device = desired.vxlan.unwrap();
        assert_eq!(device.local, "192.0.2.1".parse::<IpAddr>().unwrap());
        assert_eq!(device.addresses[0], "10.244.0.0/32".parse().unwrap());
        let six = snapshot(vec![node("a", &["2001:db8::1"], &["fd00::/64"])]);
        assert_eq!(super::desired(&config(overlay), &six, &uplinks()).unwrap().mtu, 1430);
    }

    #[test]
    fn direct_to_nodes_on_the_link_and_vxlan_to_the_others() {
        let far = snapshot(vec![
            node("a", &["192.0.2.1", "2001:db8::1"], &["10.244.0.0/24", "fd00:0:0:0::/64"]),
            node("b", &["192.0.2.2", "2001:db8::2"], &["10.244.1.0/24", "fd00:0:0:1::/64"]),
            node("c", &["198.51.100.3", "2001:db8:9::3"], &["10.244.2.0/24", "fd00:0:0:2::/64"]),
        ]);
        let overlay = Overlay::VxlanAcrossLinks { vni: 7, port: 4789 };
        let mut desired = desired(&config(overlay), &far, &uplinks()).unwrap();
        let ways: Vec<&str> = desired
            .peers
            .iter()
            .map(|peer| match peer.way {
                Way::Direct { .. } => "direct",
                Way::Vxlan { .. } => "vxlan",
            })
            .collect();
        assert_eq!(ways, ["direct", "direct", "vxlan", "vxlan"]);
        assert_eq!((desired.mtu, desired.vxlan.as_ref().unwrap().vni), (1450, 7));
        let masquerade = desired.masquerade.as_mut().unwrap();
        masquerade.except(&["203.0.113.0/24".parse().unwrap()]);
        assert!(masquerade.kept.contains(&"203.0.113.0/24".parse().unwrap()));
    }

    #[test]
    fn external_addresses_are_outside_unless_a_node_has_no_others() {
        let external =
            |addr: &str| NodeAddress { addr: addr.parse().unwrap(), kind: NodeAddressKind::External };
        let mut nodes = vec![node("a", &["192.0.2.1"], &["10.244.0.0/24"]), node("b", &["192.0.2.2"], &[])];
        nodes[1].addresses.extend([external("198.51.100.2"), external("2001:db8::2")]);
        let desired = desired(&config(Overlay::None), &snapshot(nodes), &uplinks()).unwrap();
        let cluster = desired.masquerade.unwrap().kept;
        let has = |addr: &str| cluster.iter().any(|net| net.contains(&addr.parse::<IpAddr>().unwrap()));
        assert_eq!(["192.0.2.2", "198.51.100.2", "2001:db8::2"].map(has), [true, false, true]);
    }

    #[test]
    fn an_uplink_that_is_not_there_is_told() {
        let named = NodeNetworkConfig { uplink: Some("eth7".to_owned()), ..config(Overlay::None) };
        let alone = snapshot(vec![node("a", &["192.0.2.1"], &["10.244.0.0/24"])]);
        assert_eq!(desired(&named, &alone, &uplinks()).unwrap().skipped, [""; 0]);
        let skipped = desired(&named, &alone, &BTreeMap::new()).unwrap().skipped;
        assert_eq!(skipped, ["uplink: there is no link eth7; its MTU and subnets are not known"]);
    }

    #[test]
    fn contradictory_nodes_are_left_out_and_named() {
        let snapshot = snapshot(vec![
            node("a", &["192.0.2.1"], &["10.244.0.0/24"]),
            node("b", &["192.0.2.2"], &["10.244.0.0/16"]),
            node("c", &["192.0.2.3"], &["10.245.0.0/24"]),
            node("d", &["192.0.2.4"], &["10.245.0.0/24"]),
        ]);
        let desired = desired(&config(Overlay::None), &snapshot, &uplinks()).unwrap();
        assert_eq!(desired.peers.len(), 1);
        assert_eq!(
            desired.skipped,
            [
                "node b: its pod subnet 10.244.0.0/16 overlaps with 10.244.0.0/24",
                "node d: its pod subnet 10.245.0.0/24 overlaps with 10.245.0.0/24",
            ]
        );
    }

    #[test]
    fn a_subnet_that_has_the_nodes_own_network_in_it_gets_no_route() {
        let all = |own: &str, other: &str| {
            snapshot(vec![node("a", &["192.0.2.1"], &[own]), node("b", &["192.0.2.2"], &[other])])
        };
        for whole in ["0.0.0.0/0", "192.0.2.0/24", "192.0.0.0/16"] {
            let desired = desired(&config(Overlay::None), &all("10.244.0.0/24", whole), &uplinks()).unwrap();
            assert_eq!(desired.peers, []);
            let said =
                format!("node b: in its pod subnet {whole} lies 192.0.2.0/24, the network of the nodes");
            assert_eq!(desired.skipped, [said]);
            assert!(usurped(&[whole.parse().unwrap()], &uplinks()).is_some());
        }
        // A part of a large network may be the pods'.
        for part in ["192.0.2.64/26", "2001:db8:1::/64"] {
            assert_eq!(usurped(&[part.parse().unwrap()], &uplinks()), None);
        }
    }

    #[test]
    fn nothing_is_wanted_before_the_own_subnets_are_known() {
        let without =
            snapshot(vec![node("a", &["192.0.2.1"], &[]), node("b", &["192.0.2.2"], &["10.244.1.0/24"])]);
        assert_eq!(desired(&config(Overlay::None), &without, &uplinks()), None);
        assert_eq!(desired(&config(Overlay::None), &snapshot(vec![]), &uplinks()), None);
    }
}
