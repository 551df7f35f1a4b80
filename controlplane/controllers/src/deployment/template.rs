//! Which ReplicaSet belongs to the Deployment's template, and how a new one is made from it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::hash;
use crate::owner;

/// The label that tells the ReplicaSets of a Deployment and their pods apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// The hash of the Deployment's template.
pub(super) fn hash_of(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    hash::of_template(&template, collisions)
}

/// Whether `set` was made from the Deployment's template: the template is the same but for the hash label, or (should
/// a server default the two differently) the hash is.
pub(super) fn is_of(set: &ReplicaSet, deployment: &Deployment, hash: &str) -> bool {
    let labelled = set.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL));
    if labelled.is_some_and(|label| label == hash) {
        return true;
    }
    let ours = deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let theirs = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    without_hash(ours) == without_hash(theirs)
}

fn without_hash(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let mut meta = template.metadata.take().unwrap_or_default();
    let mut labels = meta.labels.take().unwrap_or_default();
    labels.remove(HASH_LABEL);
    meta.labels = Some(labels);
    meta.annotations = meta.annotations.filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    template.metadata = Some(meta);
    template
}

/// A ReplicaSet of the Deployment's template.
pub(super) fn replica_set(
    deployment: &Deployment,
    hash: &str,
    replicas: i32,
    annotations: BTreeMap<String, String>,
) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = spec.template;
    let mut template_meta = template.metadata.take().unwrap_or_default();
    let mut labels = template_meta.labels.take().unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    template_meta.labels = Some(labels.clone());
    template.metadata = Some(template_meta);
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.to_owned());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(format!("{name}-{hash}")),
        namespace: deployment.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![owner::reference(deployment)]),
        ..ObjectMeta::default()
    };
    let spec = ReplicaSetSpec {
        replicas: Some(replicas),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    ReplicaSet { metadata, spec: Some(spec), status: None }
}
