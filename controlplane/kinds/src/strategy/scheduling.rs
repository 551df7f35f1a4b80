//! Where a pod may run: tolerations, affinity, topology spread.

use serde_json::{Value, json};

use super::access::{integer, list, text};
use crate::field::Errors;
use crate::names;
use crate::selector::LabelSelector;

/// Every pod stays this long on a node that stopped answering, unless it says otherwise.
const UNREACHABLE_S: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Adds the tolerations that keep pods on a node that is away for a short time.
pub(super) fn default_tolerations(spec: &mut Value) {
    for key in TAINTS {
        let covered = list(spec, "tolerations").iter().any(|toleration| {
            let keys = ["", key].contains(&text(toleration, "key"));
            keys && ["", "NoExecute"].contains(&text(toleration, "effect"))
        });
        if !covered {
            super::default_to(spec, "tolerations", json!([]));
            if let Some(tolerations) = spec["tolerations"].as_array_mut() {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": UNREACHABLE_S,
                }));
            }
        }
    }
}

/// What makes a toleration the same one, however long it lasts.
pub(super) fn identity(toleration: &Value) -> [&str; 4] {
    ["key", "operator", "value", "effect"].map(|key| text(toleration, key))
}

pub(super) fn validate(spec: &Value, path: &str, errors: &mut Errors) {
    for (at, toleration) in list(spec, "tolerations").iter().enumerate() {
        validate_toleration(toleration, &format!("{path}.tolerations[{at}]"), errors);
    }
    let affinity = &spec["affinity"];
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = &affinity["nodeAffinity"];
    if node.get(required).is_some() {
        let path = format!("{path}.affinity.nodeAffinity.{required}.nodeSelectorTerms");
        let terms = list(&node[required], "nodeSelectorTerms");
        if terms.is_empty() {
            errors.required(&path, "must have at least one node selector term");
        }
        for (at, term) in terms.iter().enumerate() {
            node_term(term, &format!("{path}[{at}]"), errors);
        }
    }
    for (at, term) in list(node, preferred).iter().enumerate() {
        let path = format!("{path}.affinity.nodeAffinity.{preferred}[{at}]");
        weight(term, &path, errors);
        node_term(&term["preference"], &format!("{path}.preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = format!("{path}.affinity.{kind}");
        for (at, term) in list(&affinity[kind], required).iter().enumerate() {
            pod_term(term, &format!("{path}.{required}[{at}]"), errors);
        }
        for (at, term) in list(&affinity[kind], preferred).iter().enumerate() {
            let path = format!("{path}.{preferred}[{at}]");
            weight(term, &path, errors);
            pod_term(&term["podAffinityTerm"], &format!("{path}.podAffinityTerm"), errors);
        }
    }
    for (at, spread) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        validate_spread(spread, &format!("{path}.topologySpreadConstraints[{at}]"), errors);
    }
}

fn validate_toleration(toleration: &Value, path: &str, errors: &mut Errors) {
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    if !key.is_empty()
        && let Err(why) = names::qualified_name(key)
    {
        errors.invalid(&format!("{path}.key"), key, why);
    }
    if key.is_empty() && operator != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid(&format!("{path}.operator"), operator, why);
    }
    match operator {
        "" | "Equal" => {
            if let Err(why) = names::label_value(text(toleration, "value")) {
                errors.invalid(&format!("{path}.value"), text(toleration, "value"), why);
            }
        }
        "Exists" if text(toleration, "value").is_empty() => {}
        "Exists" => {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.invalid(&format!("{path}.operator"), text(toleration, "value"), why);
        }
        other => errors.unsupported(&format!("{path}.operator"), other, &["Equal", "Exists"]),
    }
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let effect = text(toleration, "effect");
    if !effect.is_empty() && !effects.contains(&effect) {
        errors.unsupported(&format!("{path}.effect"), effect, &effects);
    }
    if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.invalid(&format!("{path}.effect"), effect, why);
    }
}

fn weight(term: &Value, path: &str, errors: &mut Errors) {
    let weight = integer(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(&format!("{path}.weight"), weight, "must be in the range 1-100");
    }
}

fn node_term(term: &Value, path: &str, errors: &mut Errors) {
    for key in ["matchExpressions", "matchFields"] {
        for (at, expression) in list(term, key).iter().enumerate() {
            let path = format!("{path}.{key}[{at}]");
            let values = list(expression, "values");
            let why = match (text(expression, "operator"), values.len()) {
                ("In" | "NotIn", 0) => Some("must be specified when `operator` is 'In' or 'NotIn'"),
                ("Exists" | "DoesNotExist", 1..) => {
                    Some("may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
                }
                ("Gt" | "Lt", count) if count != 1 => {
                    Some("must be specified single value when `operator` is 'Lt' or 'Gt'")
                }
                ("In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt", _) => None,
                (other, _) => {
                    let known = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
                    errors.unsupported(&format!("{path}.operator"), other, &known);
                    None
                }
            };
            if let Some(why) = why {
                errors.invalid(&format!("{path}.values"), json!(values), why);
            }
            let label = text(expression, "key");
            if key == "matchExpressions"
                && let Err(why) = names::qualified_name(label)
            {
                errors.invalid(&format!("{path}.key"), label, why);
            }
        }
    }
}

fn selector(owner: &Value, path: &str, errors: &mut Errors) {
    if owner.get("labelSelector").is_some()
        && let Err(why) = LabelSelector::from_object(&owner["labelSelector"])
    {
        errors.invalid(&format!("{path}.labelSelector"), owner["labelSelector"].clone(), why);
    }
}

fn topology_key(owner: &Value, path: &str, errors: &mut Errors) {
    let key = text(owner, "topologyKey");
    let path = format!("{path}.topologyKey");
    if key.is_empty() {
        errors.required(&path, "can not be empty");
    } else if let Err(why) = names::qualified_name(key) {
        errors.invalid(&path, key, why);
    }
}

fn pod_term(term: &Value, path: &str, errors: &mut Errors) {
    selector(term, path, errors);
    topology_key(term, path, errors);
}

fn validate_spread(spread: &Value, path: &str, errors: &mut Errors) {
    selector(spread, path, errors);
    topology_key(spread, path, errors);
    let skew = integer(spread, "maxSkew").unwrap_or(0);
    if skew <= 0 {
        errors.invalid(&format!("{path}.maxSkew"), skew, "must be greater than zero");
    }
    let known = ["DoNotSchedule", "ScheduleAnyway"];
    let action = text(spread, "whenUnsatisfiable");
    if !known.contains(&action) {
        errors.unsupported(&format!("{path}.whenUnsatisfiable"), action, &known);
    }
}
