//! JSON into a value, keeping note of fields that occur twice.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// More than this many duplicates are not collected.
const DUPLICATES_MAX: usize = 64;

/// Reads one JSON value; the second value is the paths of fields that occur twice (the last one counts).
/// Depth is bounded by serde_json itself (128).
pub(super) fn parse(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut state = State::default();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Seed(&mut state).deserialize(&mut reader)?;
    reader.end()?;
    Ok((value, state.duplicates))
}

#[derive(Default)]
struct State {
    path: String,
    duplicates: Vec<String>,
}

impl State {
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
}

struct Seed<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let part = format!("[{}]", list.len());
            match self.0.below(&part, |state| elements.next_element_seed(Seed(state)))? {
                Some(element) => list.push(element),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = self.0.below(&key, |state| {
                if object.contains_key(&key) && state.duplicates.len() < DUPLICATES_MAX {
                    state.duplicates.push(state.path.clone());
                }
                members.next_value_seed(Seed(state))
            })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
