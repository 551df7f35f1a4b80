//! The `binding` subresource of pods: the scheduler's decision, made once.

use jiff::Timestamp;
use seaway_kinds::{ApiError, FieldError, decode, error, field::Fault};
use serde_json::{Value, json};

use crate::{
    api::Call,
    list, objects,
    response::{self, ApiResult},
    write::{self, Outcome},
};

/// How often the binding is decided anew when somebody else was faster.
const ATTEMPTS: usize = 256;

/// POST.
pub(crate) async fn bind(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let (_, encoding) = call.negotiate()?;
    let binding = call.decode(&decode::BINDING, body)?.object;
    let node = target(call, &binding)?;
    for _ in 0..ATTEMPTS {
        let entry = list::entry(call.api, call.kind, &call.key(), call.name()).await?;
        let old = objects::shown(call.kind, &entry.value)?;
        let bound = bound(call, &old, &binding, &node)?;
        match write::store_change(call, &entry, &old, bound).await? {
            Outcome::Raced => {}
            Outcome::Stored(_) | Outcome::Tried(_) => {
                return response::value(201, encoding, &error::success(201));
            }
        }
    }
    Err(ApiError::modified(call.kind, call.name()))
}

fn target(call: &Call<'_>, binding: &Value) -> Result<String, ApiError> {
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let kind = target["kind"].as_str().unwrap_or_default();
    let fault = if !matches!(kind, "" | "Node") {
        Some((Fault::NotSupported, "target.kind", "supported values: \"Node\""))
    } else if node.is_empty() {
        Some((Fault::Required, "target.name", ""))
    } else {
        None
    };
    let Some((fault, path, detail)) = fault else { return Ok(node.to_owned()) };
    let error = FieldError { fault, path: path.to_owned(), value: None, detail: detail.to_owned() };
    Err(ApiError::invalid_as("", "Binding", call.name(), &[error]))
}

fn bound(call: &Call<'_>, old: &Value, binding: &Value, node: &str) -> Result<Value, ApiError> {
    let name = call.name();
    let conflict = |why: String| Err(ApiError::conflict(call.kind, name, &why));
    let uid = objects::meta(binding, "uid");
    if !uid.is_empty() && uid != objects::meta(old, "uid") {
        return conflict(format!("the pod with uid {uid} is gone, another one has its name"));
    }
    if !old["metadata"]["deletionTimestamp"].is_null() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(current) = old["spec"]["nodeName"].as_str().filter(|current| !current.is_empty()) {
        return conflict(format!("pod {name} is already assigned to node \"{current}\""));
    }
    if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            pod["metadata"][field][key] = value.clone();
        }
    }
    set_scheduled(&mut pod);
    Ok(pod)
}

fn set_scheduled(pod: &mut Value) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|known| known["type"] != "PodScheduled");
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduling_replaces_the_condition() {
        let mut pod = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False"}, {"type": "Ready"}]}});
        set_scheduled(&mut pod);
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert_eq!(
            (&conditions[1]["type"], &conditions[1]["status"]),
            (&json!("PodScheduled"), &json!("True"))
        );
    }
}
