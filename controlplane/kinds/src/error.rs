//! Every way in which a request can fail, as the `Status` object and HTTP code that Kubernetes clients expect.

use serde_json::{Map, Value, json};

use crate::{FieldError, Kind};

/// A failed request: becomes a `Status` body with [`ApiError::status`].
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// `Status.details`, without `retryAfterSeconds`.
    pub details: Option<Value>,
    /// Seconds after which a retry makes sense; also to be sent as the `Retry-After` header.
    pub retry_after_s: Option<u32>,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// The group, plural and name of an object as `Status.details` carries them.
fn object_details(group: &str, resource: &str, name: &str) -> Value {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !group.is_empty() {
        details.insert("group".into(), group.into());
    }
    if !resource.is_empty() {
        details.insert("kind".into(), resource.into());
    }
    Value::Object(details)
}

impl ApiError {
    /// An error of any code and reason, without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after_s: None }
    }

    fn about(code: u16, reason: &'static str, kind: &Kind, name: &str, what: &str) -> Self {
        let message = format!("{} \"{name}\" {what}", kind.group_resource());
        let details = Some(object_details(&kind.group, &kind.plural, name));
        Self { details, ..Self::new(code, reason, message) }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: nobody knows who is asking.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 for a request on an object, with the reason in words.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let about = if name.is_empty() {
            kind.group_resource()
        } else {
            format!("{} \"{name}\"", kind.group_resource())
        };
        let details = Some(object_details(&kind.group, &kind.plural, name));
        Self { details, ..Self::new(403, "Forbidden", format!("{about} is forbidden: {why}")) }
    }

    /// 403 for a path that is not an object's.
    pub fn forbidden_path(why: impl std::fmt::Display) -> Self {
        Self { details: Some(json!({})), ..Self::new(403, "Forbidden", format!("forbidden: {why}")) }
    }

    /// 404: no such object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::about(404, "NotFound", kind, name, "not found")
    }

    /// 404: no such path, kind or subresource.
    pub fn no_such_resource() -> Self {
        let details = Some(json!({}));
        Self { details, ..Self::new(404, "NotFound", "the server could not find the requested resource") }
    }

    /// 405: the resource is there, the verb is not.
    pub fn method_not_allowed(kind: &Kind, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", kind.group_resource());
        let details = Some(object_details(&kind.group, &kind.plural, ""));
        Self { details, ..Self::new(405, "MethodNotAllowed", message) }
    }

    /// 406: none of the wanted representations can be made.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: the name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::about(409, "AlreadyExists", kind, name, "already exists")
    }

    /// 409 with a reason in words.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.group_resource());
        let details = Some(object_details(&kind.group, &kind.plural, name));
        Self { details, ..Self::new(409, "Conflict", message) }
    }

    /// 409 because the object changed since it was read.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 because a server-side apply changes fields of others: for each manager, in words, their paths.
    pub fn apply_conflict(conflicts: &[(String, Vec<String>)]) -> Self {
        let count: usize = conflicts.iter().map(|(_, paths)| paths.len()).sum();
        let message = match conflicts {
            [(manager, paths)] if count == 1 => {
                format!("Apply failed with 1 conflict: conflict with {manager}: {}", paths.join(""))
            }
            _ => {
                let list = |(manager, paths): &(String, Vec<String>)| {
                    format!("conflicts with {manager}:\n- {}", paths.join("\n- "))
                };
                let words: Vec<String> = conflicts.iter().map(list).collect();
                format!("Apply failed with {count} conflicts: {}", words.join("\n"))
            }
        };
        let cause = |manager: &str, path: &str| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path});
        let causes: Vec<Value> = conflicts
            .iter()
            .flat_map(|(manager, paths)| paths.iter().map(|path| cause(manager, path)))
            .collect();
        Self { details: Some(json!({"causes": causes})), ..Self::new(409, "Conflict", message) }
    }

    /// 410: the resource version that a list or watch asked for is no longer there.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 for a watch from a compacted resource version.
    pub fn too_old(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 504 for a resource version that the server has not reached yet.
    pub fn too_large(requested: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {requested}, current: {current}");
        let details = json!({"causes": [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
        Self { details: Some(details), retry_after_s: Some(1), ..Self::new(504, "Timeout", message) }
    }

    /// 413: the body is larger than the server takes.
    pub fn too_big(limit_bytes: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body's content type is none of the known ones.
    pub fn unsupported_media_type(got: &str, known: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format ({got:?}) - accepted media types include: {}",
            known.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422 with a cause per field.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_as(&kind.group, &kind.kind, name, errors)
    }

    /// [`ApiError::invalid`] for a body that is no stored kind, such as `Scale`.
    pub fn invalid_as(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> = errors.iter().map(FieldError::cause).collect();
        let list = match errors {
            [] => "<nil>".to_owned(),
            [one] => one.to_string(),
            many => {
                let words: Vec<String> = many.iter().map(ToString::to_string).collect();
                format!("[{}]", words.join(", "))
            }
        };
        let mut details = object_details(group, kind, name);
        details["causes"] = Value::Array(causes);
        Self {
            details: Some(details),
            ..Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {list}"))
        }
    }

    /// 429: try again later, for instance because a disruption budget does not allow the eviction now.
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(429, "TooManyRequests", message) }
    }

    /// 500: a fault of the server.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {what}");
        let details = json!({"causes": [{"message": what.to_string()}]});
        Self { details: Some(details), ..Self::new(500, "InternalError", message) }
    }

    /// 503: not able to serve right now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(1), ..Self::new(503, "ServiceUnavailable", message) }
    }

    /// 504: the request took too long.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(1), ..Self::new(504, "Timeout", message) }
    }

    /// The `Status` object that is the body of the response (and the object of a watch's ERROR event).
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if self.details.is_some() || self.retry_after_s.is_some() {
            let mut details = self.details.clone().unwrap_or_else(|| json!({}));
            if let Some(seconds) = self.retry_after_s {
                details["retryAfterSeconds"] = seconds.into();
            }
            status["details"] = details;
        }
        status
    }
}

