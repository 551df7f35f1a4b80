//! Kubernetes' protobuf encoding into JSON values, by the numbers in the schema. Generated clients send it.

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::schema::{Container, Field, Presence, Schema, Shape, Type};
use crate::time;

/// What every encoded object begins with.
pub(super) const MAGIC: &[u8] = b"k8s\0";

/// An upper bound for the values in one body, against bodies that are small on the wire and large in memory.
const VALUES_MAX: usize = 500_000;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtobufError {
    #[error("the body does not begin with the magic number of Kubernetes' protobuf encoding")]
    Magic,
    #[error("the body ends in the middle of a value")]
    Truncated,
    #[error("a number is longer than 64 bits")]
    Varint,
    #[error("wire type {0} is not known")]
    WireType(u8),
    #[error("{field}: wrong wire type")]
    Mismatch { field: &'static str },
    #[error("{field}: {why}")]
    Value { field: &'static str, why: String },
    #[error("the body has more than {VALUES_MAX} values")]
    TooMany,
}

/// What the envelope says about its content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope<'a> {
    pub(super) api_version: &'a str,
    pub(super) kind: &'a str,
    pub(super) content_type: &'a str,
    pub(super) raw: &'a [u8],
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(ProtobufError::Truncated)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Varint)
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], ProtobufError> {
        let length = usize::try_from(length).map_err(|_| ProtobufError::Truncated)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The next field's number and value; `None` at the end.
    fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Varint)?;
        let wire = match (tag & 7) as u8 {
            0 => Wire::Number(self.varint()?),
            1 => self.bytes(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Wire::Fixed)?,
            other => return Err(ProtobufError::WireType(other)),
        };
        Ok(Some((number, wire)))
    }
}

fn text<'a>(field: &'static str, wire: &Wire<'a>) -> Result<&'a str, ProtobufError> {
    let Wire::Bytes(bytes) = wire else { return Err(ProtobufError::Mismatch { field }) };
    str::from_utf8(bytes).map_err(|error| ProtobufError::Value { field, why: error.to_string() })
}

