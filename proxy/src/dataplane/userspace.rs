//! The userspace data plane: sockets that listen at the frontends' addresses and hand on what arrives. It needs no
//! privilege and no kernel feature, and is the slowest.
//!
//! What it cannot do is refused by name: addresses that are not local to this network namespace (a ClusterIP is, once
//! `ip route add local 10.96.0.0/16 dev lo` says so), SCTP, and keeping the client's address
//! (externalTrafficPolicy Local), since backends see this node. Where a packet would have to be dropped, it is refused
//! instead.
//!
//! What a backend's kernel answers with an ICMP error ends a UDP client's association, and its next datagram goes to another
//! backend, but the client is not told: to send such an error takes a raw socket, which a process without privilege does
//! not get, and a socket that listens for everybody cannot refuse one of them. (A TCP client whose backends all refuse is
//! reset.)
//!
//! A connection goes on when its backend leaves the list, and lives in the process that took it in. So that process is
//! none of the agent's: a worker ([`serve_as_worker`]) listens and hands on, without privilege and whether an agent is
//! there or not, and the agent ([`Remote`]) tells it the plans. A worker of another version leaves its sockets to the
//! next one and ends with its last connection. Only the death of the worker itself costs connections.
//!
//! [`Userspace`] is what the worker holds. It works in any process: a successor may listen at the same addresses
//! (`SO_REUSEPORT`) before a former one lets go of them, and whoever lets go first serves all that reached it.

mod channel;
mod directory;
mod legacy;
mod limits;
mod listen;
mod pick;
mod remote;
mod serve;
mod site;
mod tcp;
mod udp;
mod wire;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use imbl::OrdMap;

pub use limits::Limits;
pub(crate) use limits::{OUT_OF_FILES, USERSPACE_FULL};
pub use listen::{Listener, Memory, Network, Sockets};
pub use remote::{Remote, WorkerConfig, end_workers, retire_workers, workers};
pub use serve::Serve;
pub use site::{Place, SiteKey};
pub use wire::Presence;
pub use worker::{WorkerError, serve_as_worker};

use super::{Applied, Dataplane, DataplaneError, Failure, Subject};
use crate::frontend::{Frontend, FrontendKey, Scope};
use crate::plan::{Actual, Host, Plan};
use crate::stale::{Forgotten, Targets};
use crate::status::DropCount;
use site::Site;

/// What cannot be done in user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Refusal {
    Sctp,
    KeepingTheSource,
    NotLocal,
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Sctp, Self::KeepingTheSource, Self::NotLocal];

    fn what(self) -> &'static str {
        match self {
            Self::Sctp => "SCTP",
            Self::KeepingTheSource => "keeping the client's address (externalTrafficPolicy Local)",
            Self::NotLocal => "an address that is not local to this network namespace",
        }
    }

    fn of(what: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.what() == what)
    }

    fn error(self, frontend: FrontendKey) -> DataplaneError {
        DataplaneError::Unsupported { frontend, what: self.what(), backend: "userspace" }
    }
}

/// The userspace data plane of one node.
#[derive(Debug)]
pub struct Userspace<N: Sockets> {
    network: N,
    host: Host,
    sites: BTreeMap<SiteKey, Site>,
    listeners: BTreeMap<SiteKey, BTreeMap<Place, N::Listener>>,
}

impl Userspace<Network> {
    /// A data plane in the network namespace of the calling thread.
    pub fn open(limits: Limits) -> Result<Self, DataplaneError> {
        Ok(Self::new(Network::new(limits)?))
    }
}

impl<N: Sockets> Userspace<N> {
    /// A data plane of the sockets that `network` opens.
    pub fn new(network: N) -> Self {
        Self { network, host: Host::default(), sites: BTreeMap::new(), listeners: BTreeMap::new() }
    }

    /// Where sockets are opened.
    pub fn network(&self) -> &N {
        &self.network
    }

    fn refusal(&self, key: &FrontendKey, frontend: &Frontend) -> Option<DataplaneError> {
        let keeps_source =
            key.scope == Scope::External && frontend.preserve_source && !frontend.backends.is_empty();
        let refusal = if key.protocol == seaway_model::Protocol::Sctp {
            Refusal::Sctp
        } else if keeps_source {
            Refusal::KeepingTheSource
        } else if self.network.is_local(key.addr) {
            return None;
        } else {
            Refusal::NotLocal
        };
        Some(refusal.error(*key))
    }

