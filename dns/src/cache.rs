//! Remembers what upstreams have said, for as long as they allow and within a bound.
//!
//! **Invariant:** there are never more entries than the bound. Each shard keeps two generations: when the young one has
//! reached half of the shard's bound it becomes the old one, and the old one is dropped; a hit in the old one moves the
//! entry to the young. What is in use stays, at constant cost, without a list to keep in order.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

const SHARDS: usize = 8;
/// Answers of more records are not remembered: they would let the memory grow beyond what the bound means.
const RECORDS_MAX: usize = 128;
/// How long after its end an answer may still serve when no upstream answers (RFC 8767).
const STALE_MAX: Duration = Duration::from_secs(3600);

/// What is asked upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Lower case.
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

/// What an upstream said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) code: ResponseCode,
    pub(crate) authentic_data: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Found {
    /// There is no such name, or nothing of this type.
    pub(crate) fn is_denial(&self) -> bool {
        self.code == ResponseCode::NXDomain || self.code == ResponseCode::NoError && self.answers.is_empty()
    }

    /// The same with every time to live changed.
    fn with_ttl(&self, ttl: impl Fn(u32) -> u32) -> Self {
        let mut changed = self.clone();
        for record in
            changed.answers.iter_mut().chain(&mut changed.authorities).chain(&mut changed.additionals)
        {
            record.ttl = ttl(record.ttl);
        }
        changed
    }

    /// How long it may be remembered; `None` where it must not be.
    fn lifetime(&self, limits: &Limits) -> Option<Duration> {
        if self.answers.len() + self.authorities.len() + self.additionals.len() > RECORDS_MAX {
            return None;
        }
        let (ttl_s, max) = if self.is_denial() {
            // RFC 2308: the SOA says how long "no" holds; without one it does not hold beyond this answer.
            let soa = self.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            (soa?, limits.negative_ttl_max)
        } else if self.code == ResponseCode::NoError {
            let ttls = self.answers.iter().chain(&self.authorities).map(|record| record.ttl);
            (ttls.min()?, limits.ttl_max)
        } else {
            return None;
        };
        let lifetime = Duration::from_secs(ttl_s.into()).min(max);
        (!lifetime.is_zero()).then_some(lifetime)
    }
}

/// Bounds of the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: usize,
    pub(crate) ttl_max: Duration,
    pub(crate) negative_ttl_max: Duration,
}

#[derive(Debug, Clone)]
struct Entry {
    found: Arc<Found>,
    stored: Instant,
    lifetime: Duration,
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
}

impl Shard {
    /// Puts an entry into the young generation; how many entries had to go.
    fn put(&mut self, key: Key, entry: Entry, young_max: usize) -> usize {
        self.old.remove(&key);
        let mut dropped = 0;
        if self.young.len() >= young_max && !self.young.contains_key(&key) {
            dropped = std::mem::replace(&mut self.old, std::mem::take(&mut self.young)).len();
        }
        self.young.insert(key, entry);
        dropped
    }

    fn take_from_old(&mut self, key: &Key) -> Option<Entry> {
        self.old.remove(key)
    }
}

/// A look-up's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hit {
    /// Good, with what is left of its time to live.
    Fresh(Found),
    /// Past its time, to be used only where nobody answers.
    Stale(Arc<Found>),
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    limits: Limits,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

