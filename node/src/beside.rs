//! A node that a kubelet registers: where this agent learns its addresses from, and what it adds to the Node, which is
//! the pod network's: the Ethernet address of its VXLAN device, and the condition that tells clouds and schedulers that
//! pods can be reached.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;

use crate::register::{Readiness, VTEP_MAC, network_condition, vtep_mac};

const RETRY: Duration = Duration::from_secs(2);
/// Who changes what is written here has it changed back after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The node's own addresses, by its Node. Waits for them: the kubelet, or a cloud's controller, writes them.
pub(crate) async fn addresses(client: kube::Client, name: &str) -> Vec<IpAddr> {
    let api: Api<Node> = Api::all(client);
    let mut told = None;
    loop {
        let why = match api.get_opt(name).await {
            Ok(Some(node)) => match internal_addresses(&node) {
                found if found.is_empty() => "its Node has no InternalIP yet".to_owned(),
                found => return found,
            },
            Ok(None) => "there is no such Node yet".to_owned(),
            Err(error) => format!("the API server does not tell: {error}"),
        };
        if told.as_ref() != Some(&why) {
            tracing::warn!(node = %name, "waiting for the addresses of this node: {why}");
            told = Some(why);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|one| one.type_ == "InternalIP").filter_map(|one| one.address.parse().ok()).collect()
}

/// Keeps the Node told what is the pod network's to tell.
pub(crate) async fn keep_told(
    client: kube::Client,
    name: String,
    mut readiness: watch::Receiver<Readiness>,
) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client);
    loop {
        let network = readiness.borrow_and_update().network;
        if let Some(live) = api.get_opt(&name).await? {
            let (params, mac) = (PatchParams::default(), vtep_mac(&name));
            if !has_annotation(&live, &mac) {
                let patch = json!({"metadata": {"annotations": {VTEP_MAC: mac}}});
                api.patch(&name, &params, &Patch::Merge(patch)).await?;
            }
            if let Some(condition) = changed_condition(&live, network, Timestamp::now()) {
                // Strategic: the conditions are a map by type, and the others are the kubelet's.
                let patch = json!({"status": {"conditions": [condition]}});
                api.patch_status(&name, &params, &Patch::Strategic(patch)).await?;
            }
        }
        let changed = readiness.wait_for(|current| current.network != network);
        let _unchanged = tokio::time::timeout(LOOK_AGAIN, changed).await;
    }
}

fn has_annotation(live: &Node, mac: &str) -> bool {
    live.metadata.annotations.as_ref().and_then(|all| all.get(VTEP_MAC)).is_some_and(|held| held == mac)
}

/// The condition about the pod network, where it does not stand as it should.
fn changed_condition(live: &Node, network: bool, now: Timestamp) -> Option<NodeCondition> {
    let wanted = network_condition(network, now);
    let held = live.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let same = |one: &NodeCondition| one.status == wanted.status && one.reason == wanted.reason;
    (!held.filter(|one| one.type_ == wanted.type_).any(same)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": status})).unwrap()
    }

    #[test]
    fn the_nodes_internal_addresses_are_its_own_in_their_order() {
        let addresses = json!([
            {"type": "Hostname", "address": "n1"},
            {"type": "InternalIP", "address": "fd00::b"},
            {"type": "ExternalIP", "address": "203.0.113.9"},
            {"type": "InternalIP", "address": "192.0.2.11"},
            {"type": "InternalIP", "address": "not one"},
        ]);
        let found = internal_addresses(&node(json!({"addresses": addresses})));
        assert_eq!(found, ["fd00::b", "192.0.2.11"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert!(internal_addresses(&Node::default()).is_empty());
    }

    #[test]
    fn the_condition_is_written_where_it_says_something_else() {
        let now = Timestamp::UNIX_EPOCH;
        let none = node(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        let up = changed_condition(&none, true, now).unwrap();
        assert_eq!((up.type_.as_str(), up.status.as_str()), ("NetworkUnavailable", "False"));
        let clouds = json!({"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]});
        assert!(changed_condition(&node(clouds), true, now).is_some());
        let told = node(json!({"conditions": [up]}));
        assert_eq!(changed_condition(&told, true, now), None);
        assert_eq!(changed_condition(&told, false, now).unwrap().status, "True");
    }
}
