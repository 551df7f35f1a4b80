//! Changes of Services: what the server allocated stays unless the type no longer needs it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::access::{integer, is_set, list, list_mut, text};
use super::{copy, remove};
use crate::field::Errors;

fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(text(spec, "type"), "" | "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_port(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn needs_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

/// Takes over what was allocated where the new object says nothing, and drops what the new type has no use for when
/// the client only repeated the old value.
pub(super) fn carry(new: &mut Value, old: &Value) {
    let old = &old["spec"];
    let Some(new) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    drop_unneeded(new, old);
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        carry_cluster_ips(new, old);
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if !is_set(new, key) {
                copy(new, old, key);
            }
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let before: HashMap<(Option<i64>, &str), i64> = list(old, "ports")
            .iter()
            .filter_map(|port| Some(((integer(port, "port"), protocol(port)), integer(port, "nodePort")?)))
            .collect();
        let used: HashSet<i64> =
            list(new, "ports").iter().filter_map(|port| integer(port, "nodePort")).collect();
        for port in list_mut(new, "ports") {
            let kept = before.get(&(integer(port, "port"), protocol(port))).copied();
            if integer(port, "nodePort").unwrap_or(0) == 0
                && let Some(kept) = kept.filter(|kept| !used.contains(kept))
            {
                port["nodePort"] = kept.into();
            }
        }
    }
    if needs_health_port(old)
        && needs_health_port(new)
        && integer(new, "healthCheckNodePort").unwrap_or(0) == 0
    {
        copy(new, old, "healthCheckNodePort");
    }
}

fn protocol(port: &Value) -> &str {
    match text(port, "protocol") {
        "" => "TCP",
        other => other,
    }
}

fn carry_cluster_ips(new: &mut Value, old: &Value) {
    match (is_set(new, "clusterIP"), is_set(new, "clusterIPs")) {
        (false, false) => {
            copy(new, old, "clusterIP");
            copy(new, old, "clusterIPs");
        }
        (true, false) if text(new, "clusterIP") == text(old, "clusterIP") => copy(new, old, "clusterIPs"),
        // A client that knows only the single field changed it: the list follows.
        (true, true)
            if text(new, "clusterIP") != text(old, "clusterIP")
                && list(new, "clusterIPs") == list(old, "clusterIPs") =>
        {
            new["clusterIPs"] = json!([new["clusterIP"].clone()]);
        }
        _ => {}
    }
}

fn drop_unneeded(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, key: &str| new.get(key) == old.get(key);
    if needs_cluster_ip(old) && !needs_cluster_ip(new) && unchanged(new, "clusterIP") {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            remove(new, key);
        }
    }
    if needs_node_port(old) && !needs_node_port(new) {
        let before: HashSet<i64> =
            list(old, "ports").iter().filter_map(|port| integer(port, "nodePort")).collect();
        for port in list_mut(new, "ports") {
            if integer(port, "nodePort").is_some_and(|number| before.contains(&number)) {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_port(old) && !needs_health_port(new) && unchanged(new, "healthCheckNodePort") {
        remove(new, "healthCheckNodePort");
    }
    if super::service::is_external(old)
        && !super::service::is_external(new)
        && unchanged(new, "externalTrafficPolicy")
    {
        remove(new, "externalTrafficPolicy");
    }
    if text(old, "type") == "LoadBalancer" && text(new, "type") != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if unchanged(new, key) {
                remove(new, key);
            }
        }
    }
    if text(old, "type") == "ExternalName"
        && text(new, "type") != "ExternalName"
        && unchanged(new, "externalName")
    {
        remove(new, "externalName");
    }
}

/// The rules for changes: the primary address never changes while the Service needs one.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let (new, old) = (&new["spec"], &old["spec"]);
    if !needs_cluster_ip(new) || !needs_cluster_ip(old) || !is_set(old, "clusterIP") {
        return;
    }
    let first = |spec: &Value| list(spec, "clusterIPs").first().cloned().unwrap_or(Value::Null);
    if text(new, "clusterIP") != text(old, "clusterIP") || first(new) != first(old) {
        errors.invalid("spec.clusterIPs[0]", first(new), "may not change once set");
    }
    let family = |spec: &Value| list(spec, "ipFamilies").first().cloned().unwrap_or(Value::Null);
    if !family(old).is_null() && !family(new).is_null() && family(new) != family(old) {
        errors.invalid("spec.ipFamilies[0]", family(new), "may not change once set");
    }
    if text(old, "type") == "LoadBalancer"
        && text(new, "type") == "LoadBalancer"
        && new.get("loadBalancerClass") != old.get("loadBalancerClass")
    {
        errors.invalid("spec.loadBalancerClass", new["loadBalancerClass"].clone(), "may not change once set");
    }
}
