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

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// To Services.
    Service(Change<Service>),
    /// To EndpointSlices; with the time that a change came about, where it is known.
    Slice(Change<(EndpointSlice, Option<SystemTime>)>),
    /// To Nodes.
    Node(Change<Node>),
    /// To pods that have addresses; those with host ports name them.
    Pod(Change<HostPod>),
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
    slices: HashMap<ServiceKey, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    /// Which Service a slice belongs to: its label may change.
    slice_service: HashMap<ObjectKey, ServiceKey>,
    services: Progress<Service>,
    slice_list: Progress<EndpointSlice>,
    nodes: Progress<Node>,
    /// `None`: nobody asked for pods.
    pods: Option<Progress<HostPod>>,
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

    /// Takes one event in.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(change) => self.apply_service(change),
            Event::Slice(change) => self.apply_slice(change),
            Event::Node(change) => self.apply_node(change),
            Event::Pod(change) => self.apply_pod(change),
            Event::PodsDenied => self.pods.get_or_insert_default().complete = true,
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

    fn apply_service(&mut self, change: Change<Service>) {
        match change {
            Change::ListBegins => self.services.incoming = Some(Vec::new()),
            Change::Listed(service) => self.services.incoming.get_or_insert_default().push(service),
            Change::ListEnds => {
                let listed = self.services.finish();
                let by_name = listed.into_iter().map(|service| (service.key.clone(), service)).collect();
                self.changed |= swap(&mut self.snapshot.services, by_name);
            }
            Change::Applied(service) => {
                self.changed |= put(&mut self.snapshot.services, service.key.clone(), service);
            }
            Change::Deleted((namespace, name)) => {
                let removed = self.snapshot.services.remove(&ServiceKey { namespace, name });
                self.changed |= removed.is_some();
            }
        }
    }

    fn apply_node(&mut self, change: Change<Node>) {
        match change {
            Change::ListBegins => self.nodes.incoming = Some(Vec::new()),
            Change::Listed(node) => self.nodes.incoming.get_or_insert_default().push(node),
            Change::ListEnds => {
                let listed = self.nodes.finish();
                let by_name = listed.into_iter().map(|node| (Arc::clone(&node.name), node)).collect();
                self.changed |= swap(&mut self.snapshot.nodes, by_name);
            }
            Change::Applied(node) => {
                self.changed |= put(&mut self.snapshot.nodes, Arc::clone(&node.name), node);
            }
            Change::Deleted((_, name)) => self.changed |= self.snapshot.nodes.remove(&name).is_some(),
        }
    }

    fn apply_pod(&mut self, change: Change<HostPod>) {
        let progress = self.pods.get_or_insert_default();
        match change {
            Change::ListBegins => progress.incoming = Some(Vec::new()),
            Change::Listed(pod) => progress.incoming.get_or_insert_default().push(pod),
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
                let with_ports = listed.into_iter().filter(|pod| !pod.ports.is_empty());
                let by_name = with_ports.map(|pod| (pod.pod.clone(), pod)).collect();
                self.changed |= swap(&mut self.snapshot.host_pods, by_name);
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
            Change::ListBegins => progress.incoming = Some(Vec::new()),
            Change::Listed(name) => progress.incoming.get_or_insert_default().push(name),
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

    fn apply_slice(&mut self, change: Change<(EndpointSlice, Option<SystemTime>)>) {
        match change {
            Change::ListBegins => self.slice_list.incoming = Some(Vec::new()),
            Change::Listed((slice, _)) => self.slice_list.incoming.get_or_insert_default().push(slice),
            Change::ListEnds => {
                let listed = self.slice_list.finish();
                self.swap_slices(listed);
            }
            Change::Applied((slice, triggered_at)) => {
                let service = slice.service.clone();
                if let Some(former) = self.put_slice(slice) {
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

    fn swap_slices(&mut self, listed: Vec<EndpointSlice>) {
        let mut touched: Vec<ServiceKey> = self.slices.keys().cloned().collect();
        self.slices.clear();
        self.slice_service.clear();
        for slice in listed {
            touched.push(slice.service.clone());
            self.put_slice(slice);
        }
        touched.sort_unstable();
        touched.dedup();
        for service in touched {
            self.join(&service);
        }
    }

    /// Keeps `slice`. Returns the Service that it belonged to before, if that is another one.
    fn put_slice(&mut self, slice: EndpointSlice) -> Option<ServiceKey> {
        let key = (Arc::clone(&slice.namespace), Arc::clone(&slice.name));
        let service = slice.service.clone();
        let former = self.slice_service.get(&key).filter(|held| **held != service).cloned();
        if former.is_some() {
            self.remove_slice(&key);
        }
        self.slice_service.insert(key.clone(), service.clone());
        self.slices.entry(service).or_default().insert(key.1, Arc::new(slice));
        former
    }

    fn remove_slice(&mut self, key: &ObjectKey) -> Option<ServiceKey> {
        let service = self.slice_service.remove(key)?;
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&key.1);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        Some(service)
    }

    /// Brings the endpoints of `service` in line with its slices. Returns whether they changed.
    fn join(&mut self, service: &ServiceKey) -> bool {
        let changed = match self.slices.get(service) {
            Some(slices) => {
                let joined = EndpointSet::join(slices.values().map(AsRef::as_ref));
                put(&mut self.snapshot.endpoints, service.clone(), joined)
            }
            None => self.snapshot.endpoints.remove(service).is_some(),
        };
        self.changed |= changed;
        changed
    }
}

/// Keeps `value` unless the same is there already: a heartbeat is not a change.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut OrdMap<K, Arc<V>>, key: K, value: V) -> bool {
    if map.get(&key).is_some_and(|held| **held == value) {
        return false;
    }
    map.insert(key, Arc::new(value));
    true
}

/// Makes `map` hold exactly what was listed. Values that stay the same stay the same allocation.
fn swap<K: Ord + Clone, V: PartialEq>(map: &mut OrdMap<K, Arc<V>>, listed: BTreeMap<K, V>) -> bool {
    let gone: Vec<K> = map.keys().filter(|key| !listed.contains_key(key)).cloned().collect();
    let mut changed = !gone.is_empty();
    for key in gone {
        map.remove(&key);
    }
    for (key, value) in listed {
        changed |= put(map, key, value);
    }
    changed
}

#[cfg(test)]
mod tests;
