//! Pods that wait for a node: active ones are tried now, in order of priority; failed ones back off, then wait until
//! something changes that may help them. Pure: time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::PodInfo;

/// Nobody waits longer than this for a change that we may have overlooked.
const PATIENCE: Duration = Duration::from_secs(300);

/// What happened in the cluster, as far as it may help pods that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A node came or changed: everybody may fit now.
    Node,
    /// A pod ended or came: those that pods were in the way of, or that wait for a companion, may fit now.
    Pod,
}

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    attempts: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Active(i32, u64),
    Backoff(Instant, u64),
    Unschedulable {
        since: Instant,
        not_before: Instant,
        depends_on_pods: bool,
    },
    /// Taken out to be tried; `missed` is what happened since.
    InFlight {
        missed_node: bool,
        missed_pod: bool,
    },
}

/// The scheduling queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeMap<(std::cmp::Reverse<i32>, u64), String>,
    backoff: BTreeSet<(Instant, u64, String)>,
    unschedulable: BTreeSet<String>,
    serial: u64,
    initial_backoff: Duration,
    max_backoff: Duration,
}

impl Queue {
    pub(crate) fn new(initial_backoff: Duration, max_backoff: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            active: BTreeMap::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            serial: 0,
            initial_backoff,
            max_backoff,
        }
    }

    /// A pod needs a node. If it waits already, it is tried again at once when what it asks for has changed.
    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        let uid = pod.uid.clone();
        let Some(waiting) = self.pods.get_mut(&uid) else {
            self.pods.insert(uid.clone(), Waiting { pod, attempts: 0, state: State::Active(0, 0) });
            self.activate(&uid);
            return;
        };
        let same = waiting.pod.pod.spec == pod.pod.spec
            && waiting.pod.pod.metadata.labels == pod.pod.metadata.labels;
        waiting.pod = pod;
        if let State::InFlight { missed_node, .. } = &mut waiting.state {
            *missed_node |= !same;
        } else if !same {
            self.activate(&uid);
        }
    }

    /// The pod does not wait any more.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.unlink(uid);
        self.pods.remove(uid);
    }

    /// The next pod to try.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.advance(now);
        let (_, uid) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&uid)?;
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.state = State::InFlight { missed_node: false, missed_pod: false };
        Some(Arc::clone(&waiting.pod))
    }

    /// The pod fits nowhere for now.
    pub(crate) fn unschedulable(&mut self, uid: &str, depends_on_pods: bool, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let not_before = now + self.backoff_after(waiting.attempts);
        let missed = match waiting.state {
            State::InFlight { missed_node, missed_pod } => missed_node || (missed_pod && depends_on_pods),
            _ => return,
        };
        if missed {
            self.back_off(uid, not_before);
            return;
        }
        self.unschedulable.insert(uid.to_owned());
        self.set(uid, State::Unschedulable { since: now, not_before, depends_on_pods });
    }

    /// The attempt failed for another reason than the cluster's state: try again after a while.
    pub(crate) fn failed(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let until = now + self.backoff_after(waiting.attempts);
        self.back_off(uid, until);
    }

    /// Something happened that may help.
    pub(crate) fn wake(&mut self, wake: Wake, now: Instant) {
        for waiting in self.pods.values_mut() {
            if let State::InFlight { missed_node, missed_pod } = &mut waiting.state {
                *missed_node |= wake == Wake::Node;
                *missed_pod |= wake == Wake::Pod;
            }
        }
        let helped = |state: State| match state {
            State::Unschedulable { not_before, depends_on_pods, .. } => {
                (wake == Wake::Node || depends_on_pods).then_some(not_before)
            }
            _ => None,
        };
        let woken = self
            .unschedulable
            .iter()
            .filter_map(|uid| Some((uid.clone(), helped(self.pods.get(uid)?.state)?)));
        for (uid, not_before) in woken.collect::<Vec<_>>() {
            if not_before <= now { self.activate(&uid) } else { self.back_off(&uid, not_before) }
        }
    }

    /// When [`Queue::pop`] has something without anything else happening.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let flush = self.unschedulable.iter().filter_map(|uid| match self.pods.get(uid)?.state {
            State::Unschedulable { since, .. } => Some(since + PATIENCE),
            _ => None,
        });
        self.backoff.first().map(|(at, ..)| *at).into_iter().chain(flush).min()
    }

    fn advance(&mut self, now: Instant) {
        while let Some((_, _, uid)) = self.backoff.first().filter(|(at, ..)| *at <= now).cloned() {
            self.activate(&uid);
        }
        let impatient = self.unschedulable.iter().filter(|uid| {
            let state = self.pods.get(*uid).map(|waiting| waiting.state);
            matches!(state, Some(State::Unschedulable { since, .. }) if since + PATIENCE <= now)
        });
        for uid in impatient.cloned().collect::<Vec<_>>() {
            self.activate(&uid);
        }
    }

    fn backoff_after(&self, attempts: u32) -> Duration {
        let doubled = self.initial_backoff.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1)));
        doubled.min(self.max_backoff)
    }

    fn activate(&mut self, uid: &str) {
        self.unlink(uid);
        self.serial += 1;
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        waiting.state = State::Active(waiting.pod.priority, self.serial);
        self.active.insert((std::cmp::Reverse(waiting.pod.priority), self.serial), uid.to_owned());
    }

    fn back_off(&mut self, uid: &str, until: Instant) {
        self.unlink(uid);
        self.serial += 1;
        self.backoff.insert((until, self.serial, uid.to_owned()));
        self.set(uid, State::Backoff(until, self.serial));
    }

    fn set(&mut self, uid: &str, state: State) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.state = state;
        }
    }

    fn unlink(&mut self, uid: &str) {
        match self.pods.get(uid).map(|waiting| waiting.state) {
            Some(State::Active(priority, serial)) => {
                self.active.remove(&(std::cmp::Reverse(priority), serial));
            }
            Some(State::Backoff(at, serial)) => drop(self.backoff.remove(&(at, serial, uid.to_owned()))),
            Some(State::Unschedulable { .. }) => drop(self.unschedulable.remove(uid)),
            Some(State::InFlight { .. }) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let pod =
            json!({"metadata": {"uid": uid, "name": uid}, "spec": {"containers": [], "priority": priority}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
    }

    fn queue() -> (Queue, Instant) {
        (Queue::new(Duration::from_secs(1), Duration::from_secs(10)), Instant::now())
    }

    fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|pod| pod.uid.clone())
    }

    #[test]
    fn the_important_come_first_then_the_early() {
        let (mut queue, now) = queue();
        for (uid, priority) in [("a", 0), ("b", 0), ("c", 1000)] {
            queue.add(pod(uid, priority));
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn who_fits_nowhere_waits_for_an_event_that_helps_but_not_shorter_than_the_backoff() {
        let (mut queue, now) = queue();
        queue.add(pod("a", 0));
        pop(&mut queue, now);
        queue.unschedulable("a", false, now);
        assert_eq!(pop(&mut queue, now + Duration::from_secs(60)), None);
        queue.wake(Wake::Pod, now + Duration::from_secs(60));
        assert_eq!(pop(&mut queue, now + Duration::from_secs(60)), None, "a pod's end does not help it");
        queue.wake(Wake::Node, now);
        assert_eq!(pop(&mut queue, now), None, "not before its back-off has passed");
        assert_eq!(pop(&mut queue, now + Duration::from_secs(1)), Some("a".into()));
    }

    #[test]
    fn an_event_during_the_attempt_is_not_missed() {
        let (mut queue, now) = queue();
        queue.add(pod("a", 0));
        pop(&mut queue, now);
        queue.wake(Wake::Pod, now);
        queue.unschedulable("a", true, now);
        assert_eq!(queue.next_at(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_patience_ends() {
        let (mut queue, mut now) = queue();
        queue.add(pod("a", 0));
        let mut waits = Vec::new();
        for _ in 0..6 {
            pop(&mut queue, now).unwrap();
            queue.failed("a", now);
            let next = queue.next_at().unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        pop(&mut queue, now).unwrap();
        queue.unschedulable("a", false, now);
        assert_eq!(pop(&mut queue, now + PATIENCE), Some("a".into()));
    }

    #[test]
    fn who_is_gone_is_not_tried() {
        let (mut queue, now) = queue();
        queue.add(pod("a", 0));
        queue.remove("a");
        assert_eq!(pop(&mut queue, now), None);
        queue.add(pod("b", 0));
        pop(&mut queue, now);
        queue.remove("b");
        queue.failed("b", now);
        assert_eq!(queue.next_at(), None);
    }
}
