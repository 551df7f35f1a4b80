//! Who is asking (from the client certificate) and what they may do: a small static table in place of RBAC objects, and
//! the limits that keep a node agent to its own node.

use seaway_kinds::{ApiError, Kind};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{objects, pki::MASTERS};

/// The group of node agents.
const NODES: &str = "system:nodes";
/// Read access to everything that the data plane of a node watches, for agents on foreign clusters' terms.
const DATA_PLANE: &str = "seaway:data-plane";
const SCHEDULER: &str = "system:kube-scheduler";
const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
const ANONYMOUS: &str = "system:anonymous";

/// A user with groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
}

/// One request on a resource, as far as permission depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl Identity {
    /// Somebody without a certificate.
    pub(crate) fn anonymous() -> Self {
        Self { user: ANONYMOUS.to_owned(), groups: vec!["system:unauthenticated".to_owned()] }
    }

    /// From the certificate that TLS has verified: common name and organizations.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let subject = cert.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        Some(Self { user, groups })
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node whose agent this is.
    pub(crate) fn node(&self) -> Option<&str> {
        self.is_in(NODES).then(|| self.user.strip_prefix("system:node:")).flatten()
    }

    /// Whether a path that is not a resource's may be read.
    pub(crate) fn may_read_path(&self, path: &str) -> bool {
        !self.is_anonymous()
            || matches!(path, "/version" | "/version/")
            || ["/healthz", "/livez", "/readyz"].iter().any(|health| path.starts_with(health))
    }

    /// Whether the request may be made at all. [`Identity::check_write`] looks at the object afterwards.
    pub(crate) fn may(&self, request: &Attributes<'_>) -> bool {
        if self.is_in(MASTERS) || self.user == CONTROLLER_MANAGER {
            return true;
        }
        if self.is_anonymous() {
            return false;
        }
        let read = matches!(request.verb, "get" | "list" | "watch");
        let events = request.resource == "events" && !request.verb.starts_with("delete");
        if self.user == SCHEDULER {
            return read && request.resource != "secrets" || events || scheduler_may_write(request);
        }
        if self.node().is_some() {
            return read || events || node_may_write(request);
        }
        self.is_in(DATA_PLANE) && (events || read && is_data_plane(request))
    }

    /// What a node agent may write depends on the object: its own Node, its own pods, its own DNS endpoints.
    pub(crate) fn check_write(&self, kind: &Kind, object: &Value) -> Result<(), ApiError> {
        let Some(node) = self.node() else { return Ok(()) };
        let name = objects::meta(object, "name");
        let own = match &*kind.plural {
            "nodes" => name == node,
            "leases" => objects::meta(object, "namespace") != "kube-node-lease" || name == node,
            "pods" => object["spec"]["nodeName"].as_str() == Some(node),
            "endpointslices" => name.strip_prefix("kube-dns-").is_some_and(|rest| {
                rest.strip_prefix(node).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            }),
            _ => true,
        };
        if own {
            return Ok(());
        }
        let why = format!("node \"{node}\" can only change what belongs to it");
        Err(ApiError::forbidden(kind, name, &why))
    }
}

/// The node whose DNS server `new` takes out of service, where that is all that it does to `old`. Others may do so for a
/// node that nobody hears of any more.
pub(crate) fn withdrawn_dns<'a>(kind: &Kind, old: &'a Value, new: &Value) -> Option<&'a str> {
    let dns = kind.plural == "endpointslices" && objects::meta(old, "name").starts_with("kube-dns-");
    let endpoints = |slice: &Value| slice["endpoints"].as_array().cloned().unwrap_or_default();
    let (told, mut wanted) = (endpoints(new), endpoints(old));
    for endpoint in &mut wanted {
        endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    }
    let kept = |slice: &Value| {
        let meta =
            ["labels", "annotations", "ownerReferences", "finalizers"].map(|field| &slice["metadata"][field]);
        (meta.map(Clone::clone), slice["ports"].clone(), slice["addressType"].clone())
    };
    let node = old["endpoints"][0]["nodeName"].as_str()?;
    let one = wanted.iter().all(|endpoint| endpoint["nodeName"] == node);
    (dns && one && told == wanted && kept(old) == kept(new)).then_some(node)
}

fn scheduler_may_write(request: &Attributes<'_>) -> bool {
    match (request.resource, request.subresource) {
        ("pods", "binding" | "status" | "eviction") | ("leases", "") => true,
        ("pods", "") => request.verb == "delete",
        _ => false,
    }
}

fn node_may_write(request: &Attributes<'_>) -> bool {
    let creates = matches!(request.verb, "create" | "update" | "patch");
    match (request.resource, request.subresource) {
        ("nodes", "" | "status") | ("leases", "") | ("pods", "status" | "eviction") => creates,
        ("pods", "") => request.verb == "delete",
        ("endpointslices", "") => request.namespace == "kube-system" && (creates || request.verb == "delete"),
        _ => false,
    }
}

fn is_data_plane(request: &Attributes<'_>) -> bool {
    let known = ["services", "endpoints", "endpointslices", "nodes", "namespaces", "pods"];
    matches!(request.group, "" | "discovery.k8s.io") && known.contains(&request.resource)
}

