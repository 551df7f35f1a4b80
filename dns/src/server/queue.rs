//! Questions that wait while their socket's task is busy: the sources take turns, so that one that asks much does not starve
//! the others.
//!
//! **Invariant:** there are never more packets than the bound. Where one is too many, the oldest goes of the source with the
//! most: its client has given up on it first.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Packets by source.
#[derive(Debug)]
pub(super) struct Queue<T> {
    max: usize,
    count: usize,
    sources: HashMap<IpAddr, VecDeque<T>>,
    /// Sources that have packets, in the order of their turns.
    turns: VecDeque<IpAddr>,
    /// The source that had the most when it was last looked at.
    heaviest: Option<IpAddr>,
}

impl<T> Queue<T> {
    pub(super) fn new(max: usize) -> Self {
        let (sources, turns) = (HashMap::new(), VecDeque::new());
        Self { max: max.max(1), count: 0, sources, turns, heaviest: None }
    }

    /// Takes a packet in. How many had to go for it.
    pub(super) fn push(&mut self, source: IpAddr, packet: T) -> usize {
        let dropped = if self.count >= self.max { self.shed(source) } else { 0 };
        let packets = self.sources.entry(source).or_default();
        if packets.is_empty() {
            self.turns.push_back(source);
        }
        packets.push_back(packet);
        self.count += 1;
        if self.length(source) > self.heaviest.map_or(0, |heaviest| self.length(heaviest)) {
            self.heaviest = Some(source);
        }
        dropped
    }

    /// The oldest packet of the source whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let source = self.turns.pop_front()?;
        let packets = self.sources.get_mut(&source)?;
        let packet = packets.pop_front();
        if packets.is_empty() {
            self.sources.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.count -= usize::from(packet.is_some());
        packet
    }

    fn length(&self, source: IpAddr) -> usize {
        self.sources.get(&source).map_or(0, VecDeque::len)
    }

    fn shed(&mut self, pushing: IpAddr) -> usize {
        let known = self.heaviest.filter(|heaviest| self.length(*heaviest) > self.length(pushing));
        let own = Some(pushing).filter(|own| self.length(*own) > 0);
        let Some(source) = known.or(own).or_else(|| self.turns.front().copied()) else { return 0 };
        let Some(packets) = self.sources.get_mut(&source) else { return 0 };
        let shed = usize::from(packets.pop_front().is_some());
        if packets.is_empty() {
            self.sources.remove(&source);
            self.turns.retain(|turn| *turn != source);
        }
        self.count -= shed;
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
            assert_eq!(queue.push(source(1), n), 0);
        }
        assert_eq!(queue.push(source(2), 100), 1);
        assert_eq!(queue.push(source(3), 200), 1);
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [2, 100, 200, 3, 4]);
        assert_eq!(queue.count, 0);
    }

    proptest! {
        #[test]
        fn bounded_and_nothing_lost_unseen(steps in proptest::collection::vec((0_u8..6, any::<bool>()), 0..400)) {
            let mut queue = Queue::new(8);
            let (mut pushed, mut popped, mut shed) = (0, 0, 0);
            for (at, (n, push)) in steps.into_iter().enumerate() {
                if push { shed += queue.push(source(n), at); pushed += 1 } else { popped += usize::from(queue.pop().is_some()) }
                prop_assert!(queue.count <= 8);
            }
            let left = std::iter::from_fn(|| queue.pop()).count();
            prop_assert_eq!(pushed, popped + shed + left);
            prop_assert!(queue.sources.is_empty() && queue.turns.is_empty());
        }
    }
}
