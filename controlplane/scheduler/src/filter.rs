//! Which nodes a pod can run on, and why not on the others. Pure.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Node, Taint};
use seaway_client::placement::{self, NO_EXECUTE, NO_SCHEDULE};

use crate::cluster::{NodeInfo, PodInfo, conflict};
use crate::interpod::Demands;

/// Why a node does not do. The texts are upstream's, people search for them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    NotReady,
    Unschedulable,
    NodeName,
    Taint { key: String, value: String },
    NodeAffinity,
    HostPorts,
    TooManyPods,
    Insufficient(String),
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
    TopologySpread,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("node(s) were not ready"),
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::NodeName => f.write_str("node(s) didn't match the requested node name"),
            Self::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::NodeAffinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::HostPorts => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Self::PodAffinity => f.write_str("node(s) didn't match pod affinity rules"),
            Self::PodAntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::ExistingAntiAffinity => {
                f.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Self::TopologySpread => f.write_str("node(s) didn't match pod topology spread constraints"),
        }
    }
}

impl Reason {
    /// Whether the end of another pod may lift it.
    pub(crate) const fn depends_on_pods(&self) -> bool {
        match self {
            Self::HostPorts
            | Self::TooManyPods
            | Self::Insufficient(_)
            | Self::PodAffinity
            | Self::PodAntiAffinity
            | Self::ExistingAntiAffinity
            | Self::TopologySpread => true,
            Self::NotReady
            | Self::Unschedulable
            | Self::NodeName
            | Self::Taint { .. }
            | Self::NodeAffinity => false,
        }
    }
}

/// Why `node` does not do for `pod`; empty when it does. The first filter that rejects ends the search, all its reasons
/// are given.
pub(crate) fn filter(pod: &PodInfo, demands: &Demands, node: &NodeInfo) -> Vec<Reason> {
    let Some(spec) = pod.spec() else { return Vec::new() };
    if spec.node_name.as_ref().is_some_and(|name| !name.is_empty() && *name != node.name) {
        return vec![Reason::NodeName];
    }
    if node.node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) && !tolerates_cordon(pod) {
        return vec![Reason::Unschedulable];
    }
    if let Some(taint) = placement::untolerated(spec, &node.node, &[NO_SCHEDULE, NO_EXECUTE]).next() {
        let value = taint.value.clone().unwrap_or_default();
        return vec![Reason::Taint { key: taint.key.clone(), value }];
    }
    if !is_ready(&node.node) {
        return vec![Reason::NotReady];
    }
    if !placement::matches_node_affinity(spec, &node.node) {
        return vec![Reason::NodeAffinity];
    }
    let taken = || node.pods.values().flat_map(|other| &other.host_ports);
    if pod.host_ports.iter().any(|port| taken().any(|other| conflict(port, other))) {
        return vec![Reason::HostPorts];
    }
    let lacking = resources(pod, node);
    if lacking.is_empty() { demands.reject(node).into_iter().collect() } else { lacking }
}

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: NO_SCHEDULE.to_owned(),
        ..Taint::default()
    };
    let tolerations = pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    tolerations.iter().any(|toleration| placement::tolerates(toleration, &taint))
}

/// A node that has not said that it is ready gets no pods, also before a taint says so.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn resources(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.allowed_pods {
        reasons.push(Reason::TooManyPods);
    }
    let lacking = node.allocatable.lacking(&node.requested, &pod.requests);
    reasons.extend(lacking.into_iter().map(|name| Reason::Insufficient(name.to_owned())));
    reasons
}

/// The message of a pod that fits nowhere: `0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.`
pub(crate) fn message(nodes: usize, rejections: &BTreeMap<Reason, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut parts: Vec<String> =
        rejections.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
