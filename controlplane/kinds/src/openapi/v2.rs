//! OpenAPI v2, made out of the v3 documents. Clients that find no answer in v3 (an unknown kind) look here, and ask for
//! gnostic's protobuf form only.

mod gnostic;

use serde_json::{Map, Value, json};

use super::{document, group_versions};
use crate::Registry;

/// What kubectl and client-go ask for.
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What they get: the same, but for the `@`, which no media type may have and which their parsers refuse.
pub const PROTOBUF_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2` as JSON. Large: keep the bytes, not the value.
pub fn json(registry: &Registry) -> Value {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for (_, group, version) in group_versions(registry) {
        let Some(document) = document(registry, group, version) else { continue };
        for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
            definitions.insert(name.clone(), definition(schema));
        }
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            paths.insert(path.clone(), path_item(item));
        }
    }
    json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": "seaway"},
        "paths": paths, "definitions": definitions,
    })
}

/// `/openapi/v2` in the form of [`PROTOBUF_ANSWER`].
pub fn protobuf(registry: &Registry) -> Vec<u8> {
    gnostic::document(&json(registry))
}

fn reference(target: &Value) -> Value {
    let target = target.as_str().unwrap_or_default();
    target.replace("#/components/schemas/", "#/definitions/").into()
}

/// A schema in the words of v2, which has neither `oneOf` nor anything beside a `$ref`.
fn definition(schema: &Value) -> Value {
    let Some(members) = schema.as_object() else { return schema.clone() };
    let mut turned = Map::new();
    for (name, value) in members {
        match name.as_str() {
            "$ref" => drop(turned.insert("$ref".to_owned(), reference(value))),
            "allOf" => drop(turned.insert("$ref".to_owned(), reference(&value[0]["$ref"]))),
            "oneOf" => drop(turned.insert("type".to_owned(), "string".into())),
            "items" | "additionalProperties" => drop(turned.insert(name.clone(), definition(value))),
            "properties" => {
                let inner = value.as_object().into_iter().flatten();
                let inner: Map<String, Value> =
                    inner.map(|(name, value)| (name.clone(), definition(value))).collect();
                turned.insert(name.clone(), inner.into());
            }
            _ => drop(turned.insert(name.clone(), value.clone())),
        }
    }
    turned.into()
}

fn parameter(v3: &Value) -> Value {
    json!({"name": v3["name"], "in": v3["in"], "required": v3["required"], "type": "string", "uniqueItems": true})
}

fn parameters(v3: &Value) -> Vec<Value> {
    v3["parameters"].as_array().into_iter().flatten().map(parameter).collect()
}

fn path_item(v3: &Value) -> Value {
    let mut item = Map::new();
    for (method, value) in v3.as_object().into_iter().flatten() {
        let turned = if method == "parameters" { parameters(v3).into() } else { operation(value) };
        item.insert(method.clone(), turned);
    }
    item.into()
}

fn operation(v3: &Value) -> Value {
    let mut parameters = parameters(v3);
    let bodies = v3["requestBody"]["content"].as_object();
    let consumes: Vec<&String> = bodies.into_iter().flat_map(Map::keys).collect();
    if let Some(body) = bodies.and_then(|bodies| bodies.values().next()) {
        let schema = definition(&body["schema"]);
        parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
    }
    let answer = definition(&v3["responses"]["200"]["content"]["application/json"]["schema"]);
    let mut turned = json!({
        "consumes": consumes, "parameters": parameters, "tags": v3["tags"],
        "responses": {"200": {"description": "OK", "schema": answer}},
    });
    for name in ["x-kubernetes-action", "x-kubernetes-group-version-kind"] {
        turned[name] = v3[name].clone();
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_v3_is_left_in_it() {
        let document = json(&Registry::builtin());
        let text = document.to_string();
        for word in ["#/components", "oneOf", "allOf", "requestBody", "\"content\""] {
            assert!(!text.contains(word), "{word}");
        }
        let spec = &document["definitions"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"];
        assert_eq!(spec["template"]["$ref"], "#/definitions/io.k8s.api.core.v1.PodTemplateSpec");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let names: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"body"), "{names:?}");
    }
}
