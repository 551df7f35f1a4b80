//! What counts as one client where clients are not to starve each other.

use std::net::{IpAddr, Ipv6Addr};

/// The source that `client` belongs to: whoever has an IPv6 address has its /64.
pub(crate) fn source_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from(u128::from(addr) & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}
