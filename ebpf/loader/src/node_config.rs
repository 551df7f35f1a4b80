//! What user space tells the programs about their node.

use std::net::IpAddr;

use seaway_ebpf_abi as abi;

/// What the programs have to know about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's IPv4 address that remote backends see. Without one, IPv4 services have no remote backends.
    pub node_v4: Option<std::net::Ipv4Addr>,
    /// The same for IPv6.
    pub node_v6: Option<std::net::Ipv6Addr>,
    /// Ports of source NAT. Keep NodePorts, reserved ports and the node's ephemeral ports
    /// (`net.ipv4.ip_local_port_range`) out of it.
    pub snat_ports: std::ops::RangeInclusive<u16>,
    /// Cookie of the node's network namespace ([`crate::netns_cookie`]); 0: no NodePort is protected from binds, and
    /// host-only services are served to nobody.
    pub netns_cookie: u64,
    /// The least network that holds all IPv4 pod subnets ([`crate::ServiceMaps::cluster_nets`]): what is not in it is no
    /// pod's, without a look-up.
    pub pods_v4: Option<(std::net::Ipv4Addr, u8)>,
    /// The same for IPv6.
    pub pods_v6: Option<(std::net::Ipv6Addr, u8)>,
    /// Count connections, packets and bytes per service and backend ([`crate::ServiceMaps::traffic`]).
    pub stats: bool,
    /// Another mode served until now: TCP connections of which the programs have not seen the beginning are left to it.
    pub taking_over: bool,
    /// Packets to and from pods whose links run the programs go past the node's stack, and its firewall: between pods,
    /// and from and to clients outside.
    pub hand_over: bool,
    /// Answers to refused packets (RST, ICMP) per second and CPU; 0: ten thousand.
    pub rejects_per_s: u32,
    /// The UDP port of the tunnel between nodes: what the node itself sends to it or gets there is nobody's but the
    /// tunnel's.
    pub tunnel_port: Option<u16>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            node_v4: None,
            node_v6: None,
            snat_ports: 1024..=29_999,
            netns_cookie: 0,
            pods_v4: None,
            pods_v6: None,
            stats: false,
            taking_over: false,
            hand_over: false,
            rejects_per_s: 0,
            tunnel_port: None,
        }
    }
}

/// A network and its mask, in the programs' form.
fn network(net: Option<(IpAddr, u8)>) -> (abi::Addr, abi::Addr) {
    let Some((addr, prefix)) = net.filter(|(_, prefix)| *prefix > 0) else {
        return (abi::Addr::NONE, abi::Addr::NONE);
    };
    let ones = u32::from(prefix) + if addr.is_ipv4() { 96 } else { 0 };
    let mask = u128::MAX.checked_shl(128 - ones.min(128)).unwrap_or(u128::MAX);
    let mask = abi::Addr::from(IpAddr::V6(mask.into()));
    let mut net = abi::Addr::from(addr);
    for (word, mask) in net.words.iter_mut().zip(mask.words) {
        *word &= mask;
    }
    (net, mask)
}

/// The prefix of a mask. `None`: there is no network.
fn prefix(mask: abi::Addr, v4: bool) -> Option<u8> {
    let ones: u32 = mask.words.iter().map(|word| word.count_ones()).sum();
    u8::try_from(ones.saturating_sub(if v4 { 96 } else { 0 })).ok().filter(|prefix| *prefix > 0)
}

impl NodeConfig {
    pub(crate) fn value(&self, csum_flags_v6: u32) -> abi::Config {
        let (pods_v4, pods_v4_mask) = network(self.pods_v4.map(|(addr, prefix)| (addr.into(), prefix)));
        let (pods_v6, pods_v6_mask) = network(self.pods_v6.map(|(addr, prefix)| (addr.into(), prefix)));
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        abi::Config {
            node_v4: self.node_v4.map_or(abi::Addr::NONE, |addr| IpAddr::V4(addr).into()),
            node_v6: self.node_v6.map_or(abi::Addr::NONE, |addr| IpAddr::V6(addr).into()),
            pods_v4,
            pods_v4_mask,
            pods_v6,
            pods_v6_mask,
            netns_cookie: self.netns_cookie,
            snat_port_min: *self.snat_ports.start(),
            snat_port_max: *self.snat_ports.end(),
            csum_flags_v6,
            flags: flag(self.stats, abi::CONFIG_STATS)
                | flag(self.taking_over, abi::CONFIG_TAKING_OVER)
                | flag(self.hand_over, abi::CONFIG_HAND_OVER),
            rejects_per_s: self.rejects_per_s,
            tunnel_port_be: self.tunnel_port.map_or(0, u16::to_be),
            ..abi::Config::default()
        }
    }

    pub(crate) fn from_value(value: &abi::Config) -> Self {
        let v4 = |addr: abi::Addr| match addr.into() {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        };
        let v6 = |addr: abi::Addr| match addr.into() {
            IpAddr::V6(addr) if !addr.is_unspecified() => Some(addr),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
        Self {
            node_v4: v4(value.node_v4),
            node_v6: v6(value.node_v6),
            snat_ports: value.snat_port_min..=value.snat_port_max,
            netns_cookie: value.netns_cookie,
            pods_v4: v4(value.pods_v4).zip(prefix(value.pods_v4_mask, true)),
            pods_v6: v6(value.pods_v6).zip(prefix(value.pods_v6_mask, false)),
            stats: value.flags & abi::CONFIG_STATS != 0,
            taking_over: value.flags & abi::CONFIG_TAKING_OVER != 0,
            hand_over: value.flags & abi::CONFIG_HAND_OVER != 0,
            rejects_per_s: value.rejects_per_s,
            tunnel_port: Some(u16::from_be(value.tunnel_port_be)).filter(|port| *port != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> NodeConfig {
        NodeConfig {
            node_v4: Some([192, 168, 0, 1].into()),
            node_v6: Some("fd01::1".parse().unwrap()),
            snat_ports: 1024..=2000,
            netns_cookie: 9,
            pods_v4: Some(([10, 244, 0, 0].into(), 16)),
            pods_v6: Some(("fd00:10:244::".parse().unwrap(), 56)),
            stats: true,
            taking_over: true,
            hand_over: true,
            rejects_per_s: 77,
            tunnel_port: Some(8472),
        }
    }

    #[test]
    fn configurations_round_trip() {
        for config in [full(), NodeConfig::default()] {
            assert_eq!(NodeConfig::from_value(&config.value(0)), config);
        }
    }

    #[test]
    fn pods_are_told_by_their_network() {
        let (with, without) = (full().value(0), NodeConfig::default().value(0));
        let cases = [
            ("10.244.0.1", true),
            ("10.244.255.1", true),
            ("10.245.0.1", false),
            ("fd00:10:244:5::1", true),
            ("fd00:10:245::1", false),
        ];
        for (addr, expected) in cases {
            let addr = addr.parse::<IpAddr>().unwrap().into();
            assert_eq!((with.may_be_pod(&addr), without.may_be_pod(&addr)), (expected, false), "{addr:?}");
        }
    }
}
