//! The environment of a container. Pure: what must be fetched first is asked for by [`references`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, Pod};
use seaway_model::{Family, Snapshot};

/// An object that a container refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reference {
    /// A ConfigMap of the pod's namespace.
    ConfigMap(String),
    /// A Secret of it.
    Secret(String),
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConfigMap(name) => write!(f, "configmap {name:?}"),
            Self::Secret(name) => write!(f, "secret {name:?}"),
        }
    }
}

/// The data of referenced objects; `None` for one that does not exist.
pub(crate) type Objects = BTreeMap<Reference, Option<BTreeMap<String, Vec<u8>>>>;

/// What of the pod's own place a variable may tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// Its addresses.
    pub(crate) ips: &'a [IpAddr],
    /// The node's addresses.
    pub(crate) node_ips: &'a [IpAddr],
}

/// What must be fetched for the container's environment.
pub(crate) fn references(container: &Container) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    for source in container.env_from.iter().flatten() {
        found.extend(source.config_map_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
        found.extend(source.secret_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        found.extend(source.config_map_key_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
        found.extend(source.secret_key_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
    }
    found
}

/// The whole environment: the runtime's, the services', `envFrom`, `env`, each over the ones before.
pub(crate) fn environment(
    place: Place<'_>,
    container: &Container,
    hostname: &str,
    services: BTreeMap<String, String>,
    objects: &Objects,
) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), hostname.to_owned()),
        ("HOME".to_owned(), "/root".to_owned()),
    ]);
    env.extend(services);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let config = source.config_map_ref.as_ref();
        let secret = source.secret_ref.as_ref();
        let (reference, optional) = match (config, secret) {
            (Some(r), _) => (Reference::ConfigMap(r.name.clone()), r.optional),
            (_, Some(r)) => (Reference::Secret(r.name.clone()), r.optional),
            _ => continue,
        };
        let Some(data) = lookup(objects, &reference, optional.unwrap_or(false))? else { continue };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        env.extend(data.iter().map(|(key, value)| (format!("{prefix}{key}"), text(value))));
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &env)),
            (None, Some(source)) => from_source(place, source, objects)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

fn lookup<'a>(
    objects: &'a Objects,
    reference: &Reference,
    optional: bool,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, String> {
    match objects.get(reference).and_then(Option::as_ref) {
        Some(data) => Ok(Some(data)),
        None if optional => Ok(None),
        None => Err(format!("{reference} not found")),
    }
}

fn from_source(place: Place<'_>, source: &EnvVarSource, objects: &Objects) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(place, field).map(Some);
    }
    let (reference, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => (Reference::ConfigMap(r.name.clone()), &r.key, r.optional),
        (_, Some(r)) => (Reference::Secret(r.name.clone()), &r.key, r.optional),
        _ => return Err("resourceFieldRef is not supported by the builtin runtime".to_owned()),
    };
    let optional = optional.unwrap_or(false);
    match lookup(objects, &reference, optional)?.and_then(|data| data.get(key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(format!("{reference} has no key {key:?}")),
    }
}

/// The downward API.
pub(crate) fn field_value(place: Place<'_>, field: &ObjectFieldSelector) -> Result<String, String> {
    let metadata = &place.pod.metadata;
    let spec = place.pod.spec.as_ref();
    let list = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let path = field.field_path.as_str();
    let text = match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => pairs(metadata.labels.as_ref()),
        "metadata.annotations" => pairs(metadata.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.podIP" => first(place.ips),
        "status.podIPs" => list(place.ips),
        "status.hostIP" => first(place.node_ips),
        "status.hostIPs" => list(place.node_ips),
        _ => {
            let within = |map: &str| path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']");
            let (map, key) = if let Some(key) = within("metadata.labels") {
                (metadata.labels.as_ref(), key)
            } else if let Some(key) = within("metadata.annotations") {
                (metadata.annotations.as_ref(), key)
            } else {
                return Err(format!("fieldRef {path:?} is not supported"));
            };
            map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
        }
    };
    Ok(text)
}

fn pairs(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// `$(NAME)` becomes the variable's value, `$$` a dollar; what is not known stays as it is.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `<SERVICE>_SERVICE_HOST` and `<SERVICE>_SERVICE_PORT…` of the Services of the pod's namespace (with
/// `enableServiceLinks`) and of the API server.
pub(crate) fn services(pod: &Pod, snapshot: &Snapshot) -> BTreeMap<String, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut env = BTreeMap::new();
    for service in snapshot.services.values() {
        let api_server = &*service.key.namespace == "default" && &*service.key.name == "kubernetes";
        let linked = links && &*service.key.namespace == namespace;
        if !api_server && !linked {
            continue;
        }
        let Some(ip) = service.cluster_ips.iter().min_by_key(|ip| Family::of(**ip)) else { continue };
        let prefix = service.key.name.to_uppercase().replace(['-', '.'], "_");
        env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
        if let Some(port) = service.ports.first() {
            env.insert(format!("{prefix}_SERVICE_PORT"), port.port.to_string());
        }
        for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
            let name = port.name.to_uppercase().replace('-', "_");
            env.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [container]},
        }))
        .unwrap()
    }

    fn env_of(pod: &Pod, objects: &Objects) -> Result<BTreeMap<String, String>, String> {
        let (ips, node_ips) = (["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()], []);
        let place = Place { pod, ips: &ips, node_ips: &node_ips };
        environment(place, &pod.spec.as_ref().unwrap().containers[0], "web", BTreeMap::new(), objects)
    }

    #[test]
    fn variables_are_expanded_from_those_before() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, want) in
            [("$(A)", "1"), ("x$(A)y$(B)", "x1y$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &env), want);
        }
    }

    #[test]
    fn the_downward_api_tells_the_pods_place() {
        let field =
            |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let pod = pod(json!({"name": "a", "env": [
            field("NODE", "spec.nodeName"), field("IPS", "status.podIPs"), field("APP", "metadata.labels['app']"),
            {"name": "BOTH", "value": "$(NODE)/$(APP)"}]}));
        let env = env_of(&pod, &Objects::new()).unwrap();
        assert_eq!((env["IPS"].as_str(), env["BOTH"].as_str()), ("10.0.0.1,fd00::1", "n1/web"));
        assert_eq!(env["HOSTNAME"], "web");
    }

    #[test]
    fn references_are_found_and_missing_ones_named() {
        let pod = pod(json!({"name": "a",
            "envFrom": [{"prefix": "C_", "configMapRef": {"name": "conf"}},
                        {"secretRef": {"name": "none", "optional": true}}],
            "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(references(container).len(), 3);
        let data = |key: &str, value: &str| Some(BTreeMap::from([(key.to_owned(), value.into())]));
        let mut objects = Objects::from([
            (Reference::ConfigMap("conf".into()), data("x", "1")),
            (Reference::Secret("sec".into()), data("k", "v")),
        ]);
        let env = env_of(&pod, &objects).unwrap();
        assert_eq!((env["C_x"].as_str(), env["KEY"].as_str()), ("1", "v"));
        objects.insert(Reference::Secret("sec".into()), None);
        assert_eq!(env_of(&pod, &objects).unwrap_err(), "secret \"sec\" not found");
    }
}
