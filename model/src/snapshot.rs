//! The whole of what is known at one moment.
//!
//! **Invariant:** a snapshot never changes; a newer state is a new snapshot. The maps are persistent (shared
//! structure), so that a clone costs nothing and the difference of two snapshots costs what changed, not what exists.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use imbl::ordmap::DiffItem;
use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{OrdMap, OrdSet};

use crate::{EndpointSet, HostPod, Node, Service, ServiceKey, TargetPod};

/// The state of the cluster as far as the data plane is concerned.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Counts up by one for each snapshot that the store publishes. 0 is the empty one before the first list.
    pub version: u64,
    /// Every watch has finished its first list. Before that nothing may be pruned, and DNS answers SERVFAIL.
    pub synced: bool,
    /// Services by name.
    pub services: OrdMap<ServiceKey, Arc<Service>>,
    /// Endpoints by the name of their Service. Present only where at least one slice exists, also when the
    /// Service itself is not (yet) known.
    pub endpoints: OrdMap<ServiceKey, Arc<EndpointSet>>,
    /// Nodes by name.
    pub nodes: OrdMap<Arc<str>, Arc<Node>>,
    /// Pods of the own node that ask for host ports. Empty where nobody said which node is the own one.
    pub host_pods: OrdMap<TargetPod, Arc<HostPod>>,
    /// Namespaces. Empty where nobody asked for them, or they may not be listed.
    pub namespaces: OrdSet<Arc<str>>,
    /// Pods by address; those in their node's network are left out, since they share its addresses. Only the own node's
    /// pods, or all, as was asked for.
    pub pods: OrdMap<IpAddr, TargetPod>,
    /// Every node's pods are among `pods`.
    pub all_pods: bool,
    /// When the oldest of the endpoint changes that this snapshot is the first to show came about
    /// (`endpoints.kubernetes.io/last-change-trigger-time`), where it is known: the latency of programming is
    /// measured from here.
    pub triggered_at: Option<SystemTime>,
}

/// What differs between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Services whose own object or endpoints appeared, changed or went.
    pub services: BTreeSet<ServiceKey>,
    /// Nodes that appeared, changed or went.
    pub nodes: BTreeSet<Arc<str>>,
    /// Pods with host ports that appeared, changed or went.
    pub host_pods: BTreeSet<TargetPod>,
    /// Of `services`, how many have another object.
    pub service_objects: usize,
    /// Of `services`, how many have other endpoints.
    pub endpoint_sets: usize,
}

impl Snapshot {
    /// What has changed since `older`. Costs O(changes · log n) where `self` was derived from `older`.
    pub fn changes_since(&self, older: &Self) -> Changes {
        let mut services = changed_keys(&older.services, &self.services);
        let endpoints = changed_keys(&older.endpoints, &self.endpoints);
        let (service_objects, endpoint_sets) = (services.len(), endpoints.len());
        services.extend(endpoints);
        Changes {
            // Of two runs in order, which are put together faster than one key after the other is inserted.
            services: services.into_iter().collect(),
            nodes: changed_keys(&older.nodes, &self.nodes).into_iter().collect(),
            host_pods: changed_keys(&older.host_pods, &self.host_pods).into_iter().collect(),
            service_objects,
            endpoint_sets,
        }
    }
}

/// Looks up one key after the other, in their order: few by searching for each, many by walking along.
pub struct Lookup<'a, K, V> {
    map: &'a OrdMap<K, V>,
    walk: Option<Peekable<imbl::ordmap::Iter<'a, K, V, DefaultSharedPtr>>>,
}

impl<'a, K: Ord, V> Lookup<'a, K, V> {
    /// About to look up so many keys in `map`.
    pub fn new(map: &'a OrdMap<K, V>, keys: usize) -> Self {
        /// A search costs about as much as so many steps.
        const SEARCH: usize = 16;
        let walk = (keys.saturating_mul(SEARCH) > map.len()).then(|| map.iter().peekable());
        Self { map, walk }
    }

    /// The value of `key`, which is not below the one that was asked for before.
    pub fn get(&mut self, key: &K) -> Option<&'a V> {
        let Some(walk) = &mut self.walk else { return self.map.get(key) };
        while walk.next_if(|(passed, _)| *passed < key).is_some() {}
        walk.peek().filter(|(found, _)| *found == key).map(|(_, value)| *value)
    }
}

/// The keys whose values differ, in their order.
fn changed_keys<K: Ord + Clone, V: PartialEq>(old: &OrdMap<K, Arc<V>>, new: &OrdMap<K, Arc<V>>) -> Vec<K> {
    let changed = old.diff(new).map(|item| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
    });
    changed.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(names: &[(&str, u16)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, port) in names {
            let mut service = Service::new(ServiceKey::new("default", name));
            service.health_check_node_port = Some(*port);
            snapshot.services.insert(service.key.clone(), Arc::new(service));
        }
        snapshot
    }

    #[test]
    fn changes_name_added_removed_and_changed_services_only() {
        let old = with(&[("same", 1), ("changed", 1), ("removed", 1)]);
        let new = with(&[("same", 1), ("changed", 2), ("added", 1)]);
        let names: Vec<String> = new.changes_since(&old).services.iter().map(ServiceKey::to_string).collect();
        assert_eq!(names, ["default/added", "default/changed", "default/removed"]);
    }

    #[test]
    fn endpoints_count_as_a_change_of_their_service() {
        let old = with(&[("web", 1)]);
        let mut new = old.clone();
        new.endpoints.insert(ServiceKey::new("default", "web"), Arc::new(EndpointSet::default()));
        let changes = new.changes_since(&old);
        assert_eq!((changes.services.len(), changes.service_objects, changes.endpoint_sets), (1, 0, 1));
        assert!(new.changes_since(&new.clone()).services.is_empty());
    }

    #[test]
    fn many_are_found_as_few_are() {
        let held: Vec<(String, u16)> =
            (0..100).step_by(3).map(|number| (format!("{number:02}"), 1)).collect();
        let held: Vec<(&str, u16)> = held.iter().map(|(name, port)| (&**name, *port)).collect();
        let services = with(&held).services;
        let keys: Vec<ServiceKey> = (0..110)
            .map(|n| ServiceKey::new("default", &format!("{n:02}")))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for count in [0, usize::MAX] {
            let mut lookup = Lookup::new(&services, count);
            assert!(
                keys.iter()
                    .all(|key| lookup.get(key) == services.get(key) && lookup.get(key) == services.get(key))
            );
        }
    }
}
