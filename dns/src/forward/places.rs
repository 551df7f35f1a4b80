//! Places for questions that wait for an upstream: bounded, and not to be taken by one client from the others.
//!
//! **Invariant:** never more are held than there are. A source gets one as long as it holds less than so many times what is
//! free: one that asks without end leaves a part of them to the others, and each of those a part of the rest. One that is
//! alone still has most of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::source::source_of;

/// How many times what is free a source may hold: one alone, four of five places.
const GREED: usize = 4;

/// All places of an upstream's askers.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    count: usize,
    sources: HashMap<IpAddr, usize>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Option<IpAddr>,
}

impl Places {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, held: Mutex::default() })
    }

    /// A place for a question of `client`, or of our own; `None` where there are too many.
    pub(super) fn take(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Place> {
        let source = client.map(source_of);
        let mut held = self.lock();
        let free = self.max.saturating_sub(held.count);
        let own = source.and_then(|source| held.sources.get(&source)).copied().unwrap_or(0);
        if own >= free.saturating_mul(GREED) {
            return None;
        }
        held.count += 1;
        if let Some(source) = source {
            held.sources.insert(source, own + 1);
        }
        drop(held);
        Some(Place { places: Arc::clone(self), source })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        held.count -= 1;
        let Some(source) = self.source else { return };
        match held.sources.get_mut(&source) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(held.sources.remove(&source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn a_greedy_source_leaves_places_to_the_others() {
        let places = Places::new(100);
        let take_all = |n| std::iter::from_fn(|| places.take(Some(client(n)))).collect::<Vec<_>>();
        let (first, second, third) = (take_all(1), take_all(2), take_all(3));
        assert_eq!((first.len(), second.len(), third.len()), (80, 16, 4));
        assert!(places.take(Some(client(4))).is_none() && places.take(None).is_none());
        drop(first);
        assert!(places.take(Some(client(4))).is_some());
        drop((second, third));
        assert!(places.lock().sources.is_empty());
        // However few there are, a source alone has one.
        assert!(Places::new(1).take(Some(client(1))).is_some());
        assert!(Places::new(0).take(Some(client(1))).is_none());
    }

    proptest! {
        #[test]
        fn never_more_than_there_are(steps in proptest::collection::vec((0_u8..5, any::<prop::sample::Index>(), any::<bool>()), 0..300)) {
            let (places, mut taken) = (Places::new(12), Vec::new());
            for (n, which, give) in steps {
                if give && !taken.is_empty() {
                    drop(taken.swap_remove(which.index(taken.len())));
                } else {
                    taken.extend(places.take((n > 0).then(|| client(n))));
                }
                let held = places.lock();
                prop_assert_eq!(held.count, taken.len());
                prop_assert!(held.count <= 12 && held.sources.values().sum::<usize>() <= held.count);
            }
        }
    }
}
