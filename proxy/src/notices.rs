//! What operators should know about a Service: written to the log, and told to whoever can write it down elsewhere (as
//! Events, say), once.
//!
//! The proxy knows nothing of the Kubernetes API: [`Reporter`] is the seam.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seaway_model::{Balancing, Forwarding, Lookup, ServiceKey, Snapshot};

use crate::dataplane::userspace;
use crate::desired::{Desired, is_served, pod_of};
use crate::status::DropCount;

/// Something is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `Service`, `Pod` or `Node`.
    pub kind: &'static str,
    /// The object's namespace; empty for a Node.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
    /// The object's uid; empty where it is not known.
    pub uid: Arc<str>,
    /// A word for machines, in the manner of Kubernetes.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// Takes notices. It must not block.
pub trait Reporter: fmt::Debug + Send + Sync {
    /// Someone should look at this.
    fn warn(&self, notice: Notice);
}

/// The backend cannot do what the object asks for.
pub(crate) const UNSUPPORTED: &str = "NotSupportedByProxy";
/// There is no room in the kernel for it.
pub(crate) const FULL: &str = "ProxyTableFull";
/// Another object has the address.
pub(crate) const CONFLICT: &str = "AddressConflict";

/// No more files can be opened for it, or connections taken on.
pub(crate) const EXHAUSTED: &str = "ProxyExhausted";

/// The same is not said again within this time.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// So many at once, then one per [`REFILL`].
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(10);
/// What is remembered to have been said.
const REMEMBERED_MAX: usize = 4096;

/// What the data plane offers of Maglev.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaglevOffer {
    /// It can choose so at all.
    pub(crate) offered: bool,
    /// Services that say nothing want it.
    pub(crate) by_default: bool,
    /// Among so many backends at most.
    pub(crate) backends_max: usize,
}

/// Says everything once, and not too much at a time.
#[derive(Debug)]
pub(crate) struct Notices {
    reporter: Option<Arc<dyn Reporter>>,
    said: HashMap<(ServiceKey, &'static str), (String, Instant)>,
    allowance: Allowance,
    /// Clients turned away for each of [`LIMITS`].
    exhausted: Option<[u64; LIMITS.len()]>,
}

/// For want of what clients are turned away, by the reason that is counted.
const LIMITS: [(&str, &str); 2] = [
    (userspace::OUT_OF_FILES, "files open as it may (RLIMIT_NOFILE, fs.nr_open)"),
    (userspace::USERSPACE_FULL, "connections as it takes on"),
];

/// How much may be said: 25 things at once, then one every ten seconds.
#[derive(Debug)]
pub struct Allowance {
    tokens: u32,
    refilled: Instant,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { tokens: BURST, refilled: Instant::now() }
    }
}

impl Allowance {
    /// Whether one more thing may be said.
    pub fn take(&mut self) -> bool {
        let due = self.refilled.elapsed().as_secs() / REFILL.as_secs();
        if due > 0 {
            self.tokens = self.tokens.saturating_add(u32::try_from(due).unwrap_or(u32::MAX)).min(BURST);
            self.refilled = Instant::now();
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }
}

impl Notices {
    pub(crate) fn new(reporter: Option<Arc<dyn Reporter>>) -> Self {
        Self { reporter, said: HashMap::new(), allowance: Allowance::default(), exhausted: None }
    }

    /// Says `message` about the Service or pod that `owner` stands for.
    pub(crate) fn warn(
        &mut self,
        snapshot: &Snapshot,
        owner: &ServiceKey,
        reason: &'static str,
        message: String,
    ) {
        if !self.may_say(owner, reason, &message) {
            return;
        }
        let (kind, name, uid) = if let Some(pod) = pod_of(owner) {
            let uid = snapshot.host_pods.get(&pod).map(|held| Arc::clone(&held.uid));
            ("Pod", pod.name, uid)
        } else {
            let uid = snapshot.services.get(owner).map(|held| Arc::clone(&held.uid));
            ("Service", Arc::clone(&owner.name), uid)
        };
        let (namespace, uid) = (Arc::clone(&owner.namespace), uid.unwrap_or_default());
        self.say(Notice { kind, namespace, name, uid, reason, message });
    }

