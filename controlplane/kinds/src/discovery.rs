//! The documents that tell clients what the server serves.

use serde_json::{Value, json};

use crate::kind::api_version;
use crate::{Kind, Registry};

/// `/api`: the versions of the core group. `server_address` is what clients reached the server at (`host:port`).
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

fn group_body(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": api_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": versions[0].clone(), "versions": versions})
}

/// `/apis`: the groups besides the core group.
pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        registry.groups().iter().map(|(group, versions)| group_body(group, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`.
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    let (name, versions) = registry.groups().into_iter().find(|(name, _)| *name == group)?;
    let mut body = group_body(name, &versions);
    body["kind"] = "APIGroup".into();
    body["apiVersion"] = "v1".into();
    Some(body)
}

fn resource_entries(kind: &Kind) -> Vec<Value> {
    let mut own = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        own["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        own["categories"] = json!(kind.categories);
    }
    let mut entries = vec![own];
    for subresource in &kind.subresources {
        let mut entry = json!({
            "name": format!("{}/{}", kind.plural, subresource.name), "singularName": "",
            "namespaced": kind.namespaced, "kind": subresource.body.kind, "verbs": subresource.verbs,
        });
        let body = &subresource.body;
        if (&body.group, &body.version) != (&kind.group, &kind.version) {
            entry["group"] = json!(body.group);
            entry["version"] = json!(body.version);
        }
        entries.push(entry);
    }
    entries
}

/// `/api/v1` and `/apis/{group}/{version}`.
pub fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    if !registry.serves(group, version) {
        return None;
    }
    let resources: Vec<Value> = registry
        .kinds()
        .iter()
        .filter(|kind| kind.group == group && kind.version == version)
        .flat_map(|kind| resource_entries(kind))
        .collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version(group, version), "resources": resources,
    }))
}

fn aggregated_resource(kind: &Kind) -> Value {
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": scope, "singularResource": kind.singular, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|subresource| {
            let body = &subresource.body;
            json!({
                "subresource": subresource.name,
                "responseKind": {"group": body.group, "version": body.version, "kind": body.kind},
                "verbs": subresource.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

fn aggregated_group(registry: &Registry, group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = registry
                .kinds()
                .iter()
                .filter(|kind| kind.group == group && kind.version == *version)
                .map(|kind| aggregated_resource(kind))
                .collect();
            json!({"version": version, "freshness": "Current", "resources": resources})
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated(version: &str, items: Vec<Value>) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

/// `/api` in aggregated form; `version` is `v2` or `v2beta1`.
pub fn aggregated_core(registry: &Registry, version: &str) -> Value {
    aggregated(version, vec![aggregated_group(registry, "", &["v1"])])
}

/// `/apis` in aggregated form.
pub fn aggregated_groups(registry: &Registry, version: &str) -> Value {
    let items = registry
        .groups()
        .iter()
        .map(|(group, versions)| aggregated_group(registry, group, versions))
        .collect();
    aggregated(version, items)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_raw_string_hashes, reason = "snapshots are written by expect-test")]

    use expect_test::expect;

    use super::*;

    #[test]
    fn resources() {
        let registry = Registry::builtin();
        let mut lines = Vec::new();
        for (group, version) in [("", "v1"), ("apps", "v1"), ("discovery.k8s.io", "v1")] {
            let list = resource_list(&registry, group, version).unwrap();
            for entry in list["resources"].as_array().unwrap() {
                let words = |key: &str| entry[key].as_array().map_or(0, Vec::len);
                let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
                let group = [text("group"), text("kind")].join(".");
                lines.push(format!(
                    "{} {} {} verbs={} short={}",
                    text("name"),
                    group.trim_start_matches('.'),
                    if entry["namespaced"] == true { "namespaced" } else { "cluster" },
                    words("verbs"),
                    words("shortNames"),
                ));
            }
        }
        expect![[r#"
            configmaps ConfigMap namespaced verbs=8 short=1
            endpoints Endpoints namespaced verbs=8 short=1
            events Event namespaced verbs=8 short=1
            namespaces Namespace cluster verbs=7 short=1
            namespaces/finalize Namespace cluster verbs=1 short=0
            namespaces/status Namespace cluster verbs=3 short=0
            nodes Node cluster verbs=8 short=1
            nodes/status Node cluster verbs=3 short=0
            pods Pod namespaced verbs=8 short=1
            pods/binding Binding namespaced verbs=1 short=0
            pods/eviction policy.Eviction namespaced verbs=1 short=0
            pods/log Pod namespaced verbs=1 short=0
            pods/status Pod namespaced verbs=3 short=0
            secrets Secret namespaced verbs=8 short=0
            serviceaccounts ServiceAccount namespaced verbs=8 short=1
            services Service namespaced verbs=8 short=1
            services/status Service namespaced verbs=3 short=0
            controllerrevisions ControllerRevision namespaced verbs=8 short=0
            daemonsets DaemonSet namespaced verbs=8 short=1
            daemonsets/status DaemonSet namespaced verbs=3 short=0
            deployments Deployment namespaced verbs=8 short=1
            deployments/scale autoscaling.Scale namespaced verbs=3 short=0
            deployments/status Deployment namespaced verbs=3 short=0
            replicasets ReplicaSet namespaced verbs=8 short=1
            replicasets/scale autoscaling.Scale namespaced verbs=3 short=0
            replicasets/status ReplicaSet namespaced verbs=3 short=0
            endpointslices EndpointSlice namespaced verbs=8 short=0"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn the_two_forms_agree() {
        let registry = Registry::builtin();
        let groups = group_list(&registry);
        let aggregated = aggregated_groups(&registry, "v2");
        let names = |list: &Value, path: &str| -> Vec<Value> {
            list.as_array().unwrap().iter().map(|item| item.pointer(path).unwrap().clone()).collect()
        };
        assert_eq!(names(&groups["groups"], "/name"), names(&aggregated["items"], "/metadata/name"));
        for item in aggregated["items"].as_array().unwrap() {
            let name = item["metadata"]["name"].as_str().unwrap();
            let legacy = resource_list(&registry, name, "v1").unwrap();
            let plain: Vec<&Value> = legacy["resources"]
                .as_array()
                .unwrap()
                .iter()
                .map(|resource| &resource["name"])
                .filter(|name| !name.as_str().unwrap().contains('/'))
                .collect();
            let resources = item["versions"][0]["resources"].as_array().unwrap();
            assert_eq!(plain, resources.iter().map(|resource| &resource["resource"]).collect::<Vec<_>>());
            assert_eq!(group(&registry, name).unwrap()["preferredVersion"]["version"], "v1");
        }
        assert!(group(&registry, "none").is_none() && resource_list(&registry, "none", "v1").is_none());
        let core = aggregated_core(&registry, "v2beta1");
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        assert_eq!(core["items"][0]["versions"][0]["resources"].as_array().unwrap().len(), 9);
    }
}
