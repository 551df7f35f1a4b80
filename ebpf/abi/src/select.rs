//! Choosing: a backend of a slice, a source port. Pure arithmetic, the same for sockets and packets.

use crate::{Addr, FlowTuple};

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b1);
    hash ^ (hash >> 15)
}

/// A hash of a connection: packets of one, and its retries, find the same backend while the slice stays, even when
/// the connection table has forgotten it.
#[inline(always)]
pub const fn flow_hash(flow: &FlowTuple) -> u32 {
    let mut hash = 0x5ea3_a1d5 ^ flow.proto;
    let mut i = 0;
    while i < 4 {
        hash = mix(hash, flow.src.words[i]);
        hash = mix(hash, flow.dst.words[i]);
        i += 1;
    }
    hash = mix(hash, (flow.src_port_be as u32) << 16 | flow.dst_port_be as u32);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0x85eb_ca6b);
    hash ^ (hash >> 16)
}

/// An index below `count`, evenly spread over `hash`.
#[inline(always)]
pub const fn index(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// Number of source ports that are tried.
pub const PORT_ATTEMPTS: u32 = 24;

/// The source port of an attempt: the client's own first if it may be used, then others of `min..=max`, spread by
/// `hash`. All in host byte order.
#[inline(always)]
pub const fn source_port(attempt: u32, own: u16, any_own: bool, hash: u32, min: u16, max: u16) -> u16 {
    if attempt == 0 && (any_own || (own >= min && own <= max)) {
        return own;
    }
    let span = (max as u32 + 1).wrapping_sub(min as u32);
    let spread = hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b1));
    min.wrapping_add(index(spread, span) as u16)
}

/// Steps that a [`Search`] takes at most: slices of up to a million backends.
pub const FIND_STEPS: u32 = 20;

/// 1 if `a - b - borrow` is below zero, else 0. In arithmetic alone: what branches, the verifier follows both ways, at
/// every step of a search.
#[inline(always)]
const fn borrows(a: u64, b: u64, borrow: u64) -> u64 {
    let difference = a.wrapping_sub(b).wrapping_sub(borrow);
    ((!a & b) | ((!a | b) & difference)) >> 63
}

/// The 16 bytes of an address as two numbers, the higher one first.
#[inline(always)]
fn halves(addr: &Addr) -> [u64; 2] {
    let [a, b, c, d] = addr.words;
    let join = |high: u32, low: u32| (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64;
    [join(a, b), join(c, d)]
}

/// A search in an ordered slice, one step at a time, so that a program may let the kernel repeat the step.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Search {
    /// What is sought: the halves of its address, and its port.
    high: u64,
    low: u64,
    port: u64,
    /// The first element that is not before what is sought lies in `first..=first + left`.
    first: u32,
    left: u32,
}

impl Search {
    /// Begins among `count` elements.
    #[inline(always)]
    pub fn new(count: u32, addr: &Addr, port_be: u16) -> Self {
        let [high, low] = halves(addr);
        Self { high, low, port: u16::from_be(port_be) as u64, first: 0, left: count }
    }

    /// The element to look at next; `None`: the search has ended.
    #[inline(always)]
    pub const fn next(&self) -> Option<u32> {
        if self.left == 0 { None } else { Some(self.first.wrapping_add(self.left / 2)) }
    }

    /// Goes on from the element that was looked at.
    #[inline(always)]
    pub fn step(&mut self, addr: &Addr, port_be: u16) {
        let half = self.left / 2;
        let [high, low] = halves(addr);
        let before = borrows(u16::from_be(port_be) as u64, self.port, 0);
        let before = borrows(high, self.high, borrows(low, self.low, before)) as u32;
        self.first = self.first.wrapping_add(before.wrapping_mul(half + 1));
        let odd = half.wrapping_mul(2).wrapping_add(1).wrapping_sub(self.left);
        self.left = half.wrapping_sub(before.wrapping_mul(odd));
    }

    /// Where the search ended: the only place where what is sought may stand, if that is within the slice.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn index_is_below_count(hash in any::<u32>(), count in 1..=u32::MAX) {
            prop_assert!(index(hash, count) < count);
        }

        #[test]
        fn source_ports_stay_in_range(
            attempt in 0..PORT_ATTEMPTS, own in any::<u16>(), hash in any::<u32>(), a in 1..=u16::MAX, b in 1..=u16::MAX,
        ) {
            let (min, max) = (a.min(b), a.max(b));
            let port = source_port(attempt, own, false, hash, min, max);
            prop_assert!((min..=max).contains(&port));
        }

        #[test]
        fn a_search_finds_exactly_what_is_there(
            slice in prop::collection::btree_set((any::<bool>(), 0..64_u8, 0..4_u16), 0..200),
            wanted in (any::<bool>(), 0..64_u8, 0..4_u16),
        ) {
            // BTreeSet order of (bool, u8, port) is the order of the addresses made from it.
            let addr = |(v6, low, _): (bool, u8, u16)| {
                let text = if v6 { std::format!("fd00::{low:x}") } else { std::format!("10.0.0.{low}") };
                Addr::from(text.parse::<IpAddr>().unwrap())
            };
            let elements: std::vec::Vec<_> = slice.iter().map(|e| (addr(*e), e.2.to_be())).collect();
            let mut search = Search::new(elements.len() as u32, &addr(wanted), wanted.2.to_be());
            let mut steps = 0;
            while let Some(index) = search.next() {
                let (addr, port_be) = &elements[index as usize];
                search.step(addr, *port_be);
                steps += 1;
            }
            prop_assert!(steps <= FIND_STEPS);
            let found = elements.get(search.place() as usize) == Some(&(addr(wanted), wanted.2.to_be()));
            prop_assert_eq!(found, slice.contains(&wanted));
        }
    }

    #[test]
    fn hashes_spread_over_a_small_slice() {
        let mut hits = [0_u32; 3];
        for port in 0..3000_u16 {
            let flow = FlowTuple { src_port_be: port.to_be(), proto: 6, ..FlowTuple::default() };
            hits[index(flow_hash(&flow), 3) as usize] += 1;
        }
        assert!(hits.iter().all(|hits| (850..1150).contains(hits)), "{hits:?}");
    }
}
