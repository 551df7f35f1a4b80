//! What the kernel should hold: a pure function of the snapshot and of the node that it is computed for.
//!
//! Every rule of Kubernetes about who may reach which endpoint is decided here, so that the kernel finds a flat list
//! of backends per frontend and has no policy to think about. [`Computation`] does the same step by step: after the
//! first snapshot it looks only at Services that changed. A first sync, one change and a full resync are one path.
//!
//! **Invariant:** the result depends on the last snapshot and view only, not on the ones before.

mod choice;
mod claims;
mod host_port;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use imbl::OrdMap;
use seaway_model::{
    Balancing, EndpointSet, Family, Forwarding, Lookup, Service, ServiceKey, Snapshot, TrafficPolicy,
};
use serde::Serialize;

use crate::frontend::{Frontend, FrontendKey, FrontendKind, Owner, Scope};
use crate::status::{BackendStatus, FrontendStatus, ServiceStatus};

pub use choice::{Choice, choose};
use claims::Claims;
pub(crate) use host_port::pod_of;

/// The node that the data plane is computed for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// Its name.
    pub name: Arc<str>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Its own addresses that NodePorts answer at.
    pub node_port_addresses: Vec<IpAddr>,
    /// The addresses that other nodes know it by, one of a family.
    pub known_by: Vec<IpAddr>,
    /// NodePorts answer at 127.0.0.1 and ::1 to local processes.
    pub node_port_loopback: bool,
    /// Services that say nothing have their backends chosen by Maglev.
    pub maglev_default: bool,
    /// The data plane can choose so at all.
    pub maglev_offered: bool,
    /// Clients outside of Services that say nothing are answered by the backends' nodes.
    pub dsr_default: bool,
    /// The data plane can do that at all.
    pub dsr_offered: bool,
    /// Backends of ClusterIPs see the node in the place of its own pods, too.
    pub masquerade_all: bool,
}

impl NodeView {
    /// Whether the backends of `service` are chosen by Maglev.
    fn chooses_by_maglev(&self, service: &Service) -> bool {
        self.maglev_offered
            && match service.balancing {
                Some(Balancing::Maglev) => true,
                Some(Balancing::Random) => false,
                Some(Balancing::Unknown) | None => self.maglev_default,
            }
    }

    /// Whether this node recognises what others that clients reached at a NodePort of `family` tell it: it looks the
    /// port up at its own address.
    fn hears_of_node_ports(&self, family: Family) -> bool {
        let known_by = self.known_by.iter().find(|addr| Family::of(**addr) == family);
        known_by.is_some_and(|addr| self.node_port_addresses.contains(addr))
    }

    /// Whether backends of `service` on other nodes see and answer clients outside themselves. With policy Local there
    /// are none.
    fn returns_directly(&self, service: &Service) -> bool {
        self.dsr_offered
            && service.external_policy == TrafficPolicy::Cluster
            && match service.forwarding {
                Some(Forwarding::Dsr) => true,
                Some(Forwarding::Snat) => false,
                Some(Forwarding::Unknown) | None => self.dsr_default,
            }
    }
}

/// A frontend with its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the kernel holds.
    pub frontend: Arc<Frontend>,
    /// Whose it is.
    pub owner: Owner,
}

/// A frontend that several Services claim. The first by name order has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The contested address.
    pub address: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// Who has it, as `namespace/name`.
    pub winner: String,
    /// Who does not get it.
    pub losers: Vec<String>,
}

/// What the kernel should hold.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Every list has been read: what is not here may be pruned.
    pub complete: bool,
    /// All frontends.
    pub frontends: OrdMap<FrontendKey, Arc<Entry>>,
    /// Frontends that more than one Service claims, with all that do.
    pub contested: OrdMap<FrontendKey, BTreeSet<ServiceKey>>,
    totals: Totals,
}

/// Sums over all frontends, kept as they change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    services: usize,
    backends: usize,
    /// By family: IPv4, IPv6.
    no_local_internal: [usize; 2],
    no_local_external: [usize; 2],
}

impl Desired {
    /// How many Services have at least one frontend claim.
    pub fn service_count(&self) -> usize {
        self.totals.services
    }

