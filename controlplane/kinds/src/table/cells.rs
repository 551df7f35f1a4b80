//! Cells that several tables share.

use jiff::Timestamp;
use serde_json::Value;

use crate::selector::LabelSelector;
use crate::strategy::{integer, list, text};
use crate::time;

pub(super) const NONE: &str = "<none>";
pub(super) const UNKNOWN: &str = "<unknown>";

pub(super) fn name(object: &Value) -> Value {
    text(&object["metadata"], "name").into()
}

/// How long ago the object was made.
pub(super) fn created(object: &Value, now: Timestamp) -> Value {
    since(text(&object["metadata"], "creationTimestamp"), now).unwrap_or_else(|| UNKNOWN.to_owned()).into()
}

/// How long ago a time is, when it is one.
pub(super) fn since(text: &str, now: Timestamp) -> Option<String> {
    time::parse(text).ok().map(|then| time::age(then, now))
}

pub(super) fn or_none(text: &str) -> Value {
    or(text, NONE)
}

pub(super) fn or(text: &str, otherwise: &str) -> Value {
    if text.is_empty() { otherwise.into() } else { text.into() }
}

/// A number; zero when absent.
pub(super) fn count(object: &Value, key: &str) -> Value {
    integer(object, key).unwrap_or(0).into()
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(labels: &Value) -> Value {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(&pairs.join(","))
}

/// A selector in its text form, or `<none>`.
pub(super) fn selector(selector: &Value) -> Value {
    let text = LabelSelector::from_object(selector).map(|selector| selector.to_string()).unwrap_or_default();
    or_none(&text)
}

/// One member of every container, joined by commas.
pub(super) fn containers(template: &Value, key: &str) -> Value {
    let words: Vec<&str> =
        list(&template["spec"], "containers").iter().map(|container| text(container, key)).collect();
    words.join(",").into()
}

/// At most three words, and how many more there are.
pub(super) fn at_most_three(words: &[String], otherwise: &str) -> Value {
    match words.len() {
        0 => otherwise.into(),
        1..=3 => words.join(",").into(),
        more => format!("{} + {} more...", words[..3].join(","), more - 3).into(),
    }
}
