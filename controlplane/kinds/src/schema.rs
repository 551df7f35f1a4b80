//! The types of API objects: names, shapes, protobuf numbers and merge keys of their fields, read once from
//! `schema.txt`.

mod conform;

use std::collections::HashMap;
use std::sync::LazyLock;

pub(crate) use conform::conform;

/// What a single value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Any,
    /// An object, by its place in [`Schema::types`].
    Object(usize),
}

/// How many values a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    One,
    List,
    Map,
}

/// When a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Not when it is zero.
    NonZero,
    /// Whenever it was set, also to zero.
    Pointer,
    /// Also when it is zero.
    Always,
    /// The same, and OpenAPI says so.
    Required,
}

/// One field of a type.
#[derive(Debug)]
pub(crate) struct Field {
    /// The protobuf number.
    pub(crate) number: u32,
    /// The JSON name; empty for a type whose fields are the outer type's own.
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) container: Container,
    pub(crate) presence: Presence,
    /// Strategic merge patch merges the list; the key is empty for lists of plain values.
    pub(crate) merge: Option<&'static str>,
    /// Strategic merge patch may tell which fields to keep.
    pub(crate) retain_keys: bool,
    /// The keys of a list that is a map in disguise.
    pub(crate) keys: Vec<&'static str>,
    /// A list without duplicates.
    pub(crate) set: bool,
    /// Replaced as a whole.
    pub(crate) atomic: bool,
}

impl Field {
    fn is_inline(&self) -> bool {
        self.name.is_empty()
    }
}

/// One type.
#[derive(Debug)]
pub(crate) struct Type {
    /// The name within the schema; `events.Event` where the bare name is taken.
    pub(crate) name: &'static str,
    /// The OpenAPI prefix, such as `io.k8s.api.core.v1`.
    pub(crate) package: &'static str,
    /// The `apiVersion` that it belongs to.
    pub(crate) api: &'static str,
    /// Whether it carries `apiVersion` and `kind`.
    pub(crate) is_kind: bool,
    /// Replaced as a whole.
    pub(crate) atomic: bool,
    pub(crate) fields: Vec<Field>,
}

impl Type {
    /// The name without what tells it from others of the same name.
    pub(crate) fn bare_name(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, bare)| bare)
    }
}

/// All types.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) types: Vec<Type>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse(include_str!("schema.txt")));

/// The schema of the built-in kinds.
pub(crate) fn builtin() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    /// The type of an object that says `apiVersion` and `kind`.
    pub(crate) fn kind(&self, api: &str, kind: &str) -> Option<&Type> {
        self.types.iter().find(|known| known.is_kind && known.api == api && known.bare_name() == kind)
    }

    /// A type by its name.
    #[cfg(test)]
    pub(crate) fn named(&self, name: &str) -> Option<&Type> {
        self.types.iter().find(|known| known.name == name)
    }

    /// The field of that JSON name, looking into types whose fields are the outer type's own.
    pub(crate) fn field<'s>(&'s self, owner: &'s Type, name: &str) -> Option<&'s Field> {
        if name.is_empty() {
            return None;
        }
        owner.fields.iter().find_map(|field| {
            if field.is_inline() {
                self.object(field.shape).and_then(|inner| self.field(inner, name))
            } else {
                (field.name == name).then_some(field)
            }
        })
    }

    /// The type of an object-shaped value.
    pub(crate) fn object(&self, shape: Shape) -> Option<&Type> {
        match shape {
            Shape::Object(at) => self.types.get(at),
            _ => None,
        }
    }

    /// Every field that JSON shows, inner types' fields included.
    pub(crate) fn json_fields<'s>(&'s self, owner: &'s Type) -> Vec<&'s Field> {
        owner
            .fields
            .iter()
            .flat_map(|field| match self.object(field.shape) {
                Some(inner) if field.is_inline() => self.json_fields(inner),
                _ => vec![field],
            })
            .collect()
    }
}

fn shape(word: &str, names: &HashMap<&str, usize>) -> Shape {
    match word {
        "string" => Shape::String,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "bytes" => Shape::Bytes,
        "quantity" => Shape::Quantity,
        "intstr" => Shape::IntOrString,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        // A test holds that every other word names a type.
        name => names.get(name).map_or(Shape::Any, |at| Shape::Object(*at)),
    }
}