    /// How many backends all frontends have together.
    pub fn backend_count(&self) -> usize {
        self.totals.backends
    }

    /// Frontends of a family whose Local policy leaves them without a backend here: internal, external.
    pub fn no_local_endpoints(&self, family: Family) -> (usize, usize) {
        let at = usize::from(family == Family::V6);
        (self.totals.no_local_internal[at], self.totals.no_local_external[at])
    }

    /// Contested addresses, a row each.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut rows: Vec<Conflict> = Vec::new();
        for (key, claimants) in &self.contested {
            let address = SocketAddr::new(key.addr, key.port);
            let protocol = key.protocol.as_str();
            if rows.last().is_some_and(|row| row.address == address && row.protocol == protocol) {
                continue; // The same conflict in the other scope.
            }
            let mut names = claimants.iter().map(ToString::to_string);
            let winner = names.next().unwrap_or_default();
            rows.push(Conflict { address, protocol, winner, losers: names.collect() });
        }
        rows
    }

    fn set(&mut self, key: FrontendKey, entry: Option<Arc<Entry>>) {
        let previous = match &entry {
            Some(entry) => self.frontends.insert(key, Arc::clone(entry)),
            None => self.frontends.remove(&key),
        };
        if let Some(previous) = previous {
            self.totals.backends -= previous.frontend.backends.len();
            self.count_no_local(key, &previous, |count| *count -= 1);
        }
        if let Some(entry) = entry {
            self.totals.backends += entry.frontend.backends.len();
            self.count_no_local(key, &entry, |count| *count += 1);
        }
    }

    fn count_no_local(&mut self, key: FrontendKey, entry: &Entry, change: impl FnOnce(&mut usize)) {
        if !entry.frontend.elsewhere {
            return;
        }
        let at = usize::from(key.addr.is_ipv6());
        match (entry.frontend.kind, key.scope) {
            (FrontendKind::ClusterIP, Scope::Internal) => change(&mut self.totals.no_local_internal[at]),
            (FrontendKind::ClusterIP, Scope::External) | (_, Scope::Internal) => {}
            (_, Scope::External) => change(&mut self.totals.no_local_external[at]),
        }
    }
}

/// Everything that `snapshot` asks of the node `view`.
pub fn desired(snapshot: &Snapshot, view: &NodeView) -> Desired {
    let mut computation = Computation::default();
    computation.update(snapshot, view);
    computation.desired
}

/// The desired state, brought up to date step by step.
#[derive(Debug, Default)]
pub struct Computation {
    snapshot: Snapshot,
    view: NodeView,
    desired: Desired,
}

impl Computation {
    /// The state as of the last update.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Moves on to `snapshot` and `view`. Returns the frontends that may have changed.
    pub fn update(&mut self, snapshot: &Snapshot, view: &NodeView) -> BTreeSet<FrontendKey> {
        let services = if *view == self.view {
            let difference = snapshot.changes_since(&self.snapshot);
            let mut services = difference.services;
            services.extend(difference.host_pods.iter().map(host_port::owner_of));
            services
        } else {
            [&self.snapshot, snapshot].into_iter().flat_map(claimants).collect()
        };
        // What they claimed is not kept: it follows from what they were.
        let former = std::mem::replace(&mut self.snapshot, snapshot.clone());
        let former_view = std::mem::replace(&mut self.view, view.clone());
        self.desired.complete = snapshot.synced;
        let mut changed = Vec::new();
        let sides = [(&former, &former_view), (snapshot, view)];
        if services.len() < MANY {
            steps(sides, &services).for_each(|step| self.take(step, &mut changed));
        } else {
            // What is compiled waits for nobody, what is claimed for all before it: a core each.
            std::thread::scope(|scope| {
                let (ahead, steps_to_take) = sync_channel(STEPS_AHEAD);
                let mut steps = steps(sides, &services);
                scope.spawn(move || {
                    loop {
                        let some: Vec<Step<'_>> = steps.by_ref().take(STEPS_AT_ONCE).collect();
                        // The receiver goes when its thread panics; then there is no more to do.
                        if some.is_empty() || ahead.send(some).is_err() {
                            return;
                        }
                    }
                });
                for step in steps_to_take.into_iter().flatten() {
                    self.take(step, &mut changed);
                }
            });
        }
        changed.into_iter().collect()
    }

