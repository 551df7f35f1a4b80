//! Bodies as clients send them, and as nobody should.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn deployment() -> BodyType {
    BodyType::of("apps", "v1", "Deployment")
}

fn decode_text(expected: &BodyType, body: &Value, validation: FieldValidation) -> Result<Decoded, ApiError> {
    decode(expected, Some("application/json"), body.to_string().as_bytes(), validation)
}

#[test]
fn nulls_and_unknown_fields_go_and_values_become_canonical() {
    let body = json!({
        "metadata": {"name": "web", "creationTimestamp": null},
        "spec": {
            "replicas": 2, "colour": "red", "template": {"spec": {"containers": [
                {"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}, "x": 1}]}}},
    });
    let decoded = decode_text(&deployment(), &body, FieldValidation::Warn).unwrap();
    assert_eq!(
        decoded.object,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [
                {"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}}},
        })
    );
    assert_eq!(
        decoded.warnings,
        ["unknown field \"spec.colour\"", "unknown field \"spec.template.spec.containers[0].x\""]
    );
    let error = decode_text(&deployment(), &body, FieldValidation::Strict).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (
            400,
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: \
             unknown field \"spec.colour\", unknown field \"spec.template.spec.containers[0].x\""
        )
    );
    assert!(decode_text(&deployment(), &body, FieldValidation::Ignore).unwrap().warnings.is_empty());
}

#[test]
fn wrong_json_types_are_named_with_their_path() {
    let table = [
        (json!({"spec": {"replicas": "2"}}), "spec.replicas: expected int32, got string"),
        (
            json!({"spec": {"replicas": 5_000_000_000_i64}}),
            "spec.replicas: 5000000000 does not fit into int32",
        ),
        (json!({"spec": 1}), "spec: expected object, got number"),
        (json!({"metadata": {"name": 1}}), "metadata.name: expected string, got number"),
        (json!({"metadata": {"labels": ["a"]}}), "metadata.labels: expected object, got array"),
        (json!({"metadata": {"labels": {"a": 1}}}), "metadata.labels[a]: expected string, got number"),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"ports": {}}]}}}}),
            "spec.template.spec.containers[0].ports: expected array, got object",
        ),
        (json!([]), "the body: expected object, got array"),
    ];
    for (body, wanted) in table {
        let error = decode_text(&deployment(), &body, FieldValidation::Warn).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.ends_with(wanted), "{}", error.message);
    }
}

#[test]
fn duplicates_and_foreign_kinds() {
    let body = br#"{"spec": {"replicas": 1, "replicas": 2}}"#;
    let decoded = decode(&deployment(), None, body, FieldValidation::Warn).unwrap();
    assert_eq!(decoded.object["spec"]["replicas"], 2);
    assert_eq!(decoded.warnings, ["duplicate field \"spec.replicas\""]);
    for (body, code) in [
        (&br#"{"kind": "Pod"}"#[..], 400),
        (br#"{"apiVersion": "v1"}"#, 400),
        (br#"{"a":"#, 400),
        (b"", 400),
        (b"{} {}", 400),
    ] {
        assert_eq!(decode(&deployment(), None, body, FieldValidation::Warn).unwrap_err().code, code);
    }
    let error = decode(&deployment(), Some("text/plain"), b"{}", FieldValidation::Warn).unwrap_err();
    assert_eq!(error.code, 415);
    assert!(decode(&DELETE_OPTIONS, None, b"", FieldValidation::Warn).is_ok());
    let foreign = br#"{"apiVersion":"policy/v1","kind":"DeleteOptions","gracePeriodSeconds":0}"#;
    let options = decode(&DELETE_OPTIONS, None, foreign, FieldValidation::Warn).unwrap();
    assert_eq!(options.object["gracePeriodSeconds"], 0);
}

#[test]
fn deep_nesting_is_refused() {
    let body = "[".repeat(100_000);
    assert_eq!(decode(&deployment(), None, body.as_bytes(), FieldValidation::Warn).unwrap_err().code, 400);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let body: Vec<u8> = b"k8s\0".iter().copied().chain(tail).collect();
        for expected in [deployment(), BodyType::of("", "v1", "Pod"), DELETE_OPTIONS] {
            for media in ["application/json", "application/vnd.kubernetes.protobuf"] {
                drop(decode(&expected, Some(media), &body, FieldValidation::Warn));
                drop(decode(&expected, Some(media), &body[4..], FieldValidation::Warn));
            }
        }
        let schema = schema::builtin();
        for owner in &schema.types {
            drop(protobuf::object(schema, owner, &body[4..]));
        }
    }
}