    /// Says `message` about this node.
    pub(crate) fn warn_of_node(&mut self, name: &str, reason: &'static str, message: String) {
        if self.may_say(&ServiceKey::new("", name), reason, &message) {
            let (namespace, uid) = (Arc::default(), Arc::default());
            self.say(Notice { kind: "Node", namespace, name: name.into(), uid, reason, message });
        }
    }

    /// It has not been said lately, and not too much else has.
    fn may_say(&mut self, owner: &ServiceKey, reason: &'static str, message: &str) -> bool {
        let key = (owner.clone(), reason);
        let lately = |(said, at): &(String, Instant)| said == message && at.elapsed() < AGAIN_AFTER;
        if self.said.get(&key).is_some_and(lately) || !self.allowance.take() {
            return false;
        }
        if self.said.len() >= REMEMBERED_MAX {
            self.said.retain(|_, (_, at)| at.elapsed() < AGAIN_AFTER);
        }
        if self.said.len() < REMEMBERED_MAX {
            self.said.insert(key, (message.to_owned(), Instant::now()));
        }
        true
    }

    fn say(&self, notice: Notice) {
        let Notice { kind, namespace, name, reason, message, .. } = &notice;
        tracing::warn!(kind, object = %format_args!("{namespace}/{name}"), reason, "{message}");
        if let Some(reporter) = &self.reporter {
            reporter.warn(notice);
        }
    }

    /// Tells the node if more clients have been turned away than before for want of files or of connections.
    pub(crate) fn exhaustion(&mut self, node: &str, drops: &[DropCount]) {
        let count = |(reason, _): (&str, &str)| {
            drops.iter().find(|drop| drop.reason == reason).map_or(0, |drop| drop.packets)
        };
        let now = LIMITS.map(count);
        // What happened before this process was there has been told.
        let former = self.exhausted.replace(now).unwrap_or(now);
        for (index, (_, what)) in LIMITS.into_iter().enumerate() {
            if now[index] > former[index] {
                let message = format!("clients are turned away: the userspace proxy has as many {what}");
                self.warn_of_node(node, EXHAUSTED, message);
            }
        }
    }

    /// Tells those of `services` whose wish about the choice of backends is not followed. They are served all the same.
    pub(crate) fn balancing(
        &mut self,
        snapshot: &Snapshot,
        services: &BTreeSet<ServiceKey>,
        maglev: MaglevOffer,
    ) {
        let mut found = Lookup::new(&snapshot.services, services.len());
        for key in services {
            let Some(service) = found.get(key).filter(|service| is_served(service)) else {
                continue;
            };
            let wants_maglev = match service.balancing {
                Some(Balancing::Maglev) => true,
                Some(Balancing::Random) => false,
                Some(Balancing::Unknown) | None => maglev.by_default,
            };
            let endpoints = || {
                let all = snapshot.endpoints.get(key).map_or(&[][..], |set| &set.endpoints[..]);
                all.iter().filter(|endpoint| endpoint.ready || endpoint.serving).count()
            };
            let message = match service.balancing {
                Some(Balancing::Maglev) if !maglev.offered => {
                    "Maglev is not supported by this proxy mode: backends are chosen at random".to_owned()
                }
                Some(Balancing::Unknown) => {
                    "the annotation seaway.dev/load-balancing has an unknown value: want maglev or random"
                        .to_owned()
                }
                _ if wants_maglev && maglev.offered && endpoints() > maglev.backends_max => format!(
                    "Maglev is for at most {} endpoints, and these are more: they are chosen at random",
                    maglev.backends_max
                ),
                _ => continue,
            };
            self.warn(snapshot, key, UNSUPPORTED, message);
        }
    }

    /// Tells those of `services` whose wish about the way to backends elsewhere is not followed.
    pub(crate) fn forwarding(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceKey>, dsr: bool) {
        let mut found = Lookup::new(&snapshot.services, services.len());
        for key in services {
            let wish = found.get(key).filter(|service| is_served(service));
            let message = match wish.and_then(|service| service.forwarding) {
                Some(Forwarding::Dsr) if !dsr => {
                    "direct server return is not supported by this proxy mode: source NAT is used"
                }
                Some(Forwarding::Unknown) => {
                    "the annotation seaway.dev/north-south has an unknown value: want dsr or snat"
                }
                _ => continue,
            };
            self.warn(snapshot, key, UNSUPPORTED, message.to_owned());
        }
    }

