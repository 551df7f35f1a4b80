//! Services: defaults and the rules for a complete one.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::access::{integer, is_set, list, list_mut, text, texts};
use super::{Strategy, default_object, default_text, default_to, probe, remove, service_update};
use crate::field::Errors;
use crate::names;

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// How long a client stays with its endpoint when nothing else is said: three hours.
const AFFINITY_S: i64 = 10_800;
const AFFINITY_S_MAX: i64 = 86_400;

pub(crate) const SERVICE: Strategy = Strategy {
    name: names::dns_1035_label,
    carry: service_update::carry,
    default: default_service,
    validate: validate_service,
    validate_update: service_update::validate,
    ..Strategy::PLAIN
};

/// Whether traffic from outside the cluster may arrive.
pub(super) fn is_external(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
        || (text(spec, "type") == "ClusterIP" && is_set(spec, "externalIPs"))
}

fn default_service(object: &mut Value) {
    default_object(object, "spec");
    let spec = &mut object["spec"];
    default_text(spec, "type", "ClusterIP");
    default_text(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "ClientIP" {
        default_object(spec, "sessionAffinityConfig");
        default_object(&mut spec["sessionAffinityConfig"], "clientIP");
        default_to(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", AFFINITY_S);
    } else {
        remove(spec, "sessionAffinityConfig");
    }
    for port in list_mut(spec, "ports") {
        default_text(port, "protocol", "TCP");
        let absent = match port.get("targetPort") {
            Some(Value::String(name)) => name.is_empty(),
            Some(number) => number.as_i64() == Some(0),
            None => true,
        };
        if absent {
            super::copy_as(port, "port", "targetPort");
        }
    }
    if is_external(spec) {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") != "ExternalName" {
        default_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == "LoadBalancer" {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
    }
    // The single field and the first of the list are one thing.
    let first = list(spec, "clusterIPs").first().and_then(Value::as_str).unwrap_or_default().to_owned();
    let single = text(spec, "clusterIP").to_owned();
    if first.is_empty() && !single.is_empty() {
        spec["clusterIPs"] = json!([single]);
    } else if single.is_empty() && !first.is_empty() {
        spec["clusterIP"] = first.into();
    }
    for ingress in object
        .get_mut("status")
        .and_then(|status| status.get_mut("loadBalancer"))
        .map(|balancer| list_mut(balancer, "ingress"))
        .into_iter()
        .flatten()
    {
        if is_set(ingress, "ip") {
            default_text(ingress, "ipMode", "VIP");
        }
    }
}

fn one_of(spec: &Value, key: &str, known: &[&str], errors: &mut Errors) {
    let value = text(spec, key);
    if !value.is_empty() && !known.contains(&value) {
        errors.unsupported(&format!("spec.{key}"), value, known);
    }
}

fn validate_service(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    let kind = text(spec, "type");
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], errors);
    one_of(spec, "externalTrafficPolicy", &["Cluster", "Local"], errors);
    one_of(spec, "internalTrafficPolicy", &["Cluster", "Local"], errors);
    one_of(spec, "trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"], errors);
    super::meta::labels(spec, "selector", "spec.selector", errors);
    let headless = text(spec, "clusterIP") == "None";
    match kind {
        "ExternalName" => validate_external_name(spec, errors),
        "NodePort" | "LoadBalancer" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.invalid("spec.clusterIPs[0]", "None", why);
        }
        _ => {}
    }
    if list(spec, "ports").is_empty() && kind != "ExternalName" && !headless {
        errors.required("spec.ports", "");
    }
    validate_ports(spec, kind, errors);
    validate_addresses(spec, errors);
    validate_families(spec, errors);
    if text(spec, "sessionAffinity") == "ClientIP" {
        let seconds = integer(&spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds").unwrap_or(0);
        if !(1..=AFFINITY_S_MAX).contains(&seconds) {
            let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            errors.invalid(path, seconds, format!("must be greater than 0 and less than {AFFINITY_S_MAX}"));
        }
    }
    validate_external(spec, kind, errors);
}

fn validate_external_name(spec: &Value, errors: &mut Errors) {
    let name = text(spec, "externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.required("spec.externalName", "");
    } else if let Err(why) = names::dns_subdomain(&name.to_lowercase()) {
        errors.invalid("spec.externalName", name, why);
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if is_set(spec, key) {
            errors.forbidden(&format!("spec.{key}"), "may not be set for ExternalName services");
        }
    }
}

