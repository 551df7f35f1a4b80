//! Publishes the node's DNS server as EndpointSlices of the selector-less Service `kube-system/kube-dns`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use seaway_model::Family;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::register::owner_reference;

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
/// How often the slices are looked at without a reason.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Whose DNS server, and where.
#[derive(Debug, Clone)]
pub(crate) struct DnsPlace {
    pub(crate) node: String,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) zone: Option<String>,
}

/// The slices, one per family that the node has. Pure.
pub(crate) fn slices(place: &DnsPlace, ready: bool, owner: Option<&str>) -> Vec<EndpointSlice> {
    let of = |family| place.node_ips.iter().find(move |ip| Family::of(**ip) == family);
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: Some(place.port.into()),
        ..EndpointPort::default()
    };
    let named = [(Family::V4, "ipv4", "IPv4"), (Family::V6, "ipv6", "IPv6")];
    named
        .into_iter()
        .filter_map(|(family, suffix, address_type)| {
            let address = of(family)?;
            let labels = [
                ("kubernetes.io/service-name", SERVICE),
                ("endpointslice.kubernetes.io/managed-by", "node.seaway.dev"),
            ];
            Some(EndpointSlice {
                metadata: ObjectMeta {
                    name: Some(format!("{SERVICE}-{}-{suffix}", place.node)),
                    namespace: Some(NAMESPACE.to_owned()),
                    labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                    owner_references: owner.map(|uid| vec![owner_reference(&place.node, uid)]),
                    ..ObjectMeta::default()
                },
                address_type: address_type.to_owned(),
                endpoints: vec![Endpoint {
                    addresses: vec![address.to_string()],
                    conditions: Some(EndpointConditions {
                        ready: Some(ready),
                        serving: Some(ready),
                        terminating: Some(false),
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

/// Keeps them as `up` says until `shutdown`, then takes the node out of service.
pub(crate) async fn keep(
    client: kube::Client,
    place: DnsPlace,
    mut up: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> Result<(), kube::Error> {
    let owner =
        Api::<Node>::all(client.clone()).get_opt(&place.node).await?.and_then(|node| node.metadata.uid);
    let api: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    loop {
        let ready = *up.borrow_and_update();
        for slice in slices(&place, ready, owner.as_deref()) {
            put(&api, slice).await?;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = up.wait_for(|now| *now != ready) => {}
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
    for slice in slices(&place, false, owner.as_deref()) {
        put(&api, slice).await?;
    }
    Ok(())
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
            slices(place, true, Some("uid")).into_iter().filter_map(|s| s.metadata.name).collect()
        };
        assert_eq!(names(&place), ["kube-dns-n1-ipv4", "kube-dns-n1-ipv6"]);
        place.node_ips.pop();
        assert_eq!(names(&place), ["kube-dns-n1-ipv4"]);
        let slice = &slices(&place, false, None)[0];
        assert_eq!(slice.endpoints[0].conditions.as_ref().and_then(|c| c.ready), Some(false));
        assert_eq!(slice.endpoints[0].node_name.as_deref(), Some("n1"));
    }
}
