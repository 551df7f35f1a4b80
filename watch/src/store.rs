//! The one writer of the [`Snapshot`]: takes events in, hands snapshots out.
//!
//! **Invariant:** a relist swaps. Until a list is complete the former state stands; nothing vanishes in between.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use imbl::{OrdMap, OrdSet};
use seaway_model::{EndpointSet, EndpointSlice, HostPod, Node, Service, ServiceKey, Snapshot, TargetPod};

/// What happened to objects of one kind.
#[derive(Debug)]
pub enum Change<T> {
    /// A list begins.
    ListBegins,
    /// An object of the list that has begun.
    Listed(T),
    /// The list is complete: what it did not have is gone.
    ListEnds,
    /// An object appeared or changed.
    Applied(T),
    /// An object went.
    Deleted(ObjectKey),
}

/// The name of an object of any kind; the namespace is empty where there is none.
pub type ObjectKey = (Arc<str>, Arc<str>);

/// When a change came about, where that is known.
pub type Triggered = Option<SystemTime>;

/// What happened. Objects stand where they were made: a page of them is passed on without a copy.
#[derive(Debug)]
pub enum Event {
    /// To Services.
    Service(Change<Arc<Service>>),
    /// To EndpointSlices.
    Slice(Change<(Arc<EndpointSlice>, Triggered)>),
    /// To Nodes.
    Node(Change<Arc<Node>>),
    /// To pods that have addresses; those with host ports name them.
    Pod(Change<Arc<HostPod>>),
    /// Pods may not be listed: host ports are not served, and nobody waits for them.
    PodsDenied,
    /// To namespaces.
    Namespace(Change<Arc<str>>),
    /// Namespaces may not be listed, and nobody waits for them.
    NamespacesDenied,
}

/// The state of the cluster as the events so far tell it.
#[derive(Debug, Default)]
pub struct Store {
    snapshot: Snapshot,
    changed: bool,
    /// All slices by name: the label that tells their Service may change.
    slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    /// The slices of each Service, by name.
    by_service: BTreeMap<ServiceKey, Vec<Arc<EndpointSlice>>>,
    services: Progress<Arc<Service>>,
    slice_list: Progress<Arc<EndpointSlice>>,
    nodes: Progress<Arc<Node>>,
    /// `None`: nobody asked for pods.
    pods: Option<Progress<Arc<HostPod>>>,
    /// The list of pods that comes next is one of every node's.
    listing_all_pods: bool,
    /// It may not be made.
    pods_denied: bool,
    /// Which addresses each pod has in the snapshot.
    pod_addrs: HashMap<TargetPod, Box<[IpAddr]>>,
    /// `None`: nobody asked for namespaces.
    namespaces: Option<Progress<Arc<str>>>,
}

/// How far the list of one kind is.
#[derive(Debug)]
struct Progress<T> {
    complete: bool,
    incoming: Option<Vec<T>>,
}

impl<T> Default for Progress<T> {
    fn default() -> Self {
        Self { complete: false, incoming: None }
    }
}

impl<T> Progress<T> {
    fn begin(&mut self) {
        self.incoming = Some(Vec::new());
    }

    fn add(&mut self, item: T) {
        self.incoming.get_or_insert_default().push(item);
    }

    /// The whole list, once it is there.
    fn finish(&mut self) -> Vec<T> {
        self.complete = true;
        self.incoming.take().unwrap_or_default()
    }
}

impl Store {
    /// A store that waits for pods, for namespaces, for both, or for neither.
    pub fn waiting_for(pods: bool, namespaces: bool) -> Self {
        Self {
            pods: pods.then(Progress::default),
            namespaces: namespaces.then(Progress::default),
            ..Self::default()
        }
    }

    /// From now on every node's pods are listed, or fewer. Nobody waits for a list that comes later than the first.
    pub fn list_pods_anew(&mut self, of_all_nodes: bool) {
        (self.listing_all_pods, self.pods_denied) = (of_all_nodes, false);
        self.pods.get_or_insert(Progress { complete: true, incoming: None });
        if !of_all_nodes {
            self.changed |= std::mem::take(&mut self.snapshot.all_pods);
        }
    }

