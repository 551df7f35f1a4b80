//! DNS servers of nodes that nobody hears of any more. Such a node cannot take its own server out of the Service, so the
//! others do: pods whose own node has none would be sent to a dead address.
//!
//! Nobody is elected. All agents see the same nodes and put them into the same order, another one for each silent node; the
//! first acts at once, the next ones where it did not. What is done twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use kube::api::{Api, Patch, PatchParams};
use seaway_model::{ServiceKey, Snapshot};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{MANAGED_BY, MANAGER, NAMESPACE, SERVICE, slice_names};

/// How long each agent leaves it to those before it, and how long before it tries again.
const TURN: Duration = Duration::from_secs(10);
/// Changes are looked at no more often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A silent node whose server is still led to, and how many agents come before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Duty {
    node: Arc<str>,
    turn: u32,
}

/// What the agent of the node `own` may have to do. Pure.
fn duties(snapshot: &Snapshot, own: &str) -> Vec<Duty> {
    let Some(set) = snapshot.endpoints.get(&ServiceKey::new(NAMESPACE, SERVICE)).filter(|_| snapshot.synced)
    else {
        return Vec::new();
    };
    let (mut silent, mut able) = (BTreeSet::new(), BTreeSet::new());
    for endpoint in set.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.serving) {
        let Some(node) = &endpoint.node else { continue };
        match snapshot.nodes.get(node) {
            Some(known) if known.ready => _ = able.insert(node),
            // It can speak for itself.
            Some(known) if !known.unreachable => {}
            _ => _ = silent.insert(node),
        }
    }
    if !able.iter().any(|node| ***node == *own) {
        return Vec::new();
    }
    let before_own = |silent: &str| {
        let own = weight(own, silent);
        u32::try_from(able.iter().filter(|other| weight(other, silent) > own).count()).unwrap_or(u32::MAX)
    };
    silent.into_iter().map(|node| Duty { node: Arc::clone(node), turn: before_own(node) }).collect()
}

/// Rendezvous hashing: whoever weighs most comes first.
fn weight(agent: &str, silent: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (agent, silent).hash(&mut hasher);
    hasher.finish()
}

/// The endpoints of a node's slice as they are without their server; `None` where they are so already, or somebody
/// else's. Pure.
fn withdrawn(slice: &EndpointSlice, node: &str) -> Option<Vec<Endpoint>> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    let its = slice.endpoints.iter().all(|endpoint| endpoint.node_name.as_deref() == Some(node));
    let down = EndpointConditions { ready: Some(false), serving: Some(false), terminating: Some(false) };
    let without = slice
        .endpoints
        .iter()
        .map(|endpoint| Endpoint { conditions: Some(down.clone()), ..endpoint.clone() });
    let without: Vec<Endpoint> = without.collect();
    (ours && its && without != slice.endpoints).then_some(without)
}

/// Whether nobody hears of the node, by what the API server says right now.
fn is_silent(node: Option<&Node>) -> bool {
    let Some(node) = node else { return true };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "Unknown")
}

