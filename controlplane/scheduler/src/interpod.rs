//! Rules between pods: required affinity and anti-affinity, and hard topology spread. What a node must offer is worked
//! out once per pod, so that asking a node is a few look-ups.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use seaway_client::placement;

use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::filter::Reason;

/// What the pods that are there demand of the node for one more pod.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    /// Label values where the pod must not be, by its own rules.
    own_forbidden: HashSet<(String, String)>,
    /// Label values where others do not want it.
    others_forbid: HashSet<(String, String)>,
    /// For each affinity term: the label and the values that satisfy it, or any value.
    required: Vec<(String, Option<HashSet<String>>)>,
    spread: Vec<Spread>,
}

#[derive(Debug)]
struct Spread {
    key: String,
    max_skew: i64,
    counts: HashMap<String, i64>,
    least: i64,
    counts_itself: i64,
}

/// Whether others must respect rules of this pod.
pub(crate) fn is_exclusive(pod: &PodInfo) -> bool {
    !anti_affinity(pod).is_empty()
}

fn anti_affinity(pod: &PodInfo) -> &[PodAffinityTerm] {
    let affinity = pod.spec().and_then(|spec| spec.affinity.as_ref());
    let anti = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    anti.and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

fn affinity(pod: &PodInfo) -> &[PodAffinityTerm] {
    let affinity = pod.spec().and_then(|spec| spec.affinity.as_ref());
    let pro = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    pro.and_then(|pro| pro.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn constraints(pod: &PodInfo) -> impl Iterator<Item = &TopologySpreadConstraint> {
    let all = pod.spec().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default();
    all.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule")
}

/// A compiled term: whom it speaks of.
struct Term {
    key: String,
    namespaces: Option<Vec<String>>,
    selector: Option<Selector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, holder: &PodInfo) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(holder.key.namespace.clone());
        }
        // A selector of namespaces is taken as all of them: stricter for anti-affinity, and namespaces are not watched.
        let namespaces = term.namespace_selector.is_none().then_some(namespaces);
        Self { key: term.topology_key.clone(), namespaces, selector: compile(term.label_selector.as_ref()) }
    }

    fn matches(&self, pod: &PodInfo) -> bool {
        let here = self.namespaces.as_ref().is_none_or(|names| names.contains(&pod.key.namespace));
        here && self.selector.as_ref().is_some_and(|selector| selects(selector, pod))
    }
}

/// No selector selects nothing, an empty one everything.
fn compile(selector: Option<&LabelSelector>) -> Option<Selector> {
    Selector::try_from(selector?.clone()).ok()
}

fn selects(selector: &Selector, pod: &PodInfo) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    selector.matches(pod.pod.metadata.labels.as_ref().unwrap_or(&NONE))
}

/// Works out what a node must offer for `pod`.
pub(crate) fn demands(pod: &PodInfo, cluster: &Cluster) -> Demands {
    let mut demands = Demands::default();
    for (other, node) in cluster.exclusive() {
        let Some(node) = cluster.node(node) else { continue };
        for term in anti_affinity(other).iter().map(|term| Term::of(term, other)) {
            if let Some(value) = node.label(&term.key).filter(|_| term.matches(pod)) {
                demands.others_forbid.insert((term.key.clone(), value.to_owned()));
            }
        }
    }
    for term in anti_affinity(pod).iter().map(|term| Term::of(term, pod)) {
        let values = values_with(&term, cluster).into_iter();
        demands.own_forbidden.extend(values.map(|value| (term.key.clone(), value)));
    }
    for term in affinity(pod).iter().map(|term| Term::of(term, pod)) {
        let values = values_with(&term, cluster);
        // The first of its kind may go anywhere, or none ever could.
        let first = values.is_empty() && term.matches(pod);
        demands.required.push((term.key, (!first).then_some(values)));
    }
    demands.spread = constraints(pod).map(|constraint| spread(constraint, pod, cluster)).collect();
    demands
}

fn values_with(term: &Term, cluster: &Cluster) -> HashSet<String> {
    let labelled = cluster.nodes().filter_map(|node| Some((node, node.label(&term.key)?)));
    let with = labelled.filter(|(node, _)| node.pods.values().any(|pod| term.matches(pod)));
    with.map(|(_, value)| value.to_owned()).collect()
}

fn spread(constraint: &TopologySpreadConstraint, pod: &PodInfo, cluster: &Cluster) -> Spread {
    let selector = compile(constraint.label_selector.as_ref());
    let counted = |other: &PodInfo| {
        other.key.namespace == pod.key.namespace
            && other.pod.metadata.deletion_timestamp.is_none()
            && selector.as_ref().is_some_and(|selector| selects(selector, other))
    };
    let mut counts: HashMap<String, i64> = HashMap::new();
    for node in cluster.nodes() {
        let eligible = pod.spec().is_none_or(|spec| placement::matches_node_affinity(spec, &node.node));
        if let Some(value) = node.label(&constraint.topology_key).filter(|_| eligible) {
            let here = node.pods.values().filter(|other| counted(other)).count();
            *counts.entry(value.to_owned()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
        }
    }
    let too_few =
        constraint.min_domains.is_some_and(|min| usize::try_from(min).is_ok_and(|min| counts.len() < min));
    Spread {
        key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        least: if too_few { 0 } else { counts.values().min().copied().unwrap_or(0) },
        counts_itself: i64::from(selector.as_ref().is_some_and(|selector| selects(selector, pod))),
        counts,
    }
}

impl Demands {
    /// Why `node` does not do, if so.
    pub(crate) fn reject(&self, node: &NodeInfo) -> Option<Reason> {
        let hit = |set: &HashSet<(String, String)>| {
            set.iter().any(|(key, value)| node.label(key) == Some(value.as_str()))
        };
        let satisfied = self.required.iter().all(|(key, values)| {
            node.label(key).is_some_and(|value| values.as_ref().is_none_or(|values| values.contains(value)))
        });
        if !satisfied {
            return Some(Reason::PodAffinity);
        }
        if hit(&self.own_forbidden) {
            return Some(Reason::PodAntiAffinity);
        }
        if hit(&self.others_forbid) {
            return Some(Reason::ExistingAntiAffinity);
        }
        let even = self.spread.iter().all(|spread| {
            node.label(&spread.key).is_some_and(|value| {
                let here = spread.counts.get(value).copied().unwrap_or(0);
                here + spread.counts_itself - spread.least <= spread.max_skew
            })
        });
        (!even).then_some(Reason::TopologySpread)
    }
}