    /// Takes events in, one after the other.
    pub fn apply_all(&mut self, events: Vec<Event>) {
        for event in events {
            self.apply(event);
        }
    }

    /// Takes one event in.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(change) => self.apply_service(change),
            Event::Slice(change) => self.apply_slice(change),
            Event::Node(change) => self.apply_node(change),
            Event::Pod(change) => self.apply_pod(change),
            Event::PodsDenied => {
                self.pods.get_or_insert_default().complete = true;
                self.pods_denied = true;
            }
            Event::Namespace(change) => self.apply_namespace(change),
            Event::NamespacesDenied => self.namespaces.get_or_insert_default().complete = true,
        }
        let pods = self.pods.as_ref().is_none_or(|pods| pods.complete);
        let namespaces = self.namespaces.as_ref().is_none_or(|namespaces| namespaces.complete);
        let always = self.services.complete && self.slice_list.complete && self.nodes.complete;
        let synced = always && pods && namespaces;
        self.changed |= synced != self.snapshot.synced;
        self.snapshot.synced = synced;
    }

    /// The next snapshot, if there is something new to show.
    pub fn publish(&mut self) -> Option<Arc<Snapshot>> {
        if !self.changed {
            return None;
        }
        self.changed = false;
        self.snapshot.version += 1;
        let published = Arc::new(self.snapshot.clone());
        self.snapshot.triggered_at = None;
        Some(published)
    }

    /// Whether every node's pods were asked for and may not be listed.
    pub(crate) fn all_pods_denied(&self) -> bool {
        self.listing_all_pods && self.pods_denied
    }

    /// Slices whose Service is not known, once everything has been listed. A slice may be early: who asks, asks twice.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = &EndpointSlice> {
        let services = &self.snapshot.services;
        let of_none = self.by_service.iter().filter(|(service, _)| !services.contains_key(*service));
        of_none.filter(|_| self.snapshot.synced).flat_map(|(_, slices)| slices).map(AsRef::as_ref)
    }

    fn apply_service(&mut self, change: Change<Arc<Service>>) {
        let services = &mut self.snapshot.services;
        match change {
            Change::ListBegins => self.services.begin(),
            Change::Listed(service) => {
                let held = services.get(&service.key);
                self.services.add(shared(service, held));
            }
            Change::ListEnds => {
                let listed = self.services.finish();
                self.changed |= swap(services, listed, |service| &service.key);
            }
            Change::Applied(service) => self.changed |= put(services, service.key.clone(), service),
            Change::Deleted((namespace, name)) => {
                self.changed |= services.remove(&ServiceKey { namespace, name }).is_some();
            }
        }
    }

    fn apply_node(&mut self, change: Change<Arc<Node>>) {
        let nodes = &mut self.snapshot.nodes;
        match change {
            Change::ListBegins => self.nodes.begin(),
            Change::Listed(node) => {
                let held = nodes.get(&node.name);
                self.nodes.add(shared(node, held));
            }
            Change::ListEnds => {
                let listed = self.nodes.finish();
                self.changed |= swap(nodes, listed, |node| &node.name);
            }
            Change::Applied(node) => self.changed |= put(nodes, Arc::clone(&node.name), node),
            Change::Deleted((_, name)) => self.changed |= nodes.remove(&name).is_some(),
        }
    }

    fn apply_pod(&mut self, change: Change<Arc<HostPod>>) {
        let progress = self.pods.get_or_insert_default();
        match change {
            Change::ListBegins => progress.begin(),
            Change::Listed(pod) => progress.add(pod),
            Change::ListEnds => {
                let listed = progress.finish();
                let mut gone = std::mem::take(&mut self.pod_addrs);
                for pod in &listed {
                    if let Some(addrs) = gone.remove(&pod.pod) {
                        self.pod_addrs.insert(pod.pod.clone(), addrs);
                    }
                }
                for (pod, addrs) in gone {
                    self.forget_addrs(&pod, &addrs);
                }
                for pod in &listed {
                    self.put_addrs(pod);
                }
                let all = self.listing_all_pods;
                self.changed |= std::mem::replace(&mut self.snapshot.all_pods, all) != all;
                let with_ports = listed.into_iter().filter(|pod| !pod.ports.is_empty()).collect();
                self.changed |= swap(&mut self.snapshot.host_pods, with_ports, |pod| &pod.pod);
            }
            Change::Applied(pod) => {
                self.put_addrs(&pod);
                if pod.ports.is_empty() {
                    self.changed |= self.snapshot.host_pods.remove(&pod.pod).is_some();
                } else {
                    self.changed |= put(&mut self.snapshot.host_pods, pod.pod.clone(), pod);
                }
            }
            Change::Deleted((namespace, name)) => {
                let pod = TargetPod { namespace, name };
                self.changed |= self.snapshot.host_pods.remove(&pod).is_some();
                if let Some(addrs) = self.pod_addrs.remove(&pod) {
                    self.forget_addrs(&pod, &addrs);
                }
            }
        }
    }

    fn put_addrs(&mut self, pod: &HostPod) {
        if self.pod_addrs.get(&pod.pod).is_some_and(|held| **held == *pod.addrs) {
            return;
        }
        if let Some(former) = self.pod_addrs.insert(pod.pod.clone(), pod.addrs.as_slice().into()) {
            self.forget_addrs(&pod.pod, &former);
        }
        for addr in &pod.addrs {
            self.snapshot.pods.insert(*addr, pod.pod.clone());
        }
        self.changed = true;
    }

    /// Takes addresses out, unless another pod has them by now.
    fn forget_addrs(&mut self, pod: &TargetPod, addrs: &[IpAddr]) {
        for addr in addrs {
            if self.snapshot.pods.get(addr) == Some(pod) {
                self.snapshot.pods.remove(addr);
                self.changed = true;
            }
        }
    }

    fn apply_namespace(&mut self, change: Change<Arc<str>>) {
        let progress = self.namespaces.get_or_insert_default();
        match change {
            Change::ListBegins => progress.begin(),
            Change::Listed(name) => progress.add(name),
            Change::ListEnds => {
                let listed: OrdSet<Arc<str>> = progress.finish().into_iter().collect();
                self.changed |= listed != self.snapshot.namespaces;
                self.snapshot.namespaces = listed;
            }
            Change::Applied(name) => self.changed |= self.snapshot.namespaces.insert(name).is_none(),
            Change::Deleted((_, name)) => {
                self.changed |= self.snapshot.namespaces.remove(&name).is_some();
            }
        }
    }

    fn apply_slice(&mut self, change: Change<(Arc<EndpointSlice>, Triggered)>) {
        match change {
            Change::ListBegins => self.slice_list.begin(),
            Change::Listed((slice, _)) => {
                let held = self.slices.get(&object_key(&slice));
                self.slice_list.add(shared(slice, held));
            }
            Change::ListEnds => {
                let listed = self.slice_list.finish();
                self.swap_slices(listed);
            }
            Change::Applied((slice, triggered_at)) => {
                let service = slice.service.clone();
                if let Some(former) = self.put_slice(slice).filter(|former| *former != service) {
                    self.join(&former);
                }
                if self.join(&service) {
                    let earliest = self.snapshot.triggered_at.into_iter().chain(triggered_at).min();
                    self.snapshot.triggered_at = earliest;
                }
            }
            Change::Deleted(key) => {
                if let Some(service) = self.remove_slice(&key) {
                    self.join(&service);
                }
            }
        }
    }

    fn swap_slices(&mut self, listed: Vec<Arc<EndpointSlice>>) {
        let former = std::mem::take(&mut self.by_service);
        self.slices = listed.into_iter().map(|slice| (object_key(&slice), slice)).collect();
        let mut of_services: Vec<_> =
            self.slices.values().map(|slice| (slice.service.clone(), vec![Arc::clone(slice)])).collect();
        // It is in the order of names: those of one Service stay in it.
        of_services.sort_by(|(a, _), (b, _)| a.cmp(b));
        of_services.dedup_by(|(next, slices), (service, all)| {
            let same = next == service;
            if same {
                all.append(slices);
            }
            same
        });
        self.by_service = of_services.into_iter().collect();
        for service in former.keys() {
            if !self.by_service.contains_key(service) {
                self.join(service);
            }
        }
        let of_services: Vec<_> = self.by_service.iter().collect();
        let endpoints = &mut self.snapshot.endpoints;
        let first = endpoints.is_empty();
        for (service, slices) in densely(&of_services) {
            let joined = EndpointSet::join(slices.iter().map(AsRef::as_ref));
            self.changed |= if first {
                endpoints.insert(ServiceKey::clone(service), Arc::new(joined)).is_none()
            } else {
                put(endpoints, ServiceKey::clone(service), Arc::new(joined))
            };
        }
    }

    /// Keeps `slice`. Returns the Service that it belonged to before.
    fn put_slice(&mut self, slice: Arc<EndpointSlice>) -> Option<ServiceKey> {
        let key = object_key(&slice);
        let former = self.remove_slice(&key);
        if let Some(of_service) = self.by_service.get_mut(&slice.service) {
            let at = of_service.partition_point(|other| other.name < slice.name);
            of_service.insert(at, Arc::clone(&slice));
        } else {
            // Most Services have one.
            self.by_service.insert(slice.service.clone(), vec![Arc::clone(&slice)]);
        }
        self.slices.insert(key, slice);
        former
    }

    /// Forgets a slice. Returns the Service that it belonged to.
    fn remove_slice(&mut self, key: &ObjectKey) -> Option<ServiceKey> {
        let slice = self.slices.remove(key)?;
        if let Some(of_service) = self.by_service.get_mut(&slice.service) {
            of_service.retain(|other| other.name != slice.name);
            if of_service.is_empty() {
                self.by_service.remove(&slice.service);
            }
        }
        Some(slice.service.clone())
    }

    /// Brings the endpoints of `service` in line with its slices. Returns whether they changed.
    fn join(&mut self, service: &ServiceKey) -> bool {
        let endpoints = &mut self.snapshot.endpoints;
        let changed = match self.by_service.get(service) {
            Some(slices) => {
                let joined = EndpointSet::join(slices.iter().map(AsRef::as_ref));
                put(endpoints, service.clone(), Arc::new(joined))
            }
            None => endpoints.remove(service).is_some(),
        };
        self.changed |= changed;
        changed
    }
}

