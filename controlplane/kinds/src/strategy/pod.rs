//! Pods and the pod templates inside workloads: defaults, rules, and what may change later.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::access::{boolean, integer, is_set, list, list_mut, text};
use super::{Strategy, container, default_object, default_text, default_to, scheduling, volume};
use crate::field::Errors;
use crate::names;
use crate::quantity::Quantity;

pub(crate) const POD: Strategy = Strategy {
    status_sets_labels: true,
    create: |object| {
        default_object(object, "spec");
        default_pod_spec(&mut object["spec"], true);
        // Admission's part: only real pods, not templates, get these.
        let spec = &mut object["spec"];
        default_text(spec, "serviceAccountName", "default");
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
        default_to(spec, "enableServiceLinks", true);
        default_to(spec, "priority", 0);
        default_text(spec, "preemptionPolicy", "PreemptLowerPriority");
        container::default_requests(spec);
        scheduling::default_tolerations(spec);
        object["status"] = json!({"phase": "Pending", "qosClass": qos_class(&object["spec"])});
    },
    carry_status: |new, old| {
        if text(&new["status"], "qosClass").is_empty() {
            default_object(new, "status");
            super::copy(&mut new["status"], &old["status"], "qosClass");
        }
    },
    default: |object| {
        default_object(object, "spec");
        default_pod_spec(&mut object["spec"], true);
    },
    validate: |object, errors| validate_spec(&object["spec"], "spec", errors),
    validate_update,
    ..Strategy::PLAIN
};

const LISTS: [&str; 2] = ["initContainers", "containers"];

/// Fills in the template of a workload.
pub(super) fn default_template(owner: &mut Value) {
    default_object(owner, "template");
    let template = &mut owner["template"];
    default_object(template, "metadata");
    default_object(template, "spec");
    default_pod_spec(&mut template["spec"], false);
}

/// Real pods on the host's network take the ports that they listen on; templates stay as written.
fn default_pod_spec(spec: &mut Value, is_pod: bool) {
    default_text(spec, "restartPolicy", "Always");
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_object(spec, "securityContext");
    default_text(spec, "schedulerName", "default-scheduler");
    // The old and the new name of the same field.
    let account = text(spec, "serviceAccountName").to_owned();
    let old_name = text(spec, "serviceAccount").to_owned();
    match (account.is_empty(), old_name.is_empty()) {
        (false, _) => spec["serviceAccount"] = account.into(),
        (true, false) => spec["serviceAccountName"] = old_name.into(),
        (true, true) => {}
    }
    let host_network = is_pod && boolean(spec, "hostNetwork");
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list_mut(spec, key) {
            container::default_container(container, host_network);
        }
    }
    for volume in list_mut(spec, "volumes") {
        volume::default_volume(volume);
    }
}

/// How the pod is treated when memory runs out: from the requests and limits of its containers.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let zero = |value: &Value| {
        value.as_str().and_then(|text| Quantity::parse(text).ok()).is_none_or(|amount| amount.milli() == 0)
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in LISTS.iter().flat_map(|key| list(spec, key)) {
        let resources = &container["resources"];
        for resource in ["cpu", "memory"] {
            let limit = resources["limits"].get(resource).filter(|value| !zero(value));
            let request = resources["requests"].get(resource).filter(|value| !zero(value));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, _) => "BestEffort",
    }
}

/// The rules for a template: labels and spec.
pub(super) fn validate_template(template: &Value, path: &str, errors: &mut Errors) {
    super::meta::labels(&template["metadata"], "labels", &format!("{path}.metadata.labels"), errors);
    validate_spec(&template["spec"], &format!("{path}.spec"), errors);
}

fn one_of(spec: &Value, key: &str, path: &str, allowed: &[&str], errors: &mut Errors) {
    let value = text(spec, key);
    if !value.is_empty() && !allowed.contains(&value) {
        errors.unsupported(&format!("{path}.{key}"), value, allowed);
    }
}