fn validate_ports(spec: &Value, kind: &str, errors: &mut Errors) {
    let ports = list(spec, "ports");
    let (mut names_seen, mut ports_seen, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let name = text(port, "name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(&format!("{path}.name"), "");
        } else if !name.is_empty() {
            if let Err(why) = names::dns_label(name) {
                errors.invalid(&format!("{path}.name"), name, why);
            } else if !names_seen.insert(name) {
                errors.duplicate(&format!("{path}.name"), name);
            }
        }
        let number = integer(port, "port").unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.invalid(&format!("{path}.port"), number, "must be between 1 and 65535, inclusive");
        }
        let protocol = text(port, "protocol");
        if !PROTOCOLS.contains(&protocol) {
            errors.unsupported(&format!("{path}.protocol"), protocol, &PROTOCOLS);
        }
        if !ports_seen.insert((number, protocol)) {
            errors.duplicate(&path, json!({"port": number, "protocol": protocol}));
        }
        if kind != "ExternalName" {
            probe::port_reference(port, "targetPort", &path, errors);
        }
        let Some(node_port) = integer(port, "nodePort").filter(|number| *number != 0) else { continue };
        let path = format!("{path}.nodePort");
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            errors.forbidden(&path, &format!("may not be used when `type` is '{kind}'"));
        } else if !(1..=65535).contains(&node_port) {
            errors.invalid(&path, node_port, "must be between 1 and 65535, inclusive");
        } else if !node_ports.insert((node_port, protocol)) {
            errors.duplicate(&path, node_port);
        }
    }
}

fn validate_addresses(spec: &Value, errors: &mut Errors) {
    let addresses = list(spec, "clusterIPs");
    for (at, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let path = format!("spec.clusterIPs[{at}]");
        if (address == "None" || address.is_empty()) && at == 0 && addresses.len() == 1 {
            continue;
        }
        if address.parse::<IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(&path, address, why);
        }
    }
    if let Some(first) = addresses.first()
        && first.as_str() != Some(text(spec, "clusterIP"))
    {
        errors.invalid("spec.clusterIPs", json!(addresses), "first value must match `clusterIP`");
    }
    let families: Vec<bool> =
        addresses.iter().filter_map(|ip| Some(ip.as_str()?.parse::<IpAddr>().ok()?.is_ipv4())).collect();
    if addresses.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        let why = "may only hold up to 2 values, one of each IP family";
        errors.invalid("spec.clusterIPs", json!(addresses), why);
    }
    for (at, address) in list(spec, "externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let wrong = match address.parse::<IpAddr>() {
            Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            Ok(ip) if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() => {
                "may not be unspecified, loopback or multicast"
            }
            Ok(_) => continue,
        };
        errors.invalid(&format!("spec.externalIPs[{at}]"), address, wrong);
    }
}

fn validate_families(spec: &Value, errors: &mut Errors) {
    let known = ["IPv4", "IPv6"];
    let families = list(spec, "ipFamilies");
    for (at, family) in families.iter().enumerate() {
        let family = family.as_str().unwrap_or_default();
        let path = format!("spec.ipFamilies[{at}]");
        if !known.contains(&family) {
            errors.unsupported(&path, family, &known);
        } else if families[..at].iter().any(|other| other == family) {
            errors.duplicate(&path, family);
        }
    }
    one_of(spec, "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    if text(spec, "ipFamilyPolicy") == "SingleStack" {
        for (key, what) in [("ipFamilies", "ipFamilies"), ("clusterIPs", "clusterIPs")] {
            if list(spec, key).len() > 1 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.invalid("spec.ipFamilyPolicy", "SingleStack", why);
            }
        }
    }
    for (at, address) in list(spec, "clusterIPs").iter().enumerate() {
        let Some(ip) = address.as_str().and_then(|text| text.parse::<IpAddr>().ok()) else { continue };
        let own = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if let Some(said) = families.get(at).and_then(Value::as_str).filter(|said| *said != own) {
            let why = format!("expected an {said} value as indicated by `ipFamilies[{at}]`");
            errors.invalid(&format!("spec.clusterIPs[{at}]"), address.clone(), why);
        }
    }
}

fn validate_external(spec: &Value, kind: &str, errors: &mut Errors) {
    if !is_external(spec) && is_set(spec, "externalTrafficPolicy") {
        let why = "may only be set for externally-accessible services";
        errors.invalid("spec.externalTrafficPolicy", text(spec, "externalTrafficPolicy"), why);
    }
    let balancer = kind == "LoadBalancer";
    for key in ["loadBalancerClass", "allocateLoadBalancerNodePorts"] {
        if is_set(spec, key) && !balancer {
            errors.forbidden(&format!("spec.{key}"), "may only be used when `type` is 'LoadBalancer'");
        }
    }
    if let Some(port) = integer(spec, "healthCheckNodePort").filter(|port| *port != 0) {
        if !balancer || text(spec, "externalTrafficPolicy") != "Local" {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid("spec.healthCheckNodePort", port, why);
        } else if !(1..=65535).contains(&port) {
            errors.invalid("spec.healthCheckNodePort", port, "must be between 1 and 65535, inclusive");
        }
    }
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() && !balancer {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.forbidden("spec.loadBalancerSourceRanges", why);
    }
    for (at, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        if range.parse::<IpNet>().is_err() {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(&format!("spec.loadBalancerSourceRanges[{at}]"), range, why);
        }
    }
    for (key, value) in texts(spec, "selector").filter(|(key, _)| key.is_empty()) {
        errors.invalid("spec.selector", format!("{key}={value}"), "a label key must not be empty");
    }
}
