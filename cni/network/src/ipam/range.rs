//! Which addresses of a subnet pods may have, and in which order they are tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A subnet, or a part of one, that addresses are taken from. The subnet's own address (all zeros, for IPv6 the
/// anycast address of its routers), and for IPv4 the broadcast address, are never given; nor is the gateway, if
/// there is one. A subnet of one or two addresses gives all it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    first: u128,
    last: u128,
    gateway: Option<u128>,
}

impl Range {
    /// All of a subnet.
    pub fn new(subnet: IpNet) -> Self {
        let subnet = subnet.trunc();
        let (low, high) = (number(subnet.network()), number(subnet.broadcast()));
        let (first, last) = match (high - low, subnet) {
            (0 | 1, _) => (low, high),
            (_, IpNet::V4(_)) => (low + 1, high - 1),
            (_, IpNet::V6(_)) => (low + 1, high),
        };
        Self { subnet, first, last, gateway: None }
    }

    /// The part from `start` to `end`, both included, as far as it lies within.
    #[must_use]
    pub fn within(mut self, start: Option<IpAddr>, end: Option<IpAddr>) -> Self {
        let same_family = |addr: &IpAddr| addr.is_ipv4() == self.subnet.addr().is_ipv4();
        if let Some(start) = start.filter(same_family) {
            self.first = self.first.max(number(start));
        }
        if let Some(end) = end.filter(same_family) {
            self.last = self.last.min(number(end));
        }
        self
    }

    /// Without the gateway.
    #[must_use]
    pub fn without(mut self, gateway: Option<IpAddr>) -> Self {
        self.gateway = gateway.filter(|addr| self.subnet.contains(addr)).map(number);
        self
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// How many addresses it can give.
    pub fn size(&self) -> u128 {
        if self.first > self.last {
            return 0;
        }
        let gateway = self.gateway.is_some_and(|addr| (self.first..=self.last).contains(&addr));
        (self.last - self.first).saturating_add(1) - u128::from(gateway)
    }

    /// Whether there is an address that `other` gives as well.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.subnet.addr().is_ipv4() == other.subnet.addr().is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }

    /// Whether it has an address of a network.
    pub fn reaches_into(&self, net: IpNet) -> bool {
        let (low, high) = (number(net.network()), number(net.broadcast()));
        self.subnet.addr().is_ipv4() == net.addr().is_ipv4() && self.first <= high && low <= self.last
    }

    /// Whether pods may have `addr`.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let value = number(addr);
        self.subnet.contains(&addr)
            && (self.first..=self.last).contains(&value)
            && self.gateway != Some(value)
    }

    /// Its addresses between two numbers, both included.
    fn between(&self, from: u128, to: u128) -> impl Iterator<Item = IpAddr> + use<> {
        let (gateway, v4) = (self.gateway, self.subnet.addr().is_ipv4());
        let (from, to) = (from.max(self.first), to.min(self.last));
        (from..=to).filter(move |value| Some(*value) != gateway).map(move |value| address(value, v4))
    }
}

/// The addresses of `ranges` after `last`, up to the end of the last range; all of them without one.
pub(super) fn onward(ranges: &[Range], last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let at =
        last.and_then(|last| Some((ranges.iter().position(|range| range.contains(last))?, number(last))));
    let (index, from) = at.map_or((0, 0), |(index, value)| (index, value.saturating_add(1)));
    let tail = ranges.get(index).map(|range| range.between(from, u128::MAX));
    let later = ranges.iter().skip(index + 1).flat_map(|range| range.between(0, u128::MAX));
    tail.into_iter().flatten().chain(later)
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn address(value: u128, v4: bool) -> IpAddr {
    match u32::try_from(value) {
        Ok(bits) if v4 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(value).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().unwrap())
    }

    fn all(ranges: &[Range], last: Option<&str>) -> String {
        let addrs = onward(ranges, last.map(|addr| addr.parse().unwrap())).take(9);
        addrs.map(|addr| addr.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn conventional_addresses_are_left_out() {
        let cases = [
            ("10.0.0.0/29", 6, "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"),
            ("10.0.0.4/30", 2, "10.0.0.5 10.0.0.6"),
            ("10.0.0.4/31", 2, "10.0.0.4 10.0.0.5"),
            ("10.0.0.4/32", 1, "10.0.0.4"),
            ("fd00::/126", 3, "fd00::1 fd00::2 fd00::3"),
            ("fd00::/127", 2, "fd00:: fd00::1"),
            ("fd00::7/128", 1, "fd00::7"),
        ];
        for (subnet, size, addrs) in cases {
            assert_eq!(
                (range(subnet).size(), all(&[range(subnet)], None).as_str()),
                (size, addrs),
                "{subnet}"
            );
        }
        assert_eq!(range("fd00::/64").size(), (1 << 64) - 1);
        assert_eq!(range("::/0").size(), u128::MAX);
    }

    #[test]
    fn parts_and_gateways() {
        let addr = |text: &str| Some(text.parse().unwrap());
        let part = range("10.0.0.0/24").within(addr("10.0.0.8"), addr("10.0.0.11")).without(addr("10.0.0.9"));
        assert_eq!((part.size(), all(&[part], None).as_str()), (3, "10.0.0.8 10.0.0.10 10.0.0.11"));
        assert_eq!(range("10.0.0.0/24").within(addr("10.0.0.9"), addr("10.0.0.8")).size(), 0);
        assert_eq!(range("10.0.0.0/24").without(addr("10.1.0.1")).size(), 254);
    }

    #[test]
    fn the_way_onward_begins_after_the_last_one() {
        let two = [range("10.0.0.0/30"), range("10.1.0.0/29")];
        assert_eq!(all(&two, Some("10.1.0.4")), "10.1.0.5 10.1.0.6");
        assert_eq!(
            all(&two, Some("10.0.0.1")),
            "10.0.0.2 10.1.0.1 10.1.0.2 10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6"
        );
        assert_eq!(all(&two[..1], Some("10.0.0.2")), "");
        assert_eq!(all(&two[..1], Some("10.7.0.2")), "10.0.0.1 10.0.0.2");
        assert_eq!(all(&[], Some("10.7.0.2")), "");
    }
}