fn parse_field(line: &'static str, names: &HashMap<&str, usize>) -> Option<Field> {
    let mut words = line.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let name = words.next()?;
    let word = words.next()?;
    let (container, word) = match (word, word.strip_prefix("[]")) {
        (_, Some(element)) => (Container::List, element),
        ("map", None) => (Container::Map, words.next()?),
        _ => (Container::One, word),
    };
    let mut field = Field {
        number,
        name: if name == "+" { "" } else { name },
        shape: shape(word, names),
        container,
        presence: Presence::NonZero,
        merge: None,
        retain_keys: false,
        keys: Vec::new(),
        set: false,
        atomic: false,
    };
    for flag in words {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("required", _) => field.presence = Presence::Required,
            ("pointer", _) => field.presence = Presence::Pointer,
            ("always", _) => field.presence = Presence::Always,
            ("merge", key) => field.merge = Some(key),
            ("retainKeys", _) => field.retain_keys = true,
            ("keys", keys) => field.keys = keys.split(',').collect(),
            ("set", _) => field.set = true,
            ("atomic", _) => field.atomic = true,
            _ => return None,
        }
    }
    Some(field)
}

/// The name of a type, and whether it is replaced as a whole.
fn head_name(head: &str) -> (&str, bool) {
    match head.split_once(' ') {
        Some((name, flag)) => (name, flag == "atomic"),
        None => (head, false),
    }
}

/// Reads the table. A line that is wrong is left out; a test holds that none is.
fn parse(text: &'static str) -> Schema {
    let lines = || text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let heads = lines().filter_map(|line| line.strip_prefix("kind ").or_else(|| line.strip_prefix("type ")));
    let names: HashMap<&str, usize> = heads.enumerate().map(|(at, head)| (head_name(head).0, at)).collect();
    let (mut package, mut api) = ("", "");
    let mut types: Vec<Type> = Vec::with_capacity(names.len());
    for line in lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "package" => (package, api) = rest.split_once(' ').unwrap_or((rest, "")),
            "kind" | "type" => {
                let (name, atomic) = head_name(rest);
                types.push(Type { name, package, api, is_kind: word == "kind", atomic, fields: Vec::new() });
            }
            _ => {
                if let (Some(owner), Some(field)) = (types.last_mut(), parse_field(line, &names)) {
                    owner.fields.push(field);
                }
            }
        }
    }
    Schema { types }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let text = include_str!("schema.txt");
        let wanted = text.lines().filter(|line| line.starts_with("  ")).count();
        let got: usize = builtin().types.iter().map(|known| known.fields.len()).sum();
        assert_eq!(got, wanted);
        // Only these two fields hold whatever JSON they like; any other would be a misspelt type.
        let free: Vec<&str> = builtin()
            .types
            .iter()
            .flat_map(|known| &known.fields)
            .filter(|field| field.shape == Shape::Any)
            .map(|field| field.name)
            .collect();
        assert_eq!(free, ["data", "fieldsV1"]);
    }

    #[test]
    fn numbers_and_names_are_unique_within_a_type() {
        let schema = builtin();
        for owner in &schema.types {
            let mut numbers: Vec<u32> = owner.fields.iter().map(|field| field.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), owner.fields.len(), "{}", owner.name);
            let mut names: Vec<&str> = schema.json_fields(owner).iter().map(|field| field.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", owner.name);
        }
    }

    #[test]
    fn merge_keys() {
        let schema = builtin();
        let merge = |owner: &str, name: &str| {
            schema.named(owner).and_then(|owner| schema.field(owner, name)).and_then(|field| field.merge)
        };
        assert_eq!(merge("PodSpec", "containers"), Some("name"));
        assert_eq!(merge("Container", "ports"), Some("containerPort"));
        assert_eq!(merge("Container", "env"), Some("name"));
        assert_eq!(merge("ServiceSpec", "ports"), Some("port"));
        assert_eq!(merge("ObjectMeta", "finalizers"), Some(""));
        assert_eq!(merge("PodSpec", "tolerations"), None);
        let probe = schema.named("Probe").unwrap();
        assert!(schema.field(probe, "httpGet").is_some());
    }
}
