//! Tables of Deployments, ReplicaSets and DaemonSets.

use serde_json::Value;

use super::TableSpec;
use super::cells::{containers, count, created, labels, name, selector};
use crate::strategy::integer;

pub(crate) const DEPLOYMENT: TableSpec = TableSpec {
    columns: "Name,Ready,#Up-to-date,#Available,Age,+Containers,+Images,+Selector",
    row: |object, now| {
        let (spec, status) = (&object["spec"], &object["status"]);
        let ready = integer(status, "readyReplicas").unwrap_or(0);
        let wanted = integer(spec, "replicas").unwrap_or(0);
        let mut cells = vec![
            name(object),
            format!("{ready}/{wanted}").into(),
            count(status, "updatedReplicas"),
            count(status, "availableReplicas"),
            created(object, now),
        ];
        cells.extend(wide(spec));
        cells
    },
};

pub(crate) const REPLICA_SET: TableSpec = TableSpec {
    columns: "Name,#Desired,#Current,#Ready,Age,+Containers,+Images,+Selector",
    row: |object, now| {
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut cells = vec![
            name(object),
            count(spec, "replicas"),
            count(status, "replicas"),
            count(status, "readyReplicas"),
            created(object, now),
        ];
        cells.extend(wide(spec));
        cells
    },
};

pub(crate) const DAEMON_SET: TableSpec = TableSpec {
    columns: "Name,#Desired,#Current,#Ready,#Up-to-date,#Available,Node Selector,Age,+Containers,+Images,+Selector",
    row: |object, now| {
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut cells = vec![
            name(object),
            count(status, "desiredNumberScheduled"),
            count(status, "currentNumberScheduled"),
            count(status, "numberReady"),
            count(status, "updatedNumberScheduled"),
            count(status, "numberAvailable"),
            labels(&spec["template"]["spec"]["nodeSelector"]),
            created(object, now),
        ];
        cells.extend(wide(spec));
        cells
    },
};

fn wide(spec: &Value) -> [Value; 3] {
    let template = &spec["template"];
    [containers(template, "name"), containers(template, "image"), selector(&spec["selector"])]
}
