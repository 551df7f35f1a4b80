//! Applies the three kinds of patches that clients send.

mod strategic;

use json_patch::PatchOperation;
use serde_json::Value;

use crate::decode::{BodyType, Decoded, FieldValidation, conform};
use crate::{ApiError, Kind, schema};

/// The kinds of patches, by the request's `Content-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists are merged by the keys that the schema names.
    Strategic,
    /// Server-side apply (YAML); not applied by [`apply`].
    Apply,
}

impl PatchType {
    /// From the header's value; parameters are ignored.
    pub fn parse(content_type: Option<&str>) -> Result<Self, ApiError> {
        let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        match media {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(ApiError::unsupported_media_type(
                other,
                &[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                    "application/apply-patch+yaml",
                ],
            )),
        }
    }
}

/// A JSON patch may have this many operations.
const OPERATIONS_MAX: usize = 10_000;
/// All values that the copy operations of one JSON patch write may be this large together.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Applies `patch` to the current object. The result is conformed as a decoded body is; hand it to
/// [`Kind::prepare_update`] (or `prepare_status_update`) next. For a patch of `scale`, `current` is the Scale object and
/// `body` is [`crate::decode::SCALE`].
pub fn apply(
    body: &BodyType,
    patch_type: PatchType,
    current: &Value,
    patch: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let unreadable =
        |error: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {error}"));
    let patched = match patch_type {
        PatchType::Json => {
            let operations: Vec<PatchOperation> = serde_json::from_slice(patch).map_err(unreadable)?;
            apply_operations(current, &operations)?
        }
        PatchType::Merge => {
            let patch = object(serde_json::from_slice(patch).map_err(unreadable)?)?;
            let mut patched = current.clone();
            json_patch::merge(&mut patched, &patch);
            patched
        }
        PatchType::Strategic => {
            let patch = object(serde_json::from_slice(patch).map_err(unreadable)?)?;
            let schema = schema::builtin();
            let owner = body.schema_type(schema)?;
            strategic::apply(schema, owner, current, &patch).map_err(|error| {
                ApiError::bad_request(format!("cannot apply strategic merge patch: {error}"))
            })?
        }
        PatchType::Apply => {
            return Err(ApiError::unsupported_media_type(
                "application/apply-patch+yaml",
                &[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ],
            ));
        }
    };
    conform(body, patched, validation)
}

fn object(patch: Value) -> Result<Value, ApiError> {
    if patch.is_object() {
        return Ok(patch);
    }
    Err(ApiError::bad_request("error decoding patch: a merge patch must be a JSON object"))
}

fn apply_operations(current: &Value, operations: &[PatchOperation]) -> Result<Value, ApiError> {
    if operations.len() > OPERATIONS_MAX {
        let message = format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        );
        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
    }
    let mut patched = current.clone();
    let mut copied = 0;
    for (at, operation) in operations.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            copied += patched.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > COPIED_BYTES_MAX {
                return Err(ApiError::too_big(COPIED_BYTES_MAX));
            }
        }
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation)).map_err(|error| {
            let message = format!(
                "the server rejected our request due to an error in our request: operation {at} at {:?}: {}",
                error.path.as_str(),
                error.kind
            );
            ApiError::new(422, "Invalid", message)
        })?;
    }
    Ok(patched)
}

/// [`apply`] for an object of `kind` itself.
pub fn apply_to(
    kind: &Kind,
    patch_type: PatchType,
    current: &Value,
    patch: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    apply(&kind.body(), patch_type, current, patch, validation)
}

#[cfg(test)]
mod tests;
