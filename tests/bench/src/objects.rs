//! The synthetic cluster as API objects, and as the snapshot that the watch makes of them.

use std::sync::Arc;

use anyhow::{Context, Result};
use seaway_model::{EndpointSet, Snapshot};
use seaway_watch::convert::{self, Names};
use seaway_watch::wire;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::cluster::{NAMESPACE, Place, Spec};

/// The Service.
pub fn service(spec: &Spec, version: u64) -> Value {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let mut value = json!({
                "name": port.name, "protocol": "TCP", "port": port.port, "targetPort": port.target,
            });
            if let Some(node_port) = port.node_port {
                value["nodePort"] = json!(node_port);
            }
            value
        })
        .collect();
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&spec.name, version, &json!({"app": spec.name})),
        "spec": {
            "type": if spec.vip.is_some() { "LoadBalancer" } else { "ClusterIP" },
            "clusterIP": spec.cluster_ip,
            "clusterIPs": [spec.cluster_ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": spec.name},
            "ports": ports,
        },
        "status": {"loadBalancer": {}},
    });
    if let Some(vip) = spec.vip {
        object["spec"]["externalTrafficPolicy"] = json!("Cluster");
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": vip, "ipMode": "VIP"}]);
    }
    object
}

/// Its EndpointSlice.
pub fn slice(spec: &Spec, version: u64) -> Value {
    let endpoints: Vec<Value> = spec
        .endpoints
        .iter()
        .enumerate()
        .map(|(number, addr)| {
            json!({
                "addresses": [addr],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": spec.node,
                "targetRef": {
                    "kind": "Pod",
                    "namespace": NAMESPACE,
                    "name": format!("{}-{number}", spec.name),
                    "uid": uid(&spec.name, number),
                },
            })
        })
        .collect();
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": "TCP", "port": port.target}))
        .collect();
    let labels = json!({
        "app": spec.name,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": spec.name,
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(&format!("{}-x7k2p", spec.name), version, &labels),
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    })
}

/// The Node.
pub fn node(place: Place, version: u64) -> Value {
    let name = place.node();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": uid(&name, 0), "resourceVersion": version.to_string()},
        "spec": {"podCIDRs": [format!("10.244.{}.0/24", place.0)]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": place.address()}],
            "conditions": [{
                "type": "Ready", "status": "True",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    })
}

fn metadata(name: &str, version: u64, labels: &Value) -> Value {
    json!({
        "name": name,
        "namespace": NAMESPACE,
        "uid": uid(name, 0),
        "resourceVersion": version.to_string(),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
    })
}

/// Shaped like a uid, and the same in every run.
fn uid(name: &str, number: usize) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{:08x}-{number:04x}-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff_ffff)
}

/// What the proxy of the node at `place` is shown.
pub fn snapshot(specs: &[Spec], place: Place) -> Result<Snapshot> {
    let mut names = Names::default();
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    for spec in specs {
        let (service, slice) = (service(spec, 1), slice(spec, 1));
        let service = convert::service(&wire::Service::deserialize(&service)?, &mut names)?;
        let slice = convert::endpoint_slice(&wire::EndpointSlice::deserialize(&slice)?, &mut names)?;
        let slice = slice.context("the slice of a Service was taken for something else")?.slice;
        snapshot.endpoints.insert(service.key.clone(), Arc::new(EndpointSet::join([&slice])));
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    let node = node(place, 1);
    let node = convert::node(&wire::Node::deserialize(&node)?, &mut names)?;
    snapshot.nodes.insert(Arc::clone(&node.name), Arc::new(node));
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::services;

    #[test]
    fn every_object_makes_sense_to_the_watch() {
        let place = Place(2);
        let snapshot = snapshot(&services(40, place), place).unwrap();
        assert_eq!((snapshot.services.len(), snapshot.endpoints.len(), snapshot.nodes.len()), (40, 40, 1));
        assert!(snapshot.endpoints.values().all(|set| set.endpoints.len() == 4));
        let real = &snapshot.services[&seaway_model::ServiceKey::new(NAMESPACE, "svc-00020")];
        assert_eq!(real.ports[0].node_port, Some(crate::cluster::NODE_PORTS[0]));
        assert_eq!(real.load_balancer[0].addr, place.vip());
    }
}
