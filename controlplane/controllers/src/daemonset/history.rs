//! ControllerRevisions: each template that a DaemonSet had, for `kubectl rollout history` and `undo`.
//!
//! Looked at only when the DaemonSet has changed, so they are listed then rather than watched always.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use seaway_client::WorkError;
use serde_json::json;

use super::decide::HASH_LABEL;
use crate::context::Context;
use crate::owner;

/// How many old templates are kept when the DaemonSet does not say.
const DEFAULT_LIMIT: i32 = 10;

/// Makes the revision of the current template the newest, and drops old ones that no pod is of.
pub(super) async fn keep(
    context: &Context,
    set: &DaemonSet,
    pods: &[Arc<Pod>],
    hash: &str,
) -> Result<(), WorkError> {
    let api = context.namespaced::<ControllerRevision>(&set.namespace().unwrap_or_default());
    let name = format!("{}-{hash}", set.name_any());
    let listed = match api.list(&ListParams::default()).await {
        // Not every server has the kind.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        other => other.map_err(WorkError::api("list", "controllerrevisions"))?.items,
    };
    let uid = set.uid().unwrap_or_default();
    let own: Vec<_> = listed.into_iter().filter(|one| owner::is_controlled_by(&one.metadata, &uid)).collect();
    let newest = own.iter().map(|one| one.revision).max().unwrap_or(0);
    match own.iter().find(|one| one.name_any() == name) {
        Some(current) if current.revision == newest => {}
        Some(_) => {
            let patch = Patch::Merge(json!({"revision": newest + 1}));
            let patched = api.patch(&name, &PatchParams::default(), &patch).await;
            patched.map_err(WorkError::api("patch controllerrevision", &name))?;
        }
        None => {
            let created = api.create(&PostParams::default(), &revision(set, &name, hash, newest + 1)).await;
            created.map_err(WorkError::api("create controllerrevision", &name))?;
        }
    }
    for old in surplus(set, own, pods, &name) {
        let deleted = api.delete(&old, &DeleteParams::background()).await;
        deleted.map_err(WorkError::api("delete controllerrevision", &old))?;
    }
    Ok(())
}

fn revision(set: &DaemonSet, name: &str, hash: &str, number: i64) -> ControllerRevision {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    // A strategic merge patch that brings the template back whole.
    let mut data = json!({"spec": {"template": template}});
    data["spec"]["template"]["$patch"] = json!("replace");
    let mut revision =
        ControllerRevision { data: Some(RawExtension(data)), revision: number, ..Default::default() };
    revision.metadata.name = Some(name.to_owned());
    revision.metadata.namespace = set.namespace();
    revision.metadata.labels = Some(labels);
    revision.metadata.annotations = set.metadata.annotations.clone();
    revision.metadata.owner_references = Some(vec![owner::reference(set)]);
    revision
}

/// Names of revisions beyond the limit, oldest first, that are neither current nor some pod's.
fn surplus(set: &DaemonSet, own: Vec<ControllerRevision>, pods: &[Arc<Pod>], current: &str) -> Vec<String> {
    let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(DEFAULT_LIMIT);
    let in_use: HashSet<_> = pods.iter().filter_map(|pod| pod.labels().get(HASH_LABEL)).collect();
    let unused = |one: &ControllerRevision| {
        one.name_any() != current && !one.labels().get(HASH_LABEL).is_some_and(|hash| in_use.contains(hash))
    };
    let mut old: Vec<_> = own.into_iter().filter(unused).collect();
    old.sort_by_key(|one| one.revision);
    let count = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.into_iter().take(count).map(|one| one.name_any()).collect()
}
