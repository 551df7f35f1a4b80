//! What all objects have in common: names, labels, owners, finalizers.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::access::{boolean, list, text, texts};
use super::{CreateContext, copy, remove};
use crate::field::Errors;
use crate::{ApiError, Kind, names, time};

/// All annotations of an object together may be this large.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// A generated name is cut to this length before the suffix is added.
const GENERATED_PREFIX_MAX: usize = 58;

/// Sets what the server decides about a new object's metadata.
pub(super) fn create(kind: &Kind, object: &mut Value, context: &CreateContext<'_>) -> Result<(), ApiError> {
    super::default_object(object, "metadata");
    let metadata = &mut object["metadata"];
    if !text(metadata, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    namespace(kind, metadata, context.namespace.unwrap_or_default())?;
    if text(metadata, "name").is_empty() {
        let prefix = text(metadata, "generateName");
        if !prefix.is_empty() {
            let cut: String = prefix.chars().take(GENERATED_PREFIX_MAX).collect();
            metadata["name"] = format!("{cut}{}", context.suffix).into();
        }
    }
    metadata["uid"] = context.uid.into();
    metadata["creationTimestamp"] = time::seconds(context.now).into();
    for key in [
        "resourceVersion",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        remove(metadata, key);
    }
    Ok(())
}

fn namespace(kind: &Kind, metadata: &mut Value, wanted: &str) -> Result<(), ApiError> {
    if !kind.namespaced {
        remove(metadata, "namespace");
        return Ok(());
    }
    let said = text(metadata, "namespace");
    if !said.is_empty() && said != wanted {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object ({said}) does not match the namespace sent on the request ({wanted})"
        )));
    }
    metadata["namespace"] = wanted.into();
    Ok(())
}

/// Takes from the old object what clients may not change about metadata.
pub(super) fn update(kind: &Kind, object: &mut Value, old: &Value) -> Result<(), ApiError> {
    super::default_object(object, "metadata");
    let metadata = &mut object["metadata"];
    let old = &old["metadata"];
    let name = text(old, "name");
    let said = text(metadata, "name");
    if !said.is_empty() && said != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        )));
    }
    namespace(kind, metadata, text(old, "namespace"))?;
    let (said, uid) = (text(metadata, "uid"), text(old, "uid"));
    if !said.is_empty() && said != uid {
        let why = format!("Precondition failed: UID in precondition: {said}, UID in object meta: {uid}");
        return Err(ApiError::conflict(kind, name, &why));
    }
    for key in [
        "name",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        copy(metadata, old, key);
    }
    Ok(())
}

/// The rules for metadata.
pub(super) fn validate(kind: &Kind, object: &Value, errors: &mut Errors) {
    let metadata = &object["metadata"];
    let name = text(metadata, "name");
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else if let Err(why) = (kind.strategy.name)(name) {
        errors.invalid("metadata.name", name, why);
    }
    if kind.namespaced {
        let namespace = text(metadata, "namespace");
        if namespace.is_empty() {
            errors.required("metadata.namespace", "");
        } else if let Err(why) = names::dns_label(namespace) {
            errors.invalid("metadata.namespace", namespace, why);
        }
    }
    labels(metadata, "labels", "metadata.labels", errors);
    annotations(metadata, "metadata.annotations", errors);
    owners(metadata, errors);
    for (at, finalizer) in list(metadata, "finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        if let Err(why) = names::qualified_name(finalizer) {
            errors.invalid(&format!("metadata.finalizers[{at}]"), finalizer, why);
        }
    }
}

/// The rules for a map of labels.
pub(super) fn labels(owner: &Value, key: &str, path: &str, errors: &mut Errors) {
    for (name, value) in texts(owner, key) {
        if let Err(why) = names::qualified_name(name) {
            errors.invalid(path, name, why);
        }
        if let Err(why) = names::label_value(value) {
            errors.invalid(path, value, why);
        }
    }
}

fn annotations(metadata: &Value, path: &str, errors: &mut Errors) {
    let mut bytes = 0;
    for (name, value) in texts(metadata, "annotations") {
        if let Err(why) = names::qualified_name(&name.to_lowercase()) {
            errors.invalid(path, name, why);
        }
        bytes += name.len() + value.len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.too_long(path, ANNOTATIONS_BYTES_MAX);
    }
}

fn owners(metadata: &Value, errors: &mut Errors) {
    let mut controllers = 0;
    for (at, owner) in list(metadata, "ownerReferences").iter().enumerate() {
        let path = format!("metadata.ownerReferences[{at}]");
        for key in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                errors.invalid(&format!("{path}.{key}"), "", format!("{key} must not be empty"));
            }
        }
        controllers += usize::from(boolean(owner, "controller"));
    }
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            json!(list(metadata, "ownerReferences")),
            "only one reference can have controller set to true",
        );
    }
}

/// The rules for changes of metadata.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    if old["metadata"].get("deletionTimestamp").is_none() {
        return;
    }
    let finalizers = |object: &'_ Value| -> Vec<String> {
        let words = list(&object["metadata"], "finalizers").iter();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let known: HashSet<String> = finalizers(old).into_iter().collect();
    let words: Vec<String> =
        finalizers(new).into_iter().filter(|finalizer| !known.contains(finalizer)).collect();
    if !words.is_empty() {
        errors.forbidden(
            "metadata.finalizers",
            &format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {words:?}"
            ),
        );
    }
}
