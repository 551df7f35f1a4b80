//! Names outside of the cluster's zone: asked upstream, remembered, asked once at a time.
//!
//! **Invariant:** for one question at most one exchange is under way, whoever asks. A client that asks the same joins it.
//! So a resolver that leads back to us cannot make a storm: its question joins the one that it came from, and both end at
//! their time.

mod upstream;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::warn;

use crate::cache::{Cache, Found, Hit, Key, Limits, stale};
use crate::{DnsConfig, Metrics};
use upstream::Upstream;

/// How often upstreams are asked for one question, at least, as long as there is time.
const ATTEMPTS_MIN: usize = 3;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoAnswer;

type Outcome = Result<Arc<Found>, NoAnswer>;

/// Asks upstreams.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<Upstream>,
    cache: Cache,
    flights: Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
    places: Arc<Semaphore>,
    attempt_timeout: Duration,
    timeout: Duration,
    metrics: Metrics,
}

impl Forwarder {
    /// `listening` are our own addresses: an upstream among them would be ourselves.
    pub(crate) fn new(config: &DnsConfig, listening: &[SocketAddr], metrics: Metrics) -> Self {
        let mut upstreams = Vec::new();
        for &address in &config.upstreams {
            if listening.iter().any(|&ours| is_same(ours, address)) {
                warn!(upstream = %address, "this upstream is this server itself: leaving it out");
            } else {
                upstreams.push(Upstream::new(address));
            }
        }
        let limits = Limits {
            entries: config.cache_entries,
            ttl_max: config.cache_ttl_max,
            negative_ttl_max: config.cache_negative_ttl_max,
        };
        Self {
            upstreams,
            cache: Cache::new(limits),
            flights: Mutex::default(),
            places: Arc::new(Semaphore::new(config.forward_in_flight_max)),
            attempt_timeout: config.forward_attempt_timeout,
            timeout: config.forward_timeout,
            metrics,
        }
    }

    pub(crate) fn has_upstreams(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// What is remembered and still good.
    pub(crate) fn remembered(&self, key: &Key) -> Option<Found> {
        if let Some(Hit::Fresh(found)) = self.cache.find(key, Instant::now()) {
            self.metrics.cache_hit(found.is_denial());
            Some(found)
        } else {
            self.metrics.cache_miss();
            None
        }
    }

    /// A place among the questions that may wait for an upstream; `None` where there are too many.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            self.metrics.forward_rejected();
        }
        place
    }

    /// Asks upstream, or joins whoever asks the same already. `avoid` are addresses that lead back to us.
    pub(crate) async fn ask(&self, key: &Key, avoid: &[IpAddr]) -> Outcome {
        let (sender, receiver) = watch::channel(None);
        if let Some(mut flight) = self.join(key, receiver) {
            let Ok(outcome) = flight.wait_for(Option::is_some).await else { return Err(NoAnswer) };
            return outcome.clone().unwrap_or(Err(NoAnswer));
        }
        let landing = Landing { forwarder: self, key };
        let outcome = match self.ask_upstreams(key, avoid).await {
            Ok(found) => {
                let dropped = self.cache.put(key.clone(), &found, Instant::now());
                self.metrics.cache_evicted(dropped);
                Ok(found)
            }
            Err(unwilling) => self.last_known(key).or_else(|no_answer| unwilling.ok_or(no_answer)),
        };
        drop(landing);
        // Nobody may have joined.
        sender.send_replace(Some(outcome.clone()));
        outcome
    }

    /// The exchange that is under way for `key`; where there is none, `receiver` stands for the one that begins.
    fn join(
        &self,
        key: &Key,
        receiver: watch::Receiver<Option<Outcome>>,
    ) -> Option<watch::Receiver<Option<Outcome>>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let flight = flights.get(key).cloned();
        if flight.is_none() {
            flights.insert(key.clone(), receiver);
        }
        flight
    }

    /// An answer past its time is better than none, and than a refusal.
    fn last_known(&self, key: &Key) -> Outcome {
        match self.cache.find(key, Instant::now()) {
            Some(Hit::Stale(found)) => {
                self.metrics.cache_served_stale();
                Ok(Arc::new(stale(&found)))
            }
            Some(Hit::Fresh(found)) => Ok(Arc::new(found)),
            None => Err(NoAnswer),
        }
    }

    /// Asks one after the other. Where none helps: what the last one said instead.
    async fn ask_upstreams(&self, key: &Key, avoid: &[IpAddr]) -> Result<Arc<Found>, Option<Arc<Found>>> {
        let deadline = Instant::now() + self.timeout;
        let order = self.order(avoid);
        let mut unwilling = None;
        for upstream in order.iter().cycle().take(ATTEMPTS_MIN.max(2 * order.len())) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match upstream.exchange(key, left.min(self.attempt_timeout), &self.metrics).await {
                // Another one may be able to.
                Ok(found) if matches!(found.code, ResponseCode::ServFail | ResponseCode::Refused) => {
                    unwilling = Some(Arc::new(found));
                    if order.len() == 1 {
                        break;
                    }
                }
                Ok(found) => return Ok(Arc::new(found)),
                Err(_) => {}
            }
        }
        Err(unwilling)
    }

    /// Upstreams in the configured order, those that failed lately last.
    fn order(&self, avoid: &[IpAddr]) -> Vec<&Upstream> {
        const DNS_PORT: u16 = 53;
        let leads_back = |address: SocketAddr| address.port() == DNS_PORT && avoid.contains(&address.ip());
        let mut order: Vec<&Upstream> =
            self.upstreams.iter().filter(|upstream| !leads_back(upstream.address)).collect();
        order.sort_by_key(|upstream| upstream.is_failing());
        if order.len() > 1 && order.iter().all(|upstream| upstream.is_failing()) {
            self.metrics.forward_all_failing();
        }
        order
    }

    /// Brings the gauges up to date.
    pub(crate) fn report(&self) {
        let (success, denial) = self.cache.count();
        self.metrics.cache_entries(success, denial);
    }
}

/// Takes a question off the list of those under way, also where its asker is dropped half-way.
struct Landing<'a> {
    forwarder: &'a Forwarder,
    key: &'a Key,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.forwarder.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
    }
}

/// Whether packets to `upstream` would arrive at `ours`.
fn is_same(ours: SocketAddr, upstream: SocketAddr) -> bool {
    if ours.port() != upstream.port() {
        return false;
    }
    // An address can be bound only on the machine that has it.
    let is_local = || UdpSocket::bind((upstream.ip(), 0)).is_ok();
    ours.ip() == upstream.ip()
        || ours.ip().is_unspecified() && ours.is_ipv4() == upstream.is_ipv4() && is_local()
        || upstream.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_no_upstreams() {
        let same = |ours: &str, upstream: &str| is_same(ours.parse().unwrap(), upstream.parse().unwrap());
        assert!(same("127.0.0.1:53", "127.0.0.1:53"));
        assert!(same("0.0.0.0:53", "127.0.0.1:53"));
        assert!(same("[::]:53", "[::1]:53"));
        assert!(!same("127.0.0.1:10053", "127.0.0.1:53"));
        assert!(!same("127.0.0.1:53", "192.0.2.1:53"));
        assert!(!same("0.0.0.0:53", "192.0.2.1:53"));
    }
}
