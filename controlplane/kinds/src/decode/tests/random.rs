//! Objects of every type with random content: what is decoded, defaulted, validated, patched and shown must neither
//! panic nor differ between the two encodings.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{BodyType, FieldValidation, conform, decode, encode};
use crate::patch::{self, PatchType};
use crate::schema::{self, Container, Field, Presence, Schema, Shape, Type};
use crate::table::{self, IncludeObject, TableOptions};
use crate::{CreateContext, Registry};

/// xorshift: a stream of numbers from one seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[usize::try_from(self.below(words.len() as u64)).unwrap()]
    }
}

const WORDS: [&str; 14] = [
    "a",
    "B",
    "web",
    "TCP",
    "Always",
    "None",
    "10.0.0.1",
    "fd00::1",
    "10.0.0.0/24",
    "NodePort",
    "LoadBalancer",
    "IPv4",
    "RollingUpdate",
    "x.io/y",
];

fn one(schema: &Schema, field: &Field, dice: &mut Dice, depth: u64) -> Value {
    match field.shape {
        Shape::String => dice.pick(&WORDS).into(),
        Shape::Bool => true.into(),
        Shape::Int32 | Shape::Int64 => match dice.below(3) {
            0 => (1 + dice.below(100)).into(),
            1 => (1 + dice.below(100_000)).into(),
            _ => json!(-1 - i64::try_from(dice.below(100)).unwrap()),
        },
        Shape::Bytes => "AAEC".into(),
        Shape::Quantity => dice.pick(&["500m", "1Gi", "-1", "10"]).into(),
        Shape::IntOrString => {
            if dice.below(2) == 0 {
                (1 + dice.below(100)).into()
            } else {
                dice.pick(&["25%", "web", "0%"]).into()
            }
        }
        Shape::Time => "2026-11-21T07:00:00Z".into(),
        Shape::MicroTime => "2026-11-21T07:00:00.000001Z".into(),
        Shape::Any => json!({"f:a": {}}),
        Shape::Object(_) => object(schema, schema.object(field.shape).unwrap(), dice, depth + 1),
    }
}

/// An object in which each field is there or not.
fn object(schema: &Schema, owner: &Type, dice: &mut Dice, depth: u64) -> Value {
    let mut members = Map::new();
    for field in schema.json_fields(owner) {
        if dice.below(3 + depth) > 1 && !(depth == 0 && field.name == "spec") {
            continue;
        }
        let value = match field.container {
            Container::One => one(schema, field, dice, depth),
            Container::List => (0..=dice.below(3)).map(|_| one(schema, field, dice, depth)).collect(),
            Container::Map => {
                let key = dice.pick(&WORDS).to_owned();
                json!({ key: one(schema, field, dice, depth) })
            }
        };
        let empty = value.as_object().is_some_and(Map::is_empty) && field.presence == Presence::NonZero;
        if !empty {
            members.insert(field.name.to_owned(), value);
        }
    }
    Value::Object(members)
}

fn stamped(body: &BodyType, dice: &mut Dice) -> Value {
    let schema = schema::builtin();
    let mut object = object(schema, body.schema_type(schema).unwrap(), dice, 0);
    object["apiVersion"] = body.api_version().into();
    object["kind"] = body.kind.as_ref().into();
    object
}

proptest! {
    #[test]
    fn both_encodings_say_the_same(seed in 1_u64..) {
        let schema = schema::builtin();
        let mut dice = Dice(seed);
        for kind in Registry::builtin().kinds() {
            let body = kind.body();
            let object = stamped(&body, &mut dice);
            let conformed = conform(&body, object.clone(), FieldValidation::Strict).unwrap();
            // What is canonical stays as it is, apart from repeated keys of maps.
            prop_assert_eq!(&conformed.object, &object);
            let owner = body.schema_type(schema).unwrap();
            let raw = encode::message(schema, owner, &object);
            let bytes = encode::envelope(&body.api_version(), &body.kind, &raw);
            let media = Some("application/vnd.kubernetes.protobuf");
            let decoded = decode(&body, media, &bytes, FieldValidation::Strict).unwrap();
            prop_assert_eq!(decoded.object, object);
        }
    }

    #[test]
    fn no_object_makes_the_machinery_panic(seed in 1_u64..) {
        let mut dice = Dice(seed);
        let now = "2026-11-21T07:00:00Z".parse().unwrap();
        for kind in Registry::builtin().kinds() {
            let mut object = stamped(&kind.body(), &mut dice);
            let mut other = stamped(&kind.body(), &mut dice);
            let namespace = kind.namespaced.then_some("a");
            for value in [&mut object, &mut other] {
                value["metadata"] = json!({"name": "web", "labels": {"a": "b"}});
            }
            let context = CreateContext { namespace, uid: "1", suffix: "bcdfg", now };
            let created = kind.prepare_create(object.clone(), &context);
            if let Err(error) = &created {
                prop_assert_eq!(error.code, 422);
            }
            let old = created.unwrap_or(object);
            drop(kind.prepare_update(other.clone(), &old, now));
            drop(kind.prepare_status_update(other.clone(), &old, now));
            for patch_type in [PatchType::Merge, PatchType::Strategic] {
                let body = other.to_string();
                drop(patch::apply_to(kind, patch_type, &old, body.as_bytes(), FieldValidation::Warn));
            }
            let options = TableOptions { version: "v1", include: IncludeObject::Object, now, omit_columns: false };
            let table = table::render(kind, [&old, &other], json!({}), &options);
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            prop_assert_eq!(table["rows"][1]["cells"].as_array().unwrap().len(), columns);
        }
    }

    #[test]
    fn conforming_twice_is_conforming_once(text in "\\PC{0,40}", seed in 1_u64..) {
        let mut dice = Dice(seed);
        let body = BodyType::of("apps", "v1", "Deployment");
        let mut object = stamped(&body, &mut dice);
        object["spec"][&text] = json!(null);
        object["spec"]["paused"] = json!(true);
        let once = conform(&body, object, FieldValidation::Warn).unwrap();
        let twice = conform(&body, once.object.clone(), FieldValidation::Strict).unwrap();
        prop_assert_eq!(twice.object, once.object);
    }
}
