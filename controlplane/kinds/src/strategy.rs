//! How objects are prepared for being stored: what belongs to the server, defaults, rules.

use jiff::Timestamp;
use serde_json::Value;

use crate::field::Errors;
use crate::{ApiError, FieldError, Kind};

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
    pub(crate) default: fn(&mut Value),
    pub(crate) validate: fn(&Value, &mut Errors),
    pub(crate) validate_update: fn(&Value, &Value, &mut Errors),
    pub(crate) to_storage: fn(Value) -> Value,
    pub(crate) from_storage: fn(Value) -> Value,
}

impl Strategy {
    /// Nothing special.
    pub(crate) const PLAIN: Self = Self {
        default: |_| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        to_storage: |object| object,
        from_storage: |object| object,
    };
}

pub(crate) fn prepare_create(
    kind: &Kind,
    object: Value,
    context: &CreateContext<'_>,
) -> Result<Value, ApiError> {
    let _ = (kind.strategy.default, context.suffix);
    Ok(object)
}

pub(crate) fn prepare_update(
    kind: &Kind,
    new: Value,
    old: &Value,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let _ = (kind.strategy.validate_update, old, now);
    Ok(new)
}

pub(crate) fn prepare_status_update(
    kind: &Kind,
    new: Value,
    old: &Value,
    now: Timestamp,
) -> Result<Value, ApiError> {
    prepare_update(kind, new, old, now)
}

pub(crate) fn validate(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    (kind.strategy.validate)(object, &mut errors);
    errors.into_vec()
}
