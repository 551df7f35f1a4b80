//! A set of fields of an object, as a tree: which of them are in it, and the form in which `fieldsV1` writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// One step of a path, as `fieldsV1` writes it: `f:NAME` into an object, `k:{"KEY":VALUE}` to the element of a list that
/// has these keys, `v:VALUE` to the element of a set.
pub(super) type Step = String;

/// The member that says that the field itself is in the set, where fields below it are as well.
const SELF: &str = ".";

/// A set of fields. A field may be in it without those below it, and the other way round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet(BTreeMap<Step, Branch>);

/// What is said of one field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Branch {
    /// The field itself is in the set.
    pub(super) owned: bool,
    /// Fields below it that are.
    pub(super) below: FieldSet,
}

impl Branch {
    fn is_empty(&self) -> bool {
        !self.owned && self.below.is_empty()
    }
}

/// Why a `fieldsV1` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FieldsError {
    #[error("{0} must be an object")]
    NotAnObject(String),
    #[error("{0:?} is no step of a path: it begins with neither f:, k:, v: nor i:")]
    Step(String),
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Says of the field at `step` what `branch` does.
    pub(super) fn insert(&mut self, step: Step, branch: Branch) {
        if branch.is_empty() {
            self.0.remove(&step);
        } else {
            self.0.insert(step, branch);
        }
    }

    /// Whether the field at `step` itself is in the set.
    pub(super) fn owns(&self, step: &str) -> bool {
        self.0.get(step).is_some_and(|branch| branch.owned)
    }

    /// The fields below `step`.
    pub(super) fn below(&self, step: &str) -> Option<&Self> {
        self.0.get(step).map(|branch| &branch.below).filter(|below| !below.is_empty())
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (step, branch) in &other.0 {
            let known = both.0.entry(step.clone()).or_default();
            known.owned |= branch.owned;
            known.below = known.below.union(&branch.below);
        }
        both
    }

    /// What both have.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own && other, Self::intersection, false)
    }

    /// What `other` has not.
    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own && !other, Self::difference, true)
    }

    fn combine(
        &self,
        other: &Self,
        owned: fn(bool, bool) -> bool,
        below: fn(&Self, &Self) -> Self,
        keep_unmatched: bool,
    ) -> Self {
        let mut combined = Self::default();
        for (step, branch) in &self.0 {
            match other.0.get(step) {
                Some(known) => combined.insert(
                    step.clone(),
                    Branch {
                        owned: owned(branch.owned, known.owned),
                        below: below(&branch.below, &known.below),
                    },
                ),
                None if keep_unmatched => combined.insert(step.clone(), branch.clone()),
                None => {}
            }
        }
        combined
    }

    /// The same set with every branch changed; branches that become empty go.
    pub(super) fn map(&self, change: impl Fn(&str, &Branch) -> Branch) -> Self {
        let mut changed = Self::default();
        for (step, branch) in &self.0 {
            changed.insert(step.clone(), change(step, branch));
        }
        changed
    }

    /// The paths of all fields in the set, as messages write them: `.spec.ports[port=80,protocol="TCP"].nodePort`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: &mut String, paths: &mut Vec<String>) {
        for (step, branch) in &self.0 {
            let length = path.len();
            push_step(path, step);
            if branch.owned {
                paths.push(path.clone());
            }
            branch.below.collect(path, paths);
            path.truncate(length);
        }
    }

    /// As `fieldsV1` has it.
    pub(super) fn to_json(&self) -> Value {
        let mut members = Map::new();
        for (step, branch) in &self.0 {
            let mut below = branch.below.to_json();
            if branch.owned && !branch.below.is_empty() {
                below[SELF] = json!({});
            }
            members.insert(step.clone(), below);
        }
        Value::Object(members)
    }

    /// From `fieldsV1`.
    pub(super) fn from_json(value: &Value) -> Result<Self, FieldsError> {
        let members = value.as_object().ok_or_else(|| FieldsError::NotAnObject(value.to_string()))?;
        let mut set = Self::default();
        for (step, value) in members.iter().filter(|(step, _)| *step != SELF) {
            let step = canonical(step)?;
            let below = Self::from_json(value)?;
            let owned = below.is_empty() || value.get(SELF).is_some();
            set.insert(step, Branch { owned, below });
        }
        Ok(set)
    }
}

/// The step as this crate writes it: what another one wrote may have blanks in its JSON.
fn canonical(step: &str) -> Result<Step, FieldsError> {
    let wrong = || FieldsError::Step(step.to_owned());
    let (kind, rest) = step.split_once(':').ok_or_else(wrong)?;
    match kind {
        "f" | "i" => Ok(step.to_owned()),
        "k" | "v" => {
            let value: Value = serde_json::from_str(rest).map_err(|_| wrong())?;
            Ok(format!("{kind}:{value}"))
        }
        _ => Err(wrong()),
    }
}

fn push_step(path: &mut String, step: &str) {
    let (kind, rest) = step.split_once(':').unwrap_or(("f", step));
    let written = match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let words: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            write!(path, "[{}]", words.join(","))
        }
        "v" => write!(path, "[={rest}]"),
        "i" => write!(path, "[{rest}]"),
        _ => write!(path, ".{rest}"),
    };
    // Writing into a text does not fail.
    written.unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: &Value) -> FieldSet {
        FieldSet::from_json(value).unwrap()
    }

    #[test]
    fn there_and_back() {
        let json = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
            "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
            "f:finalizers": {"v:\"a/b\"": {}}}});
        let read = set(&json);
        assert_eq!(read.to_json(), json);
        assert_eq!(
            read.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.finalizers[=\"a/b\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
        assert_eq!(
            set(&json!({"k:{ \"b\": 1, \"a\": 2}": {}})).to_json(),
            json!({"k:{\"a\":2,\"b\":1}": {}})
        );
        for wrong in [json!([]), json!({"f:a": 1}), json!({"x": {}}), json!({"k:{": {}})] {
            assert!(FieldSet::from_json(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_field_and_those_below_it_are_counted_apart() {
        let both = set(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let inner = set(&json!({"f:a": {"f:b": {}}}));
        assert_eq!(both.difference(&inner).to_json(), json!({"f:a": {}, "f:c": {}}));
        assert_eq!(both.intersection(&inner), inner);
        assert_eq!(inner.union(&set(&json!({"f:a": {}}))).to_json(), json!({"f:a": {".": {}, "f:b": {}}}));
        assert!(inner.difference(&both).is_empty());
    }
}
