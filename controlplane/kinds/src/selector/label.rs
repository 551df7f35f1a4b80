//! Label selectors, in the text form of query parameters and in the object form of workloads.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::ApiError;
use crate::names;

/// What one requirement demands of the label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

/// One demand on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    test: Test,
    /// Written with `=` or `!=`, for printing it the same way.
    equality: bool,
}

/// Demands on labels that all have to hold.
///
/// ```
/// let selector = seaway_kinds::LabelSelector::parse("app in (web, api), tier!=back, !old").unwrap();
/// assert!(selector.matches_labels(serde_json::json!({"app": "api", "tier": "front"}).as_object()));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads the text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`. An empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        Parser { rest: text }
            .selector()
            .map_err(|why| ApiError::bad_request(format!("unable to parse label selector {text:?}: {why}")))
    }

    /// Reads the object form (`matchLabels`, `matchExpressions`). Null matches nothing, `{}` everything.
    pub fn from_object(object: &Value) -> Result<Self, String> {
        let Some(object) = object.as_object() else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        if let Some(labels) = object.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                let value = value.as_str().unwrap_or_default();
                requirements.push(Requirement::new(key, Test::In([value.to_owned()].into()), true)?);
            }
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(Requirement::from_expression(expression)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// A plain map of labels, as in `Service.spec.selector`.
    pub fn from_labels(labels: &Map<String, Value>) -> Result<Self, String> {
        let requirement = |(key, value): (&String, &Value)| {
            let value = value.as_str().unwrap_or_default();
            Requirement::new(key, Test::In([value.to_owned()].into()), true)
        };
        Ok(Self { requirements: labels.iter().map(requirement).collect::<Result<_, _>>()?, nothing: false })
    }

    /// Whether the object's labels are wanted.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(object["metadata"]["labels"].as_object())
    }

    /// Whether these labels are wanted.
    pub fn matches_labels(&self, labels: Option<&Map<String, Value>>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(labels))
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        words.sort();
        f.write_str(&words.join(","))
    }
}

impl Requirement {
    fn new(key: &str, test: Test, equality: bool) -> Result<Self, String> {
        names::qualified_name(key).map_err(|why| format!("key {key:?}: {why}"))?;
        if let Test::In(values) | Test::NotIn(values) = &test {
            for value in values {
                names::label_value(value).map_err(|why| format!("value {value:?}: {why}"))?;
            }
        }
        Ok(Self { key: key.to_owned(), test, equality })
    }

    fn from_expression(expression: &Value) -> Result<Self, String> {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: BTreeSet<String> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect();
        let operator = expression["operator"].as_str().unwrap_or_default();
        let test = match (operator, values.is_empty()) {
            ("In", false) => Test::In(values),
            ("NotIn", false) => Test::NotIn(values),
            ("In" | "NotIn", true) => return Err(format!("{operator} needs at least one value for {key:?}")),
            ("Exists", true) => Test::Exists,
            ("DoesNotExist", true) => Test::Absent,
            ("Exists" | "DoesNotExist", false) => {
                return Err(format!("{operator} takes no values for {key:?}"));
            }
            _ => return Err(format!("{operator:?} is not a valid label selector operator")),
        };
        Self::new(key, test, false)
    }

    fn holds(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = labels.and_then(|labels| labels.get(&self.key)).and_then(Value::as_str);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Above(bound) => number().is_some_and(|number| number > *bound),
            Test::Below(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joined =
            |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let key = &self.key;
        match &self.test {
            Test::In(values) if self.equality => write!(f, "{key}={}", joined(values)),
            Test::NotIn(values) if self.equality => write!(f, "{key}!={}", joined(values)),
            Test::In(values) => write!(f, "{key} in ({})", joined(values)),
            Test::NotIn(values) => write!(f, "{key} notin ({})", joined(values)),
            Test::Exists => f.write_str(key),
            Test::Absent => write!(f, "!{key}"),
            Test::Above(bound) => write!(f, "{key}>{bound}"),
            Test::Below(bound) => write!(f, "{key}<{bound}"),
        }
    }
}

/// Reads the text form from left to right.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn selector(mut self) -> Result<LabelSelector, String> {
        let mut requirements = Vec::new();
        self.skip_space();
        while !self.rest.is_empty() {
            requirements.push(self.requirement()?);
            self.skip_space();
            if !self.rest.is_empty() {
                self.expect(',')?;
                self.skip_space();
                if self.rest.is_empty() {
                    return Err("found the end, expected a label key after ','".to_owned());
                }
            }
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        if let Some(rest) = self.rest.strip_prefix(token) {
            self.rest = rest;
            return true;
        }
        false
    }

