//! Objects in the store: which key an object has, and how it becomes bytes that carry their own resource version.

use std::{io::Write as _, sync::Arc};

use bytes::Bytes;
use seaway_kinds::{ApiError, Kind};
use seaway_store::{Entry, Put, StoreError};
use serde_json::{Map, Value};

/// The prefix of all objects of the kind, in one namespace or in all.
pub(crate) fn prefix(kind: &Kind, namespace: Option<&str>) -> String {
    let (group, plural) = &kind.storage;
    let group = if group.is_empty() { "core" } else { group };
    match namespace {
        Some(namespace) if kind.namespaced => format!("/{group}/{plural}/{namespace}/"),
        _ => format!("/{group}/{plural}/"),
    }
}

/// The key of one object.
pub(crate) fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    prefix(kind, namespace) + name
}

/// The object as bytes, with the place where the store writes the resource version.
pub(crate) fn encode(object: &Value) -> Put {
    let mut bytes = Vec::with_capacity(1024);
    let mut stamp_at = None;
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    bytes.push(b'{');
    for (name, value) in fields {
        begin_field(&mut bytes, name);
        match value {
            Value::Object(metadata) if name == "metadata" => stamp_at = encode_metadata(&mut bytes, metadata),
            value => write_json(&mut bytes, value),
        }
    }
    bytes.push(b'}');
    Put { value: bytes.into(), stamp_at }
}

fn encode_metadata(bytes: &mut Vec<u8>, metadata: &Map<String, Value>) -> Option<u32> {
    bytes.push(b'{');
    let mut stamp_at = None;
    let mut stamp = |bytes: &mut Vec<u8>| {
        begin_field(bytes, "resourceVersion");
        bytes.extend_from_slice(b"\"\"");
        stamp_at = u32::try_from(bytes.len() - 1).ok();
    };
    let mut stamped = false;
    for (name, value) in metadata.iter().filter(|(name, _)| *name != "resourceVersion") {
        if !stamped && name.as_str() > "resourceVersion" {
            stamp(bytes);
            stamped = true;
        }
        begin_field(bytes, name);
        write_json(bytes, value);
    }
    if !stamped {
        stamp(bytes);
    }
    bytes.push(b'}');
    stamp_at
}

fn begin_field(bytes: &mut Vec<u8>, name: &str) {
    if bytes.last() != Some(&b'{') {
        bytes.push(b',');
    }
    write_json(bytes, name);
    bytes.push(b':');
}

fn write_json(bytes: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    // Writing JSON values into memory does not fail; a half-written value would be refused when it is read.
    if serde_json::to_writer(&mut *bytes, value).is_err() {
        tracing::error!("a JSON value could not be written");
    }
    bytes.flush().unwrap_or_default();
}

/// The stored bytes as a value.
pub(crate) fn decode(bytes: &Bytes) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::internal(format!("a stored object is damaged: {error}")))
}

/// The stored object as `kind` shows it.
pub(crate) fn shown(kind: &Kind, bytes: &Bytes) -> Result<Value, ApiError> {
    Ok(kind.from_storage(decode(bytes)?))
}

/// Whether stored bytes are what `kind` shows, so that they can be sent as they are.
pub(crate) fn is_own_storage(kind: &Kind) -> bool {
    kind.storage.0 == kind.group && kind.storage.1 == kind.plural
}

/// The bytes that `kind` shows for an entry.
pub(crate) fn shown_bytes(kind: &Kind, value: &Bytes) -> Result<Bytes, ApiError> {
    if is_own_storage(kind) {
        return Ok(value.clone());
    }
    let object = shown(kind, value)?;
    serde_json::to_vec(&object).map(Bytes::from).map_err(ApiError::internal)
}

/// `metadata.<field>` as a text.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Whether `metadata.<field>` is a list with something in it.
pub(crate) fn meta_list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    object["metadata"][field].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What a failed store operation on one object means to its client.
pub(crate) fn store_error(kind: &Kind, name: &str, error: StoreError) -> ApiError {
    match error {
        StoreError::KeyExists { .. } => ApiError::already_exists(kind, name),
        StoreError::NotFound { .. } => ApiError::not_found(kind, name),
        StoreError::Conflict { .. } => ApiError::modified(kind, name),
        StoreError::Compacted { requested, compacted } => ApiError::too_old(requested, compacted),
        StoreError::Future { requested, current } => ApiError::too_large(requested, current),
        StoreError::TooLarge { limit, .. } => ApiError::too_big(limit),
        StoreError::Closed => ApiError::unavailable("the server is shutting down"),
        error @ StoreError::DiskFull { .. } => {
            ApiError { code: 507, reason: "InsufficientStorage", ..ApiError::unavailable(error.to_string()) }
        }
        error @ StoreError::ReadOnly { .. } => ApiError::unavailable(error.to_string()),
        error => ApiError::internal(error),
    }
}

/// The name in a key.
pub(crate) fn name_of(entry: &Arc<Entry>) -> &str {
    entry.key.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_goes_where_the_stamp_is() {
        for metadata in
            [json!({}), json!({"name": "a"}), json!({"name": "a", "uid": "u", "resourceVersion": "9"})]
        {
            let object =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"a": [1, 2]}});
            let put = encode(&object);
            let at = put.stamp_at.unwrap() as usize;
            let stamped = [&put.value[..at], b"123", &put.value[at..]].concat();
            let mut wanted = object.clone();
            wanted["metadata"]["resourceVersion"] = "123".into();
            assert_eq!(serde_json::from_slice::<Value>(&stamped).unwrap(), wanted);
        }
    }
}
