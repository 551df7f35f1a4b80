//! Which of the nodes that do is best. Every score is 0 to 100; the weights are upstream's. Pure.

use std::collections::HashMap;

use seaway_client::placement::{self, PREFER_NO_SCHEDULE};

use crate::cluster::{NodeInfo, PodInfo};

const BEST: i64 = 100;
const TAINTS: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const LEAST_ALLOCATED: i64 = 1;
const BALANCED: i64 = 1;

/// The score of each of `nodes` for `pod`, in their order.
pub(crate) fn score(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let taints = worst_is_zero(nodes.iter().map(|node| bad_taints(pod, node)).collect());
    let affinity = best_is_full(nodes.iter().map(|node| affinity(pod, node)).collect());
    let spread = spread(pod, nodes);
    let rest = nodes.iter().map(|node| {
        let (cpu, memory) = (fraction(pod, node, |r| r.cpu_millis), fraction(pod, node, |r| r.memory));
        let least = (2 * BEST - cpu - memory) / 2;
        let balanced = BEST - (cpu - memory).abs() / 2;
        LEAST_ALLOCATED * least + BALANCED * balanced
    });
    rest.zip(taints)
        .zip(affinity)
        .zip(spread)
        .map(|(((rest, taints), affinity), spread)| {
            rest + TAINTS * taints + NODE_AFFINITY * affinity + SPREAD * spread
        })
        .collect()
}

/// How full the node would be with the pod, 0 to 100.
fn fraction(pod: &PodInfo, node: &NodeInfo, of: fn(&crate::resources::Resources) -> i64) -> i64 {
    let (all, used) = (of(&node.allocatable), of(&node.weight).saturating_add(of(&pod.weight)));
    if all <= 0 { BEST } else { (used.saturating_mul(BEST) / all).clamp(0, BEST) }
}

fn bad_taints(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(spec) = pod.spec() else { return 0 };
    let count = placement::untolerated(spec, &node.node, &[PREFER_NO_SCHEDULE]).count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn affinity(pod: &PodInfo, node: &NodeInfo) -> i64 {
    pod.spec().map_or(0, |spec| placement::preferred_affinity_weight(spec, &node.node))
}

/// Pods of one owner go to different nodes, and more so to different zones.
fn spread(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
    let Some(owner) = &pod.owner else { return vec![0; nodes.len()] };
    let here: Vec<i64> =
        nodes.iter().map(|node| i64::from(node.of_owner.get(owner).copied().unwrap_or(0))).collect();
    let mut in_zone: HashMap<&str, i64> = HashMap::new();
    for (node, count) in nodes.iter().zip(&here) {
        if let Some(zone) = &node.zone {
            *in_zone.entry(zone).or_default() += count;
        }
    }
    let by_node = worst_is_zero(here);
    if in_zone.is_empty() {
        return by_node;
    }
    let zoned = nodes
        .iter()
        .map(|node| node.zone.as_deref().and_then(|zone| in_zone.get(zone)).copied().unwrap_or(0));
    let by_zone = worst_is_zero(zoned.collect());
    by_node.into_iter().zip(by_zone).map(|(node, zone)| (node + 2 * zone) / 3).collect()
}

/// Counts of something bad as scores: none is 100, the most is 0.
fn worst_is_zero(counts: Vec<i64>) -> Vec<i64> {
    let worst = counts.iter().copied().max().unwrap_or(0);
    counts.into_iter().map(|count| if worst == 0 { BEST } else { BEST * (worst - count) / worst }).collect()
}

/// Weights of something good as scores: the most is 100.
fn best_is_full(weights: Vec<i64>) -> Vec<i64> {
    let best = weights.iter().copied().max().unwrap_or(0);
    weights.into_iter().map(|weight| if best == 0 { 0 } else { BEST * weight / best }).collect()
}
