//! Nodes that fall silent: their conditions become Unknown, taints keep new pods away and evict old ones, their pods
//! stop being endpoints. Pods of nodes that are gone are removed.

mod eviction;
mod health;
mod orphans;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use seaway_client::{EventType, Informer, Key, Queue, WorkError, work};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;

use crate::context::Context;
use crate::{pod, write};
use health::Heartbeat;

/// Where nodes keep their leases.
const LEASES: &str = "kube-node-lease";

struct NodeLifecycle {
    context: Arc<Context>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    leases: Arc<Informer<Lease>>,
    /// When we last saw each node renew its lease or report. Our own clock: the node's may be wrong.
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Debug, Clone)]
struct Seen {
    heartbeat: Heartbeat,
    at: Instant,
    was_ready: bool,
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let caches = &context.caches;
    let (nodes, pods, leases) = (caches.nodes(), caches.pods(), caches.leases());
    nodes.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.latest().into_iter().for_each(|one| queue.add(Key::of(one.as_ref())))
    });
    leases.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            let ours = change.new.iter().filter(|lease| lease.namespace().as_deref() == Some(LEASES));
            ours.for_each(|lease| queue.add(Key::cluster(lease.name_any())));
        }
    });
    eviction::start(context, &nodes, &pods, tasks);
    orphans::start(context, &nodes, &pods, tasks);
    let seen = Mutex::default();
    let controller = Arc::new(NodeLifecycle { context: Arc::clone(context), nodes, pods, leases, seen });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    work("nodelifecycle", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

impl NodeLifecycle {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, WorkError> {
        self.nodes.wait_until_synced().await;
        self.leases.wait_until_synced().await;
        self.pods.wait_until_synced().await;
        let Some(node) = self.nodes.store().get(key) else {
            self.lock().remove(&key.name);
            return Ok(None);
        };
        let lease = self.leases.store().get(&Key::new(LEASES, &*key.name));
        let (silent_for, was_ready) = self.look(&node, lease.as_deref());
        let grace = self.grace(&node);
        let now = Timestamp::now();
        let silent = silent_for >= grace;
        if silent {
            self.mark_unknown(&node, now).await?;
        }
        let node = self.nodes.store().get(key).unwrap_or(node);
        self.write_taints(&node, now).await?;
        let ready = health::ready_status(&node);
        // A silent node cannot speak for its pods; one that reports itself not ready can, so it is asked only once.
        if ready == "Unknown" || (was_ready && ready == "False") {
            if was_ready {
                let message = format!("Node {} status is now: NodeNotReady", key.name);
                self.context.recorder.record(node.as_ref(), EventType::Normal, "NodeNotReady", message);
            }
            self.mark_pods(&key.name, now).await?;
        }
        if let Some(seen) = self.lock().get_mut(&key.name) {
            seen.was_ready = ready == "True";
        }
        Ok((!silent).then(|| grace.saturating_sub(silent_for) + Duration::from_millis(10)))
    }

    /// Notes what the node says of itself; tells for how long it has said nothing new, and whether it was ready.
    fn look(&self, node: &Node, lease: Option<&Lease>) -> (Duration, bool) {
        let heartbeat = Heartbeat::of(node, lease);
        let (now, ready) = (Instant::now(), health::ready_status(node) == "True");
        let mut all = self.lock();
        let seen = all.entry(node.name_any()).or_insert_with(|| Seen {
            heartbeat: heartbeat.clone(),
            at: now,
            was_ready: ready,
        });
        if seen.heartbeat != heartbeat {
            seen.heartbeat = heartbeat;
            seen.at = now;
        }
        (now.duration_since(seen.at), seen.was_ready)
    }

    fn grace(&self, node: &Node) -> Duration {
        let config = &self.context.config;
        if health::has_reported(node) { config.node_grace_period } else { config.node_startup_grace_period }
    }

    async fn mark_unknown(&self, node: &Node, now: Timestamp) -> Result<(), WorkError> {
        let Some(conditions) = health::unknown_conditions(node, now) else { return Ok(()) };
        let name = node.name_any();
        info!(node = name, "node has fallen silent");
        let version = node.resource_version();
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
        write::merge_status(&self.context.cluster::<Node>(), &self.nodes, &name, &patch).await
    }

    async fn write_taints(&self, node: &Node, now: Timestamp) -> Result<(), WorkError> {
        let Some(taints) = health::taints(node, now) else { return Ok(()) };
        let patch =
            json!({"metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": taints}});
        write::merge(&self.context.cluster::<Node>(), &self.nodes, &node.name_any(), &patch).await
    }

    /// Ready pods of a node that cannot be trusted are ready no more, so that no traffic is sent there.
    async fn mark_pods(&self, node: &str, now: Timestamp) -> Result<(), WorkError> {
        for one in self.pods.store().indexed(&pod::on_node(node)) {
            let Some(conditions) = health::not_ready(&one, now) else { continue };
            let api = self.context.namespaced::<Pod>(&one.namespace().unwrap_or_default());
            let patch = json!({"metadata": {"uid": one.uid(), "resourceVersion": one.resource_version()},
                               "status": {"conditions": conditions}});
            match write::merge_status(&api, &self.pods, &one.name_any(), &patch).await {
                Err(error) if error.code() == Some(404) => {}
                other => other?,
            }
            let message = "Node is not ready";
            self.context.recorder.record(one.as_ref(), EventType::Warning, "NodeNotReady", message);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
