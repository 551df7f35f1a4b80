//! Pod: only what the service proxy of its node needs, its host ports, and what DNS does, its addresses.

use std::net::IpAddr;

use seaway_model::{HostPod, HostPort, Protocol, TargetPod};

use super::{InvalidObject, Names, Subject};
use crate::wire;

/// Converts a Pod; `own_node` says of which node's pods the host ports are wanted. `None`: it has no address of its own (any
/// more).
pub fn host_pod(
    object: &wire::Pod<'_>,
    own_node: Option<&str>,
    names: &mut Names,
) -> Result<Option<HostPod>, InvalidObject> {
    let subject = Subject { kind: "Pod", meta: &object.metadata };
    let (spec, status) = (&object.spec, &object.status);
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || spec.host_network == Some(true) {
        return Ok(None);
    }
    // Init containers that are restarted for ever (sidecars) have ports like any other.
    let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let mut ports = Vec::new();
    if own_node.is_some() && spec.node_name.as_deref() == own_node {
        for port in containers.flat_map(|container| &container.ports) {
            ports.extend(host_port(&subject, port)?);
        }
    }
    let ips = status.pod_ips.iter().map(|ip| ip.ip.as_deref().unwrap_or(""));
    let addrs = ips.map(|ip| subject.address("status.podIPs", ip));
    let addrs = addrs.collect::<Result<Vec<_>, _>>()?;
    if addrs.is_empty() {
        return Ok(None);
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(Some(HostPod {
        pod: TargetPod { namespace: names.share(subject.namespace()?), name: subject.name()?.into() },
        uid: object.metadata.uid.as_deref().unwrap_or("").into(),
        addrs,
        ports,
    }))
}

fn host_port(
    subject: &Subject<'_>,
    port: &wire::ContainerPort<'_>,
) -> Result<Option<HostPort>, InvalidObject> {
    let Some(number) = port.host_port.filter(|number| *number != 0) else { return Ok(None) };
    let text = port.protocol.as_deref().unwrap_or("TCP");
    let protocol: Protocol =
        text.parse().map_err(|error| subject.invalid("spec.containers[].ports[].protocol", text, error))?;
    let host_ip = match port.host_ip.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let parsed = text.parse::<IpAddr>();
            Some(parsed.map_err(|error| subject.invalid("spec.containers[].ports[].hostIP", text, error))?)
        }
    };
    Ok(Some(HostPort {
        protocol,
        host_port: subject.port("spec.containers[].ports[].hostPort", number)?,
        host_ip: host_ip.filter(|addr| !addr.is_unspecified()),
        container_port: subject
            .port("spec.containers[].ports[].containerPort", port.container_port.unwrap_or(0))?,
    }))
}
