//! On which nodes a DaemonSet's pods belong, which to make and which to delete. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use seaway_client::placement::{self, NO_EXECUTE, NO_SCHEDULE};

use crate::pod::{self, Availability};
use crate::{hash, owner};

/// The label that tells pods of different templates apart.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
/// The DaemonSet's generation that made the pod, which old clients read.
const GENERATION_LABEL: &str = "pod-template-generation";

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names of nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that failed, to be deleted as well.
    pub(super) failed: Vec<Arc<Pod>>,
}

/// The hash of the DaemonSet's template.
pub(super) fn hash_of(set: &DaemonSet) -> String {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    hash::of_template(&template, set.status.as_ref().and_then(|status| status.collision_count))
}

/// The pod of `set` for `node`: pinned by node affinity, so that the scheduler places it, and tolerating the troubles
/// of the node that it belongs to.
pub(super) fn pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod::from_template(&template, namespace, owner::reference(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    labels.insert(GENERATION_LABEL.to_owned(), set.metadata.generation.unwrap_or(0).to_string());
    let spec = pod.spec.get_or_insert_default();
    add_tolerations(spec);
    pin(spec, node);
    pod
}

fn add_tolerations(spec: &mut PodSpec) {
    let mut wanted = vec![
        ("node.kubernetes.io/not-ready", NO_EXECUTE),
        ("node.kubernetes.io/unreachable", NO_EXECUTE),
        ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
        ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
        ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
        ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
    ];
    if spec.host_network == Some(true) {
        wanted.push(("node.kubernetes.io/network-unavailable", NO_SCHEDULE));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in wanted {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Each of the required terms (or the only one) also asks for the node by name.
fn pin(spec: &mut PodSpec, node: &str) {
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![by_name.clone()]);
    }
}

/// The node that a pod is on or pinned to.
fn target(pod: &Pod) -> Option<&str> {
    if let Some(node) = pod::node_name(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let by_name = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    by_name.values.as_ref()?.first().map(String::as_str)
}

/// Whether a pod belongs on the node, and whether one that is there may stay.
fn belongs(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let mut spec = set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
    add_tolerations(&mut spec);
    let named = spec
        .node_name
        .as_ref()
        .is_none_or(|name| name.is_empty() || node.metadata.name.as_ref() == Some(name));
    if !named || !placement::matches_node_affinity(&spec, node) {
        return (false, false);
    }
    let may_stay = placement::untolerated(&spec, node, &[NO_EXECUTE]).next().is_none();
    let may_come = placement::untolerated(&spec, node, &[NO_SCHEDULE]).next().is_none();
    (may_stay && may_come, may_stay)
}

fn is_current(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).is_some_and(|label| label == hash)
}

fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<&str, Vec<&Arc<Pod>>> {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = target(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    for pods in by_node.values_mut() {
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    }
    by_node
}

/// The pods of one node where one belongs.
struct Spot<'a> {
    node: String,
    old: Option<&'a Arc<Pod>>,
    new: Option<&'a Arc<Pod>>,
}

/// Decides what to make and what to delete.
pub(super) fn plan(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut by_node = by_node(pods);
    let surge = limits(set, nodes).1;
    let mut spots = Vec::new();
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let here = by_node.remove(name.as_str()).unwrap_or_default();
        let alive: Vec<_> =
            here.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).copied().collect();
        let (should_run, may_stay) = belongs(set, node);
        if !may_stay {
            plan.delete.extend(alive.into_iter().cloned());
            continue;
        }
        let (failed, running): (Vec<_>, Vec<_>) = alive.into_iter().partition(|pod| pod::is_terminal(pod));
        plan.failed.extend(failed.into_iter().cloned());
        if here.is_empty() && should_run {
            plan.create.push(name.clone());
        }
        let (mut new, mut old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| is_current(pod, hash));
        // One of a kind; the oldest stays. Old and new side by side only while surging.
        plan.delete.extend(new.drain(1.min(new.len())..).cloned());
        let keep_old = usize::from(new.is_empty() || surge > 0).min(old.len());
        plan.delete.extend(old.drain(keep_old..).cloned());
        if should_run {
            spots.push(Spot { node: name, old: old.first().copied(), new: new.first().copied() });
        }
    }
    // Pods of nodes that are gone.
    let homeless = by_node.into_values().flatten().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    plan.delete.extend(homeless.filter(|pod| pod::node_name(pod).is_none()).cloned());
    if rolls(set) {
        roll(set, nodes, &spots, now, &mut plan);
    }
    plan
}

fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

/// How many pods may be unavailable, and how many there may be too many, during an update.
fn limits(set: &DaemonSet, nodes: &[Arc<Node>]) -> (usize, usize) {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let total = nodes.iter().filter(|node| belongs(set, node).0).count();
    let resolve = |value: Option<&IntOrString>, default: usize| match value {
        None => default,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            (total * percent).div_ceil(100)
        }
    };
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 0);
    let unavailable =
        resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), usize::from(surge == 0));
    if surge == 0 && unavailable == 0 { (1, 0) } else { (unavailable, surge) }
}

fn roll(set: &DaemonSet, nodes: &[Arc<Node>], spots: &[Spot<'_>], now: Timestamp, plan: &mut Plan) {
    let (max_unavailable, max_surge) = limits(set, nodes);
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let available = |pod: &Pod| pod::availability(pod, min_ready, now) == Availability::Available;
    let serves = |spot: &&Spot<'_>| {
        spot.new.is_some_and(|pod| available(pod)) || spot.old.is_some_and(|pod| available(pod))
    };
    let unavailable = spots.iter().filter(|spot| !serves(spot)).count();
    let mut surging = spots.iter().filter(|spot| spot.old.is_some() && spot.new.is_some()).count();
    let mut spare = max_unavailable.saturating_sub(unavailable);
    for spot in spots {
        let Some(old) = spot.old else { continue };
        // Of old pods, what does not serve is replaced first and costs nothing.
        let goes = match spot.new {
            Some(new) => available(new) || !available(old),
            None if max_surge == 0 => {
                let goes = !available(old) || spare > 0;
                spare -= usize::from(goes && available(old));
                goes
            }
            None => {
                if surging < max_surge || !available(old) {
                    surging += 1;
                    plan.create.push(spot.node.clone());
                }
                false
            }
        };
        if goes {
            plan.delete.push(Arc::clone(old));
        }
    }
}

/// The status, and when it changes by the passing of time alone.
pub(super) fn status(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> (DaemonSetStatus, Option<Duration>) {
    let by_node = by_node(pods);
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let before = set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        collision_count: before.collision_count,
        conditions: before.conditions,
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    let mut again: Option<Duration> = None;
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let here = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        if !belongs(set, node).0 {
            status.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        status.current_number_scheduled += i32::from(!here.is_empty());
        let ready = here.iter().filter(|pod| pod::is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
        status.number_ready += i32::from(ready.count() > 0);
        updated += i32::from(here.iter().any(|pod| is_current(pod, hash)));
        let alive = here.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let phases: Vec<_> = alive.map(|pod| pod::availability(pod, min_ready, now)).collect();
        if phases.contains(&Availability::Available) {
            available += 1;
        }
        for state in phases {
            if let Availability::In(wait) = state {
                again = Some(again.map_or(wait, |earlier| earlier.min(wait)));
            }
        }
    }
    let count = |number: i32| Some(number).filter(|number| *number != 0);
    status.updated_number_scheduled = count(updated);
    status.number_available = count(available);
    status.number_unavailable = count(status.desired_number_scheduled - available);
    (status, again)
}
