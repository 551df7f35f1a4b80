//! Who owns which fields: `metadata.managedFields`, read and written.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fields::{FieldSet, FieldsError};

/// So many managers of updates are told apart; the oldest beyond that become one.
const UPDATERS_MAX: usize = 10;
/// The manager that stands for them.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// By a server-side apply: it owns what it said last, and nothing else.
    Apply,
    /// By any other write: it owns what it changed.
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What tells managers apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManagerId {
    pub(super) operation: Operation,
    pub(super) manager: String,
    /// Empty for an applier, which is the same one whatever version it speaks.
    pub(super) api_version: String,
    pub(super) subresource: String,
}

impl ManagerId {
    /// As messages name it.
    pub(super) fn words(&self) -> String {
        let mut words = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            words = format!("{words} with subresource {:?}", self.subresource);
        }
        match self.operation {
            Operation::Update => format!("{words} using {}", self.api_version),
            Operation::Apply => words,
        }
    }
}

/// What one manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) api_version: String,
    /// RFC 3339, of the last change.
    pub(super) time: String,
    pub(super) fields: FieldSet,
}

/// All managers of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Managers(pub(super) BTreeMap<ManagerId, Owned>);

impl Managers {
    /// From `metadata.managedFields`; absent means none.
    pub(super) fn from_json(list: &Value) -> Result<Self, FieldsError> {
        let mut managers = Self::default();
        for entry in list.as_array().into_iter().flatten() {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let operation = match entry["operation"].as_str() {
                Some("Apply") => Operation::Apply,
                Some("Update") => Operation::Update,
                other => return Err(FieldsError::Step(format!("operation {other:?}"))),
            };
            let api_version = text("apiVersion");
            let id = ManagerId {
                operation,
                manager: text("manager"),
                api_version: if operation == Operation::Apply { String::new() } else { api_version.clone() },
                subresource: text("subresource"),
            };
            let empty = json!({});
            let fields = FieldSet::from_json(entry.get("fieldsV1").unwrap_or(&empty))?;
            managers.0.insert(id, Owned { api_version, time: text("time"), fields });
        }
        Ok(managers)
    }

    /// As `metadata.managedFields`: appliers first, then by time.
    pub(super) fn to_json(&self) -> Value {
        let mut entries: Vec<(&ManagerId, &Owned)> = self.0.iter().collect();
        entries.sort_by_key(|(id, owned)| (id.operation, owned.time.clone(), (*id).clone()));
        let entry = |(id, owned): (&ManagerId, &Owned)| {
            let mut entry = json!({
                "manager": id.manager, "operation": id.operation.as_str(), "apiVersion": owned.api_version,
                "fieldsType": "FieldsV1", "fieldsV1": owned.fields.to_json(),
            });
            for (name, value) in [("time", &owned.time), ("subresource", &id.subresource)] {
                if !value.is_empty() {
                    entry[name] = value.as_str().into();
                }
            }
            entry
        };
        entries.into_iter().map(entry).collect()
    }

    /// Takes `fields` from all managers but `except`; who then owns nothing is no manager any more.
    pub(super) fn take(&mut self, fields: &FieldSet, except: Option<&ManagerId>) {
        self.0.retain(|id, owned| {
            if Some(id) != except {
                owned.fields = owned.fields.difference(fields);
            }
            !owned.fields.is_empty()
        });
    }

    /// Puts the oldest updaters together while there are too many.
    pub(super) fn cap(&mut self) {
        let updaters = self.0.iter().filter(|(id, _)| id.operation == Operation::Update);
        let mut oldest: Vec<(String, ManagerId)> =
            updaters.map(|(id, owned)| (owned.time.clone(), id.clone())).collect();
        if oldest.len() <= UPDATERS_MAX {
            return;
        }
        oldest.sort();
        let surplus = oldest.len() - UPDATERS_MAX + 1;
        for (_, id) in oldest.into_iter().take(surplus) {
            let Some(owned) = self.0.remove(&id) else { continue };
            let ancient = ManagerId { manager: ANCIENT.to_owned(), subresource: String::new(), ..id };
            let known = self
                .0
                .entry(ancient)
                .or_insert_with(|| Owned { fields: FieldSet::default(), ..owned.clone() });
            known.fields = known.fields.union(&owned.fields);
            known.time = known.time.clone().max(owned.time);
        }
    }
}
