//! The built-in kinds, one table entry each. A new kind is one more entry, its fields in `schema.txt`, and as much of
//! a [`Strategy`] and a [`TableSpec`] of its own as it needs.

use std::borrow::Cow;

use crate::decode::{BINDING, BodyType, EVICTION, SCALE};
use crate::kind::{Kind, Subresource};
use crate::strategy::{self, Strategy};
use crate::table::{self, TableSpec};

/// What is special about one kind, in as few words as possible.
struct Entry {
    /// Group and version, as `apiVersion` says it.
    api: &'static str,
    kind: &'static str,
    /// Plural, singular, short names.
    names: &'static str,
    namespaced: bool,
    categories: &'static [&'static str],
    verbs: &'static [&'static str],
    subresources: &'static [Sub],
    /// The field selectors besides `metadata.name` and `metadata.namespace`, each with what an absent field counts as.
    fields: &'static [(&'static str, &'static str)],
    strategy: &'static Strategy,
    table: &'static TableSpec,
}

/// The subresources that there are.
enum Sub {
    Status,
    Scale,
    Binding,
    Eviction,
    Log,
    Finalize,
}

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Sub {
    fn build(&self, own: &BodyType) -> Subresource {
        let (name, body, verbs): (_, _, &[&str]) = match self {
            Self::Status => ("status", own.clone(), &["get", "patch", "update"]),
            Self::Scale => ("scale", SCALE, &["get", "patch", "update"]),
            Self::Binding => ("binding", BINDING, &["create"]),
            Self::Eviction => ("eviction", EVICTION, &["create"]),
            Self::Log => ("log", own.clone(), &["get"]),
            Self::Finalize => ("finalize", own.clone(), &["update"]),
        };
        Subresource { name: name.into(), body, verbs: borrowed(verbs) }
    }
}

fn borrowed(words: &[&'static str]) -> Vec<Cow<'static, str>> {
    words.iter().map(|word| Cow::Borrowed(*word)).collect()
}

const ALL: &[&str] = &["all"];

const PLAIN: Entry = Entry {
    api: "v1",
    kind: "",
    names: "",
    namespaced: true,
    categories: &[],
    verbs: VERBS,
    subresources: &[],
    fields: &[],
    strategy: &Strategy::PLAIN,
    table: &TableSpec::PLAIN,
};

const POD_FIELDS: &[(&str, &str)] = &[
    ("spec.nodeName", ""),
    ("spec.restartPolicy", ""),
    ("spec.schedulerName", ""),
    ("spec.serviceAccountName", ""),
    ("spec.hostNetwork", "false"),
    ("status.phase", ""),
    ("status.podIP", ""),
    ("status.nominatedNodeName", ""),
];

const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", ""),
    ("involvedObject.namespace", ""),
    ("involvedObject.name", ""),
    ("involvedObject.uid", ""),
    ("involvedObject.apiVersion", ""),
    ("involvedObject.resourceVersion", ""),
    ("involvedObject.fieldPath", ""),
    ("reason", ""),
    ("reportingComponent", ""),
    ("source", ""),
    ("type", ""),
];

const NEW_EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding.kind", ""),
    ("regarding.namespace", ""),
    ("regarding.name", ""),
    ("regarding.uid", ""),
    ("regarding.apiVersion", ""),
    ("regarding.resourceVersion", ""),
    ("regarding.fieldPath", ""),
    ("reason", ""),
    ("reportingController", ""),
    ("type", ""),
];

