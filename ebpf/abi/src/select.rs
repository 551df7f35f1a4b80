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

/// Steps that [`find`] takes at most: slices of up to a million backends.
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

/// Finds a backend in an ordered slice of `count` elements. `at` reads one; `None` from it ends the search.
#[inline(always)]
pub fn find(count: u32, addr: &Addr, port_be: u16, at: impl Fn(u32) -> Option<(Addr, u16)>) -> Option<u32> {
    let [high, low] = halves(addr);
    let port = u16::from_be(port_be) as u64;
    // The first that is not before the one that is sought lies in `first..=first + left`.
    let (mut first, mut left) = (0_u32, count);
    for _ in 0..FIND_STEPS {
        if left == 0 {
            break;
        }
        let half = left / 2;
        let (found, found_port_be) = at(first.wrapping_add(half))?;
        let [found_high, found_low] = halves(&found);
        let before = borrows(u16::from_be(found_port_be) as u64, port, 0);
        let before = borrows(found_high, high, borrows(found_low, low, before)) as u32;
        first = first.wrapping_add(before.wrapping_mul(half + 1));
        left =
            half.wrapping_sub(before.wrapping_mul(half.wrapping_mul(2).wrapping_add(1).wrapping_sub(left)));
    }
    if first >= count {
        return None;
    }
    let (found, found_port_be) = at(first)?;
    (found.same(addr) && found_port_be == port_be).then_some(first)
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
        fn find_finds_exactly_what_is_there(
            slice in prop::collection::btree_set((any::<bool>(), 0..64_u8, 0..4_u16), 0..200),
            wanted in (any::<bool>(), 0..64_u8, 0..4_u16),
        ) {
            // BTreeSet order of (bool, u8, port) is the order of the addresses made from it.
            let addr = |(v6, low, _): (bool, u8, u16)| {
                let text = if v6 { std::format!("fd00::{low:x}") } else { std::format!("10.0.0.{low}") };
                Addr::from(text.parse::<IpAddr>().unwrap())
            };
            let elements: std::vec::Vec<_> = slice.iter().map(|e| (addr(*e), e.2.to_be())).collect();
            let found = find(elements.len() as u32, &addr(wanted), wanted.2.to_be(), |i| elements.get(i as usize).copied());
            prop_assert_eq!(found.is_some(), slice.contains(&wanted));
            if let Some(i) = found {
                prop_assert_eq!(elements[i as usize], (addr(wanted), wanted.2.to_be()));
            }
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
