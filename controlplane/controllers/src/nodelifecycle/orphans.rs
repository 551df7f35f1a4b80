//! Removes pods that nobody will: those of nodes that are gone, and those deleted before they had a node.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use seaway_client::{Informer, Key, Queue, WorkError, work};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::info;

use crate::context::Context;
use crate::{pod, write};

/// Starts the removals.
pub(super) fn start(
    context: &Arc<Context>,
    nodes: &Arc<Informer<Node>>,
    pods: &Arc<Informer<Pod>>,
    tasks: &mut JoinSet<()>,
) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let wait = context.config.node_grace_period;
    nodes.on_change({
        let (queue, pods) = (Arc::clone(&queue), Arc::clone(pods));
        move |change| {
            if let (Some(node), None) = (&change.old, &change.new) {
                for here in pods.store().indexed(&pod::on_node(&node.name_any())) {
                    queue.add_after(Key::of(here.as_ref()), wait);
                }
            }
        }
    });
    pods.on_change({
        let (queue, nodes) = (Arc::clone(&queue), Arc::clone(nodes));
        move |change| {
            let Some(new) = &change.new else { return };
            match pod::node_name(new) {
                Some(name) if nodes.store().get(&Key::cluster(name)).is_none() => {
                    // Pods may be listed before their nodes are, so this, too, is not believed at once.
                    queue.add_after(Key::of(new.as_ref()), wait);
                }
                None if new.metadata.deletion_timestamp.is_some() => queue.add(Key::of(new.as_ref())),
                _ => {}
            }
        }
    });
    let reconcile = {
        let (context, nodes, pods) = (Arc::clone(context), Arc::clone(nodes), Arc::clone(pods));
        move |key| {
            let (context, nodes, pods) = (Arc::clone(&context), Arc::clone(&nodes), Arc::clone(&pods));
            async move { reconcile(&context, &nodes, &pods, &key).await }
        }
    };
    work("pod-gc", &queue, 1, reconcile, tasks, &context.shutdown);
}

async fn reconcile(
    context: &Context,
    nodes: &Informer<Node>,
    pods: &Informer<Pod>,
    key: &Key,
) -> Result<Option<Duration>, WorkError> {
    nodes.wait_until_synced().await;
    let Some(orphan) = pods.store().get(key) else { return Ok(None) };
    let api = context.namespaced::<Pod>(&key.namespace);
    match pod::node_name(&orphan) {
        None if orphan.metadata.deletion_timestamp.is_none() => return Ok(None),
        None => {}
        Some(name) => {
            if nodes.store().get(&Key::cluster(name)).is_some() {
                return Ok(None);
            }
            // The cache may be behind: only the server's word counts.
            let live = context.cluster::<Node>().get_opt(name).await;
            if live.map_err(WorkError::api("read node", name))?.is_some() {
                return Ok(None);
            }
            if !pod::is_terminal(&orphan) {
                fail(&api, pods, &orphan, name).await?;
            }
        }
    }
    info!(pod = %key, "removing a pod whose node is gone");
    write::delete(&api, pods, orphan.as_ref(), DeleteParams::default().grace_period(0)).await?;
    Ok(None)
}

/// What owns the pod should see that it has ended, not only that it vanished.
async fn fail(api: &kube::Api<Pod>, pods: &Informer<Pod>, orphan: &Pod, node: &str) -> Result<(), WorkError> {
    let mut conditions =
        orphan.status.as_ref().and_then(|status| status.conditions.clone()).map_or_else(Vec::new, |list| {
            list.into_iter()
                .filter(|condition| condition.type_ != "DisruptionTarget")
                .map(|one| json!(one))
                .collect()
        });
    conditions.push(json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByPodGC",
        "message": format!("PodGC: node {node} no longer exists"),
        "lastTransitionTime": format!("{:.0}", Timestamp::now()),
    }));
    let patch =
        json!({"metadata": {"uid": orphan.uid()}, "status": {"phase": "Failed", "conditions": conditions}});
    match write::merge_status(api, pods, &orphan.name_any(), &patch).await {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other,
    }
}