impl Cache {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, shards: Default::default(), hasher: RandomState::new() }
    }

    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Hit> {
        let mut shard = self.shard(key);
        let entry = if let Some(entry) = shard.young.get(key) {
            entry.clone()
        } else {
            let entry = shard.take_from_old(key)?;
            shard.put(key.clone(), entry.clone(), self.young_max());
            entry
        };
        drop(shard);
        let age = now.saturating_duration_since(entry.stored);
        if let Some(left) = entry.lifetime.checked_sub(age).filter(|left| !left.is_zero()) {
            let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            let left_s = u32::try_from(left.as_secs().max(1)).unwrap_or(u32::MAX);
            return Some(Hit::Fresh(entry.found.with_ttl(|ttl| ttl.saturating_sub(age_s).min(left_s))));
        }
        (age < entry.lifetime + STALE_MAX).then_some(Hit::Stale(entry.found))
    }

    /// Remembers `found`, where it may be. How many entries had to go for it.
    pub(crate) fn put(&self, key: Key, found: &Arc<Found>, now: Instant) -> usize {
        let Some(lifetime) = found.lifetime(&self.limits).filter(|_| self.young_max() > 0) else { return 0 };
        let entry = Entry { found: Arc::clone(found), stored: now, lifetime };
        let mut shard = self.shard(&key);
        shard.put(key, entry, self.young_max())
    }

    /// Entries with an answer, and entries that say no.
    pub(crate) fn count(&self) -> (usize, usize) {
        let mut counts = (0, 0);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let denials =
                shard.young.values().chain(shard.old.values()).filter(|e| e.found.is_denial()).count();
            counts.0 += shard.young.len() + shard.old.len() - denials;
            counts.1 += denials;
        }
        counts
    }

    fn young_max(&self) -> usize {
        self.limits.entries / SHARDS / 2
    }

    fn shard(&self, key: &Key) -> std::sync::MutexGuard<'_, Shard> {
        #[expect(clippy::cast_possible_truncation, reason = "any part of the hash will do")]
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stale answer's time to live (RFC 8767 recommends 30 s).
pub(crate) fn stale(found: &Found) -> Found {
    const STALE_TTL_S: u32 = 30;
    found.with_ttl(|_| STALE_TTL_S)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, SOA};
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        entries: 160,
        ttl_max: Duration::from_secs(3600),
        negative_ttl_max: Duration::from_secs(60),
    };

    fn key(n: u32) -> Key {
        let name = Name::from_ascii(format!("n{n}.example.")).unwrap();
        Key { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn positive(ttl_s: u32) -> Arc<Found> {
        let record = Record::from_rdata(key(0).name, ttl_s, RData::A(A::new(192, 0, 2, 1)));
        let (authorities, additionals) = (Vec::new(), Vec::new());
        let code = ResponseCode::NoError;
        Arc::new(Found { code, authentic_data: false, answers: vec![record], authorities, additionals })
    }

    fn denial(code: ResponseCode, soa: Option<(u32, u32)>) -> Arc<Found> {
        let name = Name::from_ascii("example.").unwrap();
        let record = |(ttl, minimum)| {
            let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
            Record::from_rdata(name.clone(), ttl, RData::SOA(soa))
        };
        Arc::new(Found {
            code,
            answers: Vec::new(),
            authorities: soa.map(record).into_iter().collect(),
            ..(*positive(1)).clone()
        })
    }

    fn fresh_ttl(hit: Option<Hit>) -> Option<u32> {
        match hit? {
            Hit::Fresh(found) => {
                Some(found.answers.iter().chain(&found.authorities).map(|r| r.ttl).min().unwrap())
            }
            Hit::Stale(_) => None,
        }
    }

    #[test]
    fn answers_age_and_end() {
        let (cache, start) = (Cache::new(LIMITS), Instant::now());
        cache.put(key(1), &positive(10), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(fresh_ttl(cache.find(&key(1), start)), Some(10));
        assert_eq!(fresh_ttl(cache.find(&key(1), after(4))), Some(6));
        assert!(matches!(cache.find(&key(1), after(10)), Some(Hit::Stale(_))));
        assert_eq!(cache.find(&key(1), after(10 + 3600)), None);
        assert_eq!(cache.find(&key(2), start), None);
    }

    #[test]
    fn lifetimes() {
        let seconds = |found: &Found| found.lifetime(&LIMITS).map(|lifetime| lifetime.as_secs());
        assert_eq!(seconds(&positive(7)), Some(7));
        assert_eq!(seconds(&positive(1_000_000)), Some(3600));
        assert_eq!(seconds(&positive(0)), None);
        assert_eq!(seconds(&denial(ResponseCode::NXDomain, Some((30, 20)))), Some(20));
        assert_eq!(seconds(&denial(ResponseCode::NoError, Some((10, 20)))), Some(10));
        assert_eq!(seconds(&denial(ResponseCode::NXDomain, Some((900, 900)))), Some(60));
        assert_eq!(seconds(&denial(ResponseCode::NXDomain, None)), None);
        assert_eq!(seconds(&denial(ResponseCode::ServFail, Some((30, 20)))), None);
        let many = Found { answers: vec![positive(5).answers[0].clone(); 200], ..(*positive(5)).clone() };
        assert_eq!(seconds(&many), None);
    }

    #[test]
    fn what_is_in_use_stays() {
        let (cache, start) = (Cache::new(LIMITS), Instant::now());
        cache.put(key(0), &positive(60), start);
        for n in 1..10_000 {
            cache.put(key(n), &positive(60), start);
            assert!(cache.find(&key(0), start).is_some());
        }
        assert_eq!(Cache::new(Limits { entries: 0, ..LIMITS }).put(key(0), &positive(60), start), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(steps in proptest::collection::vec((0_u32..400, any::<bool>()), 0..1500)) {
            let (cache, now) = (Cache::new(LIMITS), Instant::now());
            for (n, look) in steps {
                if look { cache.find(&key(n), now); } else { cache.put(key(n), &positive(60), now); }
                let (success, denial) = cache.count();
                prop_assert!(success + denial <= LIMITS.entries);
            }
        }
    }
}
