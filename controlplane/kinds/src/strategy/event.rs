//! Events: the core kind that is stored, and the newer kind that is another view of it.

use serde_json::Value;

use super::Strategy;
use super::access::text;
use crate::field::Errors;

pub(crate) const EVENT: Strategy = Strategy { validate: validate_event, ..Strategy::PLAIN };

pub(crate) const NEW_EVENT: Strategy = Strategy {
    validate: validate_new_event,
    to_storage: |event| renamed(event, "v1", |(stored, shown)| (shown, stored)),
    from_storage: |event| renamed(event, "events.k8s.io/v1", |pair| pair),
    ..Strategy::PLAIN
};

/// The names of fields in the core kind and in `events.k8s.io`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

type Pair = (&'static str, &'static str);

fn renamed(mut event: Value, api_version: &str, order: fn(Pair) -> Pair) -> Value {
    if let Some(members) = event.as_object_mut() {
        for pair in RENAMED {
            let (from, to) = order(pair);
            if let Some(value) = members.remove(from) {
                members.insert(to.to_owned(), value);
            }
        }
        members.insert("apiVersion".to_owned(), api_version.into());
    }
    event
}

/// Events about objects of a namespace live there; those about others live in `default` (or where their reporter is).
fn namespace_rule(event: &Value, object: &Value, path: &str, errors: &mut Errors) {
    let (own, other) = (text(&event["metadata"], "namespace"), text(object, "namespace"));
    if !other.is_empty() && other != own {
        errors.invalid(path, other, "does not match event.namespace");
    }
}

fn validate_event(event: &Value, errors: &mut Errors) {
    namespace_rule(event, &event["involvedObject"], "involvedObject.namespace", errors);
}

fn validate_new_event(event: &Value, errors: &mut Errors) {
    namespace_rule(event, &event["regarding"], "regarding.namespace", errors);
    for key in ["reportingController", "reportingInstance", "action", "reason"] {
        if text(event, key).is_empty() {
            errors.required(key, "");
        }
    }
    if !["Normal", "Warning"].contains(&text(event, "type")) {
        errors.unsupported("type", text(event, "type"), &["Normal", "Warning"]);
    }
}
