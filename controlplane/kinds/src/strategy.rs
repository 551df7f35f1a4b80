//! How objects are prepared for being stored: what belongs to the server, defaults, rules.

mod access;
mod config;
mod container;
mod endpoints;
mod event;
mod meta;
mod node;
mod pod;
mod probe;
mod scheduling;
mod service;
mod service_update;
mod volume;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::field::Errors;
use crate::{ApiError, FieldError, Kind, names};

pub(crate) use access::{boolean, integer, list, text};
pub(crate) use config::{CONFIG_MAP, CONTROLLER_REVISION, SECRET};
pub(crate) use endpoints::{ENDPOINT_SLICE, ENDPOINTS};
pub(crate) use event::{EVENT, NEW_EVENT};
pub(crate) use node::{LEASE, NAMESPACE, NODE};
pub(crate) use pod::POD;
pub(crate) use service::SERVICE;
pub(crate) use workload::{DAEMON_SET, DEPLOYMENT, REPLICA_SET};

/// What the server decides about a new object.
#[derive(Debug, Clone, Copy)]
pub struct CreateContext<'a> {
    /// The namespace of the path, for namespaced kinds.
    pub namespace: Option<&'a str>,
    /// A fresh uid.
    pub uid: &'a str,
    /// Five random characters of `bcdfghjklmnpqrstvwxz2456789`, used when `generateName` makes the name.
    pub suffix: &'a str,
    /// The time of creation.
    pub now: Timestamp,
}

/// What a kind adds to the common preparation.
#[derive(Debug)]
pub(crate) struct Strategy {
    /// The rule for names.
    pub(crate) name: fn(&str) -> Result<(), String>,
    /// Whether `metadata.generation` counts changes of everything but metadata and status.
    pub(crate) generation: bool,
    /// Whether a new object may bring its status along (a Node registers itself with one).
    pub(crate) keeps_status: bool,
    /// Whether the writers of the status may change labels too.
    pub(crate) status_sets_labels: bool,
    /// Fills in what only a new object gets, before the defaults.
    pub(crate) create: fn(&mut Value),
    /// Takes from the old object what the new one left to the server, before the defaults.
    pub(crate) carry: fn(&mut Value, &Value),
    /// Takes from the old object what a new status left out.
    pub(crate) carry_status: fn(&mut Value, &Value),
    pub(crate) default: fn(&mut Value),
    pub(crate) validate: fn(&Value, &mut Errors),
    pub(crate) validate_update: fn(&Value, &Value, &mut Errors),
    pub(crate) to_storage: fn(Value) -> Value,
    pub(crate) from_storage: fn(Value) -> Value,
}

impl Strategy {
    /// Nothing special.
    pub(crate) const PLAIN: Self = Self {
        name: names::dns_subdomain,
        generation: false,
        keeps_status: false,
        status_sets_labels: false,
        create: |_| {},
        carry: |_, _| {},
        carry_status: |_, _| {},
        default: |_| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        to_storage: |object| object,
        from_storage: |object| object,
    };
}

fn refuse_if(kind: &Kind, object: &Value, errors: Errors) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(kind, text(&object["metadata"], "name"), &errors.into_vec()))
}

pub(crate) fn prepare_create(
    kind: &Kind,
    mut object: Value,
    context: &CreateContext<'_>,
) -> Result<Value, ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the body of the request is no object"));
    }
    meta::create(kind, &mut object, context)?;
    if kind.subresource("status").is_some() && !kind.strategy.keeps_status {
        remove(&mut object, "status");
    }
    if kind.strategy.generation {
        object["metadata"]["generation"] = 1.into();
    }
    kind.stamp(&mut object);
    (kind.strategy.create)(&mut object);
    (kind.strategy.default)(&mut object);
    let mut errors = Errors::default();
    meta::validate(kind, &object, &mut errors);
    (kind.strategy.validate)(&object, &mut errors);
    refuse_if(kind, &object, errors)?;
    Ok(object)
}

pub(crate) fn prepare_update(
    kind: &Kind,
    mut new: Value,
    old: &Value,
    _now: Timestamp,
) -> Result<Value, ApiError> {
    if !new.is_object() {
        return Err(ApiError::bad_request("the body of the request is no object"));
    }
    meta::update(kind, &mut new, old)?;
    if kind.subresource("status").is_some() {
        copy(&mut new, old, "status");
    }
    kind.stamp(&mut new);
    (kind.strategy.carry)(&mut new, old);
    (kind.strategy.default)(&mut new);
    if kind.strategy.generation {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = i64::from(!same_content(&new, old));
        new["metadata"]["generation"] = (generation + changed).into();
    }
    let mut errors = Errors::default();
    meta::validate(kind, &new, &mut errors);
    meta::validate_update(&new, old, &mut errors);
    (kind.strategy.validate)(&new, &mut errors);
    (kind.strategy.validate_update)(&new, old, &mut errors);
    refuse_if(kind, &new, errors)?;
    Ok(new)
}

pub(crate) fn prepare_status_update(
    kind: &Kind,
    mut new: Value,
    old: &Value,
    _now: Timestamp,
) -> Result<Value, ApiError> {
    if !new.is_object() {
        return Err(ApiError::bad_request("the body of the request is no object"));
    }
    meta::update(kind, &mut new, old)?;
    for key in ["labels", "ownerReferences"] {
        if key != "labels" || !kind.strategy.status_sets_labels {
            copy(&mut new["metadata"], &old["metadata"], key);
        }
    }
    let mut object = old.clone();
    object["metadata"] = new["metadata"].take();
    copy(&mut object, &new, "status");
    (kind.strategy.carry_status)(&mut object, old);
    (kind.strategy.default)(&mut object);
    let mut errors = Errors::default();
    meta::validate(kind, &object, &mut errors);
    meta::validate_update(&object, old, &mut errors);
    refuse_if(kind, &object, errors)?;
    Ok(object)
}

pub(crate) fn validate(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::validate(kind, object, &mut errors);
    (kind.strategy.validate)(object, &mut errors);
    errors.into_vec()
}

/// Whether two objects agree in everything but metadata and status.
fn same_content(new: &Value, old: &Value) -> bool {
    let content = |object: &Value| -> Option<Vec<(String, Value)>> {
        let members = object.as_object()?;
        let own = members.iter().filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"));
        Some(own.map(|(key, value)| (key.clone(), value.clone())).collect())
    };
    content(new) == content(old)
}

fn remove(object: &mut Value, key: &str) {
    if let Some(members) = object.as_object_mut() {
        members.remove(key);
    }
}

/// Makes `key` in `to` what it is in `from`, also when it is absent there.
fn copy(to: &mut Value, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => to[key] = value.clone(),
        None => remove(to, key),
    }
}

/// Gives `to` the value of `from`, within one object.
fn copy_as(object: &mut Value, from: &str, to: &str) {
    if let Some(value) = object.get(from).cloned() {
        object[to] = value;
    }
}

/// Fills in `key` when it is absent.
fn default_to(object: &mut Value, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(Value::is_null) {
        object[key] = value.into();
    }
}

/// Fills in `key` when it is absent or an empty text.
fn default_text(object: &mut Value, key: &str, value: &str) {
    if text(object, key).is_empty() {
        object[key] = value.into();
    }
}

fn default_object(object: &mut Value, key: &str) {
    default_to(object, key, json!({}));
}

#[cfg(test)]
mod tests;
