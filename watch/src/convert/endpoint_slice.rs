//! EndpointSlice.

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use seaway_model::{Endpoint, EndpointPort, EndpointSlice, Family, Hints, Protocol, ServiceKey};

use super::{InvalidObject, Names, Subject};
use crate::wire;

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
    object: &wire::EndpointSlice<'_>,
    names: &mut Names,
) -> Result<Option<ConvertedSlice>, InvalidObject> {
    let subject = Subject { kind: "EndpointSlice", meta: &object.metadata };
    let Some(service) = object.metadata.labels.get(SERVICE_LABEL).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let family = match object.address_type.as_deref().unwrap_or("") {
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
    // Most Services have one slice: in this order, its endpoints are the Service's.
    endpoints.sort_by_key(|endpoint: &Endpoint| endpoint.addr);
    let slice = EndpointSlice {
        service: ServiceKey { namespace: Arc::clone(&namespace), name: service.into() },
        namespace,
        name: subject.name()?.into(),
        family,
        endpoints: endpoints.into(),
    };
    let triggered_at = object
        .metadata
        .annotations
        .get(TRIGGER_ANNOTATION)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map(SystemTime::from);
    Ok(Some(ConvertedSlice { slice, left_out, triggered_at }))
}

/// What to say of a slice whose Service does not exist.
pub(crate) fn no_service(slice: &EndpointSlice) -> InvalidObject {
    InvalidObject {
        kind: "EndpointSlice",
        object: format!("{}/{}", slice.namespace, slice.name),
        field: format!("metadata.labels[{SERVICE_LABEL}]"),
        value: slice.service.name.to_string(),
        reason: "there is no such Service".to_owned(),
    }
}

fn ports(
    subject: &Subject<'_>,
    object: &wire::EndpointSlice<'_>,
    names: &mut Names,
) -> Result<Arc<[EndpointPort]>, InvalidObject> {
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().enumerate() {
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
    Ok(names.share_ports(ports))
}

fn endpoint(
    subject: &Subject<'_>,
    index: usize,
    entry: &wire::Endpoint<'_>,
    family: Family,
    ports: &Arc<[EndpointPort]>,
    names: &mut Names,
) -> Result<Endpoint, InvalidObject> {
    let field = format_args!("endpoints[{index}].addresses[0]");
    let Some(text) = entry.addresses.first() else {
        return Err(subject.invalid(field, "", "an endpoint needs an address"));
    };
    let addr = subject.address(field, text)?;
    if Family::of(addr) != family {
        return Err(subject.invalid(field, &**text, "not of the slice's addressType"));
    }
    let conditions = entry.conditions;
    let ready = conditions.ready.unwrap_or(true);
    Ok(Endpoint {
        addr,
        hostname: entry.hostname.as_deref().map(Into::into),
        node: names.share_opt(entry.node_name.as_deref()),
        zone: names.share_opt(entry.zone.as_deref()),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        hints: hints(&entry.hints, names),
        ports: Arc::clone(ports),
    })
}

fn hints(hints: &wire::Hints<'_>, names: &mut Names) -> Option<Arc<Hints>> {
    let mut shared = |named: &[wire::Named<'_>]| -> Box<[Arc<str>]> {
        named.iter().filter_map(|named| names.share_opt(named.name.as_deref())).collect()
    };
    let hints = Hints { zones: shared(&hints.for_zones), nodes: shared(&hints.for_nodes) };
    (hints != Hints::default()).then(|| Arc::new(hints))
}
