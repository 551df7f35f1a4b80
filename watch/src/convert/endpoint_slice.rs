//! EndpointSlice.

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1 as api;
use k8s_openapi::jiff::Timestamp;
use seaway_model::{Endpoint, EndpointPort, EndpointSlice, Family, Protocol, ServiceKey, TargetPod};

use super::{InvalidObject, Names, Subject, annotation, label};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A slice with what had to be left out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertedSlice {
    /// The slice.
    pub slice: EndpointSlice,
    /// Endpoints that were left out. One bad endpoint does not take the others out of service.
    pub left_out: Vec<InvalidObject>,
    /// When what it shows came about.
    pub triggered_at: Option<SystemTime>,
}

/// Converts an EndpointSlice. `None`: it is of no concern to a data plane (no Service, or names instead of addresses).
pub fn endpoint_slice(
    object: &api::EndpointSlice,
    names: &mut Names,
) -> Result<Option<ConvertedSlice>, InvalidObject> {
    let subject = Subject { kind: "EndpointSlice", meta: &object.metadata };
    let Some(service) = label(&object.metadata, SERVICE_LABEL).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Ok(None),
        other => return Err(subject.invalid("addressType", other, "want IPv4, IPv6 or FQDN")),
    };
    let namespace = names.share(subject.namespace()?);
    let ports = ports(&subject, object, names)?;
    let mut left_out = Vec::new();
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (index, entry) in object.endpoints.iter().enumerate() {
        match endpoint(&subject, index, entry, family, &ports, names) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) => left_out.push(error),
        }
    }
    let slice = EndpointSlice {
        service: ServiceKey { namespace: Arc::clone(&namespace), name: service.as_str().into() },
        namespace,
        name: subject.name()?.into(),
        family,
        endpoints,
    };
    let triggered_at = annotation(&object.metadata, TRIGGER_ANNOTATION)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map(SystemTime::from);
    Ok(Some(ConvertedSlice { slice, left_out, triggered_at }))
}

fn ports(
    subject: &Subject<'_>,
    object: &api::EndpointSlice,
    names: &mut Names,
) -> Result<Arc<[EndpointPort]>, InvalidObject> {
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("ports[{index}].{name}");
        let protocol: Protocol = port.protocol.as_deref().unwrap_or("TCP").parse().map_err(|error| {
            subject.invalid(field("protocol"), port.protocol.as_deref().unwrap_or(""), error)
        })?;
        // Without a number it means every port, which nothing can be sent to.
        let Some(number) = port.port else { continue };
        ports.push(EndpointPort {
            name: names.share(port.name.as_deref().unwrap_or("")),
            protocol,
            port: subject.port(field("port"), number)?,
        });
    }
    Ok(ports.into())
}

fn endpoint(
    subject: &Subject<'_>,
    index: usize,
    entry: &api::Endpoint,
    family: Family,
    ports: &Arc<[EndpointPort]>,
    names: &mut Names,
) -> Result<Endpoint, InvalidObject> {
    let field = format!("endpoints[{index}].addresses[0]");
    let Some(text) = entry.addresses.first() else {
        return Err(subject.invalid(field, "", "an endpoint needs an address"));
    };
    let addr = subject.address(field.as_str(), text)?;
    if Family::of(addr) != family {
        return Err(subject.invalid(field, text, "not of the slice's addressType"));
    }
    let conditions = entry.conditions.as_ref();
    let condition = |read: fn(&api::EndpointConditions) -> Option<bool>| conditions.and_then(read);
    let ready = condition(|c| c.ready).unwrap_or(true);
    let pod = entry.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let hints = entry.hints.as_ref();
    Ok(Endpoint {
        addr,
        hostname: entry.hostname.as_deref().map(Into::into),
        node: names.share_opt(entry.node_name.as_ref()),
        zone: names.share_opt(entry.zone.as_ref()),
        pod: pod.and_then(|target| {
            let namespace = target.namespace.as_ref().or(subject.meta.namespace.as_ref())?;
            Some(TargetPod { namespace: names.share(namespace), name: target.name.as_deref()?.into() })
        }),
        ready,
        serving: condition(|c| c.serving).unwrap_or(ready),
        terminating: condition(|c| c.terminating).unwrap_or(false),
        zone_hints: hints
            .and_then(|hints| hints.for_zones.as_ref())
            .map_or_else(Vec::new, |zones| zones.iter().map(|zone| names.share(&zone.name)).collect()),
        node_hints: hints
            .and_then(|hints| hints.for_nodes.as_ref())
            .map_or_else(Vec::new, |nodes| nodes.iter().map(|node| names.share(&node.name)).collect()),
        ports: Arc::clone(ports),
    })
}