const ENTRIES: &[Entry] = &[
    Entry {
        kind: "ConfigMap",
        strategy: &strategy::CONFIG_MAP,
        table: &table::CONFIG_MAP,
        names: "configmaps configmap cm",
        ..PLAIN
    },
    Entry {
        kind: "Endpoints",
        strategy: &strategy::ENDPOINTS,
        table: &table::ENDPOINTS,
        names: "endpoints endpoints ep",
        ..PLAIN
    },
    Entry {
        kind: "Event",
        strategy: &strategy::EVENT,
        table: &table::EVENT,
        names: "events event ev",
        fields: EVENT_FIELDS,
        ..PLAIN
    },
    Entry {
        kind: "Namespace",
        strategy: &strategy::NAMESPACE,
        table: &table::NAMESPACE,
        names: "namespaces namespace ns",
        // All namespaces are not deleted at once.
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        namespaced: false,
        subresources: &[Sub::Finalize, Sub::Status],
        fields: &[("status.phase", "")],
        ..PLAIN
    },
    Entry {
        kind: "Node",
        strategy: &strategy::NODE,
        table: &table::NODE,
        names: "nodes node no",
        namespaced: false,
        subresources: &[Sub::Status],
        fields: &[("spec.unschedulable", "false")],
        ..PLAIN
    },
    Entry {
        kind: "Pod",
        strategy: &strategy::POD,
        table: &table::POD,
        names: "pods pod po",
        categories: ALL,
        subresources: &[Sub::Binding, Sub::Eviction, Sub::Log, Sub::Status],
        fields: POD_FIELDS,
        ..PLAIN
    },
    Entry {
        kind: "Secret",
        strategy: &strategy::SECRET,
        table: &table::SECRET,
        names: "secrets secret",
        fields: &[("type", "")],
        ..PLAIN
    },
    Entry {
        kind: "ServiceAccount",
        table: &table::SERVICE_ACCOUNT,
        names: "serviceaccounts serviceaccount sa",
        ..PLAIN
    },
    Entry {
        kind: "Service",
        strategy: &strategy::SERVICE,
        table: &table::SERVICE,
        names: "services service svc",
        categories: ALL,
        subresources: &[Sub::Status],
        fields: &[("spec.clusterIP", ""), ("spec.type", "")],
        ..PLAIN
    },
    Entry {
        api: "apps/v1",
        kind: "ControllerRevision",
        strategy: &strategy::CONTROLLER_REVISION,
        table: &table::CONTROLLER_REVISION,
        names: "controllerrevisions controllerrevision",
        ..PLAIN
    },
    Entry {
        api: "apps/v1",
        kind: "DaemonSet",
        strategy: &strategy::DAEMON_SET,
        table: &table::DAEMON_SET,
        names: "daemonsets daemonset ds",
        categories: ALL,
        subresources: &[Sub::Status],
        ..PLAIN
    },
    Entry {
        api: "apps/v1",
        kind: "Deployment",
        strategy: &strategy::DEPLOYMENT,
        table: &table::DEPLOYMENT,
        names: "deployments deployment deploy",
        categories: ALL,
        subresources: &[Sub::Scale, Sub::Status],
        ..PLAIN
    },
    Entry {
        api: "apps/v1",
        kind: "ReplicaSet",
        strategy: &strategy::REPLICA_SET,
        table: &table::REPLICA_SET,
        names: "replicasets replicaset rs",
        categories: ALL,
        subresources: &[Sub::Scale, Sub::Status],
        fields: &[("status.replicas", "0")],
        ..PLAIN
    },
    Entry {
        api: "events.k8s.io/v1",
        kind: "Event",
        strategy: &strategy::NEW_EVENT,
        table: &table::NEW_EVENT,
        names: "events event ev",
        fields: NEW_EVENT_FIELDS,
        ..PLAIN
    },
    Entry {
        api: "coordination.k8s.io/v1",
        kind: "Lease",
        strategy: &strategy::LEASE,
        table: &table::LEASE,
        names: "leases lease",
        ..PLAIN
    },
    Entry {
        api: "discovery.k8s.io/v1",
        kind: "EndpointSlice",
        strategy: &strategy::ENDPOINT_SLICE,
        table: &table::ENDPOINT_SLICE,
        names: "endpointslices endpointslice",
        ..PLAIN
    },
];

/// Kinds that are questions: made to be answered, and never stored.
const REVIEWS: [(&str, &str, &str); 3] = [
    ("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews selfsubjectreview"),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews selfsubjectaccessreview",
    ),
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews selfsubjectrulesreview"),
];

/// Builds every built-in kind.
pub(crate) fn builtin() -> Vec<Kind> {
    let review =
        |(api, kind, names)| Entry { api, kind, names, namespaced: false, verbs: &["create"], ..PLAIN };
    let reviews = REVIEWS.into_iter().map(|named| review(named).build());
    ENTRIES.iter().map(Entry::build).chain(reviews).collect()
}

impl Entry {
    fn build(&self) -> Kind {
        let (group, version) = self.api.split_once('/').unwrap_or(("", self.api));
        let mut names = self.names.split(' ');
        let plural = names.next().unwrap_or_default();
        let singular = names.next().unwrap_or_default();
        let own = BodyType::of(group, version, self.kind);
        // events.k8s.io shows the Events of the core group.
        let storage_group = if plural == "events" { "" } else { group };
        Kind {
            group: group.into(),
            version: version.into(),
            kind: self.kind.into(),
            plural: plural.into(),
            singular: singular.into(),
            short_names: names.map(Cow::Borrowed).collect(),
            categories: borrowed(self.categories),
            namespaced: self.namespaced,
            verbs: borrowed(self.verbs),
            subresources: self.subresources.iter().map(|sub| sub.build(&own)).collect(),
            storage: (storage_group.into(), plural.into()),
            fields: self.fields,
            strategy: self.strategy,
            table: self.table,
        }
    }
}
