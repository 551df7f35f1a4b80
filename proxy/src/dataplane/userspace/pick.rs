//! Which backend a client gets.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::frontend::{Backend, Group};

/// How many backends are tried for one client.
const TRIES_MAX: usize = 4;

/// Chooses backends, and remembers who got which where a Service asks for it.
#[derive(Debug)]
pub(super) struct Picker {
    seed: RandomState,
    drawn: AtomicU64,
    remembered: Mutex<HashMap<(Group, IpAddr), Remembered>>,
    capacity: usize,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    backend: (IpAddr, u16),
    at: Instant,
}

impl Picker {
    pub(super) fn new(capacity: usize) -> Self {
        let (seed, drawn) = (RandomState::new(), AtomicU64::new(0));
        Self { seed, drawn, remembered: Mutex::default(), capacity }
    }

    /// The backends to try, in this order: the one that the client had, then the others from a random one on.
    pub(super) fn order(
        &self,
        group: Group,
        client: IpAddr,
        backends: &[Backend],
        affinity: Option<Duration>,
        now: Instant,
    ) -> Vec<Backend> {
        if backends.is_empty() {
            return Vec::new();
        }
        let draw = self.seed.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed));
        let start = usize::try_from(draw % backends.len() as u64).unwrap_or(0);
        let mut order: Vec<Backend> = backends[start..].iter().chain(&backends[..start]).copied().collect();
        if let Some(timeout) = affinity {
            let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            let held = remembered.get(&(group, client)).filter(|held| now.duration_since(held.at) < timeout);
            let at = held.and_then(|held| order.iter().position(|b| (b.addr, b.port) == held.backend));
            if let Some(at) = at {
                order.swap(0, at);
            }
        }
        order.truncate(TRIES_MAX);
        order
    }

    /// The client was handed to `backend`.
    pub(super) fn remember(
        &self,
        group: Group,
        client: IpAddr,
        backend: &Backend,
        affinity: Option<Duration>,
        now: Instant,
    ) {
        let Some(timeout) = affinity else { return };
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= self.capacity && !remembered.contains_key(&(group, client)) {
            remembered.retain(|_, held| now.duration_since(held.at) < timeout);
            if remembered.len() >= self.capacity {
                // Half go, so that this happens seldom.
                let mut keep = false;
                remembered.retain(|_, _| {
                    keep = !keep;
                    keep
                });
            }
        }
        remembered.insert((group, client), Remembered { backend: (backend.addr, backend.port), at: now });
    }

    /// The client's backend did not serve it.
    pub(super) fn forget(&self, group: Group, client: IpAddr) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).remove(&(group, client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u8) -> Vec<Backend> {
        (0..count).map(|i| Backend { addr: [10, 0, 0, i].into(), port: 80, local: true }).collect()
    }

    #[test]
    fn everyone_gets_a_share_and_some_more_to_try() {
        let picker = Picker::new(4);
        let (all, group, now) = (backends(8), Group::from_bits(1), Instant::now());
        let client = "192.0.2.1".parse().unwrap();
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..200 {
            let order = picker.order(group, client, &all, None, now);
            assert_eq!(order.len(), TRIES_MAX);
            firsts.insert(order[0]);
        }
        assert_eq!(firsts.len(), 8);
        assert!(picker.order(group, client, &[], None, now).is_empty());
    }

    #[test]
    fn a_client_keeps_its_backend_while_it_is_there_and_the_time_is_not_over() {
        let picker = Picker::new(4);
        let (all, group, now) = (backends(8), Group::from_bits(1), Instant::now());
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let minute = Some(Duration::from_secs(60));
        picker.remember(group, client, &all[5], minute, now);
        for _ in 0..20 {
            assert_eq!(picker.order(group, client, &all, minute, now)[0], all[5]);
        }
        let order = picker.order(group, client, &all[..5], minute, now);
        assert!(!order.contains(&all[5]));
        let later = now + Duration::from_secs(61);
        let firsts = (0..200).map(|_| picker.order(group, client, &all, minute, later)[0]);
        assert!(firsts.collect::<std::collections::HashSet<_>>().len() > 1);
        // The memory is bounded.
        for i in 0..100 {
            picker.remember(group, [192, 0, 2, i].into(), &all[0], minute, now);
        }
        assert!(picker.remembered.lock().unwrap().len() <= 4);
    }
}
