//! A document of OpenAPI v2 as a message of gnostic's `openapi.v2` protobuf package. The numbers are those of its
//! `OpenAPIv2.proto`.

use serde_json::Value;

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

const LENGTH_DELIMITED: u64 = 2;

impl Message {
    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.0.push(low & 0x7f);
            }
            self.0.push(low | 0x80);
        }
    }

    fn bytes(&mut self, number: u64, bytes: &[u8]) {
        self.varint((number << 3) | LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A text, unless it is absent or empty.
    fn text(mut self, number: u64, value: &Value) -> Self {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.bytes(number, text.as_bytes());
        }
        self
    }

    fn texts(mut self, number: u64, values: &Value) -> Self {
        for text in values.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(number, text.as_bytes());
        }
        self
    }

    fn flag(mut self, number: u64, value: &Value) -> Self {
        if value.as_bool() == Some(true) {
            self.varint(number << 3);
            self.varint(1);
        }
        self
    }

    /// An inner message, also an empty one.
    fn with(mut self, number: u64, inner: &Self) -> Self {
        self.bytes(number, &inner.0);
        self
    }

    /// What `make` makes of the value, unless it is absent.
    fn inner(self, number: u64, value: &Value, make: fn(&Value) -> Self) -> Self {
        if value.is_null() { self } else { self.with(number, &make(value)) }
    }

    /// Pairs of a name and what `make` makes of its value.
    fn named(mut self, number: u64, members: &Value, make: fn(&Value) -> Self) -> Self {
        for (name, value) in members.as_object().into_iter().flatten() {
            let mut pair = Self::default();
            pair.bytes(1, name.as_bytes());
            self = self.with(number, &pair.with(2, &make(value)));
        }
        self
    }

    fn each(mut self, number: u64, values: &Value, make: fn(&Value) -> Self) -> Self {
        for value in values.as_array().into_iter().flatten() {
            self = self.with(number, &make(value));
        }
        self
    }

    /// Members whose names begin with `x-`, as YAML, of which JSON is a part.
    fn extensions(mut self, number: u64, members: &Value) -> Self {
        for (name, value) in members.as_object().into_iter().flatten() {
            if name.starts_with("x-") && !value.is_null() {
                let (mut pair, mut any) = (Self::default(), Self::default());
                any.bytes(2, value.to_string().as_bytes());
                pair.bytes(1, name.as_bytes());
                self = self.with(number, &pair.with(2, &any));
            }
        }
        self
    }
}

/// Wraps a message in one that has it as its first field.
fn only(inner: &Message) -> Message {
    Message::default().with(1, inner)
}

/// The whole document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let info = Message::default().text(1, &document["info"]["title"]).text(2, &document["info"]["version"]);
    let paths = Message::default().named(2, &document["paths"], path_item);
    let definitions = Message::default().named(1, &document["definitions"], schema);
    Message::default().text(1, &document["swagger"]).with(2, &info).with(8, &paths).with(9, &definitions).0
}

fn path_item(item: &Value) -> Message {
    Message::default()
        .inner(2, &item["get"], operation)
        .inner(3, &item["put"], operation)
        .inner(4, &item["post"], operation)
        .inner(5, &item["delete"], operation)
        .inner(8, &item["patch"], operation)
        .each(9, &item["parameters"], parameter)
}

fn operation(operation: &Value) -> Message {
    let responses = Message::default().named(1, &operation["responses"], response);
    Message::default()
        .texts(1, &operation["tags"])
        .texts(7, &operation["consumes"])
        .each(8, &operation["parameters"], parameter)
        .with(9, &responses)
        .extensions(13, operation)
}

fn response(response: &Value) -> Message {
    let answer =
        Message::default()
            .text(1, &response["description"])
            .inner(2, &response["schema"], |value| only(&schema(value)));
    only(&answer)
}

fn parameter(parameter: &Value) -> Message {
    let place = parameter["in"].as_str().unwrap_or_default();
    if place == "body" {
        let body = Message::default()
            .text(2, &parameter["name"])
            .text(3, &parameter["in"])
            .flag(4, &parameter["required"])
            .inner(5, &parameter["schema"], schema);
        return only(&only(&body));
    }
    // Of query and path parameters the fields from the type on have other numbers.
    let (one_of, kind, unique) = if place == "query" { (3, 6, 20) } else { (4, 5, 19) };
    let value = Message::default()
        .flag(1, &parameter["required"])
        .text(2, &parameter["in"])
        .text(4, &parameter["name"])
        .text(kind, &parameter["type"])
        .flag(unique, &parameter["uniqueItems"]);
    let non_body = Message::default().with(one_of, &value);
    only(&Message::default().with(2, &non_body))
}

fn schema(schema: &Value) -> Message {
    Message::default()
        .text(1, &schema["$ref"])
        .text(2, &schema["format"])
        .text(4, &schema["description"])
        .texts(19, &schema["required"])
        .inner(21, &schema["additionalProperties"], |value| only(&self::schema(value)))
        .inner(22, &schema["type"], |value| Message::default().text(1, value))
        .inner(23, &schema["items"], |value| only(&self::schema(value)))
        .inner(25, &schema["properties"], |value| Message::default().named(1, value, self::schema))
        .extensions(31, schema)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_lengths() {
        let wanted: Vec<u8> = [&[0xb2, 0x01, 8, 0x0a, 6][..], b"string", &[0xfa, 0x01, 10, 0x0a, 3], b"x-a"]
            .concat()
            .into_iter()
            .chain([0x12, 3, 0x12, 1, b'7'])
            .collect();
        assert_eq!(schema(&json!({"type": "string", "x-a": 7, "properties": null})).0, wanted);
        let path = parameter(&json!({"name": "n", "in": "path", "required": true, "type": "string"})).0;
        let value = [&[8, 1, 0x12, 4][..], b"path", &[0x22, 1, b'n', 0x2a, 6], b"string"].concat();
        let lengths = [0x0a, 23, 0x12, 21, 0x22, 19];
        assert_eq!(path, [&lengths[..], &value].concat());
    }
}
