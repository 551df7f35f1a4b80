//! Names outside of the cluster's zone: asked upstream, remembered, asked once at a time.
//!
//! **Invariant:** for one question at most one exchange is under way, whoever asks. A client that asks the same joins it.
//! So a resolver that leads back to us cannot make a storm: its question joins the one that it came from, and both end at
//! their time.

mod connection;
mod places;
mod upstream;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::cache::{Cache, Found, Hit, Key, stale};
use crate::config::open_files_max;
use crate::settings::{CacheSettings, ForwardSettings, Policy};
use crate::{DnsError, Metrics};
use places::Places;
use upstream::Upstream;

/// How often upstreams are asked for one question, at least, as long as there is time.
const ATTEMPTS_MIN: usize = 3;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoAnswer;

type Outcome = Result<Arc<Found>, NoAnswer>;
type Flight = watch::Receiver<Option<Outcome>>;
/// A place among the questions under way. The exchange has a share in it, and may last longer than its asker waits.
pub(crate) type Place = Arc<places::Place>;

/// Asks upstreams.
#[derive(Debug)]
pub(crate) struct Forwarder {
    /// The zone whose names it asks for, as metrics name it.
    zone: String,
    settings: ForwardSettings,
    upstreams: Vec<Arc<Upstream>>,
    turn: AtomicUsize,
    cache: Cache,
    flights: Mutex<HashMap<Key, Flight>>,
    places: Arc<Places>,
    metrics: Metrics,
}

impl Forwarder {
    /// `listening` are our own addresses: an upstream among them would be ourselves.
    ///
    /// # Errors
    /// When certificates to trust cannot be read.
    pub(crate) fn new(
        zone: &Name,
        settings: &ForwardSettings,
        cache: &CacheSettings,
        listening: &[SocketAddr],
        metrics: &Metrics,
    ) -> Result<Self, DnsError> {
        let tls = if settings.upstreams.iter().any(|upstream| upstream.tls) {
            Some(connection::tls_config(settings.tls_ca.as_deref())?)
        } else {
            None
        };
        let mut upstreams = Vec::new();
        for upstream in &settings.upstreams {
            let address = upstream.address;
            if listening.iter().any(|&ours| is_same(ours, address)) {
                warn!(upstream = %address, "this upstream is this server itself: leaving it out");
            } else {
                let tls = tls.clone().filter(|_| upstream.tls);
                upstreams.push(Arc::new(Upstream::new(upstream, tls, settings)));
            }
        }
        // Each question has a socket of its own, and others need some, too.
        let places = settings.max_concurrent.min(open_files_max() / 2);
        Ok(Self {
            zone: zone.to_ascii(),
            settings: settings.clone(),
            upstreams,
            turn: AtomicUsize::new(0),
            cache: Cache::new(cache.clone()),
            flights: Mutex::default(),
            places: Places::new(places),
            metrics: metrics.clone(),
        })
    }

    /// Whether it was made from these settings.
    pub(crate) fn is_of(&self, settings: &ForwardSettings, cache: &CacheSettings) -> bool {
        self.settings == *settings && self.cache.settings() == cache
    }

