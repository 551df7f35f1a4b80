//! Which endpoints a Service should have: per address family and per set of ports. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pod;

/// Slices hold one address family and one set of ports each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    /// `IPv4` or `IPv6`.
    pub(super) family: String,
    /// Name, protocol, number, application protocol; in the order of the Service.
    pub(super) ports: Vec<(String, String, Option<i32>, Option<String>)>,
}

impl Group {
    /// The group that a slice with these ports belongs to.
    pub(super) fn of(family: &str, ports: &[EndpointPort]) -> Self {
        let mut ports: Vec<_> = ports
            .iter()
            .map(|port| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                (port.name.clone().unwrap_or_default(), protocol, port.port, port.app_protocol.clone())
            })
            .collect();
        ports.sort();
        Self { family: family.to_owned(), ports }
    }
}

/// The endpoints of one group with the ports as they are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Endpoints {
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// The endpoints that `service` should have. Each of its families has at least one group, if only an empty one.
pub(super) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<Group, Endpoints> {
    let spec = service.spec.clone().unwrap_or_default();
    let mut groups: BTreeMap<Group, Endpoints> = BTreeMap::new();
    for family in families(&spec) {
        for pod in pods.iter().filter(|pod| !pod::is_terminal(pod)) {
            let Some(address) = address(pod, &family) else { continue };
            let ports: Vec<_> =
                spec.ports.iter().flatten().filter_map(|port| endpoint_port(port, pod)).collect();
            if ports.is_empty() && spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
                continue;
            }
            let group = groups.entry(Group::of(&family, &ports)).or_default();
            group.ports = ports;
            group.endpoints.push(endpoint(service, &spec, pod, address, zone_of));
        }
        if !groups.keys().any(|group| group.family == family) {
            groups.insert(Group::of(&family, &[]), Endpoints::default());
        }
    }
    groups
}

/// The Service's address families, `IPv4` and `IPv6`, the primary one first.
fn families(spec: &ServiceSpec) -> Vec<String> {
    match spec.ip_families.as_deref() {
        Some(families) if !families.is_empty() => families.to_vec(),
        _ => vec![family_of(spec).to_owned()],
    }
}

/// The Service's primary address family.
pub(crate) fn family_of(spec: &ServiceSpec) -> &str {
    let first = spec.ip_families.as_ref().and_then(|families| families.first());
    let by_address = || spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    match first {
        Some(family) => family,
        None if by_address().is_some_and(|address| address.is_ipv6()) => "IPv6",
        None => "IPv4",
    }
}

/// The pod's address of that family.
fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut addresses = listed.chain(status.pod_ip.iter());
    addresses.find(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"))).cloned()
}

/// The number that `port` has on `pod`: a named target may differ from pod to pod, and be missing.
pub(crate) fn resolve_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(stays);
            let ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
            let mut named = ports.filter(|one| one.name.as_ref() == Some(name));
            named
                .find(|one| one.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|one| one.container_port)
        }
    }
}

fn endpoint_port(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(resolve_port(port, pod)?),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    })
}

/// The pod's host name below the Service's, if it has one.
pub(crate) fn hostname_of(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace)
        .then_some(hostname)
}

fn endpoint(
    service: &Service,
    spec: &ServiceSpec,
    pod: &Pod,
    address: String,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pod::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let node_name = pod::node_name(pod).map(str::to_owned);
    let zone = node_name.as_deref().and_then(zone_of);
    let hints = if ready { hints(spec, zone.as_deref(), node_name.as_deref()) } else { None };
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname_of(service, pod),
        hints,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        node_name,
        zone,
        deprecated_topology: None,
    }
}

/// Who should rather use the endpoint, by the Service's `trafficDistribution`.
fn hints(spec: &ServiceSpec, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.map(|node| vec![ForNode { name: node.to_owned() }]);
    match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => {
            Some(EndpointHints { for_zones: Some(for_zones?), for_nodes: None })
        }
        "PreferSameNode" => Some(EndpointHints { for_zones, for_nodes: Some(for_nodes?) }),
        _ => None,
    }
}

/// Whether no endpoint can tell `old` from `new`.
pub(super) fn look_the_same(old: &Pod, new: &Pod) -> bool {
    let addresses =
        |pod: &Pod| pod.status.as_ref().map(|status| (status.pod_ips.clone(), status.pod_ip.clone()));
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && addresses(old) == addresses(new)
        && pod::is_ready(old) == pod::is_ready(new)
        && pod::is_terminal(old) == pod::is_terminal(new)
        && pod::node_name(old) == pod::node_name(new)
}
