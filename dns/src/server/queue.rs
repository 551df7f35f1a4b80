//! Questions that wait while their socket's thread is busy: the sources take turns, so that one that asks much does not
//! starve the others.
//!
//! **Invariant:** there are never more packets than the bound. Where one is too many, the oldest goes of the source with the
//! most: its client has given up on it first. Packets lie in slots that are used again and again.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;

/// Longer packets do not wait: no client sends them.
const SLOT_BYTES: usize = 512;

/// A place for a packet.
#[derive(Debug)]
struct Slot<T> {
    bytes: [u8; SLOT_BYTES],
    length: usize,
    tag: T,
    /// The next packet of the same source.
    next: usize,
}

/// The packets of one source.
#[derive(Debug, Clone, Copy)]
struct Line {
    first: usize,
    last: usize,
    length: usize,
}

/// Packets by source, with what is to be known of each.
#[derive(Debug)]
pub(super) struct Queue<T> {
    max: usize,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    sources: HashMap<IpAddr, Line>,
    /// Sources that have packets, in the order of their turns.
    turns: VecDeque<IpAddr>,
    /// The source that had the most when it was last looked at.
    heaviest: Option<IpAddr>,
}

impl<T> Queue<T> {
    pub(super) fn new(max: usize) -> Self {
        let (slots, free) = (Vec::new(), Vec::new());
        let (sources, turns) = (HashMap::new(), VecDeque::new());
        Self { max: max.max(1), slots, free, sources, turns, heaviest: None }
    }

    /// Takes a packet in. How many had to go for it, be it this one, which is too long.
    pub(super) fn push(&mut self, source: IpAddr, packet: &[u8], tag: T) -> usize {
        let length = packet.len();
        if length > SLOT_BYTES {
            return 1;
        }
        let dropped = if self.count() >= self.max { self.shed(source) } else { 0 };
        let place = if let Some(place) = self.free.pop() {
            // What stood there beyond is nobody's any more.
            (self.slots[place].length, self.slots[place].tag) = (length, tag);
            place
        } else {
            self.slots.push(Slot { bytes: [0; SLOT_BYTES], length, tag, next: usize::MAX });
            self.slots.len() - 1
        };
        self.slots[place].bytes[..length].copy_from_slice(packet);
        let line = self.sources.entry(source).or_insert(Line { first: place, last: place, length: 0 });
        if line.length == 0 {
            self.turns.push_back(source);
        } else {
            self.slots[line.last].next = place;
            line.last = place;
        }
        line.length += 1;
        if line.length > self.heaviest.map_or(0, |heaviest| self.length(heaviest)) {
            self.heaviest = Some(source);
        }
        dropped
    }

    /// The oldest packet of the source whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(&[u8], &T)> {
        let source = self.turns.pop_front()?;
        let place = self.take_first(source)?;
        if self.length(source) > 0 {
            self.turns.push_back(source);
        }
        let slot = &self.slots[place];
        Some((&slot.bytes[..slot.length], &slot.tag))
    }

    /// Whether more than half of the places are taken.
    pub(super) fn is_behind(&self) -> bool {
        self.count() > self.max / 2
    }

    /// The sources with the most packets, at most `count`: those that have half as many as the first one, or more.
    pub(super) fn greediest(&self, count: usize) -> Vec<IpAddr> {
        let mut lines: Vec<(usize, IpAddr)> =
            self.sources.iter().map(|(source, line)| (line.length, *source)).collect();
        lines.sort_unstable_by(|a, b| b.cmp(a));
        let most = lines.first().map_or(0, |line| line.0);
        lines.into_iter().take(count).take_while(|line| 2 * line.0 >= most).map(|line| line.1).collect()
    }

    fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn length(&self, source: IpAddr) -> usize {
        self.sources.get(&source).map_or(0, |line| line.length)
    }

    /// Frees the slot of a source's oldest packet; a source without packets is forgotten.
    fn take_first(&mut self, source: IpAddr) -> Option<usize> {
        let line = self.sources.get_mut(&source)?;
        let place = line.first;
        line.first = self.slots[place].next;
        line.length -= 1;
        if line.length == 0 {
            self.sources.remove(&source);
        }
        self.free.push(place);
        Some(place)
    }

    fn shed(&mut self, pushing: IpAddr) -> usize {
        let known = self.heaviest.filter(|heaviest| self.length(*heaviest) > self.length(pushing));
        let own = Some(pushing).filter(|own| self.length(*own) > 0);
        let Some(source) = known.or(own).or_else(|| self.turns.front().copied()) else { return 0 };
        let shed = usize::from(self.take_first(source).is_some());
        if self.length(source) == 0 {
            self.turns.retain(|turn| *turn != source);
        }
        shed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn sources_take_turns_and_the_greedy_one_loses_its_oldest() {
        let mut queue = Queue::new(5);
        for n in 0..5 {
            assert_eq!(queue.push(source(1), &[n], n), 0);
        }
        assert_eq!(queue.push(source(2), &[100], 100), 1);
        assert_eq!(queue.push(source(3), &[200], 200), 1);
        assert_eq!(queue.greediest(2), [source(1)]);
        assert!(queue.is_behind());
        let mut order = Vec::new();
        while let Some((packet, tag)) = queue.pop() {
            assert_eq!(packet, [*tag]);
            order.push(*tag);
        }
        assert_eq!(order, [2, 100, 200, 3, 4]);
        assert!(queue.greediest(2).is_empty());
        assert_eq!(queue.count(), 0);
        assert_eq!(queue.push(source(1), &[0; SLOT_BYTES + 1], 0), 1, "too long to wait");
        assert_eq!(queue.count(), 0);
    }

    proptest! {
        #[test]
        fn bounded_and_nothing_lost_unseen(steps in proptest::collection::vec((0_u8..6, any::<bool>()), 0..400)) {
            let mut queue = Queue::new(8);
            let (mut pushed, mut popped, mut shed) = (0, 0, 0);
            for (at, (n, push)) in steps.into_iter().enumerate() {
                let octets = at.to_be_bytes();
                if push {
                    shed += queue.push(source(n), &octets, at);
                    pushed += 1;
                } else if let Some((packet, tag)) = queue.pop() {
                    prop_assert_eq!(packet, &tag.to_be_bytes()[..]);
                    popped += 1;
                }
                prop_assert!(queue.count() <= 8 && queue.slots.len() <= 8);
            }
            let mut left = 0;
            while queue.pop().is_some() {
                left += 1;
            }
            prop_assert_eq!(pushed, popped + shed + left);
            prop_assert!(queue.sources.is_empty() && queue.turns.is_empty());
        }
    }
}
