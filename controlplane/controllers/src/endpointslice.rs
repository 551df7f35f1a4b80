//! Services and pods → EndpointSlices.
//!
//! Data planes program what stands here, so a pod that becomes ready (or goes) must show within milliseconds: a change of
//! a pod marks the Services that select it at once, and only changes that an endpoint can show are looked at.

mod desired;
mod diff;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use seaway_client::{Change, Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::{pod, write};

pub(crate) use desired::{family_of, hostname_of, resolve_port};

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names who keeps a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Us: upstream's name, as we stand in for that controller.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// When what the slice shows last changed in the cluster.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The label that marks the slices of headless Services.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Index values of a slice: its Service.
pub(crate) fn index(slice: &EndpointSlice) -> Vec<String> {
    service_of(slice).map(|key| key.to_string()).into_iter().collect()
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|by| by == CONTROLLER)
}

/// The zone that a node is in.
fn zone_of(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get(ZONE)
}

struct EndpointSlices {
    context: Arc<Context>,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    /// The newest change that each Service's slices have told of.
    told: Mutex<HashMap<Key, Timestamp>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let caches = &context.caches;
    let (services, pods) = (caches.services(), caches.pods());
    let (nodes, slices) = (caches.nodes(), caches.endpoint_slices());
    services.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|one| queue.add(Key::of(one.as_ref())))
    });
    slices.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            let ours = change.sides().filter(|slice| is_ours(slice));
            ours.filter_map(|slice| service_of(slice)).for_each(|key| queue.add(key));
        }
    });
    pods.on_change({
        let (queue, services) = (Arc::clone(&queue), Arc::clone(&services));
        move |change| mark_services(change, &services, &queue)
    });
    nodes.on_change({
        let (queue, services) = (Arc::clone(&queue), Arc::clone(&services));
        move |change| {
            let zone = |side: &Option<Arc<Node>>| side.as_ref().and_then(|node| zone_of(node).cloned());
            if zone(&change.old) != zone(&change.new) && change.new.is_some() {
                services.store().all().iter().for_each(|one| queue.add(Key::of(one.as_ref())));
            }
        }
    });
    let told = Mutex::default();
    let controller =
        Arc::new(EndpointSlices { context: Arc::clone(context), services, pods, nodes, slices, told });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await.map(|()| None) }
    };
    work("endpointslice", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

/// Marks the Services that select a pod before or after a change, if their endpoints may look different now.
pub(crate) fn mark_services(change: &Change<Pod>, services: &Informer<Service>, queue: &Queue<Key>) {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && desired::look_the_same(old, new)
    {
        return;
    }
    let Some(namespace) = change.latest().and_then(|pod| pod.namespace()) else { return };
    for service in services.store().in_namespace(&namespace) {
        if change.sides().any(|pod| selects(&service, pod)) {
            queue.add(Key::of(service.as_ref()));
        }
    }
}

/// Whether `service` has a selector, and it selects `pod`.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = pod.metadata.labels.as_ref();
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

/// Whether endpoints are derived for `service`.
pub(crate) fn has_endpoints(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let selected = spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    selected && spec.type_.as_deref() != Some("ExternalName") && service.metadata.deletion_timestamp.is_none()
}

/// The pods that `service` selects.
pub(crate) fn selected(service: &Service, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let mut selected = pods.store().in_namespace(&service.namespace().unwrap_or_default());
    selected.retain(|pod| selects(service, pod));
    selected
}

impl EndpointSlices {
    async fn reconcile(&self, key: &Key) -> Result<(), WorkError> {
        self.services.wait_until_synced().await;
        self.pods.wait_until_synced().await;
        self.nodes.wait_until_synced().await;
        self.slices.wait_until_synced().await;
        let Some(service) = self.services.store().get(key).filter(|service| has_endpoints(service)) else {
            // Slices of a Service that is gone are the garbage collector's, by their owner reference.
            self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Ok(());
        };
        let pods = selected(&service, &self.pods);
        let mut existing = self.slices.store().indexed(&key.to_string());
        existing.retain(|slice| is_ours(slice) && slice.metadata.deletion_timestamp.is_none());
        let zone = |name: &str| {
            let node = self.nodes.store().get(&Key::cluster(name));
            node.and_then(|node| zone_of(&node).cloned())
        };
        let desired = desired::groups(&service, &pods, &zone);
        let trigger = self.trigger(key, &service, &pods, &existing);
        let changes = diff::diff(&service, desired, &existing, trigger);
        let api = self.context.namespaced::<EndpointSlice>(&key.namespace);
        for slice in &changes.create {
            write::create(&api, &self.slices, slice).await?;
        }
        for slice in &changes.update {
            write::replace(&api, &self.slices, slice).await?;
        }
        for slice in &changes.delete {
            write::delete(&api, &self.slices, slice.as_ref(), DeleteParams::default()).await?;
        }
        if let Some(trigger) = trigger {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), trigger);
        }
        Ok(())
    }

    /// When the change happened that we are about to tell of, unless we told of it already.
    fn trigger(
        &self,
        key: &Key,
        service: &Service,
        pods: &[Arc<Pod>],
        existing: &[Arc<EndpointSlice>],
    ) -> Option<Timestamp> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let told = told.or_else(|| existing.iter().filter_map(|slice| diff::trigger_time(slice)).max());
        latest_change(service, pods).filter(|change| told.is_none_or(|told| told < *change))
    }
}

/// When the newest of the pods became ready or not, or the Service was made.
pub(crate) fn latest_change(service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let transitions = pods
        .iter()
        .filter_map(|one| pod::condition(one, "Ready")?.last_transition_time.as_ref().map(|time| time.0));
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    transitions.chain(created).max()
}
