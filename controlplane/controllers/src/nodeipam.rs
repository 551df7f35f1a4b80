//! Pod CIDRs: each node gets one of each family, cut from the cluster CIDRs, that no other node has or was promised.

mod allocate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use seaway_client::{EventType, Informer, Key, Queue, WorkError, work};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::info;

use crate::config::{ControllersConfig, ControllersError};
use crate::context::Context;
use crate::write;
use allocate::Allocator;

struct NodeIpam {
    context: Arc<Context>,
    nodes: Arc<Informer<Node>>,
    state: Mutex<State>,
}

struct State {
    allocators: Vec<Allocator>,
    /// What a node was given by a write that may or may not have reached the server.
    promised: HashMap<String, Vec<IpNet>>,
}

/// Checks that the cluster CIDRs can be divided.
pub(crate) fn validate(config: &ControllersConfig) -> Result<(), ControllersError> {
    allocators(config).map(drop)
}

fn allocators(config: &ControllersConfig) -> Result<Vec<Allocator>, ControllersError> {
    let cidrs = &config.cluster_cidrs;
    for (n, first) in cidrs.iter().enumerate() {
        let is_v4 = |cidr: &IpNet| matches!(cidr, IpNet::V4(_));
        if let Some(second) = cidrs[n + 1..].iter().find(|other| is_v4(other) == is_v4(first)) {
            return Err(ControllersError::SameFamily { first: *first, second: *second });
        }
    }
    let allocator = |cidr: &IpNet| {
        let mask =
            if matches!(cidr, IpNet::V4(_)) { config.node_cidr_mask_v4 } else { config.node_cidr_mask_v6 };
        Allocator::new(*cidr, mask).ok_or(ControllersError::NodeCidrMask { cidr: *cidr, mask })
    };
    cidrs.iter().map(allocator).collect()
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let Ok(allocators) = allocators(&context.config) else { return };
    if allocators.is_empty() {
        return;
    }
    let queue: Arc<Queue<Key>> = Arc::default();
    let nodes = context.caches.nodes();
    nodes.on_change({
        let (queue, nodes) = (Arc::clone(&queue), Arc::clone(&nodes));
        move |change| match &change.new {
            Some(node) if pod_cidrs(node).is_empty() => queue.add(Key::of(node.as_ref())),
            Some(_) => {}
            // A CIDR is free again: whoever waits for one tries again.
            None => {
                let waiting = nodes.store().all().into_iter().filter(|node| pod_cidrs(node).is_empty());
                waiting.for_each(|node| queue.add(Key::of(node.as_ref())));
            }
        }
    });
    let state = Mutex::new(State { allocators, promised: HashMap::new() });
    let controller = Arc::new(NodeIpam { context: Arc::clone(context), nodes, state });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await.map(|()| None) }
    };
    // One worker: what one node gets is known before the next one asks.
    work("nodeipam", &queue, 1, reconcile, tasks, &context.shutdown);
}

/// The node's pod CIDRs.
fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter());
    let mut cidrs: Vec<IpNet> = listed.filter_map(|cidr| cidr.parse().ok()).collect();
    cidrs.dedup();
    cidrs
}

impl NodeIpam {
    async fn reconcile(&self, key: &Key) -> Result<(), WorkError> {
        self.nodes.wait_until_synced().await;
        let Some(node) =
            self.nodes.store().get(key).filter(|node| node.metadata.deletion_timestamp.is_none())
        else {
            self.lock().promised.remove(&key.name);
            return Ok(());
        };
        if !pod_cidrs(&node).is_empty() {
            self.lock().promised.remove(&key.name);
            return Ok(());
        }
        let Some(cidrs) = self.choose(&key.name) else {
            let message = "no pod CIDR is left for this node: the cluster CIDRs are exhausted";
            self.context.recorder.record(node.as_ref(), EventType::Warning, "CIDRNotAvailable", message);
            return Ok(());
        };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        write::merge(&self.context.cluster::<Node>(), &self.nodes, &key.name, &patch).await?;
        info!(node = key.name, ?cidrs, "pod CIDRs assigned");
        self.lock().promised.remove(&key.name);
        Ok(())
    }

    /// The CIDRs that the node was promised, or new ones that no node has or was promised.
    fn choose(&self, name: &str) -> Option<Vec<IpNet>> {
        let mut state = self.lock();
        if let Some(promised) = state.promised.get(name) {
            return Some(promised.clone());
        }
        let nodes = self.nodes.store().all();
        let mut taken: Vec<IpNet> = nodes.iter().flat_map(|node| pod_cidrs(node)).collect();
        taken.extend(state.promised.values().flatten());
        let chosen: Option<Vec<IpNet>> =
            state.allocators.iter_mut().map(|allocator| allocator.choose(&taken)).collect();
        let chosen = chosen?;
        state.promised.insert(name.to_owned(), chosen.clone());
        Some(chosen)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