/// Takes the envelope apart.
pub(super) fn envelope(body: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?);
    let mut envelope = Envelope::default();
    while let Some((number, wire)) = reader.field()? {
        match (number, &wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut meta = Reader(bytes);
                while let Some((number, wire)) = meta.field()? {
                    match number {
                        1 => envelope.api_version = text("apiVersion", &wire)?,
                        2 => envelope.kind = text("kind", &wire)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => envelope.raw = bytes,
            (4, _) => envelope.content_type = text("contentType", &wire)?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Reads the message of one object.
pub(super) fn object(schema: &Schema, owner: &Type, raw: &[u8]) -> Result<Value, ProtobufError> {
    let mut decoder = Decoder { schema, values: 0 };
    decoder.message(owner, raw).map(Value::Object)
}

struct Decoder<'s> {
    schema: &'s Schema,
    values: usize,
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Array(_) => false,
    }
}

impl Decoder<'_> {
    /// The depth is that of the schema, whose types do not contain themselves.
    fn message(&mut self, owner: &Type, bytes: &[u8]) -> Result<Map<String, Value>, ProtobufError> {
        let mut object = Map::new();
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.field()? {
            let Some(field) = owner.fields.iter().find(|field| field.number == number) else { continue };
            self.values += 1;
            if self.values > VALUES_MAX {
                return Err(ProtobufError::TooMany);
            }
            self.field(field, &wire, &mut object)?;
        }
        Ok(object)
    }

    fn field(
        &mut self,
        field: &Field,
        wire: &Wire<'_>,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        match field.container {
            Container::One => {
                let value = self.value(field, wire)?;
                if field.name.is_empty() {
                    if let Value::Object(inner) = value {
                        object.extend(inner);
                    }
                } else if !value.is_null() && (field.presence != Presence::NonZero || !is_zero(&value)) {
                    object.insert(field.name.to_owned(), value);
                }
            }
            Container::List => {
                let values = self.elements(field, wire)?;
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.extend(values);
                }
            }
            Container::Map => {
                let (key, value) = self.entry(field, wire)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                map[key] = value;
            }
        }
        Ok(())
    }

    /// One element, or several numbers packed into one field.
    fn elements(&mut self, field: &Field, wire: &Wire<'_>) -> Result<Vec<Value>, ProtobufError> {
        let (Shape::Int32 | Shape::Int64, Wire::Bytes(packed)) = (field.shape, wire) else {
            return Ok(vec![self.value(field, wire)?]);
        };
        let mut reader = Reader(packed);
        let mut values = Vec::new();
        while !reader.0.is_empty() {
            let number = Wire::Number(reader.varint()?);
            values.push(self.value(field, &number)?);
            self.values += 1;
            if self.values > VALUES_MAX {
                return Err(ProtobufError::TooMany);
            }
        }
        Ok(values)
    }

    fn entry(&mut self, field: &Field, wire: &Wire<'_>) -> Result<(String, Value), ProtobufError> {
        let Wire::Bytes(bytes) = wire else { return Err(ProtobufError::Mismatch { field: field.name }) };
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.field()? {
            match number {
                1 => text(field.name, &wire)?.clone_into(&mut key),
                2 => value = Some(self.value(field, &wire)?),
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| Value::String(String::new()))))
    }

    fn value(&mut self, field: &Field, wire: &Wire<'_>) -> Result<Value, ProtobufError> {
        let name = field.name;
        match (field.shape, wire) {
            (Shape::Bool, Wire::Number(number)) => Ok(Value::Bool(*number != 0)),
            (Shape::Int32 | Shape::Int64, Wire::Number(number)) => Ok(number.cast_signed().into()),
            (Shape::String, wire) => text(name, wire).map(Value::from),
            (Shape::Bytes, Wire::Bytes(bytes)) => {
                Ok(base64::engine::general_purpose::STANDARD.encode(bytes).into())
            }
            (Shape::Object(at), Wire::Bytes(bytes)) => match self.schema.types.get(at) {
                Some(owner) => self.message(owner, bytes).map(Value::Object),
                None => Ok(Value::Null),
            },
            (Shape::Quantity, Wire::Bytes(bytes)) => {
                let mut reader = Reader(bytes);
                let mut quantity = "0";
                while let Some((number, wire)) = reader.field()? {
                    if number == 1 {
                        quantity = text(name, &wire)?;
                    }
                }
                Ok(if quantity.is_empty() { "0" } else { quantity }.into())
            }
            (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(name, bytes),
            (Shape::Time, Wire::Bytes(bytes)) => moment(name, bytes, time::seconds),
            (Shape::MicroTime, Wire::Bytes(bytes)) => moment(name, bytes, time::micros),
            (Shape::Any, Wire::Bytes(bytes)) => free_json(name, bytes),
            _ => Err(ProtobufError::Mismatch { field: name }),
        }
    }
}

fn int_or_string(field: &'static str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut reader = Reader(bytes);
    let (mut is_text, mut number_value, mut text_value) = (false, 0, "");
    while let Some((number, wire)) = reader.field()? {
        match (number, &wire) {
            (1, Wire::Number(kind)) => is_text = *kind == 1,
            (2, Wire::Number(value)) => number_value = value.cast_signed(),
            (3, wire) => text_value = text(field, wire)?,
            _ => {}
        }
    }
    Ok(if is_text { text_value.into() } else { number_value.into() })
}

/// Seconds and nanoseconds; an empty message is no time at all.
fn moment(field: &'static str, bytes: &[u8], write: fn(Timestamp) -> String) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let mut reader = Reader(bytes);
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Number(value)) => seconds = value.cast_signed(),
            (2, Wire::Number(value)) => nanos = i32::try_from(value.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    Timestamp::new(seconds, nanos)
        .map(|time| write(time).into())
        .map_err(|error| ProtobufError::Value { field, why: error.to_string() })
}

/// JSON inside a message with one field.
fn free_json(field: &'static str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        if let (1, Wire::Bytes(raw)) = (number, wire) {
            return serde_json::from_slice(raw)
                .map_err(|error| ProtobufError::Value { field, why: error.to_string() });
        }
    }
    Ok(Value::Null)
}
