//! What is in the cluster, as the programs know it: each pod subnet and each node's address in a trie, and around all pod
//! subnets of a family one network, so that most addresses that are no pod's need no look-up.

use std::collections::BTreeSet;
use std::iter::successors;

use ipnet::IpNet;
use seaway_ebpf_loader::{self as loader, ClusterNet, ClusterNetKind};
use seaway_model::Family;

use crate::plan::ClusterNets;

/// What is in no trie yet, and what is in it and has to go.
pub(super) struct Difference {
    pub(super) add: Vec<ClusterNet>,
    pub(super) remove: Vec<ClusterNet>,
}

/// From what the trie holds to what it should.
pub(super) fn difference(held: &[ClusterNet], wanted: &ClusterNets) -> Difference {
    let wanted = entries(wanted);
    let keys: BTreeSet<_> = wanted.iter().map(|net| (net.addr, net.prefix)).collect();
    let gone = |net: &&ClusterNet| !keys.contains(&(net.addr, net.prefix));
    let remove = held.iter().filter(gone).copied().collect();
    let held: BTreeSet<ClusterNet> = held.iter().copied().collect();
    Difference { add: wanted.difference(&held).copied().collect(), remove }
}

/// What the trie should hold. An address of a node is no pod's.
fn entries(nets: &ClusterNets) -> BTreeSet<ClusterNet> {
    let nodes: BTreeSet<IpNet> = nets.nodes.iter().copied().map(IpNet::from).collect();
    let entry = |net: &IpNet, kind| ClusterNet { addr: net.network(), prefix: net.prefix_len(), kind };
    let pods = nets.pods.difference(&nodes).map(|net| entry(net, ClusterNetKind::Pods));
    pods.chain(nodes.iter().map(|net| entry(net, ClusterNetKind::Node))).collect()
}

/// What the trie holds.
pub(super) fn read(held: &[ClusterNet]) -> ClusterNets {
    let of = |kind| held.iter().filter(move |net| net.kind == kind);
    ClusterNets {
        pods: of(ClusterNetKind::Pods).filter_map(|net| IpNet::new(net.addr, net.prefix).ok()).collect(),
        nodes: of(ClusterNetKind::Node).map(|net| net.addr).collect(),
    }
}

/// `config` with the least networks that hold all of `nets`.
pub(super) fn around(nets: &BTreeSet<IpNet>, config: loader::NodeConfig) -> loader::NodeConfig {
    let (mut pods_v4, mut pods_v6) = (None, None);
    for family in Family::ALL {
        match least(nets.iter().filter(|net| Family::of(net.addr()) == family)) {
            Some(IpNet::V4(net)) => pods_v4 = Some((net.network(), net.prefix_len())),
            Some(IpNet::V6(net)) => pods_v6 = Some((net.network(), net.prefix_len())),
            None => {}
        }
    }
    loader::NodeConfig { pods_v4, pods_v6, ..config }
}

/// The network around networks of one family. One that holds every address tells nothing: there is none then.
fn least<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Option<IpNet> {
    let joined = nets.copied().reduce(|held, net| {
        successors(Some(held), IpNet::supernet).find(|wider| wider.contains(&net)).unwrap_or(held)
    });
    joined.filter(|net| net.prefix_len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> BTreeSet<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_network_around_all_is_the_least() {
        let cases = [
            ("", "none none"),
            ("10.244.3.0/24", "10.244.3.0/24 none"),
            ("10.244.0.0/24 10.244.1.0/24", "10.244.0.0/23 none"),
            ("10.244.1.0/24 10.244.2.0/24 fd00:1::/64", "10.244.0.0/22 fd00:1::/64"),
            ("10.244.0.0/16 10.244.1.0/24", "10.244.0.0/16 none"),
            ("10.0.0.0/24 192.168.0.0/24", "none none"),
            ("10.244.1.7/32", "10.244.1.7/32 none"),
            ("fd00:1::/64 fd00:1:0:8000::/64 fd00:1:0:1::/64", "none fd00:1::/48"),
        ];
        for (text, expected) in cases {
            let config = around(&nets(text), loader::NodeConfig::default());
            let v4 = config.pods_v4.map_or("none".to_owned(), |(addr, prefix)| format!("{addr}/{prefix}"));
            let v6 = config.pods_v6.map_or("none".to_owned(), |(addr, prefix)| format!("{addr}/{prefix}"));
            assert_eq!(format!("{v4} {v6}"), expected, "{text}");
        }
    }

    fn cluster(pods: &str, nodes: &str) -> ClusterNets {
        let nodes = nodes.split_whitespace().map(|addr| addr.parse().unwrap()).collect();
        ClusterNets { pods: nets(pods), nodes }
    }

    #[test]
    fn the_difference_brings_the_trie_to_what_is_wanted() {
        let held: Vec<_> = entries(&cluster("10.0.0.0/24 fd00::/64", "192.168.0.1")).into_iter().collect();
        let wanted = cluster("10.0.0.0/24 10.0.1.0/24", "192.168.0.1 fd01::1");
        let Difference { add, remove } = difference(&held, &wanted);
        assert_eq!(read(&add), cluster("10.0.1.0/24", "fd01::1"));
        assert_eq!(read(&remove), cluster("fd00::/64", ""));
    }

    #[test]
    fn what_stands_for_something_else_now_is_written_and_not_removed() {
        let held: Vec<_> = entries(&cluster("10.0.0.1/32", "")).into_iter().collect();
        let Difference { add, remove } = difference(&held, &cluster("10.0.0.1/32", "10.0.0.1"));
        assert_eq!((read(&add), remove.len()), (cluster("", "10.0.0.1"), 0));
    }
}
