//! How much one source may ask: a bucket of tokens each, for a bounded number of sources.
//!
//! **Invariant:** the table holds at most two generations of bounded size. A source that is forgotten begins anew with a full
//! bucket; whoever can use many addresses is not held back by this anyway.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::source::source_of;

const SOURCES_MAX: usize = 16_384;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Table {
    young: HashMap<IpAddr, Bucket>,
    old: HashMap<IpAddr, Bucket>,
}

/// The sources' buckets.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    table: Mutex<Table>,
}

impl Limiter {
    /// Whether `source` may ask once more, at `rate` questions per second and as many at once.
    pub(super) fn admits(&self, source: IpAddr, rate: u32, now: Instant) -> bool {
        let (source, rate) = (source_of(source), f64::from(rate));
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.young.len() >= SOURCES_MAX {
            table.old = std::mem::take(&mut table.young);
        }
        let former = table.young.get(&source).or_else(|| table.old.get(&source)).copied();
        let mut bucket = former.unwrap_or(Bucket { tokens: rate, at: now });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + since * rate).min(rate);
        bucket.at = now;
        let admits = bucket.tokens >= 1.0;
        if admits {
            bucket.tokens -= 1.0;
        }
        table.young.insert(source, bucket);
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_source_gets_its_rate_and_no_more() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        let admitted = |source, at: Instant| (0..100).filter(|_| limiter.admits(source, 10, at)).count();
        assert_eq!(admitted(addr("192.0.2.1"), start), 10);
        assert_eq!(admitted(addr("192.0.2.2"), start), 10);
        assert_eq!(admitted(addr("192.0.2.1"), start + Duration::from_millis(500)), 5);
        assert_eq!(admitted(addr("192.0.2.1"), start + Duration::from_secs(60)), 10);
        assert_eq!(admitted(addr("2001:db8::1"), start), 10);
        assert_eq!(admitted(addr("2001:db8::2"), start), 0);
        for n in 0..3 * SOURCES_MAX {
            limiter.admits(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()), 10, start);
        }
        let table = limiter.table.lock().unwrap();
        assert!(table.young.len() <= SOURCES_MAX && table.old.len() <= SOURCES_MAX);
    }
}