    pub(crate) fn has_upstreams(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// Whether a name is not to be asked for.
    pub(crate) fn excludes(&self, name: &Name) -> bool {
        self.settings.except.iter().any(|except| except.zone_of(name)) || upstream::is_probe(name)
    }

    /// What is remembered and may be said. Where it is about to end, or has ended, somebody is sent to ask anew.
    pub(crate) fn remembered(self: &Arc<Self>, key: &Key) -> Option<Found> {
        match self.cache.find(key, Instant::now()) {
            Some(Hit::Fresh { found, prefetch }) => {
                self.metrics.cache_hit(&self.zone, found.is_denial(key.kind));
                if prefetch {
                    self.metrics.cache_prefetch(&self.zone);
                    self.refresh(key);
                }
                Some(found)
            }
            Some(Hit::Stale { found, refresh }) if self.serves_stale_at_once() => {
                self.metrics.cache_hit(&self.zone, found.is_denial(key.kind));
                self.metrics.cache_served_stale(&self.zone);
                if refresh {
                    self.refresh(key);
                }
                Some(stale(&found, self.stale_ttl()))
            }
            _ => {
                self.metrics.cache_miss(&self.zone);
                None
            }
        }
    }

    fn serves_stale_at_once(&self) -> bool {
        self.cache.settings().serve_stale.as_ref().is_some_and(|stale| stale.immediate)
    }

    fn stale_ttl(&self) -> Duration {
        self.cache.settings().serve_stale.as_ref().map_or(Duration::ZERO, |stale| stale.ttl)
    }

    /// Asks anew in the background, if there is a place for it. What comes of it stands in the cache.
    fn refresh(self: &Arc<Self>, key: &Key) {
        if let Some(place) = self.place(None) {
            drop(self.flight(key, &[], &place));
        }
    }

    /// A place among the questions that may wait for an upstream, for one of `client`'s, or of our own; `None` where there are
    /// too many.
    pub(crate) fn place(&self, client: Option<IpAddr>) -> Option<Place> {
        let place = self.places.take(client).map(Arc::new);
        if place.is_none() {
            self.metrics.forward_rejected();
        }
        place
    }

    /// Asks upstream, or joins whoever asks the same already. `avoid` are addresses that lead back to us.
    pub(crate) async fn ask(self: &Arc<Self>, key: &Key, avoid: &[IpAddr], place: &Place) -> Outcome {
        let verify = self.cache.settings().serve_stale.as_ref().and_then(|stale| stale.verify_timeout);
        let mut flight = self.flight(key, avoid, place);
        let Some(patience) = verify else { return landed(&mut flight).await };
        match timeout(patience, landed(&mut flight)).await {
            Ok(outcome) => outcome,
            Err(_) => match self.last_known(key) {
                Ok(found) => Ok(found),
                Err(NoAnswer) => landed(&mut flight).await,
            },
        }
    }

    /// The exchange that is under way for `key`, or a new one. It goes on whether or not anybody still waits for it: others
    /// may have joined, and the cache wants what comes of it.
    fn flight(self: &Arc<Self>, key: &Key, avoid: &[IpAddr], place: &Place) -> Flight {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key) {
            return flight.clone();
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let (avoid, place) = (avoid.to_vec(), Arc::clone(place));
        let landing = Landing { forwarder: Arc::clone(self), key: key.clone() };
        tokio::spawn(async move {
            let outcome = landing.forwarder.fetch(&landing.key, &avoid).await;
            drop((landing, place));
            // Nobody may have waited so long.
            sender.send_replace(Some(outcome));
        });
        flight
    }

    async fn fetch(&self, key: &Key, avoid: &[IpAddr]) -> Outcome {
        match self.ask_upstreams(key, avoid).await {
            Ok(found) => {
                self.remember(key, &found);
                Ok(found)
            }
            Err(unwilling) => {
                self.remember(key, &Arc::new(Found::code(ResponseCode::ServFail)));
                self.last_known(key).or_else(|no_answer| unwilling.ok_or(no_answer))
            }
        }
    }

    fn remember(&self, key: &Key, found: &Arc<Found>) {
        let dropped = self.cache.put(key.clone(), found, Instant::now());
        self.metrics.cache_evicted(&self.zone, dropped);
    }

    /// An answer past its time is better than none, and than a refusal.
    fn last_known(&self, key: &Key) -> Outcome {
        match self.cache.find(key, Instant::now()) {
            Some(Hit::Stale { found, .. }) => {
                self.metrics.cache_served_stale(&self.zone);
                Ok(Arc::new(stale(&found, self.stale_ttl())))
            }
            Some(Hit::Fresh { found, .. }) if found.code != ResponseCode::ServFail => Ok(Arc::new(found)),
            _ => Err(NoAnswer),
        }
    }

    /// Asks one after the other. Where none helps: what the last one said instead.
    async fn ask_upstreams(&self, key: &Key, avoid: &[IpAddr]) -> Result<Arc<Found>, Option<Arc<Found>>> {
        let deadline = Instant::now() + self.settings.timeout;
        let order = self.order(avoid);
        let (mut unwilling, mut refusals) = (None, 0);
        for upstream in order.iter().cycle().take(ATTEMPTS_MIN.max(2 * order.len())) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let patience = left.min(self.settings.attempt_timeout);
            let ended = upstream.exchange(key, patience, &self.metrics).await;
            self.metrics.cache_dropped(&self.zone, upstream.take_dropped());
            match ended {
                // Another one may be able to.
                Ok(found) if matches!(found.code, ResponseCode::ServFail | ResponseCode::Refused) => {
                    unwilling = Some(Arc::new(found));
                    refusals += 1;
                    // All have said so: to ask them again would only be more of the same.
                    if refusals >= order.len() {
                        break;
                    }
                }
                Ok(found) => return Ok(Arc::new(found)),
                Err(_) => upstream.look_after(&self.metrics),
            }
        }
        Err(unwilling)
    }

    /// Upstreams in the order of the policy, those that fail last.
    fn order(&self, avoid: &[IpAddr]) -> Vec<&Arc<Upstream>> {
        const DNS_PORT: u16 = 53;
        let leads_back = |address: SocketAddr| address.port() == DNS_PORT && avoid.contains(&address.ip());
        let mut order: Vec<&Arc<Upstream>> =
            self.upstreams.iter().filter(|upstream| !leads_back(upstream.address)).collect();
        if order.len() > 1 {
            let first = match self.settings.policy {
                Policy::Sequential => 0,
                Policy::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed) % order.len(),
                Policy::Random => random() % order.len(),
            };
            order.rotate_left(first);
            order.sort_by_key(|upstream| upstream.is_failing());
            if order.iter().all(|upstream| upstream.is_failing()) {
                self.metrics.forward_all_failing();
            }
        }
        order
    }

    /// Entries of the cache: answers, and denials.
    pub(crate) fn cached(&self) -> (usize, usize) {
        self.cache.count()
    }
}

/// Takes a question off the list of those under way, also where asking ends badly.
struct Landing {
    forwarder: Arc<Forwarder>,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.forwarder.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// Waits for the end of an exchange.
async fn landed(flight: &mut Flight) -> Outcome {
    let Ok(outcome) = flight.wait_for(Option::is_some).await else { return Err(NoAnswer) };
    outcome.clone().unwrap_or(Err(NoAnswer))
}

fn random() -> usize {
    // Each state has keys of its own.
    usize::try_from(RandomState::new().build_hasher().finish() >> 33).unwrap_or_default()
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
