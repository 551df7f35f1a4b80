//! Evicts pods from nodes with NoExecute taints, after as long as they tolerate them.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::DeleteParams;
use seaway_client::placement::{NO_EXECUTE, tolerates};
use seaway_client::{EventType, Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::{pod, write};

/// Starts the evictions.
pub(super) fn start(
    context: &Arc<Context>,
    nodes: &Arc<Informer<Node>>,
    pods: &Arc<Informer<Pod>>,
    tasks: &mut JoinSet<()>,
) {
    let queue: Arc<Queue<Key>> = Arc::default();
    nodes.on_change({
        let (queue, pods) = (Arc::clone(&queue), Arc::clone(pods));
        move |change| {
            let Some(node) = &change.new else { return };
            let before: Vec<_> = change.old.iter().flat_map(|old| no_execute(old)).collect();
            if before.into_iter().eq(no_execute(node)) {
                return;
            }
            for here in pods.store().indexed(&pod::on_node(&node.name_any())) {
                queue.add(Key::of(here.as_ref()));
            }
        }
    });
    pods.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            let placed = |pod: &Arc<Pod>| pod::node_name(pod).map(str::to_owned);
            let (old, new) = (change.old.as_ref().and_then(placed), change.new.as_ref().and_then(placed));
            if let Some(pod) = change.new.as_ref().filter(|_| old != new) {
                queue.add(Key::of(pod.as_ref()));
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
    work("taint-eviction", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == NO_EXECUTE)
}

async fn reconcile(
    context: &Context,
    nodes: &Informer<Node>,
    pods: &Informer<Pod>,
    key: &Key,
) -> Result<Option<Duration>, WorkError> {
    nodes.wait_until_synced().await;
    let Some(pod) = pods.store().get(key).filter(|pod| pod::is_active(pod)) else { return Ok(None) };
    let node = pod::node_name(&pod).and_then(|name| nodes.store().get(&Key::cluster(name)));
    let Some(node) = node else { return Ok(None) };
    let now = Timestamp::now();
    let Some(at) = evict_at(&pod, &node, now) else { return Ok(None) };
    if at > now {
        return Ok(Some(Duration::try_from(at.duration_since(now)).unwrap_or_default()));
    }
    let message = format!("Marking for deletion Pod {key}");
    context.recorder.record(pod.as_ref(), EventType::Normal, "TaintManagerEviction", message);
    write::delete(&context.namespaced::<Pod>(&key.namespace), pods, pod.as_ref(), DeleteParams::default())
        .await?;
    Ok(None)
}

/// When the pod must leave: never, if it tolerates every taint for ever; at once, if it does not tolerate one.
pub(super) fn evict_at(pod: &Pod, node: &Node, now: Timestamp) -> Option<Timestamp> {
    let spec = pod.spec.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    no_execute(node)
        .filter_map(|taint| {
            let added = taint.time_added.as_ref().map_or(now, |time| time.0);
            let matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint));
            let limits: Vec<Option<i64>> = matching.map(|toleration| toleration.toleration_seconds).collect();
            if limits.is_empty() {
                return Some(now);
            }
            // Of several tolerations the shortest counts; one without a limit is no limit.
            let seconds = limits.into_iter().flatten().min()?;
            added.checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
        })
        .min()
}
