//! Pod packets that leave the cluster get the node's address as their source, since nobody outside knows the way
//! back to a pod. Where no programs do it (`way_out`), tables do.
//!
//! One table of our own per family, with two sets and one rule, however many nodes there are:
//!
//! ```text
//! table ip seaway-masq {                        # and ip6
//!   set pods    { … the own node's pod subnet }
//!   set cluster { … all pod subnets, all nodes' addresses, multicast and link-local }
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat
//!     meta l4proto tcp tcp flags & (syn | ack) != syn return
//!     ip saddr @pods ip daddr != @cluster masquerade to :32768-65535 fully-random
//!   }
//! }
//! ```
//!
//! A TCP connection that tracking meets in its middle keeps its addresses: it was open before the table was there, or its
//! packets went past the stack until now. Whoever is at its other end knows it by no others.
//!
//! It is replaced as a whole in one transaction. A digest of what it was made from stands in its comment, so that a
//! round that finds the same digest has nothing to do. Nobody else's table is read or touched.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use seaway_model::{Family, Masquerade};
use seaway_nft::{
    Base, Batch, Chain, ChainKind, DataType, Element, Expr, Hook, MetaKey, SetSpec, Table, Verdict, chains,
    commit, reg32, table_comment,
};

use crate::hash::fnv1a;

pub use seaway_nft::NftError;

/// The name of the tables.
pub const TABLE: &str = "seaway-masq";
const CHAIN: &str = "postrouting";
/// `NF_IP_PRI_NAT_SRC`
const PRIORITY_SRCNAT: i32 = 100;
const PODS: &str = "pods";
const CLUSTER: &str = "cluster";
/// Makes a family's table as it should be.
pub(super) fn ensure(family: Family, wanted: &Masquerade) -> Result<(), NftError> {
    let pods = intervals(family, &wanted.pods);
    if pods.is_empty() {
        return remove(family);
    }
    write(family, &pods, &intervals(family, &wanted.kept), &rules(family, &ports()))
}

/// Takes the pods from a family's table: it masquerades nothing new, and connections that it has masqueraded go on. That
/// takes a rule: without one that masquerades the kernel stops tracking, and forgets whose they are.
pub(super) fn clear(family: Family) -> Result<(), NftError> {
    write(family, &[], &[], &rules(family, &ports()))
}

/// Whether a family has its table.
pub(super) fn is_there(family: Family) -> Result<bool, NftError> {
    Ok(table_comment(table(family))?.is_some())
}

/// Removes both tables.
pub(super) fn remove_all() -> Result<(), NftError> {
    Family::ALL.into_iter().map(remove).fold(Ok(()), Result::and)
}