    /// Tells those who do not get an address that they claim.
    pub(crate) fn conflicts(&mut self, snapshot: &Snapshot, desired: &Desired) {
        for (key, claimants) in &desired.contested {
            let Some(winner) = claimants.first() else { continue };
            let address = std::net::SocketAddr::new(key.addr, key.port);
            for loser in claimants.iter().skip(1) {
                let message =
                    format!("{address}/{} is served for {winner}, which claims it too", key.protocol);
                self.warn(snapshot, loser, CONFLICT, message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use seaway_model::{Endpoint, EndpointSet, Service};

    use super::*;

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<Notice>>);

    impl Reporter for Heard {
        fn warn(&self, notice: Notice) {
            self.0.lock().unwrap().push(notice);
        }
    }

    #[test]
    fn more_endpoints_than_maglev_has_a_table_for_are_told() {
        let heard = Arc::new(Heard::default());
        let mut notices = Notices::new(Some(Arc::<Heard>::clone(&heard)));
        let key = ServiceKey::new("default", "web");
        let mut snapshot = Snapshot::default();
        let service = Service { balancing: Some(Balancing::Maglev), ..Service::new(key.clone()) };
        snapshot.services.insert(key.clone(), Arc::new(service));
        let mut tell = |count: u32, backends_max| {
            let endpoint = |index: u32| {
                Endpoint::new(std::net::Ipv4Addr::from_bits(0x0af4_0000 + index).into(), [].into())
            };
            let set = EndpointSet { endpoints: (0..count).map(endpoint).collect() };
            snapshot.endpoints.insert(key.clone(), Arc::new(set));
            let offer = MaglevOffer { offered: true, by_default: false, backends_max };
            notices.balancing(&snapshot, &[key.clone()].into(), offer);
            heard.0.lock().unwrap().pop().map(|notice| notice.message)
        };
        assert_eq!(tell(10_000, 10_000), None);
        let message = tell(10_001, 10_000).unwrap();
        assert!(message.starts_with("Maglev is for at most 10000 endpoints"), "{message}");
        assert_eq!(tell(10_002, usize::MAX), None);
    }

    #[test]
    fn the_node_is_told_when_clients_begin_to_be_turned_away() {
        let heard = Arc::new(Heard::default());
        let mut notices = Notices::new(Some(Arc::<Heard>::clone(&heard)));
        let mut tell = |reason: &str, packets| {
            notices.exhaustion("node-a", &[DropCount { reason: reason.to_owned(), packets }]);
            let said = heard.0.lock().unwrap().pop();
            said.map(|notice| (notice.kind, notice.name.to_string(), notice.reason))
        };
        let told = Some(("Node", "node-a".to_owned(), EXHAUSTED));
        assert_eq!(tell("out_of_files", 3), None, "an agent that has just come does not know since when");
        assert_eq!(tell("out_of_files", 3), None);
        assert_eq!(tell("source_range", 9), None);
        assert_eq!(tell("out_of_files", 4), told);
        assert_eq!(tell("out_of_files", 5), None, "it has been said");
        assert_eq!(tell("userspace_full", 1), told);
    }

    #[test]
    fn the_same_is_said_once_and_a_flood_is_held_back() {
        let heard = Arc::new(Heard::default());
        let mut notices = Notices::new(Some(Arc::<Heard>::clone(&heard)));
        let snapshot = Snapshot::default();
        let web = ServiceKey::new("default", "web");
        for message in ["a", "a", "b", "b"] {
            notices.warn(&snapshot, &web, UNSUPPORTED, message.into());
        }
        let pod = ServiceKey::new("default", "pod/web");
        notices.warn(&snapshot, &pod, CONFLICT, "c".into());
        let said: Vec<(&str, String)> =
            heard.0.lock().unwrap().iter().map(|n| (n.kind, format!("{} {}", n.name, n.message))).collect();
        assert_eq!(said, [("Service", "web a".into()), ("Service", "web b".into()), ("Pod", "web c".into())]);
        for index in 0..100 {
            notices.warn(&snapshot, &web, UNSUPPORTED, format!("{index}"));
        }
        assert_eq!(heard.0.lock().unwrap().len(), usize::try_from(BURST).unwrap());
    }
}
