//! Maglev tables (Eisenbud and others, 2016): consistent hashing, so that one backend that goes or comes moves hardly
//! any connection of the others, on every node alike and without any memory of connections.
//!
//! Every backend has an endless sequence of slots, from its address and port alone; they take turns to claim the
//! first slot in theirs that is free. (The sequence is a pseudo-random one. The paper's, which adds a constant step,
//! moves a third of all flows for some unlucky pairs of steps.) A table has at least a hundred slots per backend. Its
//! size changes with the number of backends only in steps of ten, for another size moves everything.

use std::net::IpAddr;

/// Sizes of tables, primes, and up to how many backends each is for.
const SIZES: [(u32, usize); 3] = [(16_381, 100), (131_071, 1_000), (1_048_573, BACKENDS_MAX)];

/// Of more backends than these there is no table.
pub const BACKENDS_MAX: usize = 10_000;

/// The number of slots for so many backends. `None`: no table is needed (one backend or none), or they are too many
/// for one (over ten thousand); backends are then chosen by hash alone.
pub fn table_size(backends: usize) -> Option<u32> {
    if backends < 2 {
        return None;
    }
    SIZES.into_iter().find(|(_, most)| backends <= *most).map(|(size, _)| size)
}

/// The table of a slice, whose backends are in ascending order: positions in the slice. Empty: see [`table_size`].
pub fn table(backends: &[(IpAddr, u16)]) -> Vec<u16> {
    let Some(size) = table_size(backends.len()) else { return Vec::new() };
    let mut turns: Vec<Turn> = backends.iter().map(|(addr, port)| Turn::new(*addr, *port)).collect();
    let mut table = vec![u16::MAX; size as usize];
    let mut free = size;
    loop {
        for (position, turn) in turns.iter_mut().enumerate() {
            if free == 0 {
                return table;
            }
            let slot = turn.claim(&table);
            table[slot] = u16::try_from(position).unwrap_or(u16::MAX);
            free -= 1;
        }
    }
}

/// A backend's way through its sequence.
struct Turn(u64);

impl Turn {
    fn new(addr: IpAddr, port: u16) -> Self {
        let bits = match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let [high, low] =
            [bits >> 64, bits & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
        Self(mix(mix(mix(low) ^ high) ^ u64::from(port)))
    }

    /// The first free slot; there must be one.
    fn claim(&mut self, table: &[u16]) -> usize {
        loop {
            self.0 = self.0.wrapping_add(STEP);
            let slot = usize::try_from(mix(self.0) % table.len() as u64).unwrap_or(0);
            if table[slot] == u16::MAX {
                return slot;
            }
        }
    }
}

/// What one element of a sequence is after the other, before it is mixed.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(STEP);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn backends(numbers: &BTreeSet<u16>) -> Vec<(IpAddr, u16)> {
        let addr = |n: &u16| IpAddr::from([10, 244, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
        numbers.iter().map(|n| (addr(n), 8080)).collect()
    }

    #[test]
    fn sizes_are_primes_with_a_hundred_slots_per_backend() {
        for (size, most) in SIZES {
            assert!((2..1_025).all(|divisor| size % divisor != 0), "{size}");
            assert!(size as usize >= 100 * most, "{size}");
        }
        assert_eq!((table_size(0), table_size(1)), (None, None));
        for (count, size) in [(2, 16_381), (100, 16_381), (101, 131_071), (10_000, 1_048_573)] {
            assert_eq!(table_size(count), Some(size));
        }
        assert_eq!(table_size(10_001), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What goes takes its own flows along, and at most 2 % of the others'.
        #[test]
        fn removing_one_backend_moves_hardly_any_flow_of_the_others(
            numbers in prop::collection::btree_set(any::<u16>(), 3..=100),
            gone in any::<prop::sample::Index>(),
        ) {
            let before = backends(&numbers);
            let gone = gone.index(before.len());
            let mut after = before.clone();
            after.remove(gone);
            let (first, second) = (table(&before), table(&after));
            let others = first.iter().filter(|position| usize::from(**position) != gone).count();
            let moved = first.iter().zip(&second).filter(|(a, b)| {
                usize::from(**a) != gone && before[usize::from(**a)] != after[usize::from(**b)]
            }).count();
            prop_assert!(moved * 100 <= others * 2, "{moved} of {others} moved, {} backends", before.len());
        }

        /// Everyone has the same share, give or take one slot.
        #[test]
        fn shares_are_even(numbers in prop::collection::btree_set(any::<u16>(), 2..=100)) {
            let backends = backends(&numbers);
            let mut shares = vec![0_u32; backends.len()];
            for position in table(&backends) {
                shares[usize::from(position)] += 1;
            }
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{least}..{most}");
        }
    }
}
