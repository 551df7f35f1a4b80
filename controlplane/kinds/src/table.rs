//! Objects as the table that `kubectl get` prints.

mod cells;
mod cluster;
mod network;
mod pod;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{ApiError, Kind, partial};

pub(crate) use cluster::{
    CONFIG_MAP, CONTROLLER_REVISION, EVENT, LEASE, NAMESPACE, NEW_EVENT, NODE, SECRET, SERVICE_ACCOUNT,
};
pub(crate) use network::{ENDPOINT_SLICE, ENDPOINTS, SERVICE};
pub(crate) use pod::POD;
pub(crate) use workload::{DAEMON_SET, DEPLOYMENT, REPLICA_SET};

/// How much of each object goes along with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Reads the `includeObject` query parameter; absent or empty means `Metadata`.
    pub fn parse(parameter: Option<&str>) -> Result<Self, ApiError> {
        match parameter.unwrap_or_default() {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::bad_request(format!(
                "unrecognized includeObject value {other:?}: must be None, Metadata or Object"
            ))),
        }
    }
}

/// What a table is made with.
#[derive(Debug, Clone, Copy)]
pub struct TableOptions {
    /// The version of `meta.k8s.io` (`v1` or `v1beta1`).
    pub version: &'static str,
    /// How much of each object goes along.
    pub include: IncludeObject,
    /// The time that ages are counted to.
    pub now: Timestamp,
    /// Leave `columnDefinitions` out (the second and later events of one watch).
    pub omit_columns: bool,
}

/// Makes the cells of one object, in the order of the columns.
type Row = fn(&Value, Timestamp) -> Vec<Value>;

/// The columns of a kind and how their cells are made.
#[derive(Debug)]
pub(crate) struct TableSpec {
    /// Columns of every view, then columns of the wide one: names, with `#` before numbers and `+` before wide ones.
    columns: &'static str,
    row: Row,
}

impl TableSpec {
    /// What kinds without a table of their own show.
    pub(crate) const PLAIN: Self = Self {
        columns: "Name,Age",
        row: |object, now| vec![cells::name(object), cells::created(object, now)],
    };

    fn definitions(&self) -> Vec<Value> {
        let definition = |word: &str| {
            let (wide, word) = word.strip_prefix('+').map_or((0, word), |word| (1, word));
            let (kind, word) = word.strip_prefix('#').map_or(("string", word), |word| ("integer", word));
            let format = if word == "Name" { "name" } else { "" };
            json!({"name": word, "type": kind, "format": format, "description": "", "priority": wide})
        };
        self.columns.split(',').map(definition).collect()
    }
}

/// Renders objects as one `Table`. `list_metadata` is the list's own (`resourceVersion`, `continue`, …); for a single
/// object or a watch event it is `{"resourceVersion": …}` of the object.
pub fn render<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Value,
    options: &TableOptions,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|object| row(kind, object, options)).collect();
    let columns = if options.omit_columns { Vec::new() } else { kind.table.definitions() };
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{}", options.version),
        "metadata": list_metadata, "columnDefinitions": columns, "rows": rows,
    })
}

fn row(kind: &Kind, object: &Value, options: &TableOptions) -> Value {
    let mut row = json!({"cells": (kind.table.row)(object, options.now)});
    match options.include {
        IncludeObject::None => {}
        IncludeObject::Metadata => row["object"] = partial::metadata(object, options.version),
        IncludeObject::Object => row["object"] = object.clone(),
    }
    if let Some(reason) = pod::completed(kind, object) {
        row["conditions"] = json!([{
            "type": "Completed", "status": "True", "reason": reason,
            "message": "The pod has completed successfully or with an error.",
        }]);
    }
    row
}

#[cfg(test)]
mod tests;
