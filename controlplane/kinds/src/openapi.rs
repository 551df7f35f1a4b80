//! OpenAPI v3 documents, made from the schema and the registry. kubectl reads them for `apply`, `explain` and to learn
//! whether the server validates fields.

pub mod v2;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::decode::BodyType;
use crate::kind::api_version;
use crate::schema::{self, Container, Field, Presence, Schema, Shape, Type};
use crate::{Kind, Registry};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The group versions that have a document, with the path below `/openapi/v3/`.
fn group_versions(registry: &Registry) -> Vec<(String, &str, &str)> {
    let mut known: Vec<(String, &str, &str)> = Vec::new();
    for kind in registry.kinds() {
        let path = document_path(&kind.group, &kind.version);
        if known.iter().all(|(other, ..)| *other != path) {
            known.push((path, &kind.group, &kind.version));
        }
    }
    known
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the document of each group version is, with a hash of its content. Makes every document for
/// its hash: call it once and keep the bytes.
pub fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (path, group, version) in group_versions(registry) {
        let content =
            document(registry, group, version).map(|document| document.to_string()).unwrap_or_default();
        let url = format!("/openapi/v3/{path}?hash={:016X}", fnv(content.as_bytes()));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// FNV-1a: enough to tell two versions of a document apart.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `/openapi/v3/api/v1` and `/openapi/v3/apis/{group}/{version}`. Large: keep the bytes, not the value.
pub fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    if !registry.serves(group, version) {
        return None;
    }
    let schema = schema::builtin();
    let mut paths = Map::new();
    let mut wanted = BTreeSet::new();
    let own = registry.kinds().iter().filter(|kind| kind.group == group && kind.version == version);
    for kind in own {
        add_paths(kind, schema, &mut paths);
        let bodies = kind.subresources.iter().map(|subresource| subresource.body.clone());
        for body in bodies.chain([kind.body()]) {
            if let Ok(owner) = body.schema_type(schema) {
                collect(schema, owner, &mut wanted);
            }
        }
    }
    let mut schemas: Map<String, Value> = basic_schemas();
    for at in wanted {
        if let Some(owner) = schema.types.get(at) {
            schemas.insert(type_name(owner), type_schema(schema, owner));
        }
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "seaway"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

/// Adds the places of a type and of everything inside it.
fn collect(schema: &Schema, owner: &Type, wanted: &mut BTreeSet<usize>) {
    let Some(at) = schema.types.iter().position(|known| known.name == owner.name) else { return };
    if wanted.insert(at) {
        for inner in owner.fields.iter().filter_map(|field| schema.object(field.shape)) {
            collect(schema, inner, wanted);
        }
    }
}

fn type_name(owner: &Type) -> String {
    format!("{}.{}", owner.package, owner.bare_name())
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// The types that are written as plain JSON values.
fn basic_schemas() -> Map<String, Value> {
    let mut schemas = Map::new();
    let mut add = |name: &str, schema: Value| schemas.insert(name.to_owned(), schema);
    add(&format!("{META}.Time"), json!({"type": "string", "format": "date-time"}));
    add(&format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"}));
    add(&format!("{META}.FieldsV1"), json!({"type": "object"}));
    add("io.k8s.apimachinery.pkg.runtime.RawExtension", json!({"type": "object"}));
    add(
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
        json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
    );
    add(
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
    );
    schemas
}

fn reference(name: &str) -> Value {
    json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}]})
}

fn value_schema(schema: &Schema, field: &Field) -> Value {
    match field.shape {
        Shape::String => json!({"type": "string"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Quantity => reference("io.k8s.apimachinery.pkg.api.resource.Quantity"),
        Shape::IntOrString => reference("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
        Shape::Time => reference(&format!("{META}.Time")),
        Shape::MicroTime => reference(&format!("{META}.MicroTime")),
        Shape::Any if field.name == "fieldsV1" => reference(&format!("{META}.FieldsV1")),
        Shape::Any => reference("io.k8s.apimachinery.pkg.runtime.RawExtension"),
        Shape::Object(_) => {
            schema.object(field.shape).map_or_else(|| json!({}), |owner| reference(&type_name(owner)))
        }
    }
}

fn field_schema(schema: &Schema, field: &Field) -> Value {
    let value = value_schema(schema, field);
    let mut property = match field.container {
        Container::One => value,
        Container::List => json!({"type": "array", "items": value}),
        Container::Map => json!({"type": "object", "additionalProperties": value}),
    };
    let mut strategies = Vec::new();
    if let Some(key) = field.merge {
        strategies.push("merge");
        if !key.is_empty() {
            property["x-kubernetes-patch-merge-key"] = key.into();
        }
    }
    if field.retain_keys {
        strategies.push("retainKeys");
    }
    if !strategies.is_empty() {
        property["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    if !field.keys.is_empty() {
        property["x-kubernetes-list-type"] = "map".into();
        property["x-kubernetes-list-map-keys"] = json!(field.keys);
    } else if field.set {
        property["x-kubernetes-list-type"] = "set".into();
    } else if field.container == Container::List || field.atomic {
        let what = if field.container == Container::List { "list" } else { "map" };
        property[format!("x-kubernetes-{what}-type")] = "atomic".into();
    }
    property
}

fn type_schema(schema: &Schema, owner: &Type) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    if owner.is_kind {
        properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
        properties.insert("kind".to_owned(), json!({"type": "string"}));
    }
    for field in schema.json_fields(owner) {
        properties.insert(field.name.to_owned(), field_schema(schema, field));
        if field.presence == Presence::Required {
            required.push(field.name);
        }
    }
    let mut object = json!({"type": "object", "properties": properties});
    if owner.atomic {
        object["x-kubernetes-map-type"] = "atomic".into();
    }
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    if owner.is_kind {
        let (group, version) = owner.api.split_once('/').unwrap_or(("", owner.api));
        object["x-kubernetes-group-version-kind"] = json!([gvk(group, version, owner.bare_name())]);
    }
    object
}

fn parameter(name: &str, place: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": "string", "uniqueItems": true}})
}

/// One operation: what it does, on which kind, with which body and query parameters.
fn operation(action: &str, kind: &Kind, body: &BodyType, schema: &Schema, query: &[&str]) -> Value {
    let content = body.schema_type(schema).map_or_else(
        |_| json!({}),
        |owner| json!({"$ref": format!("#/components/schemas/{}", type_name(owner))}),
    );
    let mut operation = json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(&body.group, &body.version, &body.kind),
        "tags": [format!("{}_{}", kind.group, kind.version)],
        "parameters": query.iter().map(|name| parameter(name, "query")).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": content}}}},
    });
    match action {
        "post" | "put" => {
            operation["requestBody"] = json!({"content": {"*/*": {"schema": content}}, "required": true});
        }
        "patch" => {
            let any = json!({"schema": {"type": "object"}});
            let types: Map<String, Value> =
                PATCH_TYPES.iter().map(|media| ((*media).to_owned(), any.clone())).collect();
            operation["requestBody"] = json!({"content": types, "required": true});
        }
        _ => {}
    }
    operation
}

const WRITE_QUERY: [&str; 4] = ["pretty", "dryRun", "fieldManager", "fieldValidation"];
const LIST_QUERY: [&str; 10] = [
    "pretty",
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE_QUERY: [&str; 4] = ["pretty", "dryRun", "gracePeriodSeconds", "propagationPolicy"];

fn add_paths(kind: &Kind, schema: &Schema, paths: &mut Map<String, Value>) {
    let base = if kind.group.is_empty() { "/api/" } else { "/apis/" };
    let base = format!("{base}{}", api_version(&kind.group, &kind.version));
    let plural = &kind.plural;
    let scope: &[&str] = if kind.namespaced { &["namespace"] } else { &[] };
    let inner = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let body = kind.body();
    let make = |action: &str, query: &[&str]| operation(action, kind, &body, schema, query);
    let parameters = |names: &[&str]| -> Value { names.iter().map(|name| parameter(name, "path")).collect() };
    if !kind.is_stored() {
        paths.insert(format!("{base}/{plural}"), json!({"post": make("post", &WRITE_QUERY)}));
        return;
    }
    if kind.namespaced {
        paths.insert(format!("{base}/{plural}"), json!({"get": make("list", &LIST_QUERY)}));
    }
    paths.insert(
        format!("{base}{inner}/{plural}"),
        json!({
            "get": make("list", &LIST_QUERY), "post": make("post", &WRITE_QUERY),
            "delete": make("deletecollection", &DELETE_QUERY), "parameters": parameters(scope),
        }),
    );
    let named = [&["name"], scope].concat();
    paths.insert(
        format!("{base}{inner}/{plural}/{{name}}"),
        json!({
            "get": make("get", &["pretty"]), "put": make("put", &WRITE_QUERY),
            "patch": make("patch", &WRITE_QUERY), "delete": make("delete", &DELETE_QUERY),
            "parameters": parameters(&named),
        }),
    );
    for subresource in &kind.subresources {
        let mut item = json!({"parameters": parameters(&named)});
        for verb in &subresource.verbs {
            let method = match verb.as_ref() {
                "create" => "post",
                "update" => "put",
                other => other,
            };
            item[method] = operation(method, kind, &subresource.body, schema, &WRITE_QUERY);
        }
        paths.insert(format!("{base}{inner}/{plural}/{{name}}/{}", subresource.name), item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(members) => {
                    for (key, member) in members {
                        match member.as_str() {
                            Some(target) if key == "$ref" => {
                                found.insert(target.to_owned());
                            }
                            _ => references(member, found),
                        }
                    }
                }
                Value::Array(elements) => elements.iter().for_each(|element| references(element, found)),
                _ => {}
            }
        }
        let registry = Registry::builtin();
        let index = index(&registry);
        for (path, group, version) in group_versions(&registry) {
            let url = index["paths"][&path]["serverRelativeURL"].as_str().unwrap();
            assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")), "{url}");
            let document = document(&registry, group, version).unwrap();
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for target in found {
                let name = target.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {target}");
            }
        }
        assert!(document(&registry, "apps", "v2").is_none());
    }

    #[test]
    fn merge_keys_and_field_validation_are_told() {
        let document = document(&Registry::builtin(), "apps", "v1").unwrap();
        let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let names: Vec<&Value> =
            patch["parameters"].as_array().unwrap().iter().map(|parameter| &parameter["name"]).collect();
        assert!(names.contains(&&json!("fieldValidation")));
    }
}