pub(crate) fn object_key(slice: &EndpointSlice) -> ObjectKey {
    (Arc::clone(&slice.namespace), Arc::clone(&slice.name))
}

/// The allocation that is there already, where it holds the same: a list that repeats what is known costs no memory.
fn shared<V: PartialEq>(value: Arc<V>, held: Option<&Arc<V>>) -> Arc<V> {
    match held {
        Some(held) if *held == value => Arc::clone(held),
        _ => value,
    }
}

/// Keeps `value` unless the same is there already: a heartbeat is not a change.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut OrdMap<K, Arc<V>>, key: K, value: Arc<V>) -> bool {
    if map.get(&key).is_some_and(|held| *held == value) {
        return false;
    }
    map.insert(key, value);
    true
}

/// Makes `map` hold exactly what was listed. What stays the same keeps its place, so that the difference to a former
/// snapshot costs what has changed.
fn swap<K: Ord + Clone, V: PartialEq>(
    map: &mut OrdMap<K, Arc<V>>,
    mut listed: Vec<Arc<V>>,
    key: impl Fn(&V) -> &K,
) -> bool {
    listed.sort_by(|a, b| key(a).cmp(key(b)));
    let is_listed = |name: &K| listed.binary_search_by(|value| key(value).cmp(name)).is_ok();
    let gone: Vec<K> = map.keys().filter(|name| !is_listed(name)).cloned().collect();
    let mut changed = !gone.is_empty();
    for name in gone {
        map.remove(&name);
    }
    let first = map.is_empty();
    for value in densely(&listed) {
        let name = key(value);
        if first || map.get(name).is_none_or(|held| !Arc::ptr_eq(held, value) && *held != *value) {
            map.insert(name.clone(), Arc::clone(value));
            changed = true;
        }
    }
    changed
}

/// What stands in order, in an order that fills the nodes of a map: what is inserted in order leaves each half empty,
/// and what stands between fills it.
fn densely<T>(ordered: &[T]) -> impl Iterator<Item = &T> {
    [0, 1].into_iter().flat_map(|first| ordered.iter().skip(first).step_by(2))
}

#[cfg(test)]
mod tests;
