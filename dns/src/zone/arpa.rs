//! Reverse names: from `4.3.2.1.in-addr.arpa` to addresses and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const OCTET_BITS: u8 = 8;
const NIBBLE_BITS: u8 = 4;

/// What a name below `in-addr.arpa` or `ip6.arpa` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reverse {
    /// One address, or a prefix where the name is shorter.
    Range(IpNet),
    /// Nothing, and that by being below the name of a range: `x.0.96.10.in-addr.arpa`.
    Below(IpNet),
}

/// What a name stands for; `None` for every one that is no reverse name, and for the two apexes themselves.
pub(super) fn parse(name: &Name) -> Option<Reverse> {
    let mut labels = name.iter().rev();
    if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let family = labels.next()?;
    let count = labels.len();
    if family.eq_ignore_ascii_case(b"in-addr") {
        let (mut octets, mut good) = ([0; 4], 0);
        for (octet, number) in octets.iter_mut().zip(labels.map_while(decimal)) {
            (*octet, good) = (number, good + 1);
        }
        reverse(Ipv4Net::new(octets.into(), good * OCTET_BITS).ok()?.into(), good.into(), count)
    } else if family.eq_ignore_ascii_case(b"ip6") {
        let (mut value, mut good) = (0_u128, 0);
        for nibble in labels.map_while(nibble).take(32) {
            good += 1;
            value |= u128::from(nibble) << (128 - u32::from(good) * u32::from(NIBBLE_BITS));
        }
        reverse(Ipv6Net::new(value.into(), good * NIBBLE_BITS).ok()?.into(), good.into(), count)
    } else {
        None
    }
}

/// `good` labels of `count` make the range.
fn reverse(range: IpNet, good: usize, count: usize) -> Option<Reverse> {
    match good {
        0 => None,
        _ if good == count => Some(Reverse::Range(range)),
        _ => Some(Reverse::Below(range)),
    }
}

/// The reverse zone that holds `range`: its prefix, cut to whole labels.
pub(super) fn apex(range: IpNet) -> Option<Name> {
    let name = match range.network() {
        IpAddr::V4(addr) => v4(addr, range.prefix_len() / OCTET_BITS),
        IpAddr::V6(addr) => v6(addr, range.prefix_len() / NIBBLE_BITS),
    };
    Name::from_ascii(name).ok()
}

/// The reverse zones that are `range` together.
pub(super) fn zones(range: IpNet) -> Vec<Name> {
    let label_bits = if range.addr().is_ipv4() { OCTET_BITS } else { NIBBLE_BITS };
    let whole = range.prefix_len().div_ceil(label_bits) * label_bits;
    range.trunc().subnets(whole).into_iter().flatten().filter_map(apex).collect()
}

fn v4(addr: Ipv4Addr, labels: u8) -> String {
    let octets = addr.octets();
    let labels = octets.iter().take(labels.into()).rev().map(|octet| format!("{octet}."));
    labels.collect::<String>() + "in-addr.arpa."
}

fn v6(addr: Ipv6Addr, labels: u8) -> String {
    let nibbles = addr.octets().into_iter().flat_map(|octet| [octet >> NIBBLE_BITS, octet & 0xf]);
    let mut nibbles: Vec<String> = nibbles.take(labels.into()).map(|nibble| format!("{nibble:x}.")).collect();
    nibbles.reverse();
    nibbles.concat() + "ip6.arpa."
}

/// A decimal octet without leading zeros.
fn decimal(label: &[u8]) -> Option<u8> {
    if label.len() > 1 && label.starts_with(b"0") || !label.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(label).ok()?.parse().ok()
}

fn nibble(label: &[u8]) -> Option<u8> {
    let [digit] = label else { return None };
    char::from(*digit).to_digit(16)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn ranges_and_what_is_none() {
        let range = |text| match parse(&name(text))? {
            Reverse::Range(range) => Some(range.to_string()),
            Reverse::Below(range) => Some(format!("below {range}")),
        };
        assert_eq!(range("4.3.2.1.in-addr.arpa."), Some("1.2.3.4/32".to_owned()));
        assert_eq!(range("2.1.IN-ADDR.Arpa."), Some("1.2.0.0/16".to_owned()));
        assert_eq!(range("0.d.F.ip6.arpa."), Some("fd00::/12".to_owned()));
        assert_eq!(range("256.3.2.1.in-addr.arpa."), Some("below 1.2.3.0/24".to_owned()));
        assert_eq!(range("01.3.2.1.in-addr.arpa."), Some("below 1.2.3.0/24".to_owned()));
        assert_eq!(range("5.4.3.2.1.in-addr.arpa."), Some("below 1.2.3.4/32".to_owned()));
        assert_eq!(range("web.shop.2.1.in-addr.arpa."), Some("below 1.2.0.0/16".to_owned()));
        assert_eq!(range("00.d.f.ip6.arpa."), Some("below fd00::/8".to_owned()));
        assert_eq!(range("g.d.f.ip6.arpa."), Some("below fd00::/8".to_owned()));
        for other in
            ["in-addr.arpa.", "ip6.arpa.", "arpa.", ".", "x.in-addr.arpa.", "1.in-addr.arpa.example."]
        {
            assert_eq!(parse(&name(other)), None, "{other}");
        }
    }

    #[test]
    fn apexes_are_cut_to_whole_labels() {
        let apex = |range: &str| apex(range.parse().unwrap()).unwrap().to_ascii();
        assert_eq!(apex("10.96.0.0/16"), "96.10.in-addr.arpa.");
        assert_eq!(apex("10.96.0.0/12"), "10.in-addr.arpa.");
        assert_eq!(apex("fd00:10:96::/48"), "6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.");
    }

    #[test]
    fn zones_of_a_range() {
        let zones = |range: &str| {
            zones(range.parse().unwrap()).iter().map(Name::to_ascii).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(zones("10.96.0.0/16"), "96.10.in-addr.arpa.");
        assert_eq!(zones("10.96.0.1/15"), "96.10.in-addr.arpa. 97.10.in-addr.arpa.");
        assert_eq!(zones("0.0.0.0/0"), "in-addr.arpa.");
        assert_eq!(zones("192.0.2.1/32"), "1.2.0.192.in-addr.arpa.");
        assert_eq!(zones("fd00:10::/31"), "0.1.0.0.0.0.d.f.ip6.arpa. 1.1.0.0.0.0.d.f.ip6.arpa.");
    }

    proptest! {
        #[test]
        fn every_address_comes_back(addr: IpAddr) {
            let range = IpNet::from(addr);
            prop_assert_eq!(parse(&apex(range).unwrap()), Some(Reverse::Range(range)));
        }
    }
}
