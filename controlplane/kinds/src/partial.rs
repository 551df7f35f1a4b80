//! Objects reduced to their metadata, for clients that need no more.

use serde_json::{Value, json};

/// The kind of what [`metadata`] makes; its lists are of this kind with `List` behind it.
pub const KIND: &str = "PartialObjectMetadata";

/// Its `apiVersion`, by the version of `meta.k8s.io`.
pub fn api_version(version: &str) -> String {
    format!("meta.k8s.io/{version}")
}

/// The metadata of one object as `PartialObjectMetadata`.
pub fn metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": KIND,
        "apiVersion": api_version(version),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}
