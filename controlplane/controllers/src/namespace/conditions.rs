//! What a namespace says of itself while it ends: what is left in it, and which finalizers that waits for. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const SOONEST: Duration = Duration::from_millis(300);
const LATEST: Duration = Duration::from_secs(5);

/// What is left of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Remaining {
    /// `plural.group`, with the dot also where the group is empty, as upstream writes it.
    pub(super) resource: String,
    /// How many objects.
    pub(super) count: usize,
    /// Finalizers, each with the number of objects that have it.
    pub(super) finalizers: BTreeMap<String, usize>,
}

/// When to look again into a namespace that has been ending for `age`: soon at first, then ever more rarely.
pub(super) fn look_again(age: Duration) -> Duration {
    (age / 8).clamp(SOONEST, LATEST)
}

/// The conditions; of those that `known` has already, with the time of their last change.
pub(super) fn conditions(
    remaining: &[Remaining],
    known: &[NamespaceCondition],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let left: Vec<String> = remaining
        .iter()
        .filter(|kind| kind.count > 0)
        .map(|kind| format!("{} has {} resource instances", kind.resource, kind.count))
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, count) in remaining.iter().flat_map(|kind| &kind.finalizers) {
        *finalizers.entry(name).or_default() += count;
    }
    let waits: Vec<String> =
        finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let list = |items: &[String], some: (&'static str, &str), none: (&'static str, &str)| {
        if items.is_empty() {
            ("False", none.0, none.1.to_owned())
        } else {
            ("True", some.0, format!("{}: {}", some.1, items.join(", ")))
        }
    };
    let content = list(
        &left,
        ("SomeResourcesRemain", "Some resources are remaining"),
        ("ContentRemoved", "All content successfully removed"),
    );
    let finalizers = list(
        &waits,
        ("SomeFinalizersRemain", "Some content in the namespace has finalizers remaining"),
        ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    );
    let parsed = ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned());
    let discovered = ("False", "ResourcesDiscovered", "All resources successfully discovered".to_owned());
    let deleted = "All content successfully deleted, may be waiting on finalization".to_owned();
    [
        ("NamespaceDeletionDiscoveryFailure", discovered),
        ("NamespaceDeletionGroupVersionParsingFailure", parsed),
        ("NamespaceDeletionContentFailure", ("False", "ContentDeleted", deleted)),
        ("NamespaceContentRemaining", content),
        ("NamespaceFinalizersRemaining", finalizers),
    ]
    .into_iter()
    .map(|(kind, (status, reason, message))| {
        let since = known.iter().find(|one| one.type_ == kind && one.status == status);
        NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since.map_or(Some(Time(now)), |one| one.last_transition_time.clone()),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_upstreams_words() {
        let kind = |resource: &str, count, finalizers: &[(&str, usize)]| Remaining {
            resource: resource.to_owned(),
            count,
            finalizers: finalizers.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let left = [
            kind("configmaps.", 2, &[("x/y", 1)]),
            kind("pods.", 0, &[]),
            kind("deployments.apps", 1, &[("a/b", 1), ("x/y", 1)]),
        ];
        let told = conditions(&left, &[], now);
        let of = |kind: &str| told.iter().find(|one| one.type_ == kind).unwrap();
        let content = of("NamespaceContentRemaining");
        assert_eq!(content.status, "True");
        assert_eq!(
            content.message.as_deref(),
            Some(
                "Some resources are remaining: configmaps. has 2 resource instances, deployments.apps has 1 resource \
                 instances"
            )
        );
        assert_eq!(
            of("NamespaceFinalizersRemaining").message.as_deref(),
            Some(
                "Some content in the namespace has finalizers remaining: a/b in 1 resource instances, x/y in 2 \
                 resource instances"
            )
        );
        assert_eq!(of("NamespaceDeletionContentFailure").status, "False");
        let later = conditions(&left[1..2], &told, Timestamp::from_second(1_800_000_100).unwrap());
        let times: Vec<bool> = later.iter().map(|one| one.last_transition_time == Some(Time(now))).collect();
        assert_eq!(times, [true, true, true, false, false], "only two changed");
    }

    #[test]
    fn a_namespace_that_does_not_end_is_looked_at_ever_more_rarely() {
        let ages = [0, 1, 2, 20, 60, 3600].map(Duration::from_secs);
        assert_eq!(ages.map(|age| look_again(age).as_millis()), [300, 300, 300, 2500, 5000, 5000]);
    }
}
