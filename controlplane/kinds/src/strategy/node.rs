//! Nodes, Namespaces and Leases.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::access::{integer, is_set, list, text};
use super::{Strategy, default_object};
use crate::field::Errors;
use crate::names;

pub(crate) const NODE: Strategy = Strategy {
    keeps_status: true,
    status_sets_labels: true,
    default: default_node,
    validate: validate_node,
    validate_update: |new, old, errors| {
        let (new, old) = (&new["spec"], &old["spec"]);
        if is_set(old, "podCIDRs") && new.get("podCIDRs") != old.get("podCIDRs") {
            errors
                .forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
        }
        if is_set(old, "providerID") && text(new, "providerID") != text(old, "providerID") {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    },
    ..Strategy::PLAIN
};

pub(crate) const NAMESPACE: Strategy = Strategy {
    name: names::dns_label,
    status_sets_labels: true,
    create: |object| {
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    },
    // The finalizers of a namespace change through its own subresource only.
    carry: |new, old| super::copy(new, old, "spec"),
    default: |object| {
        let name = text(&object["metadata"], "name").to_owned();
        if !name.is_empty() {
            default_object(&mut object["metadata"], "labels");
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
        }
    },
    ..Strategy::PLAIN
};

pub(crate) const LEASE: Strategy = Strategy {
    validate: |object, errors| {
        let spec = &object["spec"];
        if let Some(seconds) = integer(spec, "leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
        }
        if let Some(count) = integer(spec, "leaseTransitions").filter(|count| *count < 0) {
            errors.invalid("spec.leaseTransitions", count, "must be greater than or equal to 0");
        }
    },
    ..Strategy::PLAIN
};

/// `podCIDR` and the first of `podCIDRs` are one thing.
fn default_node(object: &mut Value) {
    default_object(object, "spec");
    let spec = &mut object["spec"];
    let first = list(spec, "podCIDRs").first().and_then(Value::as_str).unwrap_or_default().to_owned();
    match (text(spec, "podCIDR").to_owned(), first) {
        (single, first) if single.is_empty() && !first.is_empty() => spec["podCIDR"] = first.into(),
        (single, first) if first.is_empty() && !single.is_empty() => spec["podCIDRs"] = json!([single]),
        _ => {}
    }
}

fn validate_node(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    let cidrs = list(spec, "podCIDRs");
    for (at, cidr) in cidrs.iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        if cidr.parse::<IpNet>().is_err() {
            errors.invalid(
                &format!("spec.podCIDRs[{at}]"),
                cidr,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    if let Some(first) = cidrs.first()
        && first.as_str() != Some(text(spec, "podCIDR"))
    {
        errors.invalid(
            "spec.podCIDRs[0]",
            first.clone(),
            format!("must be the same as podCIDR {:?}", text(spec, "podCIDR")),
        );
    }
    let families: Vec<bool> = cidrs
        .iter()
        .filter_map(|cidr| cidr.as_str()?.parse::<IpNet>().ok())
        .map(|cidr| cidr.addr().is_ipv4())
        .collect();
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        errors.invalid("spec.podCIDRs", json!(cidrs), "may specify no more than one CIDR for each IP family");
    }
    taints(spec, errors);
    for (at, address) in list(&object["status"], "addresses").iter().enumerate() {
        let (kind, value) = (text(address, "type"), text(address, "address"));
        if kind.ends_with("IP") && value.parse::<IpAddr>().is_err() {
            errors.invalid(&format!("status.addresses[{at}].address"), value, "must be a valid IP address");
        }
    }
}

fn taints(spec: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (at, taint) in list(spec, "taints").iter().enumerate() {
        let path = format!("spec.taints[{at}]");
        let key = text(taint, "key");
        if let Err(why) = names::qualified_name(key) {
            errors.invalid(&format!("{path}.key"), key, why);
        }
        if let Err(why) = names::label_value(text(taint, "value")) {
            errors.invalid(&format!("{path}.value"), text(taint, "value"), why);
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        let effect = text(taint, "effect");
        if effect.is_empty() {
            errors.required(&format!("{path}.effect"), "");
        } else if !effects.contains(&effect) {
            errors.unsupported(&format!("{path}.effect"), effect, &effects);
        }
        if !seen.insert((key, effect)) {
            errors.duplicate(&path, taint.clone());
        }
    }
}
