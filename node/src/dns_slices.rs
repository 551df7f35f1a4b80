//! Publishes the node's DNS server as EndpointSlices of the selector-less Service `kube-system/kube-dns`.

mod silent;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use seaway_model::{Family, ServiceKey, Snapshot};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::register::owner_reference;
pub(crate) use silent::Speaker;

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "node.seaway.dev";
/// The families, as names and types of slices say them.
const FAMILIES: [(Family, &str, &str); 2] = [(Family::V4, "ipv4", "IPv4"), (Family::V6, "ipv6", "IPv6")];
/// How often the slices are looked at without a reason.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked whether the Node is there, while it is not.
const NODE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the way of a change through the API server back to this node takes at most.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// Whose DNS server, and where.
#[derive(Debug, Clone)]
pub(crate) struct DnsPlace {
    pub(crate) node: String,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) zone: Option<String>,
}

/// What the Service is told about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It answers.
    Ready,
    /// It answers still, for whoever finds no other.
    Leaving,
    /// It does not answer.
    Down,
}

/// The two steps by which a server leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaving {
    /// The Service leads to others: the server may end as soon as nobody asks it.
    pub(crate) withdrawn: CancellationToken,
    /// It has ended.
    pub(crate) drained: CancellationToken,
}

/// What the slices of a node are called.
fn slice_names(node: &str) -> [String; 2] {
    FAMILIES.map(|(_, suffix, _)| format!("{SERVICE}-{node}-{suffix}"))
}

/// The slices, one per family that the node has. Pure.
pub(crate) fn slices(place: &DnsPlace, standing: Standing, owner: Option<&str>) -> Vec<EndpointSlice> {
    let of = |family| place.node_ips.iter().find(move |ip| Family::of(**ip) == family);
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: Some(place.port.into()),
        ..EndpointPort::default()
    };
    FAMILIES
        .into_iter()
        .zip(slice_names(&place.node))
        .filter_map(|((family, _, address_type), name)| {
            let address = of(family)?;
            let labels = [("kubernetes.io/service-name", SERVICE), (MANAGED_BY, MANAGER)];
            Some(EndpointSlice {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(NAMESPACE.to_owned()),
                    labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                    owner_references: owner.map(|uid| vec![owner_reference(&place.node, uid)]),
                    ..ObjectMeta::default()
                },
                address_type: address_type.to_owned(),
                endpoints: vec![Endpoint {
                    addresses: vec![address.to_string()],
                    conditions: Some(EndpointConditions {
                        ready: Some(standing == Standing::Ready),
                        serving: Some(standing != Standing::Down),
                        terminating: Some(standing == Standing::Leaving),
                    }),
                    node_name: Some(place.node.clone()),
                    zone: place.zone.clone(),
                    ..Endpoint::default()
                }],
                ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            })
        })
        .collect()
}

/// Keeps the slices.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) client: kube::Client,
    pub(crate) place: DnsPlace,
    /// Whether the server answers.
    pub(crate) up: watch::Receiver<bool>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) leaving: Leaving,
}