fn validate_spec(spec: &Value, path: &str, errors: &mut Errors) {
    one_of(spec, "restartPolicy", path, &["Always", "OnFailure", "Never"], errors);
    one_of(spec, "dnsPolicy", path, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    one_of(spec, "preemptionPolicy", path, &["PreemptLowerPriority", "Never"], errors);
    if text(spec, "dnsPolicy") == "None" && list(&spec["dnsConfig"], "nameservers").is_empty() {
        errors.required(
            &format!("{path}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    for (key, rule) in [
        ("nodeName", names::dns_subdomain as fn(&str) -> Result<(), String>),
        ("serviceAccountName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ] {
        let value = text(spec, key);
        if !value.is_empty()
            && let Err(why) = rule(value)
        {
            errors.invalid(&format!("{path}.{key}"), value, why);
        }
    }
    if let Some(seconds) = integer(spec, "terminationGracePeriodSeconds").filter(|seconds| *seconds < 0) {
        let path = format!("{path}.terminationGracePeriodSeconds");
        errors.invalid(&path, seconds, "must be greater than or equal to 0");
    }
    if let Some(seconds) = integer(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let path = format!("{path}.activeDeadlineSeconds");
        errors.invalid(&path, seconds, "must be between 1 and 2147483647, inclusive");
    }
    super::meta::labels(spec, "nodeSelector", &format!("{path}.nodeSelector"), errors);
    let volumes = volume::validate_volumes(spec, path, errors);
    if list(spec, "containers").is_empty() {
        errors.required(&format!("{path}.containers"), "");
    }
    container::validate_containers(spec, path, &volumes, errors);
    scheduling::validate(spec, path, errors);
}

/// What of a pod's spec may change: images, a shorter deadline, more tolerations, fewer scheduling gates.
fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (mut new_spec, mut old_spec) = (new["spec"].clone(), old["spec"].clone());
    let (new_deadline, old_deadline) =
        (integer(&new_spec, "activeDeadlineSeconds"), integer(&old_spec, "activeDeadlineSeconds"));
    if let Some(before) = old_deadline
        && new_deadline.is_none_or(|after| after > before)
    {
        errors.invalid(
            "spec.activeDeadlineSeconds",
            json!(new_deadline),
            "must be less than or equal to previous value",
        );
    }
    let known: HashSet<&str> =
        list(&old_spec, "schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    let gates = list(&new_spec, "schedulingGates").iter().map(|gate| text(gate, "name"));
    for gate in gates.filter(|gate| !known.contains(gate)) {
        let why = format!("only deletion is allowed, but found new scheduling gate {gate:?}");
        errors.forbidden("spec.schedulingGates", &why);
    }
    let kept: HashSet<[&str; 4]> = list(&new_spec, "tolerations").iter().map(scheduling::identity).collect();
    if list(&old_spec, "tolerations").iter().any(|before| !kept.contains(&scheduling::identity(before))) {
        errors.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    for spec in [&mut new_spec, &mut old_spec] {
        for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
            super::remove(spec, key);
        }
        for key in LISTS {
            for (at, container) in list_mut(spec, key).iter_mut().enumerate() {
                if !is_set(container, "image") {
                    errors.required(&format!("spec.{key}[{at}].image"), "");
                }
                super::remove(container, "image");
            }
        }
    }
    if new_spec != old_spec {
        let changed = first_difference(&new_spec, &old_spec, "spec");
        errors.forbidden(
            "spec",
            &format!(
                "pod updates may not change fields other than `spec.containers[*].image`, \
                 `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` or `spec.tolerations` (only additions to \
                 existing tolerations); changed: {changed}"
            ),
        );
    }
}

/// The path of the first member in which two values differ.
fn first_difference(new: &Value, old: &Value, path: &str) -> String {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let keys = new.keys().chain(old.keys());
            let changed = keys.into_iter().find(|key| new.get(*key) != old.get(*key));
            changed.map_or_else(
                || path.to_owned(),
                |key| {
                    let null = Value::Null;
                    let (new, old) = (new.get(key).unwrap_or(&null), old.get(key).unwrap_or(&null));
                    first_difference(new, old, &format!("{path}.{key}"))
                },
            )
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            let changed = (0..new.len()).find(|at| new[*at] != old[*at]).unwrap_or(0);
            first_difference(&new[changed], &old[changed], &format!("{path}[{changed}]"))
        }
        _ => path.to_owned(),
    }
}
