//! Services and pods → Endpoints, the classic object that `kubectl get endpoints` and older clients read.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use kube::ResourceExt;
use kube::api::DeleteParams;
use seaway_client::{Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::endpointslice::{self, HEADLESS, TRIGGER_TIME, family_of, hostname_of, resolve_port};
use crate::{pod, write};

/// The label that says whose object it is, as upstream writes it.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";
/// More addresses than this do not go into one object.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

struct Controller {
    context: Arc<Context>,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let caches = &context.caches;
    let (services, pods, endpoints) = (caches.services(), caches.pods(), caches.endpoints());
    services.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|one| queue.add(Key::of(one.as_ref())))
    });
    endpoints.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|one| queue.add(Key::of(one.as_ref())))
    });
    pods.on_change({
        let (queue, services) = (Arc::clone(&queue), Arc::clone(&services));
        move |change| endpointslice::mark_services(change, &services, &queue)
    });
    let controller = Arc::new(Controller { context: Arc::clone(context), services, pods, endpoints });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await.map(|()| None) }
    };
    work("endpoints", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<(), WorkError> {
        self.services.wait_until_synced().await;
        self.pods.wait_until_synced().await;
        self.endpoints.wait_until_synced().await;
        let existing = self.endpoints.store().get(key);
        let api = self.context.namespaced::<Endpoints>(&key.namespace);
        let Some(service) = self.services.store().get(key) else {
            return match existing.filter(|existing| is_ours(existing)) {
                Some(existing) => {
                    write::delete(&api, &self.endpoints, &*existing, DeleteParams::default()).await
                }
                None => Ok(()),
            };
        };
        if !endpointslice::has_endpoints(&service) {
            return Ok(());
        }
        let pods = endpointslice::selected(&service, &self.pods);
        let wanted = desired(&service, &pods);
        match existing {
            None => write::create(&api, &self.endpoints, &wanted).await.map(drop),
            Some(existing) => match updated(&existing, wanted) {
                Some(update) => write::replace(&api, &self.endpoints, &update).await.map(drop),
                None => Ok(()),
            },
        }
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(MANAGED_BY).is_some_and(|by| by == CONTROLLER)
}

type PortKey = (String, i32, String, Option<String>);

/// The object that `service` should have.
fn desired(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let spec = service.spec.clone().unwrap_or_default();
    let tolerant = spec.publish_not_ready_addresses == Some(true);
    let mut subsets: BTreeMap<Vec<PortKey>, EndpointSubset> = BTreeMap::new();
    let mut addresses = 0;
    for one in pods {
        let going = one.metadata.deletion_timestamp.is_some();
        if pod::is_terminal(one) || (going && !tolerant) {
            continue;
        }
        let Some(address) = address(service, one, family_of(&spec)) else { continue };
        let ports = ports(&spec.ports.clone().unwrap_or_default(), one);
        if ports.is_empty() && spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            continue;
        }
        addresses += 1;
        if addresses > MAX_ADDRESSES {
            break;
        }
        let subset = subsets.entry(ports).or_default();
        let list = if tolerant || pod::is_ready(one) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    let mut endpoints = Endpoints::default();
    endpoints.metadata.name.clone_from(&service.metadata.name);
    endpoints.metadata.namespace.clone_from(&service.metadata.namespace);
    endpoints.metadata.labels = Some(labels(service));
    endpoints.metadata.annotations = Some(annotations(service, pods, addresses > MAX_ADDRESSES));
    let subsets: Vec<_> = subsets.into_iter().map(|(ports, subset)| with_ports(subset, ports)).collect();
    endpoints.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    endpoints
}

fn address(service: &Service, pod: &Pod, family: &str) -> Option<EndpointAddress> {
    let status = pod.status.as_ref()?;
    let mut ips = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(status.pod_ip.iter());
    let ip = ips.find(|ip| ip.contains(':') == (family == "IPv6"))?.clone();
    Some(EndpointAddress {
        ip,
        hostname: hostname_of(service, pod),
        node_name: pod::node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

fn ports(ports: &[k8s_openapi::api::core::v1::ServicePort], pod: &Pod) -> Vec<PortKey> {
    let resolved = ports.iter().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = resolve_port(port, pod)?;
        Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
    });
    let mut ports: Vec<_> = resolved.collect();
    ports.sort();
    ports
}

fn with_ports(mut subset: EndpointSubset, ports: Vec<PortKey>) -> EndpointSubset {
    let ports: Vec<_> = ports
        .into_iter()
        .map(|(name, port, protocol, app_protocol)| EndpointPort {
            name: Some(name).filter(|name| !name.is_empty()),
            port,
            protocol: Some(protocol),
            app_protocol,
        })
        .collect();
    subset.ports = Some(ports).filter(|ports| !ports.is_empty());
    for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
    }
    subset
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn annotations(service: &Service, pods: &[Arc<Pod>], over: bool) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    if let Some(at) = endpointslice::latest_change(service, pods) {
        annotations.insert(TRIGGER_TIME.to_owned(), format!("{at:.0}"));
    }
    if over {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    annotations
}

/// The existing object with what differs taken over; nothing when nothing that matters does.
fn updated(existing: &Endpoints, wanted: Endpoints) -> Option<Endpoints> {
    let over = |endpoints: &Endpoints| endpoints.annotations().contains_key(OVER_CAPACITY);
    let same = existing.subsets.as_deref().unwrap_or_default()
        == wanted.subsets.as_deref().unwrap_or_default()
        && existing.metadata.labels == wanted.metadata.labels
        && over(existing) == over(&wanted);
    if same {
        return None;
    }
    let mut update = existing.clone();
    update.subsets = wanted.subsets;
    update.metadata.labels = wanted.metadata.labels;
    let annotations = update.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != OVER_CAPACITY);
    annotations.extend(wanted.metadata.annotations.unwrap_or_default());
    Some(update)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_unready_addresses_are_told_apart_and_the_same_state_is_not_written_again() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))
        .unwrap();
        let pod = |name: &str, ip: &str, ready: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": "default", "uid": name},
                    "spec": {"containers": [], "nodeName": "n1"},
                    "status": {"phase": "Running", "podIPs": [{"ip": ip}, {"ip": "fd00::1"}],
                               "conditions": [{"type": "Ready", "status": ready}]},
                }))
                .unwrap(),
            )
        };
        let pods =
            [pod("b", "10.0.0.2", "True"), pod("a", "10.0.0.1", "True"), pod("c", "10.0.0.3", "False")];
        let endpoints = desired(&service, &pods);
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter().flatten().map(|address| address.ip.clone()).collect()
        };
        assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        assert!(updated(&endpoints, desired(&service, &pods)).is_none());
        assert!(updated(&endpoints, desired(&service, &pods[..2])).is_some());
    }
}