    /// What a Service claimed makes room for what it claims now.
    fn take(&mut self, step: Step<'_>, changed: &mut Vec<FrontendKey>) {
        let Step { service, held, fresh } = step;
        if pod_of(service).is_none() {
            self.desired.totals.services += usize::from(!fresh.is_empty());
            self.desired.totals.services -= usize::from(!held.is_empty());
        }
        for key in held.keys().filter(|key| fresh.get(*key).is_none()) {
            self.withdraw(key, service, changed);
        }
        for (key, entry) in fresh {
            self.claim(key, entry, changed);
        }
    }

    /// `entry.owner` claims `key`: it gets it unless someone with a lower name claims it too.
    fn claim(&mut self, key: FrontendKey, entry: Arc<Entry>, changed: &mut Vec<FrontendKey>) {
        let claimant = &entry.owner.service;
        if let Some(held) = self.desired.frontends.get(&key)
            && held.owner.service != *claimant
        {
            let holder = held.owner.service.clone();
            let claimants = self.desired.contested.entry(key).or_default();
            claimants.insert(holder.clone());
            claimants.insert(claimant.clone());
            if holder < *claimant {
                return;
            }
        }
        if self.desired.frontends.get(&key).is_none_or(|held| *held != entry) {
            self.desired.set(key, Some(entry));
            changed.push(key);
        }
    }

    /// `service` claims `key` no longer: the next claimant gets it, or nobody.
    fn withdraw(&mut self, key: FrontendKey, service: &ServiceKey, changed: &mut Vec<FrontendKey>) {
        let next = self.desired.contested.get_mut(&key).and_then(|claimants| {
            claimants.remove(service);
            claimants.first().cloned()
        });
        if self.desired.contested.get(&key).is_some_and(|claimants| claimants.len() < 2) {
            self.desired.contested.remove(&key);
        }
        let holds = self.desired.frontends.get(&key).is_some_and(|held| held.owner.service == *service);
        if holds {
            let entry = next.and_then(|next| {
                Compiler::new(&self.snapshot, &self.view, 1).compile(&next).get(key).cloned()
            });
            self.desired.set(key, entry);
            changed.push(key);
        }
    }
}

/// From so many Services on, two cores share the work.
const MANY: usize = 2048;
/// How many Services the one that compiles passes on at once: neither wakes the other for every single one.
const STEPS_AT_ONCE: usize = 128;
/// How often it may do so before the other has begun.
const STEPS_AHEAD: usize = 8;

/// A Service on its way from one snapshot to the next.
struct Step<'a> {
    service: &'a ServiceKey,
    held: Claims,
    fresh: Claims,
}

/// All that may claim frontends: Services, and pods with host ports.
fn claimants(snapshot: &Snapshot) -> impl Iterator<Item = ServiceKey> {
    let pods = snapshot.host_pods.keys().map(host_port::owner_of);
    snapshot.services.keys().cloned().chain(pods)
}

/// What Services claim on both sides, the former and the next.
fn steps<'a>(
    sides: [(&'a Snapshot, &'a NodeView); 2],
    services: &'a BTreeSet<ServiceKey>,
) -> impl Iterator<Item = Step<'a>> {
    let [mut before, mut now] = sides.map(|(snapshot, view)| Compiler::new(snapshot, view, services.len()));
    services.iter().map(move |service| {
        let (held, fresh) = (before.compile(service), now.compile(service));
        Step { service, held, fresh }
    })
}

/// Makes frontends of Services, asked for in their order.
struct Compiler<'a> {
    snapshot: &'a Snapshot,
    view: &'a NodeView,
    services: Lookup<'a, ServiceKey, Arc<Service>>,
    endpoints: Lookup<'a, ServiceKey, Arc<EndpointSet>>,
}

