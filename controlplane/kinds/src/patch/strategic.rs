//! Strategic merge patch: objects merge member by member, lists by the keys that the schema names.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{Container, Field, Schema, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StrategicError {
    #[error("unknown patch directive {DIRECTIVE}: {directive} at {path}")]
    Directive { path: String, directive: String },
    #[error("an element of the list {path} does not have the merge key {key}")]
    MergeKey { path: String, key: String },
    #[error("{path} must be a list")]
    NotAList { path: String },
    #[error("{path}: {RETAIN_KEYS} does not name {key}, which the patch sets")]
    RetainKeys { path: String, key: String },
}

/// Applies `patch` to `object`, which is of type `owner`.
pub(super) fn apply(
    schema: &Schema,
    owner: &Type,
    object: &Value,
    patch: &Value,
) -> Result<Value, StrategicError> {
    let empty = Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let Some(patch) = patch.as_object() else {
        return Err(StrategicError::Directive { path: ".".to_owned(), directive: "no object".to_owned() });
    };
    Merge { schema }.object(object, patch, Some(owner), "").map(Value::Object)
}

struct Merge<'s> {
    schema: &'s Schema,
}

type Object = Map<String, Value>;

fn directive(patch: &Object) -> Option<&str> {
    patch.get(DIRECTIVE).map(|value| value.as_str().unwrap_or("no text"))
}

fn elements<'v>(value: &'v Value, path: &str) -> Result<&'v [Value], StrategicError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| StrategicError::NotAList { path: path.to_owned() })
}

impl<'s> Merge<'s> {
    fn object(
        &self,
        object: &Object,
        patch: &Object,
        owner: Option<&'s Type>,
        trail: &str,
    ) -> Result<Object, StrategicError> {
        match directive(patch) {
            None | Some("merge") => {}
            Some("replace") => {
                let mut replaced = patch.clone();
                replaced.remove(DIRECTIVE);
                return Ok(replaced);
            }
            Some("delete") => return Ok(Object::new()),
            Some(other) => {
                return Err(StrategicError::Directive {
                    path: trail.to_owned(),
                    directive: other.to_owned(),
                });
            }
        }
        let mut merged = object.clone();
        if let Some(retained) = patch.get(RETAIN_KEYS) {
            retain(&mut merged, patch, elements(retained, trail)?, trail)?;
        }
        for (key, value) in patch {
            let field = |name: &str| owner.and_then(|owner| self.schema.field(owner, name));
            if key == DIRECTIVE || key == RETAIN_KEYS {
                continue;
            }
            if let Some(name) = key.strip_prefix(DELETE_PREFIX) {
                let gone: HashSet<String> =
                    elements(value, trail)?.iter().map(|value| id(value, "")).collect();
                if let Some(list) = merged.get_mut(name).and_then(Value::as_array_mut) {
                    list.retain(|element| !gone.contains(&id(element, "")));
                }
                continue;
            }
            if let Some(name) = key.strip_prefix(ORDER_PREFIX) {
                // With a patch of the same list, the order is applied there.
                if !patch.contains_key(name)
                    && let Some(list) = merged.get_mut(name).and_then(Value::as_array_mut)
                {
                    let merge_key = field(name).and_then(|field| field.merge).unwrap_or_default();
                    *list = ordered(list, elements(value, trail)?, list, merge_key);
                }
                continue;
            }
            let below = format!("{trail}.{key}");
            let order = patch.get(&format!("{ORDER_PREFIX}{key}"));
            match self.member(merged.get(key), value, field(key), order, &below)? {
                Some(value) => merged.insert(key.clone(), value),
                None => merged.remove(key),
            };
        }
        Ok(merged)
    }

    /// The new value of one member; `None` when it goes.
    fn member(
        &self,
        old: Option<&Value>,
        patch: &Value,
        field: Option<&'s Field>,
        order: Option<&Value>,
        trail: &str,
    ) -> Result<Option<Value>, StrategicError> {
        let inner = field
            .filter(|field| field.container != Container::Map)
            .and_then(|field| self.schema.object(field.shape));
        match patch {
            Value::Null => Ok(None),
            Value::Object(patch) => {
                let empty = Object::new();
                let known = old.and_then(Value::as_object);
                if directive(patch) == Some("delete") {
                    return Ok(None);
                }
                self.object(known.unwrap_or(&empty), patch, inner, trail)
                    .map(|merged| Some(Value::Object(merged)))
            }
            Value::Array(patch) => {
                let merge = field.and_then(|field| field.merge);
                let old = old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let order = order.map(|order| elements(order, trail)).transpose()?;
                self.list(old, patch, merge, inner, order, trail).map(|merged| Some(Value::Array(merged)))
            }
            scalar => Ok(Some(scalar.clone())),
        }
    }

