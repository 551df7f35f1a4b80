//! Clusters as text, one object per line, so that a table of questions can open with the cluster that is asked about:
//!
//! ```text
//! service NAMESPACE/NAME cluster ADDRESS… [ports NAME/PROTOCOL/PORT…]
//! service NAMESPACE/NAME headless [publish-not-ready] [ports …]
//! service NAMESPACE/NAME external TARGET
//! endpoint NAMESPACE/SERVICE ADDRESS[/COUNT] [hostname=NAME] [zone=NAME] [unready] [ports …]
//! node NAME CIDR…
//! namespace NAME
//! pod NAMESPACE/NAME ADDRESS…
//! ```
#![allow(clippy::unwrap_used, dead_code, reason = "support of tests; not every one uses all of it")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, EndpointSlice, Family, Node, Service, ServiceKey, ServiceKind,
    ServicePort, Snapshot, TargetPod,
};

/// The snapshot that `text` describes; lines that are no object are passed over. Version 7, synced.
#[allow(unreachable_pub, reason = "part of several test binaries")]
pub fn snapshot(text: &str) -> Snapshot {
    let mut snapshot = Snapshot { version: 7, synced: true, ..Snapshot::default() };
    let mut slices: BTreeMap<ServiceKey, Vec<EndpointSlice>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("service") => {
                let service = service(key(words.next().unwrap()), words);
                snapshot.services.insert(service.key.clone(), Arc::new(service));
            }
            Some("endpoint") => {
                let key = key(words.next().unwrap());
                for addr in addresses(words.next().unwrap()) {
                    let endpoint = endpoint(addr, words.clone());
                    slices.entry(key.clone()).or_default().push(slice(key.clone(), endpoint));
                }
            }
            Some("node") => {
                let node = node(words.next().unwrap(), words);
                snapshot.nodes.insert(node.name.clone(), Arc::new(node));
            }
            Some("namespace") => {
                snapshot.namespaces.insert(words.next().unwrap().into());
            }
            Some("pod") => {
                let ServiceKey { namespace, name } = key(words.next().unwrap());
                let pod = TargetPod { namespace, name };
                snapshot.pods.extend(words.map(|addr| (addr.parse::<IpAddr>().unwrap(), pod.clone())));
            }
            _ => {}
        }
    }
    for (key, slices) in slices {
        snapshot.endpoints.insert(key, Arc::new(EndpointSet::join(&slices)));
    }
    snapshot
}

fn key(text: &str) -> ServiceKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceKey::new(namespace, name)
}

fn service<'a>(key: ServiceKey, words: impl Iterator<Item = &'a str>) -> Service {
    let mut service = Service::new(key);
    let mut ports = false;
    for word in words {
        match word {
            "cluster" => {}
            "headless" => service.headless = true,
            "external" => service.kind = ServiceKind::ExternalName,
            "publish-not-ready" => service.publish_not_ready = true,
            "ports" => ports = true,
            port if ports => {
                let EndpointPort { name, protocol, port } = endpoint_port(port);
                service.ports.push(ServicePort { name, protocol, port, node_port: None, app_protocol: None });
            }
            target if service.kind == ServiceKind::ExternalName => {
                service.external_name = Some(target.into());
            }
            addr => service.cluster_ips.push(addr.parse().unwrap()),
        }
    }
    service
}

/// An address, or as many as stand behind the slash, counted up from an IPv4 one.
fn addresses(text: &str) -> Vec<IpAddr> {
    let Some((first, count)) = text.split_once('/') else { return vec![text.parse().unwrap()] };
    let first: Ipv4Addr = first.parse().unwrap();
    (0..count.parse().unwrap()).map(|n| Ipv4Addr::from_bits(first.to_bits() + n).into()).collect()
}

fn endpoint<'a>(addr: IpAddr, words: impl Iterator<Item = &'a str>) -> Endpoint {
    let mut endpoint = Endpoint::new(addr, Arc::new([]));
    let mut ports = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("hostname", name)) => endpoint.hostname = Some(name.into()),
            Some(("zone", name)) => endpoint.zone = Some(name.into()),
            _ if word == "unready" => (endpoint.ready, endpoint.serving) = (false, false),
            _ if word == "ports" => {}
            _ => ports.push(endpoint_port(word)),
        }
    }
    endpoint.ports = ports.into();
    endpoint
}

fn endpoint_port(text: &str) -> EndpointPort {
    let mut parts = text.split('/');
    EndpointPort {
        name: parts.next().unwrap().into(),
        protocol: parts.next().unwrap().to_ascii_uppercase().parse().unwrap(),
        port: parts.next().unwrap().parse().unwrap(),
    }
}

fn slice(service: ServiceKey, endpoint: Endpoint) -> EndpointSlice {
    EndpointSlice {
        namespace: service.namespace.clone(),
        name: endpoint.addr.to_string().into(),
        service,
        family: Family::of(endpoint.addr),
        endpoints: [endpoint].into(),
    }
}

fn node<'a>(name: &str, cidrs: impl Iterator<Item = &'a str>) -> Node {
    Node { pod_cidrs: cidrs.map(|cidr| cidr.parse().unwrap()).collect(), ..Node::named(name) }
}