/// The `Status` object that answers a delete whose object is gone at once.
pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Value {
    let mut details = object_details(&kind.group, &kind.plural, name);
    if !uid.is_empty() {
        details["uid"] = uid.into();
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })
}

/// A `Status` object that only says "done" (the answer to a binding or an eviction).
pub fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;
    use crate::field::Errors;

    #[test]
    fn bodies() {
        let registry = Registry::builtin();
        let kind = registry.resource("apps", "v1", "deployments").unwrap();
        assert_eq!(
            ApiError::not_found(kind, "web").status(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "deployments.apps \"web\" not found",
                "details": {"name": "web", "group": "apps", "kind": "deployments"},
            })
        );
        let mut errors = Errors::default();
        errors.required("spec.selector", "");
        errors.invalid("spec.replicas", -1, "must be greater than or equal to 0");
        assert_eq!(
            ApiError::invalid(kind, "web", &errors.into_vec()).status(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 422,
                "reason": "Invalid",
                "message": "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.replicas: \
                            Invalid value: -1: must be greater than or equal to 0]",
                "details": {"name": "web", "group": "apps", "kind": "Deployment", "causes": [
                    {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"},
                    {"reason": "FieldValueInvalid", "field": "spec.replicas",
                     "message": "Invalid value: -1: must be greater than or equal to 0"},
                ]},
            })
        );
        let budget = ApiError::too_many_requests("Cannot evict pod", 10).status();
        assert_eq!((&budget["code"], &budget["details"]["retryAfterSeconds"]), (&json!(429), &json!(10)));
        assert_eq!(ApiError::too_old(3, 9).status()["message"], "too old resource version: 3 (9)");
    }

    #[test]
    fn codes_and_reasons() {
        let registry = Registry::builtin();
        let kind = registry.resource("", "v1", "pods").unwrap();
        let table = [
            (ApiError::bad_request("x"), 400, "BadRequest"),
            (ApiError::unauthorized(), 401, "Unauthorized"),
            (ApiError::forbidden(kind, "a", "x"), 403, "Forbidden"),
            (ApiError::no_such_resource(), 404, "NotFound"),
            (ApiError::method_not_allowed(kind, "x"), 405, "MethodNotAllowed"),
            (ApiError::not_acceptable("x"), 406, "NotAcceptable"),
            (ApiError::already_exists(kind, "a"), 409, "AlreadyExists"),
            (ApiError::modified(kind, "a"), 409, "Conflict"),
            (ApiError::expired("x"), 410, "Expired"),
            (ApiError::too_big(1), 413, "RequestEntityTooLarge"),
            (ApiError::unsupported_media_type("x", &["y"]), 415, "UnsupportedMediaType"),
            (ApiError::internal("x"), 500, "InternalError"),
            (ApiError::unavailable("x"), 503, "ServiceUnavailable"),
            (ApiError::too_large(9, 3), 504, "Timeout"),
        ];
        for (error, code, reason) in table {
            assert_eq!((error.code, error.reason), (code, reason));
            assert_eq!(error.status()["status"], "Failure");
        }
    }
}
