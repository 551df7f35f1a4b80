//! The three patch types through the public interface.

use serde_json::json;

use super::*;
use crate::Registry;

fn patched(patch_type: PatchType, current: &Value, patch: &Value) -> Result<Decoded, ApiError> {
    let registry = Registry::builtin();
    let kind = registry.resource("apps", "v1", "deployments").unwrap();
    apply_to(kind, patch_type, current, patch.to_string().as_bytes(), FieldValidation::Strict)
}

#[test]
fn each_type_changes_the_replicas() {
    let current = json!({"metadata": {"name": "web", "labels": {"a": "1"}}, "spec": {"replicas": 1}});
    for (patch_type, patch) in [
        (PatchType::Json, json!([{"op": "replace", "path": "/spec/replicas", "value": 3}])),
        (PatchType::Merge, json!({"spec": {"replicas": 3}})),
        (PatchType::Strategic, json!({"spec": {"replicas": 3}})),
    ] {
        let decoded = patched(patch_type, &current, &patch).unwrap();
        assert_eq!(decoded.object["spec"]["replicas"], 3);
        assert_eq!(decoded.object["metadata"]["labels"]["a"], "1");
    }
}

#[test]
fn faults_have_codes() {
    let current = json!({"spec": {"replicas": 1}, "metadata": {"labels": {"a": "x".repeat(1000)}}});
    let doubling: Vec<Value> = (0..5000)
        .map(|at| json!({"op": "copy", "from": "/metadata/labels", "path": format!("/metadata/labels/{at}")}))
        .collect();
    let many: Vec<Value> = (0..=10_000).map(|_| json!({"op": "remove", "path": "/x"})).collect();
    for (patch_type, patch, code) in [
        (PatchType::Json, json!({"op": "add"}), 400),
        (PatchType::Json, json!([{"op": "fly", "path": "/a"}]), 400),
        (PatchType::Json, json!([{"op": "test", "path": "/spec/replicas", "value": 2}]), 422),
        (PatchType::Json, json!([{"op": "remove", "path": "/spec/none"}]), 422),
        (PatchType::Json, Value::Array(doubling), 413),
        (PatchType::Json, Value::Array(many), 413),
        (PatchType::Merge, json!([1]), 400),
        (PatchType::Merge, json!({"spec": {"replicas": "many"}}), 400),
        (PatchType::Strategic, json!({"spec": {"colour": 1}}), 400),
        (PatchType::Apply, json!({}), 415),
    ] {
        assert_eq!(patched(patch_type, &current, &patch).unwrap_err().code, code);
    }
}

#[test]
fn content_types() {
    assert_eq!(PatchType::parse(Some("application/json-patch+json; charset=utf-8")), Ok(PatchType::Json));
    assert_eq!(PatchType::parse(Some("application/json")).unwrap_err().code, 415);
    assert_eq!(PatchType::parse(None).unwrap_err().code, 415);
}
