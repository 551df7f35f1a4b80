//! Field selectors: equality on the few fields that each kind offers.

use serde_json::Value;

use crate::{ApiError, Kind};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
    /// What an absent field counts as.
    absent: &'static str,
}

/// Demands on fields that all have to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Reads `spec.nodeName=a,status.phase!=Running`. An empty text matches everything; a field that the kind does not
    /// offer is an error.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            let (field, value, equal) = split_term(&term).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "invalid field selector {text:?}: can't understand {term:?}, expected field=value or field!=value"
                ))
            })?;
            let absent = kind.selectable_field(field).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "field label not supported: {field} (on {}: {})",
                    kind.group_resource(),
                    kind.selectable_fields().collect::<Vec<_>>().join(", ")
                ))
            })?;
            let value = unescape(value)
                .map_err(|why| ApiError::bad_request(format!("invalid field selector {text:?}: {why}")))?;
            terms.push(Term { field: field.to_owned(), value, equal, absent });
        }
        Ok(Self { terms })
    }

    /// Whether the object is wanted.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            let equal = match lookup(object, &term.field) {
                Some(Value::String(text)) => *text == term.value,
                Some(Value::Bool(value)) => term.value.parse() == Ok(*value),
                Some(Value::Number(number)) => term.value.parse().ok() == number.as_i64(),
                _ => event_source(object, &term.field).unwrap_or(term.absent) == term.value,
            };
            equal == term.equal
        })
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that the selector demands of `field` by equality: `exact("metadata.name")` for a watch of one object,
    /// `exact("spec.nodeName")` for an index.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

fn lookup<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(object, |value, part| value.get(part))
}

/// The field `source` of an Event is its component, wherever that is told.
fn event_source<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    if field != "source" {
        return None;
    }
    let component = object["source"]["component"].as_str().filter(|component| !component.is_empty());
    component.or_else(|| object["reportingComponent"].as_str())
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(term) = terms.last_mut() {
            term.push(c);
        }
    }
    terms.retain(|term| !term.is_empty());
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, bool)> {
    let at = term.find(['=', '!'])?;
    let (field, rest) = term.split_at(at);
    if field.is_empty() {
        return None;
    }
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, value, false));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((field, value, true))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => text.push(escaped),
                _ => return Err(format!("unknown escape in {value:?}")),
            },
            ',' | '=' => return Err(format!("'{c}' in {value:?} must be escaped")),
            other => text.push(other),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Registry;

    #[test]
    fn fields_of_pods() {
        let registry = Registry::builtin();
        let pods = registry.resource("", "v1", "pods").unwrap();
        let pod = json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        let table = [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace=b", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=n1,status.phase!=Pending", true),
            ("spec.nodeName=", false),
            ("spec.hostNetwork=false", true),
            ("status.nominatedNodeName=", true),
        ];
        for (text, wanted) in table {
            assert_eq!(FieldSelector::parse(pods, text).unwrap().matches(&pod), wanted, "{text}");
        }
        for bad in ["spec.color=red", "metadata.name", "=a", "metadata.name=a=b", "metadata.name=a\\x"] {
            assert_eq!(FieldSelector::parse(pods, bad).unwrap_err().code, 400, "{bad}");
        }
        let one = FieldSelector::parse(pods, "metadata.name=a\\,b").unwrap();
        assert_eq!(one.exact("metadata.name"), Some("a,b"));
        assert_eq!(one.exact("spec.nodeName"), None);
    }

    #[test]
    fn fields_of_events() {
        let registry = Registry::builtin();
        let events = registry.resource("", "v1", "events").unwrap();
        let event = json!({
            "metadata": {"name": "e"}, "type": "Warning", "reportingComponent": "kubelet",
            "involvedObject": {"kind": "Pod", "name": "a", "uid": "1"},
        });
        let text =
            "involvedObject.kind=Pod,involvedObject.name=a,involvedObject.uid=1,type=Warning,source=kubelet";
        assert!(FieldSelector::parse(events, text).unwrap().matches(&event));
        assert!(!FieldSelector::parse(events, "involvedObject.name!=a").unwrap().matches(&event));
    }
}