/// Takes servers of silent nodes out of the Service.
#[derive(Clone)]
pub(crate) struct Speaker {
    pub(crate) client: kube::Client,
    pub(crate) node: String,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Speaker {
    /// Until it is dropped.
    pub(crate) async fn run(mut self) -> Result<(), kube::Error> {
        let mut due: BTreeMap<Arc<str>, Instant> = BTreeMap::new();
        loop {
            let duties = duties(&self.snapshots.borrow_and_update(), &self.node);
            due.retain(|node, _| duties.iter().any(|duty| duty.node == *node));
            let now = Instant::now();
            for Duty { node, turn } in &duties {
                let at = due.entry(Arc::clone(node)).or_insert_with(|| now + TURN.saturating_mul(*turn));
                if *at <= now {
                    *at = now + TURN;
                    if let Err(error) = self.withdraw(node).await {
                        tracing::warn!(%node, %error, "the DNS server of a silent node stays in the Service");
                    }
                }
            }
            if duties.is_empty() && self.snapshots.changed().await.is_err() {
                return Ok(());
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn withdraw(&self, node: &str) -> Result<(), kube::Error> {
        if !is_silent(Api::<Node>::all(self.client.clone()).get_opt(node).await?.as_ref()) {
            return Ok(());
        }
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        for name in slice_names(node) {
            let Some(slice) = slices.get_opt(&name).await? else { continue };
            let Some(endpoints) = withdrawn(&slice, node) else { continue };
            // Not over what the node says meanwhile, should it be back.
            let version = slice.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "endpoints": endpoints});
            match slices.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => tracing::info!(
                    node,
                    slice = name,
                    "nobody hears of the node: its DNS server is taken out"
                ),
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DnsPlace, Standing, slices};
    use super::*;
    use seaway_model::EndpointSet;

    /// Nodes by name, whether they are ready and unreachable; and the nodes whose servers are led to.
    fn snapshot(nodes: &[(&str, bool, bool)], led_to: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
        for &(name, ready, unreachable) in nodes {
            let node = seaway_model::Node { ready, unreachable, ..seaway_model::Node::named(name) };
            snapshot.nodes.insert(name.into(), Arc::new(node));
        }
        let addr = "192.0.2.1".parse().unwrap();
        let endpoint = |node: &str| seaway_model::Endpoint {
            node: Some(node.into()),
            ..seaway_model::Endpoint::new(addr, Arc::default())
        };
        let endpoints = led_to.iter().map(|node| endpoint(node)).collect();
        let set = Arc::new(EndpointSet { endpoints });
        snapshot.endpoints.insert(ServiceKey::new(NAMESPACE, SERVICE), set);
        snapshot
    }

    #[test]
    fn silent_nodes_are_spoken_for_by_one_agent_after_the_other() {
        let nodes = [
            ("a", true, false),
            ("b", true, false),
            ("c", true, false),
            ("quiet", false, true),
            ("unwell", false, false),
        ];
        let led_to = ["a", "b", "c", "quiet", "unwell", "gone"];
        let all = snapshot(&nodes, &led_to);
        let mut turns: BTreeMap<Arc<str>, Vec<u32>> = BTreeMap::new();
        for own in ["a", "b", "c"] {
            for duty in duties(&all, own) {
                turns.entry(duty.node).or_default().push(duty.turn);
            }
        }
        for turns in turns.values_mut() {
            turns.sort_unstable();
        }
        let wanted = ["gone", "quiet"].map(|node| (Arc::from(node), vec![0, 1, 2]));
        assert_eq!(
            turns,
            BTreeMap::from(wanted),
            "each agent has a turn of its own; who speaks for itself is left alone"
        );
        // Whose own server is not led to, or whose node is silent, is in no position to judge.
        assert_eq!(duties(&snapshot(&nodes, &["b", "quiet"]), "a"), []);
        assert_eq!(duties(&all, "quiet"), []);
        assert_eq!(duties(&Snapshot { synced: false, ..all }, "a"), []);
        assert_eq!(duties(&snapshot(&nodes, &["a"]), "a"), []);
    }

    #[test]
    fn many_silent_nodes_are_shared_among_the_agents() {
        let agents = ["a", "b", "c", "d"];
        let silent: Vec<String> = (0..100).map(|at| format!("silent-{at}")).collect();
        let names = agents.iter().copied().chain(silent.iter().map(String::as_str));
        let led_to: Vec<&str> = names.collect();
        let nodes: Vec<(&str, bool, bool)> =
            led_to.iter().map(|name| (*name, agents.contains(name), !agents.contains(name))).collect();
        let all = snapshot(&nodes, &led_to);
        for agent in agents {
            let first = duties(&all, agent).iter().filter(|duty| duty.turn == 0).count();
            assert!((5..50).contains(&first), "{agent} is the first for {first} of 100");
        }
    }

    #[test]
    fn a_slice_is_withdrawn_once_and_only_ours() {
        let place = DnsPlace {
            node: "n1".into(),
            node_ips: vec!["192.0.2.1".parse().unwrap()],
            port: 53,
            zone: None,
        };
        let [mut slice]: [_; 1] = slices(&place, Standing::Ready, None).try_into().unwrap();
        assert_eq!(withdrawn(&slice, "n2"), None);
        let endpoints = withdrawn(&slice, "n1").unwrap();
        assert_eq!(endpoints, slices(&place, Standing::Down, None)[0].endpoints);
        slice.endpoints = endpoints;
        assert_eq!(withdrawn(&slice, "n1"), None);
        let mut foreign = slices(&place, Standing::Ready, None).remove(0);
        foreign.metadata.labels = None;
        assert_eq!(withdrawn(&foreign, "n1"), None);
    }
}
