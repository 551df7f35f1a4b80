//! Bodies as clients send them, and as nobody should.

mod random;

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

/// Writes protobuf by the schema, as generated clients do.
mod encode {
    use base64::Engine;
    use serde_json::Value;

    use crate::schema::{Container, Field, Schema, Shape, Type};

    fn varint(mut number: u64, out: &mut Vec<u8>) {
        while number >= 0x80 {
            out.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        out.push(number.to_le_bytes()[0]);
    }

    fn bytes(number: u32, content: &[u8], out: &mut Vec<u8>) {
        varint(u64::from(number) << 3 | 2, out);
        varint(content.len() as u64, out);
        out.extend(content);
    }

    fn int(number: u32, value: i64, out: &mut Vec<u8>) {
        varint(u64::from(number) << 3, out);
        varint(value.cast_unsigned(), out);
    }

    fn wrapped(inner: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        inner(&mut out);
        out
    }

    pub(super) fn message(schema: &Schema, owner: &Type, object: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        for field in &owner.fields {
            if field.name.is_empty() {
                let inner = schema.object(field.shape).unwrap();
                bytes(field.number, &message(schema, inner, object), &mut out);
                continue;
            }
            match (object.get(field.name), field.container) {
                (None, _) => {}
                (Some(value), Container::One) => one(schema, field, field.number, value, &mut out),
                (Some(list), Container::List) => {
                    for value in list.as_array().unwrap() {
                        one(schema, field, field.number, value, &mut out);
                    }
                }
                (Some(map), Container::Map) => {
                    for (key, value) in map.as_object().unwrap() {
                        let entry = wrapped(|out| {
                            bytes(1, key.as_bytes(), out);
                            one(schema, field, 2, value, out);
                        });
                        bytes(field.number, &entry, &mut out);
                    }
                }
            }
        }
        out
    }

    fn one(schema: &Schema, field: &Field, number: u32, value: &Value, out: &mut Vec<u8>) {
        let text = value.as_str().unwrap_or_default();
        match field.shape {
            Shape::String => bytes(number, text.as_bytes(), out),
            Shape::Bool => int(number, i64::from(value.as_bool().unwrap()), out),
            Shape::Int32 | Shape::Int64 => int(number, value.as_i64().unwrap(), out),
            Shape::Bytes => {
                bytes(number, &base64::engine::general_purpose::STANDARD.decode(text).unwrap(), out);
            }
            Shape::Quantity => bytes(number, &wrapped(|out| bytes(1, text.as_bytes(), out)), out),
            Shape::IntOrString => {
                let content = wrapped(|out| {
                    int(1, i64::from(value.is_string()), out);
                    int(2, value.as_i64().unwrap_or(0), out);
                    bytes(3, text.as_bytes(), out);
                });
                bytes(number, &content, out);
            }
            Shape::Time | Shape::MicroTime => {
                let time: jiff::Timestamp = text.parse().unwrap();
                let content = wrapped(|out| {
                    int(1, time.as_second(), out);
                    int(2, i64::from(time.subsec_nanosecond()), out);
                });
                bytes(number, &content, out);
            }
            Shape::Any => bytes(number, &wrapped(|out| bytes(1, value.to_string().as_bytes(), out)), out),
            Shape::Object(_) => {
                bytes(number, &message(schema, schema.object(field.shape).unwrap(), value), out);
            }
        }
    }

    pub(super) fn envelope(api: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = wrapped(|out| {
            bytes(1, api.as_bytes(), out);
            bytes(2, kind.as_bytes(), out);
        });
        let mut out = b"k8s\0".to_vec();
        bytes(1, &meta, &mut out);
        bytes(2, raw, &mut out);
        out
    }
}

#[test]
fn protobuf_says_the_same_as_json() {
    let meta = json!({"name": "a", "namespace": "b", "labels": {"x": "y", "empty": ""}, "generation": 3,
        "creationTimestamp": "2026-11-21T07:00:00Z", "finalizers": ["f/g"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}],
        "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]});
    let objects = [
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {
            "terminationGracePeriodSeconds": 0, "hostNetwork": true,
            "securityContext": {"supplementalGroups": [1, 2], "runAsUser": 0},
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "c", "defaultMode": 420}}],
            "containers": [{"name": "c", "image": "i", "command": ["a", "b"],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": "web", "path": "/"}, "periodSeconds": 5},
                "readinessProbe": {"tcpSocket": {"port": 80}},
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}],
            "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {
            "ports": [{"name": "a", "port": 80, "targetPort": "web"}, {"name": "b", "port": 81, "targetPort": 8081}],
            "clusterIPs": ["10.96.0.1"], "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"a": "AAEC"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {"podCIDRs": ["10.244.0.0/24"]},
            "status": {"capacity": {"pods": "110"}, "nodeInfo": {"machineID": "", "systemUUID": "", "bootID": "",
                "kernelVersion": "6", "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"}}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {"replicas": 0,
            "selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta,
            "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}, "nodeName": "n"}]}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {
            "holderIdentity": "h", "leaseDurationSeconds": 40, "renewTime": "2026-11-21T07:00:00.123456Z"}}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": {"kind": "Pod"},
            "count": 2, "eventTime": "2026-11-21T07:00:00.000001Z", "reportingComponent": "", "reportingInstance": ""}),
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta,
            "deleteOptions": {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}}),
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta, "spec": {"replicas": 2},
            "status": {"replicas": 1}}),
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": meta, "target": {"kind": "Node", "name": "n"}}),
    ];
    let schema = schema::builtin();
    for object in objects {
        let (api, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        let expected = BodyType {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            kind: kind.to_owned().into(),
        };
        let owner = expected.schema_type(schema).unwrap();
        let body = encode::envelope(api, kind, &encode::message(schema, owner, &object));
        let media = Some("application/vnd.kubernetes.protobuf");
        let decoded = decode(&expected, media, &body, FieldValidation::Strict).unwrap();
        assert_eq!(decoded.object, object);
        // JSON is the other way to say it, and an object in canonical form stays what it is.
        let text = object.to_string();
        let decoded = decode(&expected, None, text.as_bytes(), FieldValidation::Strict).unwrap();
        assert_eq!(decoded.object, object);
        // Cut anywhere, it is refused or a smaller object, never a panic.
        for end in 0..body.len() {
            drop(decode(&expected, media, &body[..end], FieldValidation::Strict));
        }
    }
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
