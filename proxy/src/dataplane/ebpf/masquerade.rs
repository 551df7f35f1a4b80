//! Masquerading as plans have it, and as the programs' maps do.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use seaway_ebpf_loader as loader;
use seaway_model::Family;

use crate::plan::{MasqueradeRole, Masquerading};

/// For the maps.
pub(super) fn entries(wanted: &Masquerading) -> loader::Masquerading {
    let net = |(net, role): (&IpNet, &MasqueradeRole)| loader::MasqueradeNet {
        addr: net.network(),
        prefix: net.prefix_len(),
        pods: role.pods,
        kept: role.kept,
    };
    let mut sources: BTreeMap<u32, loader::MasqueradeSource> = BTreeMap::new();
    for ((link, _), addr) in &wanted.sources {
        let source = sources.entry(*link).or_default();
        match addr {
            IpAddr::V4(addr) => source.v4 = Some(*addr),
            IpAddr::V6(addr) => source.v6 = Some(*addr),
        }
    }
    loader::Masquerading { nets: wanted.nets.iter().map(net).collect(), sources }
}

/// From the maps.
pub(super) fn read(held: &loader::Masquerading) -> Masquerading {
    let net = |net: &loader::MasqueradeNet| {
        let role = MasqueradeRole { pods: net.pods, kept: net.kept };
        Some((IpNet::new(net.addr, net.prefix).ok()?, role))
    };
    let mut sources = BTreeMap::new();
    for (link, source) in &held.sources {
        sources.extend(source.v4.map(|addr| ((*link, Family::V4), IpAddr::V4(addr))));
        sources.extend(source.v6.map(|addr| ((*link, Family::V6), IpAddr::V6(addr))));
    }
    Masquerading { nets: Arc::new(held.nets.iter().filter_map(net).collect()), sources }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let role = |pods, kept| MasqueradeRole { pods, kept };
        let nets = [
            ("10.244.1.0/24", role(true, true)),
            ("10.244.0.0/16", role(false, true)),
            ("fe80::/10", role(false, true)),
        ];
        let nets = nets.map(|(net, role)| (net.parse().unwrap(), role));
        let sources = [(2, "192.0.2.1"), (2, "2001:db8::1"), (3, "2001:db8::2")];
        let sources = sources.map(|(link, addr)| {
            let addr: IpAddr = addr.parse().unwrap();
            ((link, Family::of(addr)), addr)
        });
        let wanted = Masquerading { nets: Arc::new(nets.into()), sources: sources.into() };
        assert_eq!(read(&entries(&wanted)), wanted);
    }
}
