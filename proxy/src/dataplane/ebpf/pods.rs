//! The nodes' pod subnets, as the programs know them: each of them in a trie, and around all of a family one network, so
//! that most addresses that are no pod's need no look-up.

use std::collections::BTreeSet;
use std::iter::successors;

use ipnet::IpNet;
use seaway_ebpf_loader as loader;
use seaway_model::Family;

/// What is in no trie yet, and what is in it and has to go.
pub(super) struct Difference {
    pub(super) add: Vec<loader::PodNet>,
    pub(super) remove: Vec<loader::PodNet>,
}

/// From what the trie holds to what it should.
pub(super) fn difference(held: &[loader::PodNet], wanted: &BTreeSet<IpNet>) -> Difference {
    let held: BTreeSet<loader::PodNet> = held.iter().copied().collect();
    let wanted: BTreeSet<loader::PodNet> = wanted.iter().map(entry).collect();
    Difference {
        add: wanted.difference(&held).copied().collect(),
        remove: held.difference(&wanted).copied().collect(),
    }
}

fn entry(net: &IpNet) -> loader::PodNet {
    loader::PodNet { addr: net.network(), prefix: net.prefix_len() }
}

/// What the trie holds, as networks.
pub(super) fn read(held: &[loader::PodNet]) -> BTreeSet<IpNet> {
    held.iter().filter_map(|net| IpNet::new(net.addr, net.prefix).ok()).collect()
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

    #[test]
    fn the_difference_brings_the_trie_to_what_is_wanted() {
        let (held, wanted) = (nets("10.0.0.0/24 fd00::/64"), nets("10.0.0.0/24 10.0.1.0/24"));
        let held: Vec<loader::PodNet> = held.iter().map(entry).collect();
        let Difference { add, remove } = difference(&held, &wanted);
        assert_eq!((read(&add), read(&remove)), (nets("10.0.1.0/24"), nets("fd00::/64")));
    }
}
