//! Objects seen as sets of fields: which fields one has, and in which two differ. The schema tells what is owned as a
//! whole (scalars, atomic lists, maps and types) and what by its parts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Branch, FieldSet, Step};
use crate::schema::{Container, Field, Presence, Schema, Shape, Type};

/// How a value is owned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form<'s> {
    /// Only as a whole.
    Whole,
    /// By its named fields.
    Struct(&'s Type),
    /// By its members, all of this shape.
    Map(Shape),
    /// By its elements, which these keys tell apart.
    Keyed(&'s [&'static str], Shape),
    /// By its elements, each of which is there once.
    Set,
}

/// Walks with one schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk<'s> {
    pub(super) schema: &'s Schema,
}

/// In which fields two objects differ.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) removed: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) added: FieldSet,
}

/// The same about one field.
#[derive(Debug, Default)]
struct Change {
    removed: Branch,
    modified: Branch,
    added: Branch,
}

/// The value that a key of a list element has when the element does not say it. No other key has a default.
fn key_default(key: &str) -> Value {
    if key == "protocol" { "TCP".into() } else { Value::Null }
}

/// The step to an element of a keyed list.
pub(super) fn keyed_step(keys: &[&str], element: &Value) -> Step {
    let key = |name: &&str| {
        let value = element.get(name).cloned().unwrap_or_else(|| key_default(name));
        ((*name).to_owned(), value)
    };
    format!("k:{}", Value::Object(keys.iter().map(key).collect::<Map<_, _>>()))
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(members)) => members.is_empty(),
        Some(Value::Array(elements)) => elements.is_empty(),
        Some(_) => false,
    }
}

/// The parts by which a value is owned, each with the step to it; of several equal ones, the first.
fn parts<'v>(form: Form<'_>, value: Option<&'v Value>) -> BTreeMap<Step, &'v Value> {
    let mut parts = BTreeMap::new();
    match (form, value) {
        (Form::Struct(_) | Form::Map(_), Some(Value::Object(members))) => {
            parts.extend(members.iter().map(|(name, value)| (format!("f:{name}"), value)));
        }
        (Form::Keyed(keys, _), Some(Value::Array(elements))) => {
            for element in elements {
                parts.entry(keyed_step(keys, element)).or_insert(element);
            }
        }
        (Form::Set, Some(Value::Array(elements))) => {
            parts.extend(elements.iter().map(|element| (format!("v:{element}"), element)));
        }
        _ => {}
    }
    parts
}

static NULL: Value = Value::Null;
static NOTHING: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| Value::Object(Map::new()));

impl<'s> Walk<'s> {
    /// How a single value of this shape is owned.
    pub(super) fn one(self, shape: Shape) -> Form<'s> {
        match self.schema.object(shape) {
            Some(owner) if !owner.atomic => Form::Struct(owner),
            _ => Form::Whole,
        }
    }

    fn of_field(self, field: &'s Field) -> Form<'s> {
        match field.container {
            _ if field.atomic => Form::Whole,
            Container::One => self.one(field.shape),
            Container::Map => Form::Map(field.shape),
            Container::List if !field.keys.is_empty() => Form::Keyed(&field.keys, field.shape),
            Container::List if field.set => Form::Set,
            Container::List => Form::Whole,
        }
    }

    fn field(self, form: Form<'s>, step: &str) -> Option<&'s Field> {
        match (form, step.strip_prefix("f:")) {
            (Form::Struct(owner), Some(name)) => self.schema.field(owner, name),
            _ => None,
        }
    }

    /// How what `step` leads to is owned.
    pub(super) fn child(self, form: Form<'s>, step: &str) -> Form<'s> {
        match form {
            Form::Struct(_) => self.field(form, step).map_or(Form::Whole, |field| self.of_field(field)),
            Form::Map(shape) | Form::Keyed(_, shape) => self.one(shape),
            Form::Set | Form::Whole => Form::Whole,
        }
    }

    /// The fields that a value has.
    pub(super) fn fields(self, form: Form<'s>, value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        for (step, part) in parts(form, Some(value)) {
            let inner = self.child(form, &step);
            let named = matches!(form, Form::Struct(_));
            let empty = part.is_null() || part.as_object().is_some_and(Map::is_empty);
            let owned = matches!(inner, Form::Whole) || empty || !named;
            set.insert(step, Branch { owned, below: self.fields(inner, part) });
        }
        set
    }

    /// In which fields `new` differs from `old`.
    pub(super) fn compare(self, form: Form<'s>, old: Option<&Value>, new: Option<&Value>) -> Difference {
        let change = self.change(form, old, new);
        Difference {
            removed: change.removed.below,
            modified: change.modified.below,
            added: change.added.below,
        }
    }

    fn change(self, form: Form<'s>, old: Option<&Value>, new: Option<&Value>) -> Change {
        let mut change = Change::default();
        if matches!(form, Form::Whole) || (is_empty(old) && is_empty(new)) {
            match (old, new) {
                (None, None) => {}
                (None, _) => change.added.owned = true,
                (_, None) => change.removed.owned = true,
                (old, new) => change.modified.owned = old != new,
            }
            return change;
        }
        let (had, has) = (parts(form, old), parts(form, new));
        for step in had.keys().chain(has.keys().filter(|step| !had.contains_key(*step))) {
            let always = self.always_there(form, step);
            let before = had.get(step).copied().or(always.filter(|_| old.is_some()));
            let after = has.get(step).copied().or(always.filter(|_| new.is_some()));
            let below = self.change(self.child(form, step), before, after);
            change.removed.below.insert(step.clone(), below.removed);
            change.modified.below.insert(step.clone(), below.modified);
            change.added.below.insert(step.clone(), below.added);
        }
        change.added.owned = old.is_none();
        change.removed.owned = new.is_none();
        change
    }

    /// What upstream's types have where an object does not say it: a struct that is no pointer is there and empty, a
    /// required list is null. Who fills it in does not bring it into being, and does not own it.
    fn always_there(self, form: Form<'s>, step: &str) -> Option<&'static Value> {
        let field = self.field(form, step)?;
        match (self.of_field(field), field.presence) {
            (Form::Struct(_), presence) if presence != Presence::Pointer => Some(&NOTHING),
            (Form::Keyed(..) | Form::Map(_) | Form::Set, Presence::Required | Presence::Always) => {
                Some(&NULL)
            }
            _ => None,
        }
    }

    /// The set, with every named field in it that has fields below it in it.
    pub(super) fn with_named(self, form: Form<'s>, set: &FieldSet) -> FieldSet {
        set.map(|step, branch| Branch {
            owned: branch.owned || (self.field(form, step).is_some() && !branch.below.is_empty()),
            below: self.with_named(self.child(form, step), &branch.below),
        })
    }
}
