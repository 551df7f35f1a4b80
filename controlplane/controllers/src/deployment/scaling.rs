//! Numbers: surge, what may be unavailable, and how a change of size is shared among several ReplicaSets.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::replicas;
use super::revision::{MAX, number};

/// A number, or a percentage of `total`.
pub(super) fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => resolve(Some(&IntOrString::String("25%".to_owned())), total, round_up),
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = i64::from(total) * percent + if round_up { 99 } else { 0 };
            i32::try_from(hundredths.div_euclid(100)).unwrap_or(total)
        }
    }
}

/// How many pods there may be above the wanted number, and how many of it may be unavailable, during a rollout.
pub(super) fn surge_and_unavailable(spec: &DeploymentSpec) -> (i32, i32) {
    let total = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
        return (0, 0);
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), total, true);
    let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), total, false);
    // With neither allowed nothing could ever move.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(total)) }
}

/// Shares the difference between the pods there may be and those there are among the ReplicaSets, in proportion to
/// their sizes, the biggest first. Gives the new size of each.
pub(super) fn proportional(sets: &[Arc<ReplicaSet>], wanted: i32, surge: i32) -> Vec<(Arc<ReplicaSet>, i32)> {
    let mut sets: Vec<_> = sets.to_vec();
    let total: i32 = sets.iter().map(|set| replicas(set)).sum();
    let allowed = if wanted > 0 { wanted + surge } else { 0 };
    let to_add = allowed - total;
    let age = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // The biggest first; among equals the newest when growing, the oldest when shrinking.
    sets.sort_by(|a, b| {
        let by_age = if to_add > 0 { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
        replicas(b).cmp(&replicas(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = Vec::new();
    for set in sets {
        let share = if to_add == 0 { 0 } else { proportion(&set, wanted + surge, to_add, added) };
        added += share;
        let size = (replicas(&set) + share).max(0);
        sizes.push((set, size));
    }
    if let Some((_, first)) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn proportion(set: &ReplicaSet, max: i32, to_add: i32, added: i32) -> i32 {
    let size = replicas(set);
    if size == 0 {
        return 0;
    }
    let max_before = number(set, MAX).filter(|before| *before > 0).unwrap_or_else(|| i64::from(max));
    let scaled = (2 * i64::from(size) * i64::from(max) + max_before).div_euclid(2 * max_before.max(1));
    let share = i32::try_from(scaled).unwrap_or(i32::MAX).saturating_sub(size);
    let left = to_add - added;
    if to_add > 0 { share.min(left) } else { share.max(left) }
}
