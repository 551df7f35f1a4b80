//! The containers of a pod.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::access::{boolean, integer, list, list_mut, text};
use super::{default_object, default_text, default_to, probe};
use crate::field::Errors;
use crate::names;
use crate::quantity::Quantity;

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// `latest`, said or meant, is pulled always; anything that names a version only when it is absent.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest" | "")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

pub(super) fn default_container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(text(container, "image"));
    default_text(container, "imagePullPolicy", policy);
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    default_object(container, "resources");
    for port in list_mut(container, "ports") {
        default_text(port, "protocol", "TCP");
        if host_network && integer(port, "hostPort").unwrap_or(0) == 0 {
            super::copy_as(port, "containerPort", "hostPort");
        }
    }
    for variable in list_mut(container, "env") {
        if let Some(field) = variable.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            default_text(field, "apiVersion", "v1");
        }
    }
    probe::default_probes(container);
}

/// Requests that are not told are as large as the limits. (Pods only; templates stay as written.)
pub(super) fn default_requests(spec: &mut Value) {
    for key in ["initContainers", "containers"] {
        for container in list_mut(spec, key) {
            let Some(limits) = container["resources"].get("limits").and_then(Value::as_object).cloned()
            else {
                continue;
            };
            default_object(&mut container["resources"], "requests");
            for (resource, amount) in limits {
                default_to(&mut container["resources"]["requests"], &resource, amount);
            }
        }
    }
}

pub(super) fn validate_containers(spec: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut known = HashSet::new();
    let mut host_ports = HashSet::new();
    for key in ["initContainers", "containers"] {
        for (at, container) in list(spec, key).iter().enumerate() {
            let path = format!("{path}.{key}[{at}]");
            let name = text(container, "name");
            if name.is_empty() {
                errors.required(&format!("{path}.name"), "");
            } else if let Err(why) = names::dns_label(name) {
                errors.invalid(&format!("{path}.name"), name, why);
            } else if !known.insert(name) {
                errors.duplicate(&format!("{path}.name"), name);
            }
            validate_container(container, &path, volumes, errors);
            if key == "containers" {
                validate_ports(container, &path, &mut host_ports, boolean(spec, "hostNetwork"), errors);
            }
            let policy = text(container, "restartPolicy");
            if key == "containers" && !policy.is_empty() {
                errors.forbidden(&format!("{path}.restartPolicy"), "may not be set for non-init containers");
            } else if !policy.is_empty() && policy != "Always" {
                errors.unsupported(&format!("{path}.restartPolicy"), policy, &["Always"]);
            }
        }
    }
}

fn validate_container(container: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let image = text(container, "image");
    if image.is_empty() {
        errors.required(&format!("{path}.image"), "");
    } else if image.trim() != image {
        errors.invalid(&format!("{path}.image"), image, "must not have leading or trailing whitespace");
    }
    for (key, known) in [
        ("imagePullPolicy", &["Always", "IfNotPresent", "Never"][..]),
        ("terminationMessagePolicy", &["FallbackToLogsOnError", "File"]),
    ] {
        let value = text(container, key);
        if !known.contains(&value) {
            errors.unsupported(&format!("{path}.{key}"), value, known);
        }
    }
    validate_env(container, path, errors);
    validate_resources(container, path, errors);
    probe::validate_probes(container, path, errors);
    let mut mounted = HashSet::new();
    for (at, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.required(&format!("{path}.name"), "");
        } else if !volumes.contains(name) {
            errors.not_found(&format!("{path}.name"), name);
        }
        if target.is_empty() {
            errors.required(&format!("{path}.mountPath"), "");
        } else if !mounted.insert(target) {
            errors.invalid(&format!("{path}.mountPath"), target, "must be unique");
        }
    }
}

fn validate_env(container: &Value, path: &str, errors: &mut Errors) {
    for (at, variable) in list(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{at}]");
        let name = text(variable, "name");
        if name.is_empty() {
            errors.required(&format!("{path}.name"), "");
        } else if !name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
            let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.invalid(&format!("{path}.name"), name, why);
        }
        let Some(from) = variable.get("valueFrom").and_then(Value::as_object) else { continue };
        let path = format!("{path}.valueFrom");
        if !text(variable, "value").is_empty() {
            errors.invalid(&path, "", "may not be specified when `value` is not empty");
        }
        if from.len() != 1 {
            let why = "must specify exactly one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.invalid(&path, "", why);
        }
    }
}

fn validate_resources(container: &Value, path: &str, errors: &mut Errors) {
    let resources = &container["resources"];
    let amount = |value: &Value| value.as_str().and_then(|text| Quantity::parse(text).ok());
    for key in ["limits", "requests"] {
        for (resource, value) in resources.get(key).and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.resources.{key}[{resource}]");
            if let Err(why) = names::qualified_name(resource) {
                errors.invalid(&path, resource.as_str(), why);
            }
            if amount(value).is_some_and(|amount| amount.is_negative()) {
                errors.invalid(&path, value.clone(), "must be greater than or equal to 0");
            }
        }
    }
    for (resource, value) in resources.get("requests").and_then(Value::as_object).into_iter().flatten() {
        let limit = resources["limits"].get(resource);
        let (Some(request), Some(limit)) = (amount(value), limit.and_then(amount)) else { continue };
        if request.milli() > limit.milli() {
            let why = format!("must be less than or equal to {resource} limit of {limit}");
            errors.invalid(&format!("{path}.resources.requests"), value.clone(), why);
        }
    }
}

fn validate_ports<'a>(
    container: &'a Value,
    path: &str,
    host_ports: &mut HashSet<(i64, &'a str, &'a str)>,
    host_network: bool,
    errors: &mut Errors,
) {
    let mut known = HashSet::new();
    for (at, port) in list(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        let name = text(port, "name");
        if !name.is_empty() {
            if let Err(why) = names::port_name(name) {
                errors.invalid(&format!("{path}.name"), name, why);
            } else if !known.insert(name) {
                errors.duplicate(&format!("{path}.name"), name);
            }
        }
        let range = "must be between 1 and 65535, inclusive";
        match integer(port, "containerPort").unwrap_or(0) {
            0 => errors.required(&format!("{path}.containerPort"), ""),
            number if !(1..=65535).contains(&number) => {
                errors.invalid(&format!("{path}.containerPort"), number, range);
            }
            _ => {}
        }
        let protocol = text(port, "protocol");
        if !PROTOCOLS.contains(&protocol) {
            errors.unsupported(&format!("{path}.protocol"), protocol, &PROTOCOLS);
        }
        let Some(number) = integer(port, "hostPort").filter(|number| *number != 0) else { continue };
        let path = format!("{path}.hostPort");
        if !(1..=65535).contains(&number) {
            errors.invalid(&path, number, range);
        } else if !host_ports.insert((number, protocol, text(port, "hostIP"))) {
            errors.duplicate(&path, json!(format!("{number}/{protocol}")));
        } else if host_network && integer(port, "containerPort") != Some(number) {
            errors.invalid(&path, number, "must match `containerPort` when `hostNetwork` is true");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, wanted) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), wanted, "{image}");
        }
    }
}
