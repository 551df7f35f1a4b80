//! Pod packets that leave the cluster get the node's address as their source, since nobody outside knows the way
//! back to a pod.
//!
//! One table of our own per family, with two sets and one rule, however many nodes there are:
//!
//! ```text
//! table ip seaway-masq {                        # and ip6
//!   set pods    { … the own node's pod subnet }
//!   set cluster { … all pod subnets, all nodes' addresses, multicast and link-local }
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat
//!     ip saddr @pods ip daddr != @cluster masquerade to :32768-65535 fully-random
//!   }
//! }
//! ```
//!
//! It is replaced as a whole in one transaction. A digest of what it was made from stands in its comment, so that a
//! round that finds the same digest has nothing to do. Nobody else's table is read or touched.

mod nft;

use std::ops::RangeInclusive;

use ipnet::IpNet;
use seaway_model::Family;

use super::desired::Masquerade;
use crate::hash::fnv1a;
use nft::{Attribute, Batch, Transaction};

pub use nft::NftError;

/// The name of the tables.
pub const TABLE: &str = "seaway-masq";
const CHAIN: &str = "postrouting";
const PODS: (&str, u32) = ("pods", 1);
const CLUSTER: (&str, u32) = ("cluster", 2);
/// What is never masqueraded, whatever the cluster is: multicast, broadcast, link-local.
const NEVER_V4: [&str; 3] = ["224.0.0.0/4", "255.255.255.255/32", "169.254.0.0/16"];
const NEVER_V6: [&str; 2] = ["ff00::/8", "fe80::/10"];

/// Makes the tables as they should be; none removes them.
pub(super) fn ensure(masquerade: Option<&Masquerade>) -> Result<(), NftError> {
    let ports = ports();
    for family in Family::ALL {
        let pods =
            intervals(family, masquerade.map(|masquerade| masquerade.pods.as_slice()).unwrap_or_default());
        let comment = masquerade.filter(|_| !pods.is_empty()).map(|wanted| {
            let cluster = cluster(family, wanted);
            (format!("seaway {:016x}", digest(&pods, &cluster, &ports)), cluster)
        });
        let held = nft::table_comment(nft_family(family), TABLE)?;
        match (comment, held) {
            (Some((comment, _)), Some(held)) if comment == held && rule_is_there(family)? => {}
            (Some((comment, cluster)), _) => replace(family, &comment, &pods, &cluster, &ports)?,
            (None, Some(_)) => remove(family)?,
            (None, None) => {}
        }
    }
    Ok(())
}

fn rule_is_there(family: Family) -> Result<bool, NftError> {
    Ok(nft::rules_in_chain(nft_family(family), TABLE, CHAIN)? == Some(1))
}

fn cluster(family: Family, masquerade: &Masquerade) -> Vec<(u128, u128)> {
    let never: &[&str] = if family == Family::V4 { &NEVER_V4 } else { &NEVER_V6 };
    let never = never.iter().filter_map(|text| text.parse::<IpNet>().ok());
    let all: Vec<IpNet> = masquerade.cluster.iter().copied().chain(never).collect();
    intervals(family, &all)
}

/// The addresses of one family as intervals, both ends included, apart from each other and in order.
fn intervals(family: Family, nets: &[IpNet]) -> Vec<(u128, u128)> {
    let mut bounds: Vec<(u128, u128)> = nets
        .iter()
        .filter(|net| Family::of(net.addr()) == family)
        .map(|net| match net {
            IpNet::V4(net) => (u128::from(net.network().to_bits()), u128::from(net.broadcast().to_bits())),
            IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
        })
        .collect();
    bounds.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::new();
    for (first, last) in bounds {
        match joined.last_mut() {
            Some(held) if first <= held.1.saturating_add(1) => held.1 = held.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn digest(pods: &[(u128, u128)], cluster: &[(u128, u128)], ports: &RangeInclusive<u16>) -> u64 {
    let bytes = |intervals: &[(u128, u128)]| -> Vec<u8> {
        intervals
            .iter()
            .flat_map(|(first, last)| [first.to_be_bytes(), last.to_be_bytes()])
            .flatten()
            .collect()
    };
    let ports = [ports.start().to_be_bytes(), ports.end().to_be_bytes()].concat();
    fnv1a(&[&bytes(pods), &bytes(cluster), &ports])
}

/// Neither NodePorts nor ports that the administrator has reserved: the kernel's own search knows of neither.
fn ports() -> RangeInclusive<u16> {
    let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    seaway_model::snat_ports(&seaway_model::port_ranges(&reserved))
}

fn nft_family(family: Family) -> u8 {
    // NFPROTO_IPV4, NFPROTO_IPV6
    if family == Family::V4 { 2 } else { 10 }
}

fn remove(family: Family) -> Result<(), NftError> {
    let mut batch = Batch::new(nft_family(family));
    batch.delete_table(TABLE);
    Transaction::open()?.commit(batch, &format!("remove table {TABLE}"))
}

fn replace(
    family: Family,
    comment: &str,
    pods: &[(u128, u128)],
    cluster: &[(u128, u128)],
    ports: &RangeInclusive<u16>,
) -> Result<(), NftError> {
    let mut batch = Batch::new(nft_family(family));
    // Deleting what is not there would fail.
    batch.add_table(TABLE, "");
    batch.delete_table(TABLE);
    batch.add_table(TABLE, comment);
    for (set, intervals) in [(PODS, pods), (CLUSTER, cluster)] {
        batch.add_set(TABLE, set, family == Family::V4);
        batch.add_intervals(TABLE, set, family == Family::V4, intervals);
    }
    batch.add_nat_postrouting(TABLE, CHAIN);
    batch.add_rule(TABLE, CHAIN, &rule(family, ports));
    Transaction::open()?.commit(batch, &format!("write table {TABLE}"))
}

/// Source in `pods` and destination not in `cluster`: masquerade.
fn rule(family: Family, ports: &RangeInclusive<u16>) -> Vec<Attribute> {
    let (source, destination, length) = if family == Family::V4 { (12, 16, 4) } else { (8, 24, 16) };
    let matches = [
        nft::load_network_header(source, length),
        nft::lookup(PODS, false),
        nft::load_network_header(destination, length),
        nft::lookup(CLUSTER, true),
    ];
    matches.into_iter().chain(nft::masquerade_fully_random(ports)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_joined_and_ordered() {
        let nets: Vec<IpNet> = ["10.0.1.0/24", "10.0.0.0/24", "10.0.1.7/32", "10.0.3.0/24", "fd00::/64"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let text: Vec<String> =
            intervals(Family::V4, &nets).iter().map(|(first, last)| format!("{first:x}-{last:x}")).collect();
        assert_eq!(text, ["a000000-a0001ff", "a000300-a0003ff"]);
        assert_eq!(intervals(Family::V6, &nets).len(), 1);
        assert_eq!(intervals(Family::V6, &["::/0".parse().unwrap()]), [(0, u128::MAX)]);
        let ports = 1024..=29_999;
        assert_ne!(digest(&[(1, 2)], &[], &ports), digest(&[], &[(1, 2)], &ports));
        assert_ne!(digest(&[], &[], &ports), digest(&[], &[], &(1024..=65_535)));
    }
}
