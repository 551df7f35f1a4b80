//! Reviews: who am I, and what may I do? Answered from the table that decides on requests, for everyone who has a name.

use seaway_kinds::ApiError;
use serde_json::{Value, json};

use crate::{
    api::Call,
    auth::{Attributes, Identity},
    response::{self, ApiResult},
};

/// POST of a review: it comes back with its answer.
pub(crate) fn create(call: &Call<'_>, body: &[u8]) -> ApiResult {
    if call.identity.is_anonymous() {
        return Err(ApiError::unauthorized());
    }
    let (_, encoding) = call.negotiate()?;
    let mut review = call.decode(&call.kind.body(), body)?.object;
    review["status"] = match &*call.kind.kind {
        "SelfSubjectAccessReview" => access(call.identity, &review["spec"])?,
        "SelfSubjectRulesReview" => rules(call.identity),
        _ => json!({"userInfo": {"username": call.identity.user, "groups": call.identity.groups}}),
    };
    response::value(201, encoding, &review)
}

fn access(identity: &Identity, spec: &Value) -> Result<Value, ApiError> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let allowed = match (resource.is_object(), path.is_object()) {
        (true, false) => identity.may(&attributes(resource)),
        (false, true) => text(path, "verb") == "get" && identity.may_read_path(text(path, "path")),
        _ => {
            return Err(ApiError::bad_request(
                "exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be given",
            ));
        }
    };
    Ok(json!({"allowed": allowed}))
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

fn attributes(resource: &Value) -> Attributes<'_> {
    Attributes {
        verb: text(resource, "verb"),
        group: text(resource, "group"),
        resource: text(resource, "resource"),
        subresource: text(resource, "subresource"),
        namespace: text(resource, "namespace"),
        name: text(resource, "name"),
    }
}

/// What can be said in rules: everything, or that there is more to it.
fn rules(identity: &Identity) -> Value {
    let all = Attributes { verb: "*", group: "*", resource: "*", subresource: "", namespace: "", name: "" };
    if identity.may(&all) {
        return json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}], "incomplete": false,
        });
    }
    json!({
        "resourceRules": [], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}],
        "incomplete": true, "evaluationError": "permissions of this user depend on the object: ask for each with can-i",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_would_be_decided() {
        let node = Identity { user: "system:node:n1".to_owned(), groups: vec!["system:nodes".to_owned()] };
        let may =
            |spec: Value| access(&node, &spec).map(|status| status["allowed"] == true).map_err(|e| e.code);
        let resource =
            |verb: &str, resource: &str| json!({"resourceAttributes": {"verb": verb, "resource": resource}});
        assert_eq!(may(resource("list", "services")), Ok(true));
        assert_eq!(may(resource("create", "services")), Ok(false));
        assert_eq!(may(json!({"nonResourceAttributes": {"verb": "get", "path": "/version"}})), Ok(true));
        assert_eq!(may(json!({"nonResourceAttributes": {"verb": "post", "path": "/version"}})), Ok(false));
        assert_eq!(may(json!({})), Err(400));
        assert_eq!(rules(&node)["incomplete"], true);
    }
}