impl Keeper {
    /// Keeps them as `up` says until `shutdown`, then takes the node out of service, step by step.
    pub(crate) async fn run(mut self) -> Result<(), kube::Error> {
        let mut standing;
        loop {
            let up = *self.up.borrow_and_update();
            let view = View::of(&self.snapshots.borrow_and_update(), &self.place);
            standing = if up { Standing::Ready } else { Standing::Down };
            // While nobody hears of the node, others speak for it.
            let told = up && view.unreachable || self.tell(standing).await?;
            let (place, snapshots) = (&self.place, &mut self.snapshots);
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                _ = self.up.wait_for(|now| *now != up) => {}
                Ok(_) = snapshots.wait_for(|snapshot| View::of(snapshot, place) != view) => {}
                () = tokio::time::sleep(if told { CHECK_INTERVAL } else { NODE_INTERVAL }) => {}
            }
        }
        if standing == Standing::Ready {
            self.tell(Standing::Leaving).await?;
            let place = &self.place;
            let gone = self.snapshots.wait_for(|snapshot| !is_led_to(snapshot, place));
            // Who does not hear of it in this time hears nothing at all.
            let _late = tokio::time::timeout(HEARD_WITHIN, gone).await;
        }
        self.leaving.withdrawn.cancel();
        self.leaving.drained.cancelled().await;
        self.tell(Standing::Down).await.map(drop)
    }

    /// Writes the slices where they differ. They belong to the Node: as long as there is none, nothing is said.
    async fn tell(&self, standing: Standing) -> Result<bool, kube::Error> {
        let node = Api::<Node>::all(self.client.clone()).get_opt(&self.place.node).await?;
        let Some(owner) = node.and_then(|node| node.metadata.uid) else { return Ok(false) };
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        for slice in slices(&self.place, standing, Some(&owner)) {
            put(&api, slice).await?;
        }
        Ok(true)
    }
}

/// What the cluster thinks of the server. When that changes, it may have to be told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    unreachable: bool,
    led_to: bool,
}

impl View {
    fn of(snapshot: &Snapshot, place: &DnsPlace) -> Self {
        let unreachable = snapshot.nodes.get(&*place.node).is_some_and(|node| node.unreachable);
        Self { unreachable, led_to: is_led_to(snapshot, place) }
    }
}

/// Whether the Service leads to this server.
fn is_led_to(snapshot: &Snapshot, place: &DnsPlace) -> bool {
    let endpoints = snapshot.endpoints.get(&ServiceKey::new(NAMESPACE, SERVICE));
    endpoints.is_some_and(|set| {
        set.endpoints.iter().any(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(&*place.node))
    })
}

/// Writes a slice where it differs.
async fn put(api: &Api<EndpointSlice>, slice: EndpointSlice) -> Result<(), kube::Error> {
    let name = slice.metadata.name.clone().unwrap_or_default();
    let Some(held) = api.get_opt(&name).await? else {
        return api.create(&PostParams::default(), &slice).await.map(drop);
    };
    let labels = |slice: &EndpointSlice| slice.metadata.labels.clone().unwrap_or_default();
    let wanted: BTreeMap<String, String> = labels(&slice);
    let same = held.endpoints == slice.endpoints
        && held.ports == slice.ports
        && held.metadata.owner_references == slice.metadata.owner_references
        && wanted.iter().all(|(key, value)| labels(&held).get(key) == Some(value));
    if same {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"labels": wanted, "ownerReferences": slice.metadata.owner_references},
        "endpoints": slice.endpoints,
        "ports": slice.ports,
    });
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_per_family_that_the_node_has() {
        let mut place = DnsPlace {
            node: "n1".into(),
            node_ips: vec!["172.30.0.11".parse().unwrap(), "fd00::b".parse().unwrap()],
            port: 10053,
            zone: None,
        };
        let names = |place: &DnsPlace| -> Vec<String> {
            slices(place, Standing::Ready, Some("uid")).into_iter().filter_map(|s| s.metadata.name).collect()
        };
        assert_eq!(names(&place), ["kube-dns-n1-ipv4", "kube-dns-n1-ipv6"]);
        place.node_ips.pop();
        assert_eq!(names(&place), ["kube-dns-n1-ipv4"]);
        let told = |standing| {
            let slice = &slices(&place, standing, None)[0];
            assert_eq!(slice.endpoints[0].node_name.as_deref(), Some("n1"));
            let told = slice.endpoints[0].conditions.clone().unwrap();
            [told.ready, told.serving, told.terminating].map(Option::unwrap)
        };
        assert_eq!(told(Standing::Ready), [true, true, false]);
        assert_eq!(told(Standing::Leaving), [false, true, true]);
        assert_eq!(told(Standing::Down), [false, false, false]);
    }
}
