//! Who may use which part of the backend array.
//!
//! **Invariant:** a slice that programs may still be reading is not written. A freed slice rests for a grace period,
//! and the search for room goes round, so that the one that was freed last is used again last.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a freed slice rests. Programs hold one for microseconds.
const GRACE: Duration = Duration::from_millis(500);

/// Room in the backend array.
#[derive(Debug, Clone)]
pub(super) struct Allocator {
    capacity: u32,
    /// Free ranges: base -> length. Neighbours are one range.
    free: BTreeMap<u32, u32>,
    /// Where the next search begins.
    cursor: u32,
    resting: VecDeque<Resting>,
}

#[derive(Debug, Clone, Copy)]
struct Resting {
    since: Instant,
    base: u32,
    len: u32,
}

impl Allocator {
    pub(super) fn new(capacity: u32) -> Self {
        let free = BTreeMap::from_iter((capacity > 0).then_some((0, capacity)));
        Self { capacity, free, cursor: 0, resting: VecDeque::new() }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// There is more room now.
    pub(super) fn extend(&mut self, capacity: u32) {
        if capacity > self.capacity {
            self.insert_free(self.capacity, capacity - self.capacity);
            self.capacity = capacity;
        }
    }

    /// Elements that are not free.
    pub(super) fn used(&self) -> u32 {
        self.capacity - self.free.values().sum::<u32>()
    }

    /// Takes `base..base + len`, which must be free: for slices found in the kernel.
    pub(super) fn reserve(&mut self, base: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some((&start, &room)) = self.free.range(..=base).next_back() else { return false };
        let Some(end) = base.checked_add(len).filter(|end| *end <= start + room) else { return false };
        self.free.remove(&start);
        if base > start {
            self.free.insert(start, base - start);
        }
        if start + room > end {
            self.free.insert(end, start + room - end);
        }
        true
    }

    /// Room for `len` elements.
    pub(super) fn allocate(&mut self, len: u32, now: Instant) -> Option<u32> {
        self.wake(now, GRACE);
        let base = self.find(len).or_else(|| {
            // Better a slice that has rested for less than its due than no service.
            self.wake(now, Duration::ZERO);
            self.find(len)
        })?;
        let reserved = self.reserve(base, len);
        debug_assert!(reserved, "what was found free can be reserved");
        self.cursor = base + len;
        Some(base)
    }

    /// Gives a slice back.
    pub(super) fn release(&mut self, base: u32, len: u32, now: Instant) {
        if len > 0 {
            self.resting.push_back(Resting { since: now, base, len });
        }
    }

    fn find(&self, len: u32) -> Option<u32> {
        let fits = |(base, room): (&u32, &u32)| (*room >= len).then_some(*base);
        let around_cursor = self.free.range(..=self.cursor).next_back().and_then(|(base, room)| {
            let end = base + room;
            (end > self.cursor && end - self.cursor >= len).then_some(self.cursor)
        });
        around_cursor
            .or_else(|| self.free.range(self.cursor..).find_map(fits))
            .or_else(|| self.free.iter().find_map(fits))
    }

    fn wake(&mut self, now: Instant, grace: Duration) {
        while let Some(first) = self.resting.front().copied() {
            if now.saturating_duration_since(first.since) < grace {
                return;
            }
            self.resting.pop_front();
            self.insert_free(first.base, first.len);
        }
    }

    fn insert_free(&mut self, mut base: u32, mut len: u32) {
        if let Some((&before, &room)) = self.free.range(..base).next_back()
            && before + room == base
        {
            self.free.remove(&before);
            (base, len) = (before, room + len);
        }
        if let Some(room) = self.free.remove(&(base + len)) {
            len += room;
        }
        self.free.insert(base, len);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_freed_slice_rests_before_it_is_used_again() {
        let start = Instant::now();
        let mut allocator = Allocator::new(8);
        let first = allocator.allocate(4, start).unwrap();
        allocator.release(first, 4, start);
        let second = allocator.allocate(4, start).unwrap();
        assert_ne!(first, second);
        assert_eq!(allocator.allocate(4, start + GRACE), Some(first));
    }

    #[test]
    fn more_room_joins_what_is_free() {
        let now = Instant::now();
        let mut allocator = Allocator::new(4);
        assert_eq!(allocator.allocate(2, now), Some(0));
        allocator.extend(8);
        assert_eq!(allocator.allocate(6, now), Some(2));
        assert_eq!(allocator.used(), 8);
        allocator.extend(4);
        assert_eq!(allocator.capacity(), 8);
    }

    #[test]
    fn full_is_full() {
        let now = Instant::now();
        let mut allocator = Allocator::new(4);
        assert_eq!(allocator.allocate(4, now), Some(0));
        assert_eq!(allocator.allocate(1, now), None);
        assert_eq!(allocator.used(), 4);
        assert!(!allocator.reserve(0, 1));
    }

    proptest! {
        /// Slices never overlap, and when all are given back the array is one free range again.
        #[test]
        fn slices_never_overlap(steps in prop::collection::vec((any::<bool>(), 1..6_u32), 1..200)) {
            let mut now = Instant::now();
            let mut allocator = Allocator::new(64);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, len) in steps {
                now += Duration::from_millis(100);
                if take {
                    if let Some(base) = allocator.allocate(len, now) {
                        held.push((base, len));
                    }
                } else if !held.is_empty() {
                    let (base, len) = held.remove(len as usize % held.len());
                    allocator.release(base, len, now);
                }
                let all: Vec<u32> = held.iter().flat_map(|(base, len)| *base..base + len).collect();
                let distinct: BTreeSet<u32> = all.iter().copied().collect();
                prop_assert_eq!(all.len(), distinct.len());
                prop_assert!(all.iter().all(|index| *index < 64));
            }
            for (base, len) in held {
                allocator.release(base, len, now);
            }
            prop_assert_eq!(allocator.allocate(64, now + GRACE), Some(0));
        }
    }
}
