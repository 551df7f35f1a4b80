//! ConfigMaps, Secrets and ControllerRevisions: data with few rules.

use base64::Engine;
use serde_json::{Value, json};

use super::access::{boolean, text, texts};
use super::{Strategy, default_text, remove};
use crate::field::Errors;

/// The data of one ConfigMap or Secret may be this large.
const DATA_BYTES_MAX: usize = 1024 * 1024;

pub(crate) const CONFIG_MAP: Strategy = Strategy {
    validate: validate_config_map,
    validate_update: |new, old, errors| immutable(new, old, &["data", "binaryData"], errors),
    ..Strategy::PLAIN
};

pub(crate) const SECRET: Strategy = Strategy {
    default: default_secret,
    validate: validate_secret,
    validate_update: |new, old, errors| {
        if text(new, "type") != text(old, "type") {
            errors.invalid("type", text(new, "type"), "field is immutable");
        }
        immutable(new, old, &["data"], errors);
    },
    ..Strategy::PLAIN
};

pub(crate) const CONTROLLER_REVISION: Strategy = Strategy {
    validate: |object, errors| {
        if object.get("data").is_none() {
            errors.required("data", "data is mandatory");
        }
        if object["revision"].as_i64().unwrap_or(0) < 0 {
            let revision = object["revision"].clone();
            errors.invalid("revision", revision, "must be greater than or equal to 0");
        }
    },
    validate_update: |new, old, errors| {
        if new.get("data") != old.get("data") {
            errors.invalid("data", new["data"].clone(), "field is immutable");
        }
    },
    ..Strategy::PLAIN
};

/// A key becomes a file name.
fn key_rule(key: &str) -> Result<(), &'static str> {
    if key.len() > 253 {
        return Err("must be no more than 253 characters");
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                    'key.name', or 'KEY_NAME', or 'key-name')");
    }
    if key == "." || key.starts_with("..") {
        return Err("must not be '.' and must not start with '..'");
    }
    Ok(())
}

fn keys(object: &Value, field: &str, errors: &mut Errors) -> usize {
    let mut bytes = 0;
    for (key, value) in texts(object, field) {
        if let Err(why) = key_rule(key) {
            errors.invalid(&format!("{field}[{key}]"), key, why);
        }
        bytes += if field == "data" { value.len() } else { value.len() / 4 * 3 };
    }
    bytes
}

fn validate_config_map(object: &Value, errors: &mut Errors) {
    let bytes = keys(object, "data", errors) + keys(object, "binaryData", errors);
    for (key, _) in texts(object, "data") {
        if object["binaryData"].get(key).is_some() {
            errors.invalid(&format!("data[{key}]"), key, "duplicate of key present in binaryData");
        }
    }
    if bytes > DATA_BYTES_MAX {
        // Upstream writes the object itself so.
        errors.too_long("[]", DATA_BYTES_MAX);
    }
}

/// `stringData` is a way to write `data`; it is never stored.
fn default_secret(object: &mut Value) {
    default_text(object, "type", "Opaque");
    let encoded: Vec<(String, Value)> = texts(object, "stringData")
        .map(|(key, value)| (key.to_owned(), base64::engine::general_purpose::STANDARD.encode(value).into()))
        .collect();
    remove(object, "stringData");
    for (key, value) in encoded {
        object["data"][key] = value;
    }
}

fn validate_secret(object: &Value, errors: &mut Errors) {
    if keys(object, "data", errors) / 4 * 3 > DATA_BYTES_MAX {
        errors.too_long("data", DATA_BYTES_MAX);
    }
    let required: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in required {
        if object["data"].get(key).is_none() {
            errors.required(&format!("data[{key}]"), "");
        }
    }
}

fn immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !boolean(old, "immutable") {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if !boolean(new, "immutable") {
        errors.forbidden("immutable", why);
    }
    for field in fields {
        let empty = json!({});
        if new.get(field).unwrap_or(&empty) != old.get(field).unwrap_or(&empty) {
            errors.forbidden(field, why);
        }
    }
}