    fn list(
        &self,
        old: &[Value],
        patch: &[Value],
        merge: Option<&str>,
        element: Option<&'s Type>,
        order: Option<&[Value]>,
        trail: &str,
    ) -> Result<Vec<Value>, StrategicError> {
        let said = |value: &Value| value.as_object().and_then(|object| directive(object).map(str::to_owned));
        let replaces = patch.iter().any(|value| said(value).as_deref() == Some("replace"));
        let (Some(key), false, false) = (merge, replaces, old.is_empty()) else {
            // Nothing to merge with: only the directives go. (Two new ports of one number, TCP and UDP, stay two.)
            let kept = patch
                .iter()
                .filter(|value| value.as_object().is_none_or(|object| !object.contains_key(DIRECTIVE)));
            return kept.map(|value| self.fresh(value, element, trail)).collect();
        };
        if key.is_empty() {
            let known: HashSet<String> = old.iter().map(|value| id(value, key)).collect();
            let mut merged = old.to_vec();
            merged.extend(patch.iter().filter(|value| !known.contains(&id(value, key))).cloned());
            return Ok(ordered(&merged, order.unwrap_or(patch), old, key));
        }
        if patch.iter().any(|value| value.get(key).is_none_or(Value::is_null)) {
            return Err(StrategicError::MergeKey { path: trail.to_owned(), key: key.to_owned() });
        }
        let (gone, set): (Vec<&Value>, Vec<&Value>) =
            patch.iter().partition(|value| said(value).as_deref() == Some("delete"));
        let gone: HashSet<String> = gone.into_iter().map(|value| id(value, key)).collect();
        let mut merged: Vec<Value> =
            old.iter().filter(|value| !gone.contains(&id(value, key))).cloned().collect();
        let mut places = places(&merged, key);
        for value in &set {
            match places.entry(id(value, key)) {
                Entry::Occupied(place) => {
                    let known = &mut merged[*place.get()];
                    if let (Some(before), Some(value)) = (known.as_object(), value.as_object()) {
                        *known = Value::Object(self.object(before, value, element, trail)?);
                    }
                }
                Entry::Vacant(place) => {
                    place.insert(merged.len());
                    merged.push(self.fresh(value, element, trail)?);
                }
            }
        }
        let set: Vec<Value> = set.into_iter().cloned().collect();
        Ok(ordered(&merged, order.unwrap_or(&set), old, key))
    }

    /// A value that was not there before, without directives.
    fn fresh(&self, value: &Value, owner: Option<&'s Type>, trail: &str) -> Result<Value, StrategicError> {
        match value {
            Value::Object(object) => self.object(&Object::new(), object, owner, trail).map(Value::Object),
            other => Ok(other.clone()),
        }
    }
}

/// Removes what `retained` does not name; the patch may set nothing else.
fn retain(
    object: &mut Object,
    patch: &Object,
    retained: &[Value],
    trail: &str,
) -> Result<(), StrategicError> {
    let named: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let foreign = patch
        .iter()
        .find(|(key, value)| !key.starts_with('$') && !value.is_null() && !named.contains(key.as_str()));
    if let Some((key, _)) = foreign {
        return Err(StrategicError::RetainKeys { path: trail.to_owned(), key: key.clone() });
    }
    object.retain(|key, _| named.contains(key.as_str()));
    Ok(())
}

/// What makes a list element the same one: its merge key, or itself in a list of plain values.
fn id(value: &Value, key: &str) -> String {
    if key.is_empty() { value.to_string() } else { value.get(key).map(Value::to_string).unwrap_or_default() }
}

/// Where each element of a list is; of several equal ones, the first.
fn places(list: &[Value], key: &str) -> HashMap<String, usize> {
    list.iter().enumerate().rev().map(|(at, value)| (id(value, key), at)).collect()
}

/// Puts the elements that `order` names into that order, among those that it does not name, which keep the order that
/// they had in `before`.
fn ordered(list: &[Value], order: &[Value], before: &[Value], key: &str) -> Vec<Value> {
    let (order, before) = (places(order, key), places(before, key));
    // Each element with its place in `order` and in `before`.
    let placed = list.iter().map(|value| {
        let id = id(value, key);
        (value, order.get(&id).copied(), before.get(&id).copied())
    });
    let (mut named, mut others): (Vec<_>, Vec<_>) = placed.partition(|(_, wanted, _)| wanted.is_some());
    named.sort_by_key(|(_, wanted, _)| *wanted);
    others.sort_by_key(|(.., was)| *was);
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    let mut result = Vec::with_capacity(list.len());
    while let (Some((.., left)), Some((.., right))) = (named.peek(), others.peek()) {
        let earlier = left.zip(*right).is_some_and(|(left, right)| left < right);
        let next = if earlier { named.next() } else { others.next() };
        result.extend(next.map(|(value, ..)| value.clone()));
    }
    result.extend(named.chain(others).map(|(value, ..)| value.clone()));
    result
}

#[cfg(test)]
mod tests;