    fn expect(&mut self, token: char) -> Result<(), String> {
        if self.rest.starts_with(token) {
            self.rest = &self.rest[token.len_utf8()..];
            return Ok(());
        }
        let found = self.rest.chars().next().map_or("the end".to_owned(), |found| format!("'{found}'"));
        Err(format!("found {found}, expected '{token}'"))
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let special = |c: char| c.is_whitespace() || "=!(),<>".contains(c);
        let end = self.rest.find(special).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.take("!") {
            let key = self.word();
            return Requirement::new(key, Test::Absent, false);
        }
        let key = self.word();
        self.skip_space();
        let single = |value: &str| BTreeSet::from([value.to_owned()]);
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Requirement::new(key, Test::Exists, false);
        }
        if self.take("==") || self.take("=") {
            return Requirement::new(key, Test::In(single(self.word())), true);
        }
        if self.take("!=") {
            return Requirement::new(key, Test::NotIn(single(self.word())), true);
        }
        for (sign, test) in [(">", Test::Above as fn(i64) -> Test), ("<", Test::Below)] {
            if self.take(sign) {
                let word = self.word();
                let bound = word.parse().map_err(|_| format!("{word:?} after '{sign}' is not an integer"))?;
                return Requirement::new(key, test(bound), false);
            }
        }
        match self.word() {
            "in" => Requirement::new(key, Test::In(self.values()?), false),
            "notin" => Requirement::new(key, Test::NotIn(self.values()?), false),
            "" => Err(format!("found {:?}, expected an operator after {key:?}", self.rest)),
            other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, >, <")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        self.skip_space();
        self.expect('(')?;
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.word().to_owned());
            self.skip_space();
            if self.take(")") {
                return Ok(values);
            }
            self.expect(',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_form() {
        let labels = json!({"app": "web", "tier": "front", "level": "3", "empty": ""});
        let table = [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app = web , tier != back", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web,api)", true),
            ("app in (api)", false),
            ("app notin (api, db)", true),
            ("missing notin (api)", true),
            ("missing in (api)", false),
            ("level>2", true),
            ("level<3", false),
            ("empty=", true),
            ("empty in (,x)", true),
            ("app,!old,tier", true),
        ];
        for (text, wanted) in table {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.matches_labels(labels.as_object()), wanted, "{text}");
            assert_eq!(
                LabelSelector::parse(&selector.to_string()).unwrap().to_string(),
                selector.to_string()
            );
        }
    }

    #[test]
    fn malformed_text_is_refused_with_a_reason() {
        for text in [
            "=a",
            "a=b=c",
            "a in b",
            "a in (b",
            "a,,b",
            "a,",
            "a b",
            "a!",
            "-a=b",
            "a=-b",
            "a in (b) c",
            "!",
            "a>x",
            "a in (b!c)",
        ] {
            let error = LabelSelector::parse(text).unwrap_err();
            assert_eq!(error.code, 400, "{text}");
            assert!(error.message.starts_with("unable to parse label selector"), "{text}");
        }
    }

    #[test]
    fn object_form() {
        let selector = LabelSelector::from_object(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["front", "mid"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "!old,app=web,tier in (front,mid)");
        assert!(selector.matches(&json!({"metadata": {"labels": {"app": "web", "tier": "mid"}}})));
        assert!(!selector.matches(&json!({"metadata": {"labels": {"app": "web"}}})));
        assert!(!LabelSelector::from_object(&Value::Null).unwrap().matches(&json!({})));
        assert!(LabelSelector::from_object(&json!({})).unwrap().matches(&json!({})));
        for bad in [json!({"key": "a", "operator": "In"}), json!({"key": "a", "operator": "Near"})] {
            assert!(LabelSelector::from_object(&json!({"matchExpressions": [bad]})).is_err());
        }
    }
}
