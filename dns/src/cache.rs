//! Remembers what upstreams have said, for as long as they allow and within a bound.
//!
//! **Invariant:** the entries never take more than the bound, by an estimate of their memory. Each shard keeps two
//! generations: when the young one has reached half of the shard's bound it becomes the old one, and the old one is dropped;
//! a hit in the old one moves the entry to the young. What is in use stays, at constant cost, without a list to keep in
//! order.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable as _;

use crate::settings::{CacheSettings, Prefetch};

const SHARDS: usize = 8;
/// What an entry takes beside its records, and a record beside its octets on the wire: names and data on the heap.
const ENTRY_BYTES: usize = 256;
const RECORD_BYTES: usize = 256;
const LAST_NANOSECOND: Duration = Duration::from_nanos(999_999_999);
/// An old answer that is served, or a refresh that is under way, is not looked at again for so long.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

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
    /// Nothing but a code.
    pub(crate) fn code(code: ResponseCode) -> Self {
        Self {
            code,
            authentic_data: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    /// There is no such name, or nothing of this type, be it behind aliases, or nobody could tell.
    pub(crate) fn is_denial(&self, kind: RecordType) -> bool {
        let answers = |record: &Record| kind == RecordType::ANY || record.record_type() == kind;
        self.code != ResponseCode::NoError || !self.answers.iter().any(answers)
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

    /// How long it may be remembered as the answer to a question of type `kind`; `None` where it must not be.
    fn lifetime(&self, kind: RecordType, settings: &CacheSettings) -> Option<Duration> {
        let answers = self.answers.iter().map(|record| record.ttl);
        let (ttl_s, min, max) = match self.code {
            ResponseCode::ServFail => return nonzero(settings.servfail_ttl),
            ResponseCode::NoError if !self.is_denial(kind) => {
                let ttls = answers.chain(self.authorities.iter().map(|record| record.ttl));
                (ttls.min()?, settings.ttl_min, settings.ttl_max)
            }
            ResponseCode::NoError | ResponseCode::NXDomain => {
                // RFC 2308: the SOA says how long "no" holds; without one it does not hold beyond this answer. Aliases on the way
                // hold no longer than they say.
                let soa = self.authorities.iter().find_map(|record| match &record.data {
                    RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                    _ => None,
                });
                (answers.chain([soa?]).min()?, settings.negative_ttl_min, settings.negative_ttl_max)
            }
            _ => return None,
        };
        nonzero(Duration::from_secs(ttl_s.into()).max(min).min(max))
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        let records = self.answers.iter().chain(&self.authorities).chain(&self.additionals);
        records.map(|record| RECORD_BYTES + 2 * record.to_bytes().map_or(0, |wire| wire.len())).sum()
    }
}

fn nonzero(lifetime: Duration) -> Option<Duration> {
    (!lifetime.is_zero()).then_some(lifetime)
}

#[derive(Debug, Clone)]
struct Entry {
    found: Arc<Found>,
    bytes: usize,
    stored: Instant,
    lifetime: Duration,
    /// Hits without a long pause between them, and the last one.
    hits: u32,
    last_hit: Instant,
    /// Somebody has been sent to ask again.
    refreshed_at: Option<Instant>,
}

impl Entry {
    /// Counts a hit. Whether the answer should be asked for anew, before it ends.
    fn hit(&mut self, left: Duration, now: Instant, prefetch: Option<&Prefetch>) -> bool {
        let Some(prefetch) = prefetch else { return false };
        let pause = now.saturating_duration_since(self.last_hit);
        self.hits = if pause > prefetch.within { 1 } else { self.hits.saturating_add(1) };
        self.last_hit = now;
        let due = left <= self.lifetime * prefetch.percentage / 100;
        self.hits >= prefetch.amount && due && self.may_refresh(now)
    }

    /// Whether nobody has been sent lately; whoever asks goes.
    fn may_refresh(&mut self, now: Instant) -> bool {
        let may = self.refreshed_at.is_none_or(|at| now.saturating_duration_since(at) >= REFRESH_PAUSE);
        if may {
            self.refreshed_at = Some(now);
        }
        may
    }
}

#[derive(Debug, Default)]
struct Generation {
    entries: HashMap<Key, Entry>,
    bytes: usize,
}

impl Generation {
    /// Entries with an answer, and entries that say no.
    fn count(&self) -> (usize, usize) {
        let denials = self.entries.iter().filter(|(key, entry)| entry.found.is_denial(key.kind)).count();
        (self.entries.len() - denials, denials)
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        self.bytes += entry.bytes;
        if let Some(former) = self.entries.insert(key, entry) {
            self.bytes -= former.bytes;
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

#[derive(Debug, Default)]
struct Shard {
    young: Generation,
    old: Generation,
}

impl Shard {
    /// Puts an entry into the young generation; how many entries had to go, with an answer and without.
    fn put(&mut self, key: Key, entry: Entry, young_max: usize) -> (usize, usize) {
        self.old.remove(&key);
        self.young.remove(&key);
        let mut dropped = (0, 0);
        if self.young.bytes + entry.bytes > young_max {
            let young = std::mem::take(&mut self.young);
            dropped = std::mem::replace(&mut self.old, young).count();
        }
        self.young.insert(key, entry);
        dropped
    }

    fn entry(&mut self, key: &Key, young_max: usize) -> Option<&mut Entry> {
        if !self.young.entries.contains_key(key) {
            let entry = self.old.remove(key)?;
            self.put(key.clone(), entry, young_max);
        }
        self.young.entries.get_mut(key)
    }
}

/// A look-up's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hit {
    /// Good, with what is left of its time to live.
    Fresh {
        found: Found,
        /// It is much asked for and about to end: ask anew.
        prefetch: bool,
    },
    /// Past its time, to be used only as far as the settings allow.
    Stale {
        found: Arc<Found>,
        /// Nobody has asked anew lately.
        refresh: bool,
    },
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    settings: CacheSettings,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

impl Cache {
    pub(crate) fn new(settings: CacheSettings) -> Self {
        Self { settings, shards: Default::default(), hasher: RandomState::new() }
    }

    pub(crate) fn settings(&self) -> &CacheSettings {
        &self.settings
    }

    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Hit> {
        let mut shard = self.shard(key);
        let entry = shard.entry(key, self.young_max())?;
        let age = now.saturating_duration_since(entry.stored);
        if let Some(left) = entry.lifetime.checked_sub(age).filter(|left| !left.is_zero()) {
            let prefetch = entry.hit(left, now, self.settings.prefetch.as_ref());
            let found = Arc::clone(&entry.found);
            drop(shard);
            let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            // The second that has begun counts.
            let left_s = u32::try_from((left + LAST_NANOSECOND).as_secs()).unwrap_or(u32::MAX);
            let found = if self.settings.keep_ttl {
                Arc::unwrap_or_clone(found)
            } else {
                // An answer that is kept longer than it says must not say 0.
                found.with_ttl(|ttl| ttl.saturating_sub(age_s).clamp(1, left_s))
            };
            return Some(Hit::Fresh { found, prefetch });
        }
        let stale = self.settings.serve_stale.as_ref()?;
        if age >= entry.lifetime + stale.keep || entry.found.code == ResponseCode::ServFail {
            return None;
        }
        let refresh = entry.may_refresh(now);
        Some(Hit::Stale { found: Arc::clone(&entry.found), refresh })
    }

    /// Remembers `found`, where it may be. How many entries had to go for it, with an answer and without.
    pub(crate) fn put(&self, key: Key, found: &Arc<Found>, now: Instant) -> (usize, usize) {
        const NONE: (usize, usize) = (0, 0);
        let not_of =
            if found.is_denial(key.kind) { &self.settings.no_denial } else { &self.settings.no_success };
        if not_of.iter().any(|zone| zone.zone_of(&key.name)) {
            return NONE;
        }
        let Some(lifetime) = found.lifetime(key.kind, &self.settings) else { return NONE };
        let bytes = ENTRY_BYTES + 2 * key.name.len() + found.bytes();
        if bytes > self.young_max() {
            return NONE;
        }
        let mut shard = self.shard(&key);
        let former = shard.entry(&key, self.young_max()).map(|entry| (entry.hits, entry.last_hit));
        // What nobody could tell now must not push out what was once known.
        if found.code == ResponseCode::ServFail && former.is_some() {
            return NONE;
        }
        let (hits, last_hit) = former.unwrap_or((0, now));
        let found = Arc::clone(found);
        let entry = Entry { found, bytes, stored: now, lifetime, hits, last_hit, refreshed_at: None };
        shard.put(key, entry, self.young_max())
    }

    /// Entries with an answer, and entries that say no.
    pub(crate) fn count(&self) -> (usize, usize) {
        let mut counts = (0, 0);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (success, denial) in [shard.young.count(), shard.old.count()] {
                counts = (counts.0 + success, counts.1 + denial);
            }
        }
        counts
    }

    /// The memory that the entries take, about.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let lock = |shard: &'_ Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.young.bytes + shard.old.bytes
        };
        self.shards.iter().map(lock).sum()
    }

    fn young_max(&self) -> usize {
        self.settings.bytes_max / SHARDS / 2
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        #[expect(clippy::cast_possible_truncation, reason = "any part of the hash will do")]
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stale answer, with a short time to live.
pub(crate) fn stale(found: &Found, ttl: Duration) -> Found {
    let ttl_s = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
    found.with_ttl(|_| ttl_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};
    use proptest::prelude::*;

    fn settings() -> CacheSettings {
        CacheSettings {
            bytes_max: 160 << 10,
            negative_ttl_max: Duration::from_secs(60),
            prefetch: Some(Prefetch { amount: 3, within: Duration::from_secs(60), percentage: 20 }),
            ..CacheSettings::default()
        }
    }

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
            Hit::Fresh { found, .. } => {
                Some(found.answers.iter().chain(&found.authorities).map(|r| r.ttl).min().unwrap())
            }
            Hit::Stale { .. } => None,
        }
    }

    #[test]
    fn answers_age_and_end() {
        let (cache, start) = (Cache::new(settings()), Instant::now());
        cache.put(key(1), &positive(10), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(fresh_ttl(cache.find(&key(1), start)), Some(10));
        assert_eq!(fresh_ttl(cache.find(&key(1), after(4))), Some(6));
        assert!(matches!(cache.find(&key(1), after(10)), Some(Hit::Stale { .. })));
        assert_eq!(cache.find(&key(1), after(10 + 3600)), None);
        assert_eq!(cache.find(&key(2), start), None);
    }

    #[test]
    fn lifetimes() {
        let seconds =
            |found: &Found| found.lifetime(RecordType::A, &settings()).map(|lifetime| lifetime.as_secs());
        assert_eq!(seconds(&positive(7)), Some(7));
        assert_eq!(seconds(&positive(1_000_000)), Some(3600));
        assert_eq!(seconds(&positive(0)), None);
        assert_eq!(seconds(&denial(ResponseCode::NXDomain, Some((30, 20)))), Some(20));
        assert_eq!(seconds(&denial(ResponseCode::NoError, Some((10, 20)))), Some(10));
        assert_eq!(seconds(&denial(ResponseCode::NXDomain, Some((900, 900)))), Some(60));
        assert_eq!(seconds(&denial(ResponseCode::NXDomain, None)), None);
        assert_eq!(seconds(&denial(ResponseCode::ServFail, Some((30, 20)))), Some(1));
        assert_eq!(seconds(&denial(ResponseCode::Refused, Some((30, 20)))), None);
        // What is found is an alias that leads to nothing of the type.
        let alias = |soa: Option<(u32, u32)>, ttl_s| {
            let name = key(0).name;
            let answers = vec![Record::from_rdata(name.clone(), ttl_s, RData::CNAME(CNAME(name)))];
            Found { answers, ..(*denial(ResponseCode::NoError, soa)).clone() }
        };
        assert_eq!(seconds(&alias(Some((900, 40)), 50)), Some(40));
        assert_eq!(seconds(&alias(Some((900, 40)), 7)), Some(7));
        assert_eq!(seconds(&alias(None, 7)), None);
        assert!(alias(None, 7).is_denial(RecordType::A) && !alias(None, 7).is_denial(RecordType::CNAME));
        let long = CacheSettings { ttl_min: Duration::from_secs(30), ..settings() };
        assert_eq!(positive(7).lifetime(RecordType::A, &long), Some(Duration::from_secs(30)));
    }

    #[test]
    fn what_is_in_use_stays() {
        let (cache, start) = (Cache::new(settings()), Instant::now());
        cache.put(key(0), &positive(60), start);
        for n in 1..10_000 {
            cache.put(key(n), &positive(60), start);
            assert!(cache.find(&key(0), start).is_some());
        }
        let off = Cache::new(CacheSettings { bytes_max: 0, ..settings() });
        off.put(key(0), &positive(60), start);
        assert_eq!(off.find(&key(0), start), None);
    }

    #[test]
    fn what_is_much_asked_for_is_fetched_once_before_it_ends() {
        let (cache, start) = (Cache::new(settings()), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let prefetch = |now| matches!(cache.find(&key(1), now), Some(Hit::Fresh { prefetch: true, .. }));
        cache.put(key(1), &positive(100), start);
        assert!(!prefetch(after(10)) && !prefetch(after(40)) && !prefetch(after(70)), "not yet due");
        assert!(prefetch(after(85)));
        assert!(!prefetch(after(85)), "somebody is under way");
        assert!(prefetch(after(90)), "who did not come back");
        cache.put(key(1), &positive(100), after(91));
        assert!(!prefetch(after(92)));
        assert!(!prefetch(after(178)), "a long pause");
    }

    #[test]
    fn what_is_not_to_be_remembered() {
        let no_success = vec![key(1).name];
        let no_denial = vec![Name::from_ascii("Example.").unwrap()];
        let (cache, now) =
            (Cache::new(CacheSettings { no_success, no_denial, ..settings() }), Instant::now());
        for (n, found, remembered) in [
            (1, positive(60), false),
            (2, positive(60), true),
            (3, denial(ResponseCode::NXDomain, Some((60, 60))), false),
        ] {
            cache.put(key(n), &found, now);
            assert_eq!(cache.find(&key(n), now).is_some(), remembered, "{n}");
        }
    }

    #[test]
    fn a_failure_does_not_push_out_what_was_known() {
        let (cache, start) = (Cache::new(settings()), Instant::now());
        cache.put(key(1), &positive(10), start);
        let later = start + Duration::from_secs(20);
        cache.put(key(1), &Arc::new(Found::code(ResponseCode::ServFail)), later);
        assert!(matches!(cache.find(&key(1), later), Some(Hit::Stale { refresh: true, .. })));
        assert!(matches!(cache.find(&key(1), later), Some(Hit::Stale { refresh: false, .. })));
        cache.put(key(2), &Arc::new(Found::code(ResponseCode::ServFail)), start);
        assert!(matches!(cache.find(&key(2), start), Some(Hit::Fresh { .. })));
        assert_eq!(cache.find(&key(2), later), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(steps in proptest::collection::vec((0_u32..600, any::<bool>()), 0..1500)) {
            let (cache, now) = (Cache::new(settings()), Instant::now());
            for (n, look) in steps {
                if look { cache.find(&key(n), now); } else { cache.put(key(n), &positive(60), now); }
                prop_assert!(cache.bytes() <= settings().bytes_max);
            }
        }
    }
}
