//! The fewest writes from the slices that exist to those that should. Pure.
//!
//! Every write of a slice goes to every node, so endpoints stay in the slice they are in, and gaps are filled before
//! slices are added.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::desired::{Endpoints, Group};
use super::{CONTROLLER, HEADLESS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME};
use crate::owner;

/// The most endpoints of a slice.
pub(super) const MAX_ENDPOINTS: usize = 100;

/// What to write.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// The time of the change that a slice last told of.
pub(super) fn trigger_time(slice: &EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()
}

/// Compares the wanted groups with the existing slices.
pub(super) fn diff(
    service: &Service,
    desired: BTreeMap<Group, Endpoints>,
    existing: &[Arc<EndpointSlice>],
    trigger: Option<Timestamp>,
) -> Changes {
    let mut by_group: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let group = Group::of(&slice.address_type, slice.ports.as_deref().unwrap_or_default());
        by_group.entry(group).or_default().push(slice);
    }
    let mut changes = Changes::default();
    for (group, endpoints) in desired {
        let slices = by_group.remove(&group).unwrap_or_default();
        diff_group(service, &group, endpoints, &slices, trigger, &mut changes);
    }
    changes.delete.extend(by_group.into_values().flatten().map(Arc::clone));
    changes
}

/// An endpoint is the same one as long as it has the address and the pod.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid.unwrap_or_default())
}

struct Draft<'a> {
    slice: &'a Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

fn diff_group(
    service: &Service,
    group: &Group,
    wanted: Endpoints,
    slices: &[&Arc<EndpointSlice>],
    trigger: Option<Timestamp>,
    changes: &mut Changes,
) {
    let placeholder = wanted.endpoints.is_empty();
    let Endpoints { ports, endpoints } = wanted;
    let mut order: Vec<(String, String)> = endpoints.iter().map(identity).collect();
    let mut missing: HashMap<_, Endpoint> = endpoints.into_iter().map(|one| (identity(&one), one)).collect();
    let mut drafts: Vec<Draft<'_>> = slices.iter().map(|slice| keep(slice, &mut missing)).collect();
    order.retain(|identity| missing.contains_key(identity));
    let mut left: Vec<Endpoint> = order.iter().filter_map(|identity| missing.remove(identity)).collect();
    fill(&mut drafts, &mut left);
    let mut kept = false;
    for draft in drafts {
        if draft.endpoints.is_empty() && (!placeholder || kept) {
            changes.delete.push(Arc::clone(draft.slice));
            continue;
        }
        kept = true;
        let mut slice = new_slice(service, group, draft.endpoints, trigger);
        slice.ports = Some(ports.clone());
        if let Some(update) = updated(draft.slice, slice, draft.changed) {
            changes.update.push(update);
        }
    }
    if placeholder && !kept {
        changes.create.push(new_slice(service, group, Vec::new(), trigger));
    }
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(MAX_ENDPOINTS));
        let mut slice = new_slice(service, group, left, trigger);
        slice.ports = Some(ports.clone());
        changes.create.push(slice);
        left = rest;
    }
}

/// What stays of a slice: endpoints that are still wanted, as they are wanted now.
fn keep<'a>(slice: &'a Arc<EndpointSlice>, missing: &mut HashMap<(String, String), Endpoint>) -> Draft<'a> {
    let mut draft = Draft { slice, endpoints: Vec::new(), changed: false };
    for endpoint in &slice.endpoints {
        match missing.remove(&identity(endpoint)) {
            Some(wanted) => {
                draft.changed |= wanted != *endpoint;
                draft.endpoints.push(wanted);
            }
            None => draft.changed = true,
        }
    }
    draft
}

/// Puts endpoints into slices that are written anyway; then, if one slice has room for all of the rest, into that.
fn fill(drafts: &mut [Draft<'_>], left: &mut Vec<Endpoint>) {
    for draft in drafts.iter_mut().filter(|draft| draft.changed && !draft.endpoints.is_empty()) {
        let room = MAX_ENDPOINTS.saturating_sub(draft.endpoints.len()).min(left.len());
        draft.endpoints.extend(left.drain(..room));
    }
    if left.is_empty() || left.len() >= MAX_ENDPOINTS {
        return;
    }
    let fits = drafts.iter_mut().filter(|draft| draft.endpoints.len() + left.len() <= MAX_ENDPOINTS);
    // The fullest that still fits, so that slices stay few.
    if let Some(draft) = fits.max_by_key(|draft| draft.endpoints.len()) {
        draft.endpoints.append(left);
        draft.changed = true;
    }
}

fn new_slice(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    trigger: Option<Timestamp>,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let annotations = trigger.map(|at| BTreeMap::from([(TRIGGER_TIME.to_owned(), format!("{at:.0}"))]));
    let metadata = ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels(service, name)),
        annotations,
        owner_references: Some(vec![owner::reference(service)]),
        ..ObjectMeta::default()
    };
    EndpointSlice { metadata, address_type: group.family.clone(), endpoints, ports: Some(Vec::new()) }
}

fn labels(service: &Service, name: String) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The existing slice with what differs taken over; nothing when nothing does.
fn updated(existing: &EndpointSlice, wanted: EndpointSlice, changed: bool) -> Option<EndpointSlice> {
    let same_labels = existing.metadata.labels == wanted.metadata.labels;
    let same_owner = existing.metadata.owner_references == wanted.metadata.owner_references;
    if !changed && same_labels && same_owner {
        return None;
    }
    let mut slice = existing.clone();
    slice.endpoints = wanted.endpoints;
    slice.metadata.labels = wanted.metadata.labels;
    slice.metadata.owner_references = wanted.metadata.owner_references;
    let annotations = slice.metadata.annotations.get_or_insert_default();
    annotations.remove(TRIGGER_TIME);
    annotations.extend(wanted.metadata.annotations.unwrap_or_default());
    Some(slice)
}