    /// Makes the sockets of a site what they should be: new ones are opened before others are closed.
    ///
    /// Where a socket listens at a link and another one anywhere, the kernel takes the first that it finds, and finds
    /// IPv4 sockets in the reverse order in which they were opened, IPv6 sockets in that order (`__inet_hash`). So
    /// that links have the precedence, the socket that has to come second is opened anew after a new first one.
    fn settle(&mut self, key: &SiteKey) -> Result<(), DataplaneError> {
        let site = self.sites.get(key).cloned().unwrap_or_default();
        let wanted = site.places(key, &self.host);
        let listeners = self.listeners.entry(*key).or_default();
        let mut result = Ok(());
        let mut renewed = false;
        let is_second = |place: &Place| (*place == Place::Anywhere) == key.addr.is_ipv6();
        let (second, first): (Vec<_>, Vec<_>) = wanted.iter().partition(|(place, _)| is_second(place));
        for (place, serve) in first.into_iter().chain(second) {
            let keep = !(is_second(place) && renewed);
            match listeners.get(place) {
                Some(listener) if keep && listener.is_alive() => listener.serve(Arc::clone(serve)),
                _ => match self.network.listen(key, place, Arc::clone(serve)) {
                    Ok(listener) => {
                        renewed |= !is_second(place);
                        listeners.insert(place.clone(), listener);
                    }
                    Err(error) => result = Err(error),
                },
            }
        }
        listeners.retain(|place, _| wanted.contains_key(place));
        if listeners.is_empty() {
            self.listeners.remove(key);
        }
        if site.is_empty() {
            self.sites.remove(key);
        }
        result
    }

    /// All sockets of the site listen.
    fn is_served(&self, key: &SiteKey, site: &Site) -> bool {
        let listeners = self.listeners.get(key);
        let alive = |place| listeners.and_then(|all| all.get(place)).is_some_and(Listener::is_alive);
        site.places(key, &self.host).keys().all(alive)
    }
}

impl<N: Sockets> Dataplane for Userspace<N> {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn offers_maglev(&self) -> bool {
        true
    }

    fn offers_masquerade_all(&self) -> bool {
        // Its backends never see anybody else.
        true
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        let served = self.sites.iter().filter(|(key, site)| self.is_served(key, site));
        let frontends: OrdMap<FrontendKey, Arc<Frontend>> =
            served.flat_map(|(key, site)| site.frontends(key)).collect();
        Ok(Actual { frontends, host: self.host.clone(), stale: 0 })
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        let mut failed = Vec::new();
        let mut touched: BTreeMap<SiteKey, BTreeSet<Scope>> = BTreeMap::new();
        if let Some(host) = &plan.host {
            if host.uplinks != self.host.uplinks {
                touched.extend(self.sites.keys().map(|key| (*key, BTreeSet::new())));
            }
            self.host = host.clone();
        }
        for (key, frontend) in &plan.upserts {
            let site = SiteKey::of(key);
            let refusal = self.refusal(key, frontend);
            self.sites
                .entry(site)
                .or_default()
                .set(key.scope, refusal.is_none().then(|| Arc::clone(frontend)));
            touched.entry(site).or_default().insert(key.scope);
            if let Some(error) = refusal {
                failed.push(Failure { subject: Subject::Frontend(*key), error });
            }
        }
        for key in &plan.removals {
            let site = SiteKey::of(key);
            self.sites.entry(site).or_default().set(key.scope, None);
            touched.entry(site).or_default();
        }
        for (key, scopes) in touched {
            if let Err(error) = self.settle(&key) {
                let subjects = scopes.iter().map(|scope| Subject::Frontend(key.frontend(*scope)));
                let subjects: Vec<Subject> =
                    if scopes.is_empty() { vec![Subject::Host] } else { subjects.collect() };
                failed.extend(subjects.into_iter().map(|subject| Failure { subject, error: again(&error) }));
            }
        }
        Ok(Applied { done: plan.len().saturating_sub(failed.len()), failed })
    }

    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        Ok(self.network.forget_udp(serving))
    }

    fn drops(&self) -> Vec<DropCount> {
        self.network.drops()
    }
}

/// The same error for another frontend.
fn again(error: &DataplaneError) -> DataplaneError {
    let source = match error {
        DataplaneError::Io { source, .. } => match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(source.kind(), source.to_string()),
        },
        error => io::Error::other(crate::reconcile::chain(error)),
    };
    DataplaneError::Io { action: error.to_string(), source }
}
