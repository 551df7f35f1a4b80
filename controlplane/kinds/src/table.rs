//! Objects as the table that `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{ApiError, Kind};

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

/// The columns of a kind and how their cells are made.
#[derive(Debug)]
pub(crate) struct TableSpec {}

/// Renders objects as one `Table`. `list_metadata` is the list's own (`resourceVersion`, `continue`, …); for a single
/// object or a watch event it is `{"resourceVersion": …}` of the object.
pub fn render<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Value,
    options: &TableOptions,
) -> Value {
    let _ = (kind.table, options.now, objects.into_iter().count());
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{}", options.version),
        "metadata": list_metadata, "columnDefinitions": [], "rows": [],
    })
}
