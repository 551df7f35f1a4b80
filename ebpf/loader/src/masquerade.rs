//! What the programs are told about masquerading, in user terms: pods' packets to the world get an address of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use seaway_ebpf_abi as abi;

use crate::kernel_maps::Maps;
use crate::sys;
use crate::{ClusterNet, MapError};

/// A network that means something to masquerading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasqueradeNet {
    /// The network's address.
    pub addr: IpAddr,
    /// The prefix length in the address's own family.
    pub prefix: u8,
    /// Its addresses are those of this node's pods.
    pub pods: bool,
    /// Who is there sees a pod's own address.
    pub kept: bool,
}

/// The addresses that packets get which leave by an uplink. A family without one keeps its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MasqueradeSource {
    /// For IPv4.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerading {
    /// The most specific network that holds an address decides.
    pub nets: BTreeSet<MasqueradeNet>,
    /// By the indices of uplinks that run the programs. What leaves by other links is not masqueraded by them.
    pub sources: BTreeMap<u32, MasqueradeSource>,
}

impl MasqueradeNet {
    fn key(&self) -> abi::ClusterNetKey {
        ClusterNet::key_of(self.addr, self.prefix)
    }

    fn value(&self) -> u32 {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        flag(self.pods, abi::MASQUERADE_PODS) | flag(self.kept, abi::MASQUERADE_KEPT)
    }

    fn from_entry(key: &abi::ClusterNetKey, value: u32) -> Self {
        let (addr, prefix) = ClusterNet::net_of(key);
        Self {
            addr,
            prefix,
            pods: value & abi::MASQUERADE_PODS != 0,
            kept: value & abi::MASQUERADE_KEPT != 0,
        }
    }
}

impl MasqueradeSource {
    fn value(&self) -> abi::MasqueradeSource {
        abi::MasqueradeSource {
            v4: self.v4.map_or(abi::Addr::NONE, |addr| IpAddr::V4(addr).into()),
            v6: self.v6.map_or(abi::Addr::NONE, |addr| IpAddr::V6(addr).into()),
        }
    }

    fn from_value(value: &abi::MasqueradeSource) -> Self {
        let v4 = match IpAddr::from(value.v4) {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        };
        let v6 = match IpAddr::from(value.v6) {
            IpAddr::V6(addr) if !addr.is_unspecified() => Some(addr),
            IpAddr::V6(_) | IpAddr::V4(_) => None,
        };
        Self { v4, v6 }
    }
}

const NO_NET: abi::ClusterNetKey = abi::ClusterNetKey { prefix_len: 0, words: [0; 4] };

impl Maps {
    pub(crate) fn masquerading(&self) -> Result<Masquerading, MapError> {
        let nets = self.masquerade.all((NO_NET, 0_u32))?;
        let sources = self.sources.all((0_u32, abi::MasqueradeSource::default()))?;
        Ok(Masquerading {
            nets: nets.iter().map(|(key, value)| MasqueradeNet::from_entry(key, *value)).collect(),
            sources: sources
                .iter()
                .map(|(link, value)| (*link, MasqueradeSource::from_value(value)))
                .collect(),
        })
    }

    /// Networks come before links that masquerade by them, and go after them: in between nothing is masqueraded that is not
    /// to be.
    pub(crate) fn set_masquerading(&self, wanted: &Masquerading) -> Result<(), MapError> {
        let held = self.masquerading()?;
        let unwanted = held.sources.keys().filter(|link| !wanted.sources.contains_key(link));
        self.sources.remove(&unwanted.copied().collect::<Vec<_>>())?;
        let new: Vec<&MasqueradeNet> = wanted.nets.difference(&held.nets).collect();
        let (keys, values): (Vec<_>, Vec<_>) = new.iter().map(|net| (net.key(), net.value())).unzip();
        self.masquerade.put(&keys, &values)?;
        let kept: BTreeSet<(IpAddr, u8)> = wanted.nets.iter().map(|net| (net.addr, net.prefix)).collect();
        let gone = held.nets.iter().filter(|net| !kept.contains(&(net.addr, net.prefix)));
        self.masquerade.remove(&gone.map(MasqueradeNet::key).collect::<Vec<_>>())?;
        for (link, source) in &wanted.sources {
            if held.sources.get(link) != Some(source) {
                sys::update(self.sources.fd.as_fd(), link, &source.value())
                    .map_err(|e| self.sources.error("write", e))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn networks_round_trip(bits in any::<u32>(), prefix in 0..=32_u8, pods in any::<bool>(), kept in any::<bool>()) {
            let net = MasqueradeNet { addr: Ipv4Addr::from_bits(bits).into(), prefix, pods, kept };
            prop_assert_eq!(MasqueradeNet::from_entry(&net.key(), net.value()), net);
        }

        #[test]
        fn sources_round_trip(v4 in any::<Option<u32>>(), v6 in any::<Option<u64>>()) {
            let v6 = v6.map(|bits| Ipv6Addr::from_bits(u128::from(bits) << 64 | 1));
            let source = MasqueradeSource { v4: v4.map(Ipv4Addr::from_bits), v6 };
            prop_assert_eq!(MasqueradeSource::from_value(&source.value()), source);
        }
    }
}
