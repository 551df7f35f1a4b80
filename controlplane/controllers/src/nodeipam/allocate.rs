//! Cuts a network into equal parts and finds one that overlaps nothing. Pure.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// More parts than this are not used: nobody has that many nodes, and the search stays short.
const MAX_PARTS: u64 = 1 << 20;

/// One cluster CIDR.
#[derive(Debug)]
pub(super) struct Allocator {
    cidr: IpNet,
    mask: u8,
    parts: u64,
    /// Where the search starts: behind what was given last, so that what a node gave back rests for a while.
    next: u64,
}

impl Allocator {
    /// Cuts `cidr` into networks of `/mask`; nothing if they would not fit.
    pub(super) fn new(cidr: IpNet, mask: u8) -> Option<Self> {
        if mask < cidr.prefix_len() || mask > cidr.max_prefix_len() {
            return None;
        }
        let bits = u32::from(mask - cidr.prefix_len());
        let parts = 1_u64.checked_shl(bits).unwrap_or(MAX_PARTS).min(MAX_PARTS);
        Some(Self { cidr: cidr.trunc(), mask, parts, next: 0 })
    }

    /// A part that overlaps none of `taken`.
    pub(super) fn choose(&mut self, taken: &[IpNet]) -> Option<IpNet> {
        let exact: HashSet<IpNet> = taken.iter().map(IpNet::trunc).collect();
        let odd: Vec<&IpNet> = taken.iter().filter(|net| net.prefix_len() != self.mask).collect();
        let free = |part: &IpNet| {
            let overlaps = |net: &&&IpNet| net.contains(part) || part.contains(**net);
            !exact.contains(part) && !odd.iter().any(|net| overlaps(&net))
        };
        for step in 0..self.parts {
            let index = (self.next + step) % self.parts;
            if let Some(part) = self.part(index).filter(free) {
                self.next = (index + 1) % self.parts;
                return Some(part);
            }
        }
        None
    }

    fn part(&self, index: u64) -> Option<IpNet> {
        let address = match self.cidr.network() {
            IpAddr::V4(base) => {
                let shift = 32_u32.checked_sub(u32::from(self.mask))?;
                let offset = u32::try_from(index).ok()?.checked_shl(shift).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() | offset))
            }
            IpAddr::V6(base) => {
                let shift = 128_u32.checked_sub(u32::from(self.mask))?;
                let offset = u128::from(index).checked_shl(shift).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() | offset))
            }
        };
        IpNet::new(address, self.mask).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn parts_follow_each_other_and_come_back_last() {
        let mut allocator = Allocator::new(net("10.244.0.0/22"), 24).unwrap();
        let mut taken = Vec::new();
        for expected in ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"] {
            let part = allocator.choose(&taken).unwrap();
            assert_eq!(part, net(expected));
            taken.push(part);
        }
        taken.remove(0);
        assert_eq!(allocator.choose(&taken), Some(net("10.244.3.0/24")));
        taken.push(net("10.244.3.0/24"));
        assert_eq!(allocator.choose(&taken), Some(net("10.244.0.0/24")));
        taken.push(net("10.244.0.0/24"));
        assert_eq!(allocator.choose(&taken), None);
    }

    #[test]
    fn parts_of_other_sizes_are_respected() {
        let mut allocator = Allocator::new(net("fd00:10:244::/56"), 64).unwrap();
        let taken = [net("fd00:10:244::/63"), net("fd00:10:244:2:8000::/65"), net("10.0.0.0/8")];
        assert_eq!(allocator.choose(&taken), Some(net("fd00:10:244:3::/64")));
    }

    #[test]
    fn masks_that_do_not_fit_are_refused() {
        assert!(Allocator::new(net("10.244.0.0/16"), 12).is_none());
        assert!(Allocator::new(net("10.244.0.0/16"), 33).is_none());
        assert!(Allocator::new(net("10.244.0.0/16"), 16).is_some());
        assert!(Allocator::new(net("0.0.0.0/0"), 32).is_some());
        assert!(Allocator::new(net("::/0"), 128).is_some());
    }

    proptest! {
        #[test]
        fn no_part_is_given_twice(script in prop::collection::vec(any::<Option<prop::sample::Index>>(), 1..80)) {
            let mut allocator = Allocator::new(net("10.0.0.0/20"), 24).unwrap();
            let mut taken: Vec<IpNet> = Vec::new();
            for step in script {
                match step {
                    Some(index) if !taken.is_empty() => { taken.remove(index.index(taken.len())); }
                    _ => if let Some(part) = allocator.choose(&taken) {
                        prop_assert!(!taken.contains(&part) && net("10.0.0.0/20").contains(&part));
                        taken.push(part);
                    } else {
                        prop_assert_eq!(taken.len(), 16);
                    },
                }
            }
        }
    }
}
