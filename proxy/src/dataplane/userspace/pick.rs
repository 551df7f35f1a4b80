//! Which backend a client gets.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::frontend::{Backend, Group, StableHash};

/// Who comes, and how one of the backends is chosen for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// Its address and port.
    pub(super) from: SocketAddr,
    /// It keeps its backend for this long.
    pub(super) affinity: Option<Duration>,
    /// By consistent hashing rather than by chance.
    pub(super) hashed: bool,
}

/// A client that has a backend by session affinity.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affinity {
    pub(super) group: Group,
    pub(super) client: IpAddr,
    pub(super) backend: (IpAddr, u16),
    /// When it came last.
    pub(super) at: Instant,
}

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

    /// The backends to try, in this order: the one that the client had, then the others from a random one on, or as
    /// their hashes say.
    pub(super) fn order(
        &self,
        group: Group,
        client: &Client,
        backends: &[Backend],
        now: Instant,
    ) -> Vec<Backend> {
        if backends.is_empty() {
            return Vec::new();
        }
        let mut order =
            if client.hashed { by_weight(client.from, backends) } else { self.by_chance(backends) };
        if let Some(timeout) = client.affinity {
            let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            let held = remembered
                .get(&(group, client.from.ip()))
                .filter(|held| now.duration_since(held.at) < timeout);
            let at = held.and_then(|held| order.iter().position(|b| (b.addr, b.port) == held.backend));
            if let Some(at) = at {
                order.swap(0, at);
            }
        }
        order.truncate(TRIES_MAX);
        order
    }

    fn by_chance(&self, backends: &[Backend]) -> Vec<Backend> {
        let draw = self.seed.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed));
        let start = usize::try_from(draw % backends.len() as u64).unwrap_or(0);
        backends[start..].iter().chain(&backends[..start]).copied().collect()
    }

    /// The client was handed to `backend`.
    pub(super) fn remember(&self, group: Group, client: &Client, backend: &Backend, now: Instant) {
        let Some(timeout) = client.affinity else { return };
        let client = client.from.ip();
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

    /// All clients that have one.
    pub(super) fn affinities(&self) -> Vec<Affinity> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let all = remembered.iter().map(|((group, client), held)| Affinity {
            group: *group,
            client: *client,
            backend: held.backend,
            at: held.at,
        });
        all.collect()
    }

    /// What another one remembered.
    pub(super) fn recall(&self, affinities: Vec<Affinity>) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let all = affinities.into_iter().take(self.capacity);
        remembered.extend(
            all.map(|held| ((held.group, held.client), Remembered { backend: held.backend, at: held.at })),
        );
    }

    /// The client's backend did not serve it.
    pub(super) fn forget(&self, group: Group, client: IpAddr) {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).remove(&(group, client));
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998): every backend has a weight for the client, and the heaviest comes
/// first. One that goes moves none of the others' clients, and no table is needed where a connection costs system calls.
fn by_weight(client: SocketAddr, backends: &[Backend]) -> Vec<Backend> {
    let weight = |backend: &Backend| {
        let mut hash = StableHash::default();
        for (addr, port) in [(client.ip(), client.port()), (backend.addr, backend.port)] {
            match addr {
                IpAddr::V4(addr) => hash.write(&addr.octets()),
                IpAddr::V6(addr) => hash.write(&addr.octets()),
            }
            hash.write(&port.to_be_bytes());
        }
        std::cmp::Reverse(hash.finish())
    };
    let mut order = backends.to_vec();
    order.sort_by_cached_key(weight);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u8) -> Vec<Backend> {
        (0..count).map(|i| Backend { addr: [10, 0, 0, i].into(), port: 80, local: true }).collect()
    }

    fn client(from: &str, affinity: Option<Duration>) -> Client {
        Client { from: from.parse().unwrap(), affinity, hashed: false }
    }

    #[test]
    fn a_hashed_backend_that_goes_moves_nobody_elses_client() {
        let picker = Picker::new(4);
        let (group, now) = (Group::from_bits(1), Instant::now());
        for count in [2_u8, 10, 100] {
            let all = backends(count);
            let mut shares = vec![0; usize::from(count)];
            for port in 1024..11_024 {
                let client = Client { from: ([192, 0, 2, 1], port).into(), affinity: None, hashed: true };
                let before = picker.order(group, &client, &all, now)[0];
                let after = picker.order(group, &client, &all[1..], now).first().copied();
                assert!(before == all[0] || after == Some(before), "{port} of {count}");
                shares[all.iter().position(|backend| *backend == before).unwrap()] += 1;
            }
            let fair = 10_000 / i32::from(count);
            assert!(shares.iter().all(|share| (fair / 2..fair * 2).contains(share)), "{shares:?}");
        }
    }

    #[test]
    fn everyone_gets_a_share_and_some_more_to_try() {
        let picker = Picker::new(4);
        let (all, group, now) = (backends(8), Group::from_bits(1), Instant::now());
        let client = client("192.0.2.1:4000", None);
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..200 {
            let order = picker.order(group, &client, &all, now);
            assert_eq!(order.len(), TRIES_MAX);
            firsts.insert(order[0]);
        }
        assert_eq!(firsts.len(), 8);
        assert!(picker.order(group, &client, &[], now).is_empty());
    }

    #[test]
    fn a_client_keeps_its_backend_while_it_is_there_and_the_time_is_not_over() {
        let picker = Picker::new(4);
        let (all, group, now) = (backends(8), Group::from_bits(1), Instant::now());
        let minute = Some(Duration::from_secs(60));
        let client = client("192.0.2.1:4000", minute);
        picker.remember(group, &client, &all[5], now);
        for _ in 0..20 {
            assert_eq!(picker.order(group, &client, &all, now)[0], all[5]);
        }
        let order = picker.order(group, &client, &all[..5], now);
        assert!(!order.contains(&all[5]));
        let later = now + Duration::from_secs(61);
        let firsts = (0..200).map(|_| picker.order(group, &client, &all, later)[0]);
        assert!(firsts.collect::<std::collections::HashSet<_>>().len() > 1);
        // The memory is bounded.
        for i in 0..100 {
            let client = Client { from: ([192, 0, 2, i], 4000).into(), ..client };
            picker.remember(group, &client, &all[0], now);
        }
        assert!(picker.remembered.lock().unwrap().len() <= 4);
    }
}