/// Removes a family's table, if it is there.
pub(super) fn remove(family: Family) -> Result<(), NftError> {
    if !is_there(family)? {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.delete_table(table(family));
    carry_out(batch, "remove the masquerade")
}

/// Writes a table, unless it is there as it should be.
fn write(
    family: Family,
    pods: &[(u128, u128)],
    kept: &[(u128, u128)],
    rules: &[Vec<Expr>],
) -> Result<(), NftError> {
    let comment = format!("seaway {:016x}", digest(pods, kept, rules));
    let held = table_comment(table(family))?;
    if held.as_ref() == Some(&comment) && has_rules(family, rules.len())? {
        return Ok(());
    }
    replace(family, &comment, pods, kept, rules)
}

/// Whether the chain is there with so many rules.
fn has_rules(family: Family, count: usize) -> Result<bool, NftError> {
    let held = chains(table(family))?;
    Ok(held.iter().any(|chain| chain.name == CHAIN && usize::try_from(chain.uses) == Ok(count)))
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

fn digest(pods: &[(u128, u128)], cluster: &[(u128, u128)], rules: &[Vec<Expr>]) -> u64 {
    let bytes = |intervals: &[(u128, u128)]| -> Vec<u8> {
        intervals
            .iter()
            .flat_map(|(first, last)| [first.to_be_bytes(), last.to_be_bytes()])
            .flatten()
            .collect()
    };
    fnv1a(&[&bytes(pods), &bytes(cluster), format!("{rules:?}").as_bytes()])
}

/// Neither NodePorts nor ports that the administrator has reserved: the kernel's own search knows of neither.
fn ports() -> RangeInclusive<u16> {
    let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    seaway_model::snat_ports(&seaway_model::port_ranges(&reserved))
}

/// The family as nftables calls it.
pub(super) const fn number(family: Family) -> seaway_nft::Family {
    match family {
        Family::V4 => seaway_nft::Family::Ip,
        Family::V6 => seaway_nft::Family::Ip6,
    }
}

const fn table(family: Family) -> Table<'static> {
    Table { family: number(family), name: TABLE }
}

fn replace(
    family: Family,
    comment: &str,
    pods: &[(u128, u128)],
    cluster: &[(u128, u128)],
    rules: &[Vec<Expr>],
) -> Result<(), NftError> {
    let table = table(family);
    let mut batch = Batch::new();
    // Deleting what is not there would fail.
    batch.add_table(table, "");
    batch.delete_table(table);
    batch.add_table(table, comment);
    let key = if family == Family::V4 { DataType::Ipv4Addr } else { DataType::Ipv6Addr };
    for (name, intervals) in [(PODS, pods), (CLUSTER, cluster)] {
        batch.add_set(table, &SetSpec { interval: true, ..SetSpec::set(name, &[key]) });
        batch.add_elements(table, name, &elements(family, intervals));
    }
    let base = Some((ChainKind::Nat, Hook::Postrouting, PRIORITY_SRCNAT));
    batch.add_chain(table, Chain { name: CHAIN, base });
    for rule in rules {
        batch.add_rule(table, CHAIN, rule);
    }
    carry_out(batch, "write the masquerade")
}

#[expect(clippy::disallowed_methods, reason = "this is the place for it")]
fn carry_out(batch: Batch, action: &str) -> Result<(), NftError> {
    crate::fault::step();
    commit(batch, action)
}

/// Intervals as a set holds them: where each begins, and where it has ended.
fn elements(family: Family, intervals: &[(u128, u128)]) -> Vec<Element> {
    let greatest = if family == Family::V4 { u128::from(u32::MAX) } else { u128::MAX };
    let start = |value: u128| {
        let all = value.to_be_bytes();
        Element::key(if family == Family::V4 { all[12..].into() } else { all.into() })
    };
    let end = |value| Element { interval_end: true, ..start(value) };
    let mut elements = Vec::new();
    if intervals.first().is_some_and(|(first, _)| *first > 0) {
        elements.push(end(0));
    }
    for (first, last) in intervals {
        elements.push(start(*first));
        if *last < greatest {
            elements.push(end(*last + 1));
        }
    }
    elements
}

/// Source in `pods` and destination not in `cluster`: masquerade, unless it is the middle of a TCP connection.
fn rules(family: Family, ports: &RangeInclusive<u16>) -> Vec<Vec<Expr>> {
    const TCP: u8 = 6;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let (value, port_min, port_max) = (reg32(0), reg32(4), reg32(5));
    let is = |byte: u8, inverted| Expr::Compare { from: value, value: vec![byte], inverted };
    let middle = vec![
        Expr::Meta { key: MetaKey::L4Proto, to: value },
        is(TCP, false),
        Expr::Payload { base: Base::Transport, offset: 13, length: 1, to: value },
        Expr::Bitwise { from: value, to: value, mask: vec![SYN | ACK], xor: vec![0] },
        is(SYN, true),
        Expr::Verdict(Verdict::Return),
    ];
    let (source, destination, length) = if family == Family::V4 { (12, 16, 4) } else { (8, 24, 16) };
    let addr = |offset| Expr::Payload { base: Base::Network, offset, length, to: value };
    let is_in = |set: &str, inverted| Expr::Lookup { set: set.into(), from: value, inverted };
    let port = |port: &u16, to| Expr::Load { value: port.to_be_bytes().into(), to };
    let leaves = vec![
        addr(source),
        is_in(PODS, false),
        addr(destination),
        is_in(CLUSTER, true),
        port(ports.start(), port_min),
        port(ports.end(), port_max),
        Expr::Masquerade { port_min, port_max },
    ];
    vec![middle, leaves]
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
        let of = |ports| rules(Family::V4, &ports);
        let ports = of(1024..=29_999);
        assert_ne!(digest(&[(1, 2)], &[], &ports), digest(&[], &[(1, 2)], &ports));
        assert_ne!(digest(&[], &[], &ports), digest(&[], &[], &of(1024..=65_535)));
        assert_ne!(digest(&[], &[], &ports), digest(&[], &[], &ports[1..]));
    }

    #[test]
    fn a_set_is_told_where_intervals_begin_and_where_they_have_ended() {
        let text = |family, intervals: &[(u128, u128)]| -> Vec<String> {
            let one = |element: &Element| {
                let key = element.key.iter().fold(0, |key, byte| key << 8 | u128::from(*byte));
                let end = if element.interval_end { " end" } else { "" };
                format!("{} bytes {key:x}{end}", element.key.len())
            };
            elements(family, intervals).iter().map(one).collect()
        };
        assert_eq!(text(Family::V4, &[]), [""; 0]);
        assert_eq!(
            text(Family::V4, &[(1, 2), (0xffff_fff0, 0xffff_ffff)]),
            ["4 bytes 0 end", "4 bytes 1", "4 bytes 3 end", "4 bytes fffffff0"]
        );
        assert_eq!(text(Family::V6, &[(0, u128::MAX)]), ["16 bytes 0"]);
    }
}
