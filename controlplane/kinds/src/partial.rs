//! Objects reduced to their metadata, for clients that need no more.

use serde_json::{Value, json};

/// The metadata of one object as `PartialObjectMetadata`.
pub fn metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// Items made by [`metadata`] as a `PartialObjectMetadataList`; `list_metadata` is the list's own.
pub fn list(items: Vec<Value>, list_metadata: Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_metadata,
        "items": items,
    })
}
