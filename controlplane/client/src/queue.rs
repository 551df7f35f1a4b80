//! A queue of keys that are due: each key is handed out once however often it was added, never to two workers at a
//! time, and again when it was added while being worked on.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// A keyed, deduplicating queue with delays and a back-off per key.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

impl<K: Clone + Ord + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self { state: Mutex::new(State::default()), wake: Notify::new() }
    }
}

impl<K: Clone + Ord + Hash> Queue<K> {
    /// Makes `key` due now.
    pub fn add(&self, key: K) {
        if self.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Makes `key` due after `delay`, unless it is due before.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.lock().add_at(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Makes `key` due again after a failure, later each time.
    pub fn retry(&self, key: K) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let delay = (FIRST_RETRY * 2_u32.saturating_pow(*failures)).min(LONGEST_RETRY);
        *failures = failures.saturating_add(1).min(20);
        state.add_at(key, Instant::now() + delay);
        drop(state);
        self.wake.notify_one();
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// The next key that is due. The caller says [`Queue::done`] when it has worked on it.
    pub async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.lock();
                if let Some(key) = state.take(Instant::now()) {
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.timers.first().map(|(at, _)| *at)
            };
            match due {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// The worker is done with `key`; if it became due meanwhile it is handed out again.
    pub fn done(&self, key: &K) {
        if self.lock().done(key) {
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    active: HashSet<K>,
    again: HashSet<K>,
    timers: BTreeSet<(Instant, K)>,
    timer_of: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            active: HashSet::new(),
            again: HashSet::new(),
            timers: BTreeSet::new(),
            timer_of: HashMap::new(),
            failures: HashMap::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> State<K> {
    fn add(&mut self, key: K) -> bool {
        if self.active.contains(&key) {
            self.again.insert(key);
            return false;
        }
        let new = self.queued.insert(key.clone());
        if new {
            self.ready.push_back(key);
        }
        new
    }

    fn add_at(&mut self, key: K, at: Instant) {
        match self.timer_of.get(&key) {
            Some(&earlier) if earlier <= at => return,
            Some(&later) => {
                self.timers.remove(&(later, key.clone()));
            }
            None => {}
        }
        self.timer_of.insert(key.clone(), at);
        self.timers.insert((at, key));
    }

    fn take(&mut self, now: Instant) -> Option<K> {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let (_, key) = self.timers.pop_first()?;
            self.timer_of.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.active.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &K) -> bool {
        self.active.remove(key);
        self.again.remove(key) && self.add(key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_handed_out_once_and_again_when_it_became_due_meanwhile() {
        let mut state = State::default();
        let now = Instant::now();
        state.add("a");
        state.add("a");
        assert_eq!(state.take(now), Some("a"));
        assert_eq!(state.take(now), None);
        state.add("a");
        assert_eq!(state.take(now), None, "never to two workers");
        assert!(state.done(&"a"));
        assert_eq!(state.take(now), Some("a"));
        assert!(!state.done(&"a"));
        assert_eq!(state.take(now), None);
    }

    #[test]
    fn the_earlier_of_two_delays_counts() {
        let mut state = State::default();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        state.add_at("a", at(5));
        state.add_at("a", at(2));
        state.add_at("a", at(9));
        assert_eq!(state.take(at(1)), None);
        assert_eq!(state.take(at(2)), Some("a"));
        state.done(&"a");
        assert_eq!(state.take(at(10)), None);
    }

    #[tokio::test]
    async fn failures_wait_longer_each_time() {
        let queue = Queue::default();
        for _ in 0..3 {
            queue.retry("a");
            assert_eq!(queue.next().await, "a");
            queue.done(&"a");
        }
        assert_eq!(queue.lock().failures[&"a"], 3);
        queue.succeeded(&"a");
        assert!(queue.lock().failures.is_empty());
    }
}
