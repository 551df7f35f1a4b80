//! Probes and lifecycle hooks.

use serde_json::Value;

use super::access::{integer, text};
use super::{default_text, default_to};
use crate::field::Errors;
use crate::names;

fn default_handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        default_text(get, "path", "/");
        default_text(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc") {
        default_to(grpc, "service", "");
    }
}

pub(super) fn default_probes(container: &mut Value) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(key) else { continue };
        default_handler(probe);
        for (key, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            // Zero means the default.
            if integer(probe, key).unwrap_or(0) == 0 {
                probe[key] = value.into();
            }
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get_mut(key) {
                default_handler(handler);
            }
        }
    }
}

/// A port by number or by name.
pub(super) fn port_reference(owner: &Value, key: &str, path: &str, errors: &mut Errors) {
    let path = format!("{path}.{key}");
    match owner.get(key) {
        Some(Value::String(name)) => {
            if let Err(why) = names::port_name(name) {
                errors.invalid(&path, name.as_str(), why);
            }
        }
        Some(number) if number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) => {}
        Some(number) => errors.invalid(&path, number.clone(), "must be between 1 and 65535, inclusive"),
        None => errors.required(&path, ""),
    }
}

fn validate_handler(handler: &Value, path: &str, kinds: &[&str], errors: &mut Errors) {
    let present: Vec<&&str> = kinds.iter().filter(|kind| handler.get(**kind).is_some()).collect();
    if present.is_empty() {
        errors.required(path, "must specify a handler type");
    }
    for second in present.iter().skip(1) {
        errors.forbidden(&format!("{path}.{second}"), "may not specify more than 1 handler type");
    }
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        if let Some(target) = handler.get(kind) {
            port_reference(target, "port", &format!("{path}.{kind}"), errors);
        }
    }
    if let Some(get) = handler.get("httpGet") {
        let schemes = ["HTTP", "HTTPS"];
        let scheme = text(get, "scheme");
        if !schemes.contains(&scheme) {
            errors.unsupported(&format!("{path}.httpGet.scheme"), scheme, &schemes);
        }
    }
    if let Some(exec) = handler.get("exec")
        && super::access::list(exec, "command").is_empty()
    {
        errors.required(&format!("{path}.exec.command"), "");
    }
}

pub(super) fn validate_probes(container: &Value, path: &str, errors: &mut Errors) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(key) else { continue };
        let path = format!("{path}.{key}");
        validate_handler(probe, &path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
        for key in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            if let Some(number) = integer(probe, key).filter(|number| *number < 0) {
                errors.invalid(&format!("{path}.{key}"), number, "must be greater than or equal to 0");
            }
        }
        if key != "readinessProbe"
            && let Some(number) = integer(probe, "successThreshold").filter(|number| *number > 1)
        {
            errors.invalid(&format!("{path}.successThreshold"), number, "must be 1");
        }
    }
    for key in ["postStart", "preStop"] {
        if let Some(handler) = container["lifecycle"].get(key) {
            let path = format!("{path}.lifecycle.{key}");
            validate_handler(handler, &path, &["exec", "httpGet", "tcpSocket", "sleep"], errors);
        }
    }
}
