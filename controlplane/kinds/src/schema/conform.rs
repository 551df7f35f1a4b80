//! Brings a JSON object into the form that its type demands: known fields only, right JSON types, no nulls,
//! quantities and times in canonical form.

use base64::Engine;
use serde_json::{Map, Value};

use super::{Container, Field, Schema, Shape, Type};
use crate::quantity::Quantity;
use crate::time;

/// What was not as the type says.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Paths of fields that the type does not have; they are dropped.
    pub(crate) unknown: Vec<String>,
    /// What makes the object unreadable, path first.
    pub(crate) faults: Vec<String>,
}

/// More findings than this are not collected: a hostile body shall not make a long answer.
const FINDINGS_MAX: usize = 64;

/// Returns the object in the form that `owner` demands, and what was wrong with it.
pub(crate) fn conform(schema: &Schema, owner: &Type, object: Value) -> (Value, Findings) {
    let mut walk = Walk { schema, findings: Findings::default(), path: String::new() };
    let object = walk.object(owner, object);
    (object, walk.findings)
}

struct Walk<'s> {
    schema: &'s Schema,
    findings: Findings,
    path: String,
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Walk<'_> {
    fn fault(&mut self, what: &str) {
        if self.findings.faults.len() < FINDINGS_MAX {
            let path = if self.path.is_empty() { "the body" } else { &self.path };
            self.findings.faults.push(format!("{path}: {what}"));
        }
    }

    fn mismatch(&mut self, wanted: &str, got: &Value) -> Value {
        self.fault(&format!("expected {wanted}, got {}", type_name(got)));
        Value::Null
    }

    /// Runs `inner` with `part` appended to the path.
    fn below<T>(&mut self, part: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 && !part.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(part);
        let result = inner(self);
        self.path.truncate(length);
        result
    }

    fn object(&mut self, owner: &Type, value: Value) -> Value {
        let members = match value {
            Value::Object(members) => members,
            Value::Null => return Value::Object(Map::new()),
            other => return self.mismatch("object", &other),
        };
        let mut kept = Map::new();
        for (name, value) in members {
            if owner.is_kind && (name == "apiVersion" || name == "kind") {
                let value = self.below(&name, |walk| walk.one(Shape::String, value));
                kept.insert(name, value);
                continue;
            }
            let Some(field) = self.schema.field(owner, &name) else {
                if self.findings.unknown.len() < FINDINGS_MAX {
                    let path = self.below(&name, |walk| walk.path.clone());
                    self.findings.unknown.push(path);
                }
                continue;
            };
            if !value.is_null() {
                let value = self.below(&name, |walk| walk.field(field, value));
                if !value.is_null() {
                    kept.insert(name, value);
                }
            }
        }
        Value::Object(kept)
    }

    fn field(&mut self, field: &Field, value: Value) -> Value {
        match (field.container, value) {
            (Container::One, value) => self.one(field.shape, value),
            (Container::List, Value::Array(elements)) => {
                let element = |(at, element): (usize, Value)| {
                    self.below(&format!("[{at}]"), |walk| walk.element(field.shape, element))
                };
                Value::Array(elements.into_iter().enumerate().map(element).collect())
            }
            (Container::Map, Value::Object(members)) => {
                let member = |(key, member): (String, Value)| {
                    let member = self.below(&format!("[{key}]"), |walk| walk.element(field.shape, member));
                    (key, member)
                };
                Value::Object(members.into_iter().map(member).collect())
            }
            (Container::List, other) => self.mismatch("array", &other),
            (Container::Map, other) => self.mismatch("object", &other),
        }
    }

    /// A value in a list or map: null counts as empty there.
    fn element(&mut self, shape: Shape, value: Value) -> Value {
        match (shape, &value) {
            (Shape::String | Shape::Bytes, Value::Null) => Value::String(String::new()),
            (Shape::Int32 | Shape::Int64, Value::Null) => 0.into(),
            _ => self.one(shape, value),
        }
    }

    fn one(&mut self, shape: Shape, value: Value) -> Value {
        match shape {
            Shape::Object(at) => match self.schema.types.get(at) {
                Some(owner) => self.object(owner, value),
                None => value,
            },
            Shape::Any => value,
            Shape::String => match value {
                Value::String(_) => value,
                other => self.mismatch("string", &other),
            },
            Shape::Bool => match value {
                Value::Bool(_) => value,
                other => self.mismatch("bool", &other),
            },
            Shape::Int32 => match value.as_i64() {
                Some(number) if i32::try_from(number).is_ok() => value,
                Some(number) => {
                    self.fault(&format!("{number} does not fit into int32"));
                    Value::Null
                }
                None => self.mismatch("int32", &value),
            },
            Shape::Int64 if value.is_i64() || value.as_i64().is_some() => value,
            Shape::Int64 => self.mismatch("int64", &value),
            Shape::IntOrString => self.int_or_string(value),
            Shape::Bytes => self.text(value, "base64 string", |text| {
                base64::engine::general_purpose::STANDARD
                    .decode(text.replace(['\n', '\r'], ""))
                    .map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes))
                    .map_err(|error| format!("illegal base64 data: {error}"))
            }),
            Shape::Quantity => {
                let value = if value.is_number() { Value::String(value.to_string()) } else { value };
                self.text(value, "quantity", |text| {
                    Quantity::parse(text).map(|quantity| quantity.to_string()).map_err(|e| e.to_string())
                })
            }
            Shape::Time => self.text(value, "time", |text| time::parse(text).map(time::seconds)),
            Shape::MicroTime => self.text(value, "time", |text| time::parse(text).map(time::micros)),
        }
    }

    fn int_or_string(&mut self, value: Value) -> Value {
        match &value {
            Value::String(_) => value,
            Value::Number(number) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => value,
            other => self.mismatch("int32 or string", other),
        }
    }

    fn text(
        &mut self,
        value: Value,
        wanted: &str,
        canonical: impl FnOnce(&str) -> Result<String, String>,
    ) -> Value {
        let Value::String(text) = &value else { return self.mismatch(wanted, &value) };
        match canonical(text) {
            Ok(text) => Value::String(text),
            Err(why) => {
                self.fault(&why);
                Value::Null
            }
        }
    }
}
