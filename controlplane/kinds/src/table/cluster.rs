//! Tables of Nodes, Namespaces, Leases, Events and of objects that hold data.

use jiff::Timestamp;
use serde_json::Value;

use super::TableSpec;
use super::cells::{UNKNOWN, created, name, or, or_none, since};
use crate::strategy::{boolean, integer, list, text};

pub(crate) const NODE: TableSpec = TableSpec {
    columns: "Name,Status,Roles,Age,Version,+Internal-IP,+External-IP,+OS-Image,+Kernel-Version,+Container-Runtime",
    row: |object, now| {
        let info = &object["status"]["nodeInfo"];
        vec![
            name(object),
            node_status(object).into(),
            or_none(&node_roles(object)),
            created(object, now),
            text(info, "kubeletVersion").into(),
            or_none(address(object, "InternalIP")),
            or_none(address(object, "ExternalIP")),
            or(text(info, "osImage"), UNKNOWN),
            or(text(info, "kernelVersion"), UNKNOWN),
            or(text(info, "containerRuntimeVersion"), UNKNOWN),
        ]
    },
};

pub(crate) const NAMESPACE: TableSpec = TableSpec {
    columns: "Name,Status,Age",
    row: |object, now| vec![name(object), text(&object["status"], "phase").into(), created(object, now)],
};

pub(crate) const LEASE: TableSpec = TableSpec {
    columns: "Name,Holder,Age",
    row: |object, now| {
        vec![name(object), text(&object["spec"], "holderIdentity").into(), created(object, now)]
    },
};

pub(crate) const CONFIG_MAP: TableSpec = TableSpec {
    columns: "Name,#Data,Age",
    row: |object, now| {
        let count = members(&object["data"]) + members(&object["binaryData"]);
        vec![name(object), count.into(), created(object, now)]
    },
};

pub(crate) const SECRET: TableSpec = TableSpec {
    columns: "Name,Type,#Data,Age",
    row: |object, now| {
        vec![name(object), text(object, "type").into(), members(&object["data"]).into(), created(object, now)]
    },
};

pub(crate) const SERVICE_ACCOUNT: TableSpec = TableSpec {
    columns: "Name,#Secrets,Age",
    row: |object, now| vec![name(object), list(object, "secrets").len().into(), created(object, now)],
};

pub(crate) const CONTROLLER_REVISION: TableSpec = TableSpec {
    columns: "Name,Controller,#Revision,Age",
    row: |object, now| {
        let owners = list(&object["metadata"], "ownerReferences");
        let controller = owners.iter().find(|owner| boolean(owner, "controller")).map(|owner| {
            let group = text(owner, "apiVersion").split_once('/').map_or("", |(group, _)| group);
            let kind = text(owner, "kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text(owner, "name"))
        });
        let revision = integer(object, "revision").unwrap_or(0);
        vec![name(object), or_none(&controller.unwrap_or_default()), revision.into(), created(object, now)]
    },
};

const EVENT_COLUMNS: &str =
    "Last Seen,Type,Reason,Object,+Subobject,+Source,Message,+First Seen,+#Count,+Name";

pub(crate) const EVENT: TableSpec = TableSpec { columns: EVENT_COLUMNS, row: event };

pub(crate) const NEW_EVENT: TableSpec = TableSpec {
    columns: EVENT_COLUMNS,
    row: |object, now| event(&(crate::strategy::NEW_EVENT.to_storage)(object.clone()), now),
};

fn members(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

fn node_status(node: &Value) -> String {
    let ready =
        list(&node["status"], "conditions").iter().find(|condition| text(condition, "type") == "Ready");
    let mut words = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if boolean(&node["spec"], "unschedulable") {
        words.push_str(",SchedulingDisabled");
    }
    words
}

fn node_roles(node: &Value) -> String {
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let addresses = list(&node["status"], "addresses");
    addresses
        .iter()
        .find(|address| text(address, "type") == kind)
        .map_or("", |address| text(address, "address"))
}

fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let moment = |text: &str| since(text, now);
    let first = moment(text(event, "firstTimestamp"))
        .or_else(|| moment(text(event, "eventTime")))
        .unwrap_or_else(|| UNKNOWN.to_owned());
    let mut last = moment(text(event, "lastTimestamp")).unwrap_or_else(|| first.clone());
    let mut count = integer(event, "count").filter(|count| *count != 0).unwrap_or(1);
    if let Some(series) = event.get("series") {
        last = moment(text(series, "lastObservedTime")).unwrap_or_else(|| UNKNOWN.to_owned());
        count = integer(series, "count").unwrap_or(0);
    }
    let object = &event["involvedObject"];
    let kind = text(object, "kind").to_lowercase();
    let target = match text(object, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        text(event, "type").into(),
        text(event, "reason").into(),
        target.into(),
        text(object, "fieldPath").into(),
        event_source(event).into(),
        text(event, "message").trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

fn event_source(event: &Value) -> String {
    let pick = |old: &str, new: &str| {
        let old = text(&event["source"], old);
        if old.is_empty() { text(event, new).to_owned() } else { old.to_owned() }
    };
    let (component, host) = (pick("component", "reportingComponent"), pick("host", "reportingInstance"));
    if host.is_empty() { component } else { format!("{component}, {host}") }
}