impl<'a> Compiler<'a> {
    /// For so many Services.
    fn new(snapshot: &'a Snapshot, view: &'a NodeView, count: usize) -> Self {
        let services = Lookup::new(&snapshot.services, count);
        let endpoints = Lookup::new(&snapshot.endpoints, count);
        Self { snapshot, view, services, endpoints }
    }

    fn compile(&mut self, service: &ServiceKey) -> Claims {
        if let Some(pod) = pod_of(service) {
            let held = self.snapshot.host_pods.get(&pod);
            return held.map_or_else(Claims::default, |held| host_port::frontends(held, self.view));
        }
        let Some(object) = self.services.get(service).filter(|object| is_served(object)) else {
            return Claims::default();
        };
        let endpoints = self.endpoints.get(service).map_or(&[][..], |set| &set.endpoints[..]);
        service::frontends(object, endpoints, self.view)
    }
}

/// Headless and ExternalName Services have no data plane, and some are another proxy's.
pub(crate) fn is_served(service: &Service) -> bool {
    use seaway_model::ServiceKind;
    service.proxy_name.is_none() && !service.headless && service.kind != ServiceKind::ExternalName
}

/// The frontends as people want to read them: by Service.
pub(crate) fn services_of(desired: &Desired) -> Vec<ServiceStatus> {
    let mut rows: BTreeMap<&ServiceKey, Vec<FrontendStatus>> = BTreeMap::new();
    for (key, entry) in &desired.frontends {
        rows.entry(&entry.owner.service).or_default().push(frontend_status(*key, entry));
    }
    rows.into_iter()
        .map(|(service, mut frontends)| {
            frontends.sort_by_key(|f| (f.kind, f.address, f.protocol, f.scope));
            ServiceStatus {
                namespace: service.namespace.to_string(),
                name: service.name.to_string(),
                frontends,
            }
        })
        .collect()
}

fn frontend_status(key: FrontendKey, entry: &Entry) -> FrontendStatus {
    FrontendStatus {
        kind: entry.frontend.kind,
        port_name: entry.owner.port_name.to_string(),
        address: SocketAddr::new(key.addr, key.port),
        protocol: key.protocol.as_str(),
        scope: key.scope,
        affinity_s: entry.frontend.affinity.map(|timeout| timeout.as_secs()),
        backends: entry
            .frontend
            .backends
            .iter()
            .map(|b| BackendStatus { address: SocketAddr::new(b.addr, b.port), local: b.local })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seaway_model::{Protocol, ServicePort};

    fn cluster(services: u16, port: u16) -> Snapshot {
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        for index in 0..services {
            let mut service = Service::new(ServiceKey::new("default", &format!("s{index}")));
            // Two of them claim the same address.
            service.cluster_ips = vec![IpAddr::from((0x0a60_0000 + u32::from(index / 2)).to_be_bytes())];
            service.ports = vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port,
                node_port: None,
                app_protocol: None,
            }];
            snapshot.services.insert(service.key.clone(), Arc::new(service));
        }
        snapshot
    }

    #[test]
    fn many_at_once_come_to_the_same_as_few_at_a_time() {
        let many = u16::try_from(MANY).unwrap() * 2;
        let view = NodeView { name: "node".into(), ..NodeView::default() };
        let (mut at_once, mut in_steps) = (Computation::default(), Computation::default());
        for port in [80, 81] {
            let all = cluster(many, port);
            let changed = at_once.update(&all, &view);
            let mut stepwise = BTreeSet::new();
            let mut so_far = in_steps.snapshot.clone();
            let services: Vec<_> = all.services.iter().collect();
            for some in services.chunks(MANY / 3) {
                so_far
                    .services
                    .extend(some.iter().map(|(key, service)| ((*key).clone(), Arc::clone(service))));
                stepwise.extend(in_steps.update(&so_far, &view));
            }
            assert_eq!(changed, stepwise);
            let (at_once, in_steps) = (at_once.desired(), in_steps.desired());
            assert_eq!(at_once.frontends, in_steps.frontends);
            assert_eq!((&at_once.contested, at_once.totals), (&in_steps.contested, in_steps.totals));
            assert_eq!(at_once.service_count(), usize::from(many));
        }
    }
}
