//! Endpoints and EndpointSlices.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::access::{integer, list, list_mut, text};
use super::{Strategy, default_text, default_to};
use crate::field::Errors;
use crate::names;

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const ADDRESS_TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];

pub(crate) const ENDPOINTS: Strategy = Strategy {
    default: |object| {
        for subset in list_mut(object, "subsets") {
            for port in list_mut(subset, "ports") {
                default_text(port, "protocol", "TCP");
            }
        }
    },
    validate: validate_endpoints,
    ..Strategy::PLAIN
};

pub(crate) const ENDPOINT_SLICE: Strategy = Strategy {
    generation: true,
    default: |object| {
        for port in list_mut(object, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
        if object.get("endpoints").is_none() {
            object["endpoints"] = json!([]);
        }
    },
    validate: validate_slice,
    validate_update: |new, old, errors| {
        if text(new, "addressType") != text(old, "addressType") {
            errors.invalid("addressType", text(new, "addressType"), "field is immutable");
        }
    },
    ..Strategy::PLAIN
};

/// An address that a Service may send traffic to.
fn endpoint_address(text: &str) -> Result<(), &'static str> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    };
    if address.is_unspecified() {
        return Err("may not be unspecified (0.0.0.0 or ::)");
    }
    if address.is_loopback() {
        return Err("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local || address.is_multicast() {
        return Err("may not be a link-local or multicast address");
    }
    Ok(())
}

fn port_common(port: &Value, path: &str, errors: &mut Errors) {
    let protocol = text(port, "protocol");
    if !PROTOCOLS.contains(&protocol) {
        errors.unsupported(&format!("{path}.protocol"), protocol, &PROTOCOLS);
    }
    let name = text(port, "name");
    if !name.is_empty()
        && let Err(why) = names::dns_label(name)
    {
        errors.invalid(&format!("{path}.name"), name, why);
    }
    if let Some(number) = integer(port, "port").filter(|number| !(1..=65535).contains(number)) {
        errors.invalid(&format!("{path}.port"), number, "must be between 1 and 65535, inclusive");
    }
}

fn validate_endpoints(object: &Value, errors: &mut Errors) {
    for (at, subset) in list(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{at}]");
        let ready = list(subset, "addresses");
        if ready.is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (at, address) in list(subset, key).iter().enumerate() {
                let address = text(address, "ip");
                if let Err(why) = endpoint_address(address) {
                    errors.invalid(&format!("{path}.{key}[{at}].ip"), address, why);
                }
            }
        }
        let ports = list(subset, "ports");
        for (at, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{at}]");
            port_common(port, &path, errors);
            if ports.len() > 1 && text(port, "name").is_empty() {
                errors.required(&format!("{path}.name"), "");
            }
        }
    }
}

fn validate_slice(object: &Value, errors: &mut Errors) {
    let address_type = text(object, "addressType");
    if address_type.is_empty() {
        errors.required("addressType", "");
    } else if !ADDRESS_TYPES.contains(&address_type) {
        errors.unsupported("addressType", address_type, &ADDRESS_TYPES);
    }
    let endpoints = list(object, "endpoints");
    if endpoints.len() > 1000 {
        errors.too_many("endpoints", endpoints.len(), 1000);
    }
    for (at, endpoint) in endpoints.iter().enumerate().take(1000) {
        slice_endpoint(endpoint, &format!("endpoints[{at}]"), address_type, errors);
    }
    let ports = list(object, "ports");
    if ports.len() > 20_000 {
        errors.too_many("ports", ports.len(), 20_000);
        return;
    }
    let mut seen = HashSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("ports[{at}]");
        port_common(port, &path, errors);
        if !seen.insert(text(port, "name")) {
            errors.duplicate(&format!("{path}.name"), text(port, "name"));
        }
    }
}

fn slice_endpoint(endpoint: &Value, path: &str, address_type: &str, errors: &mut Errors) {
    let addresses = list(endpoint, "addresses");
    if addresses.is_empty() {
        errors.required(&format!("{path}.addresses"), "must contain at least 1 address");
    } else if addresses.len() > 100 {
        errors.too_many(&format!("{path}.addresses"), addresses.len(), 100);
    }
    for (at, address) in addresses.iter().enumerate().take(100) {
        let path = format!("{path}.addresses[{at}]");
        let address = address.as_str().unwrap_or_default();
        let result = match address_type {
            "IPv4" if address.parse::<Ipv4Addr>().is_err() => Err("must be a valid IPv4 address".to_owned()),
            "IPv6" if address.parse::<Ipv6Addr>().is_err() => Err("must be a valid IPv6 address".to_owned()),
            "IPv4" | "IPv6" => endpoint_address(address).map_err(str::to_owned),
            "FQDN" => names::dns_subdomain(address),
            _ => Ok(()),
        };
        if let Err(why) = result {
            errors.invalid(&path, address, why);
        }
    }
    if let Some(hostname) = endpoint.get("hostname").and_then(Value::as_str)
        && let Err(why) = names::dns_label(hostname)
    {
        errors.invalid(&format!("{path}.hostname"), hostname, why);
    }
    if let Some(node) = endpoint.get("nodeName").and_then(Value::as_str)
        && let Err(why) = names::dns_subdomain(node)
    {
        errors.invalid(&format!("{path}.nodeName"), node, why);
    }
}
