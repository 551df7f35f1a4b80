//! From the bytes of a request to an object: JSON or protobuf, known fields only, in canonical form.

mod json;
mod protobuf;

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::ApiError;
use crate::kind::api_version;
use crate::schema::{self, Schema, Type};

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
    let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if body.is_empty() && expected.kind == DELETE_OPTIONS.kind {
        return conform(expected, Value::Object(Map::new()), validation);
    }
    match media {
        "" | "application/json" => decode_json(expected, body, validation),
        "application/vnd.kubernetes.protobuf" => decode_protobuf(expected, body, validation),
        other => Err(ApiError::unsupported_media_type(other, CONTENT_TYPES)),
    }
}

fn decode_json(expected: &BodyType, body: &[u8], validation: FieldValidation) -> Result<Decoded, ApiError> {
    let (object, duplicates) = json::parse(body).map_err(|error| {
        ApiError::bad_request(format!("the body of the request is not valid JSON: {error}"))
    })?;
    finish(expected, object, duplicates, validation)
}

fn decode_protobuf(
    expected: &BodyType,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let unreadable = |error: protobuf::ProtobufError| {
        ApiError::bad_request(format!("unable to decode the protobuf body of {}: {error}", expected.kind))
    };
    let envelope = protobuf::envelope(body).map_err(unreadable)?;
    if envelope.content_type == "application/json" {
        return decode_json(expected, envelope.raw, validation);
    }
    check_type(expected, envelope.api_version, envelope.kind)?;
    let schema = schema::builtin();
    let owner = expected.schema_type(schema)?;
    let object = protobuf::object(schema, owner, envelope.raw).map_err(unreadable)?;
    finish(expected, object, Vec::new(), validation)
}

/// The same for a body that is already a JSON value, or for the result of a patch.
pub fn conform(expected: &BodyType, object: Value, validation: FieldValidation) -> Result<Decoded, ApiError> {
    finish(expected, object, Vec::new(), validation)
}

impl BodyType {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub(crate) fn schema_type<'s>(&self, schema: &'s Schema) -> Result<&'s Type, ApiError> {
        schema
            .kind(&self.api_version(), &self.kind)
            .ok_or_else(|| ApiError::internal(format!("no schema for {} {}", self.api_version(), self.kind)))
    }
}

/// What an object says it is must be what is expected; saying nothing is fine.
fn check_type(expected: &BodyType, said_version: &str, said_kind: &str) -> Result<(), ApiError> {
    let version = expected.api_version();
    let any_version = expected.kind == DELETE_OPTIONS.kind;
    if !said_version.is_empty() && said_version != version && !any_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({said_version}) does not match the expected API version ({version})"
        )));
    }
    if !said_kind.is_empty() && said_kind != expected.kind {
        return Err(ApiError::bad_request(format!(
            "{said_kind} in version {version:?} cannot be handled as a {}",
            expected.kind
        )));
    }
    Ok(())
}

fn finish(
    expected: &BodyType,
    object: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let said = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    check_type(expected, said("apiVersion"), said("kind"))?;
    let schema = schema::builtin();
    let owner = expected.schema_type(schema)?;
    let (mut object, findings) = schema::conform(schema, owner, object);
    let refuse = |why: &str| {
        ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {why}",
            expected.version,
            kind = expected.kind
        ))
    };
    if !findings.faults.is_empty() {
        return Err(refuse(&findings.faults.join("; ")));
    }
    let mut warnings: Vec<String> =
        duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
    warnings.extend(findings.unknown.iter().map(|path| format!("unknown field {path:?}")));
    match validation {
        FieldValidation::Strict if !warnings.is_empty() => {
            return Err(refuse(&format!("strict decoding error: {}", warnings.join(", "))));
        }
        FieldValidation::Ignore => warnings.clear(),
        FieldValidation::Strict | FieldValidation::Warn => {}
    }
    if let Value::Object(members) = &mut object {
        members.insert("apiVersion".to_owned(), expected.api_version().into());
        members.insert("kind".to_owned(), expected.kind.as_ref().into());
    }
    Ok(Decoded { object, warnings })
}

#[cfg(test)]
mod tests;
