//! Objects made out of objects: what an applier wants laid over what is there, and fields taken away.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::{Map, Value};

use super::fields::{FieldSet, Step};
use super::walk::{Form, Walk, keyed_step};

impl<'s> Walk<'s> {
    /// `new` laid over `old`.
    pub(super) fn merge(self, form: Form<'s>, old: &Value, new: &Value) -> Value {
        match (form, old, new) {
            (Form::Struct(_) | Form::Map(_), Value::Object(old), Value::Object(new)) => {
                let mut merged = old.clone();
                for (name, value) in new {
                    let inner = self.child(form, &format!("f:{name}"));
                    let value =
                        old.get(name).map_or_else(|| value.clone(), |old| self.merge(inner, old, value));
                    merged.insert(name.clone(), value);
                }
                Value::Object(merged)
            }
            (Form::Keyed(..) | Form::Set, Value::Array(old), Value::Array(new)) => {
                Value::Array(self.merge_lists(form, old, new))
            }
            (_, _, new) => new.clone(),
        }
    }

    /// The elements of both lists. Those of `new` keep their order; those that only `old` has stay before the element of
    /// both that they stood before.
    fn merge_lists(self, form: Form<'s>, old: &[Value], new: &[Value]) -> Vec<Value> {
        let steps = |list: &[Value]| -> Vec<Step> { list.iter().map(|value| step(form, value)).collect() };
        let (old_steps, new_steps) = (steps(old), steps(new));
        let wanted: HashSet<&Step> = new_steps.iter().collect();
        let mut known: HashMap<&Step, &Value> = HashMap::new();
        for (step, value) in old_steps.iter().zip(old) {
            known.entry(step).or_insert(value);
        }
        let mut shared: VecDeque<&Step> = new_steps.iter().filter(|step| known.contains_key(step)).collect();
        let mut rest: VecDeque<(&Step, &Value)> = old_steps.iter().zip(old).collect();
        let mut merged = Vec::with_capacity(old.len() + new.len());
        for (step, value) in new_steps.iter().zip(new) {
            while let Some((front, value)) = rest.front().copied() {
                let is_next = shared.front() == Some(&front);
                if is_next && front != step {
                    // Its turn comes later, and with it that of what follows it.
                    break;
                }
                rest.pop_front();
                if is_next {
                    break;
                }
                if !wanted.contains(front) {
                    merged.push(value.clone());
                }
            }
            if shared.front() == Some(&step) {
                shared.pop_front();
            }
            let inner = self.child(form, step);
            merged.push(known.get(step).map_or_else(|| value.clone(), |old| self.merge(inner, old, value)));
        }
        merged.extend(
            rest.into_iter().filter(|(step, _)| !wanted.contains(step)).map(|(_, value)| value.clone()),
        );
        merged
    }

    /// The value without the fields in `gone`; null when none is left.
    pub(super) fn remove(self, form: Form<'s>, value: &Value, gone: &FieldSet) -> Value {
        let kept = |step: &Step, value: &Value| -> Option<Value> {
            if gone.owns(step) {
                return None;
            }
            Some(match gone.below(step) {
                Some(below) => self.remove(self.child(form, step), value, below),
                None => value.clone(),
            })
        };
        match (form, value) {
            (Form::Struct(_) | Form::Map(_), Value::Object(members)) => {
                let members = members
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone(), kept(&format!("f:{name}"), value)?)));
                let members: Map<String, Value> = members.collect();
                if members.is_empty() { Value::Null } else { Value::Object(members) }
            }
            (Form::Keyed(..) | Form::Set, Value::Array(elements)) => {
                let elements: Vec<Value> =
                    elements.iter().filter_map(|value| kept(&step(form, value), value)).collect();
                if elements.is_empty() { Value::Null } else { Value::Array(elements) }
            }
            (_, value) => value.clone(),
        }
    }

    /// Paths of list elements that are there twice, where the list tells them apart by keys.
    pub(super) fn doubles(self, form: Form<'s>, value: &Value, path: &str) -> Option<String> {
        match (form, value) {
            (Form::Struct(_) | Form::Map(_), Value::Object(members)) => {
                members.iter().find_map(|(name, value)| {
                    self.doubles(self.child(form, &format!("f:{name}")), value, &format!("{path}.{name}"))
                })
            }
            (Form::Keyed(..) | Form::Set, Value::Array(elements)) => {
                let mut seen = HashSet::new();
                elements.iter().find_map(|element| {
                    let step = step(form, element);
                    let inner = format!("{path}[{}]", step.get(2..).unwrap_or_default());
                    if !seen.insert(step.clone()) {
                        return Some(inner);
                    }
                    self.doubles(self.child(form, &step), element, &inner)
                })
            }
            _ => None,
        }
    }
}

fn step(form: Form<'_>, element: &Value) -> Step {
    match form {
        Form::Keyed(keys, _) => keyed_step(keys, element),
        _ => format!("v:{element}"),
    }
}