/// The refusal, in Kubernetes' words.
pub(crate) fn forbidden(identity: &Identity, kind: &Kind, request: &Attributes<'_>) -> ApiError {
    let resource = if request.subresource.is_empty() {
        request.resource.to_owned()
    } else {
        format!("{}/{}", request.resource, request.subresource)
    };
    let scope = if request.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", request.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
        identity.user, request.verb, request.group
    );
    ApiError::forbidden(kind, request.name, &why)
}

#[cfg(test)]
mod tests {
    use seaway_kinds::Registry;

    use super::*;

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity { user: user.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }

    #[test]
    fn who_may_do_what() {
        let admin = identity("kubernetes-admin", &["system:masters"]);
        let node = identity("system:node:n1", &["system:nodes"]);
        let scheduler = identity(SCHEDULER, &[]);
        let proxy = identity("seaway:proxy", &["seaway:data-plane"]);
        let nobody = Identity::anonymous();
        // verb, resource, subresource, namespace: admin, node, scheduler, proxy, nobody
        let table = [
            ("list", "services", "", "", [true, true, true, true, false]),
            ("list", "secrets", "", "a", [true, true, false, false, false]),
            ("create", "pods", "", "a", [true, false, false, false, false]),
            ("create", "pods", "binding", "a", [true, false, true, false, false]),
            ("update", "pods", "status", "a", [true, true, true, false, false]),
            ("delete", "pods", "", "a", [true, true, true, false, false]),
            ("create", "nodes", "", "", [true, true, false, false, false]),
            ("delete", "nodes", "", "", [true, false, false, false, false]),
            ("create", "events", "", "a", [true, true, true, true, false]),
            ("create", "endpointslices", "", "kube-system", [true, true, false, false, false]),
            ("create", "endpointslices", "", "a", [true, false, false, false, false]),
        ];
        for (verb, resource, subresource, namespace, wanted) in table {
            let request = Attributes { verb, group: "", resource, subresource, namespace, name: "" };
            let got = [&admin, &node, &scheduler, &proxy, &nobody].map(|who| who.may(&request));
            assert_eq!(got, wanted, "{request:?}");
        }
        assert!(nobody.may_read_path("/readyz") && nobody.may_read_path("/version"));
        assert!(!nobody.may_read_path("/api") && !nobody.may_read_path("/metrics"));
        assert!(node.may_read_path("/openapi/v3"));
    }

    #[test]
    fn a_node_writes_only_what_is_its_own() {
        let registry = Registry::builtin();
        let node = identity("system:node:n1", &["system:nodes"]);
        let table = [
            ("", "v1", "nodes", json!({"metadata": {"name": "n1"}}), true),
            ("", "v1", "nodes", json!({"metadata": {"name": "n2"}}), false),
            ("", "v1", "pods", json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}}), true),
            ("", "v1", "pods", json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n2"}}), false),
            ("", "v1", "pods", json!({"metadata": {"name": "a"}}), false),
            (
                "discovery.k8s.io",
                "v1",
                "endpointslices",
                json!({"metadata": {"name": "kube-dns-n1-ipv4"}}),
                true,
            ),
            (
                "discovery.k8s.io",
                "v1",
                "endpointslices",
                json!({"metadata": {"name": "kube-dns-n11-ipv4"}}),
                false,
            ),
        ];
        for (group, version, plural, object, wanted) in table {
            let kind = registry.resource(group, version, plural).unwrap();
            assert_eq!(node.check_write(kind, &object).is_ok(), wanted, "{object}");
        }
    }

    #[test]
    fn a_silent_nodes_dns_is_taken_out_and_nothing_else_is_done_to_it() {
        let registry = Registry::builtin();
        let kind = registry.resource("discovery.k8s.io", "v1", "endpointslices").unwrap();
        let slice = |name: &str, address: &str, up: bool| {
            json!({"metadata": {"name": name, "labels": {"a": "b"}}, "ports": [{"port": 10053}], "endpoints": [{
                "addresses": [address], "nodeName": "n2",
                "conditions": {"ready": up, "serving": up, "terminating": false},
            }]})
        };
        let old = slice("kube-dns-n2-ipv4", "192.0.2.2", true);
        let withdrawn = |new: &Value| withdrawn_dns(kind, &old, new);
        assert_eq!(withdrawn(&slice("kube-dns-n2-ipv4", "192.0.2.2", false)), Some("n2"));
        assert_eq!(withdrawn(&slice("kube-dns-n2-ipv4", "192.0.2.2", true)), None);
        assert_eq!(withdrawn(&slice("kube-dns-n2-ipv4", "192.0.2.1", false)), None);
        let mut relabelled = slice("kube-dns-n2-ipv4", "192.0.2.2", false);
        relabelled["metadata"]["labels"] = json!({});
        assert_eq!(withdrawn(&relabelled), None);
        let other = slice("web-n2", "192.0.2.2", true);
        assert_eq!(withdrawn_dns(kind, &other, &slice("web-n2", "192.0.2.2", false)), None);
    }
}
