//! The `scale` subresource: one number out of a workload, and back into it.

use serde_json::{Value, json};

use crate::field::Errors;
use crate::selector::LabelSelector;
use crate::{ApiError, FieldError};

/// The `autoscaling/v1` Scale of a Deployment or ReplicaSet.
pub fn read(object: &Value) -> Value {
    let selector =
        LabelSelector::from_object(&object["spec"]["selector"]).map(|s| s.to_string()).unwrap_or_default();
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata[key] = value.clone();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(1)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector},
    })
}

/// The object with the replicas that `scale` wants. Hand it to [`crate::Kind::prepare_update`] next.
pub fn write(object: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let mut errors = Errors::default();
        errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        let errors: Vec<FieldError> = errors.into_vec();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        return Err(ApiError::invalid_as("autoscaling", "Scale", name, &errors));
    }
    let mut object = object.clone();
    object["spec"]["replicas"] = replicas.into();
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "1", "labels": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web", "tier": "x"}}},
            "status": {"replicas": 2},
        });
        let mut scale = read(&object);
        assert_eq!(
            scale,
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "web", "namespace": "default", "uid": "1"},
                "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "app=web,tier=x"},
            })
        );
        assert_eq!(write(&object, &scale), Ok(object.clone()));
        scale["spec"] = json!({});
        assert_eq!(write(&object, &scale).unwrap()["spec"]["replicas"], 0);
        scale["spec"]["replicas"] = (-1).into();
        let error = write(&object, &scale).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (
                422,
                "Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or \
                 equal to 0"
            )
        );
    }
}
