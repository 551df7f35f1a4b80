//! Deployments, ReplicaSets and DaemonSets: a selector, a template and how changes roll out.

use serde_json::{Value, json};

use super::access::{integer, is_set, text};
use super::{Strategy, default_object, default_text, default_to, pod};
use crate::field::Errors;
use crate::selector::LabelSelector;

pub(crate) const DEPLOYMENT: Strategy = Strategy {
    generation: true,
    default: default_deployment,
    validate: validate_deployment,
    validate_update: immutable_selector,
    ..Strategy::PLAIN
};

pub(crate) const REPLICA_SET: Strategy = Strategy {
    generation: true,
    default: |object| {
        default_object(object, "spec");
        default_to(&mut object["spec"], "replicas", 1);
        pod::default_template(&mut object["spec"]);
    },
    validate: |object, errors| {
        validate_common(object, "ReplicaSet", errors);
        not_negative(&object["spec"], "replicas", errors);
    },
    validate_update: immutable_selector,
    ..Strategy::PLAIN
};

pub(crate) const DAEMON_SET: Strategy = Strategy {
    generation: true,
    default: default_daemon_set,
    validate: validate_daemon_set,
    validate_update: immutable_selector,
    ..Strategy::PLAIN
};

fn default_deployment(object: &mut Value) {
    default_object(object, "spec");
    let spec = &mut object["spec"];
    default_to(spec, "replicas", 1);
    default_to(spec, "revisionHistoryLimit", 10);
    default_to(spec, "progressDeadlineSeconds", 600);
    default_object(spec, "strategy");
    let strategy = &mut spec["strategy"];
    default_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        default_object(strategy, "rollingUpdate");
        default_to(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
        default_to(&mut strategy["rollingUpdate"], "maxSurge", "25%");
    }
    pod::default_template(spec);
}

fn default_daemon_set(object: &mut Value) {
    default_object(object, "spec");
    let spec = &mut object["spec"];
    default_to(spec, "revisionHistoryLimit", 10);
    default_object(spec, "updateStrategy");
    let strategy = &mut spec["updateStrategy"];
    default_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        default_object(strategy, "rollingUpdate");
        default_to(&mut strategy["rollingUpdate"], "maxUnavailable", 1);
        default_to(&mut strategy["rollingUpdate"], "maxSurge", 0);
    }
    pod::default_template(spec);
}

fn not_negative(spec: &Value, key: &str, errors: &mut Errors) {
    if let Some(number) = integer(spec, key).filter(|number| *number < 0) {
        errors.invalid(&format!("spec.{key}"), number, "must be greater than or equal to 0");
    }
}

fn validate_common(object: &Value, kind: &str, errors: &mut Errors) {
    let spec = &object["spec"];
    let template = &spec["template"];
    not_negative(spec, "minReadySeconds", errors);
    not_negative(spec, "revisionHistoryLimit", errors);
    if spec.get("selector").is_none() {
        errors.required("spec.selector", "");
    } else {
        match LabelSelector::from_object(&spec["selector"]) {
            Err(why) => errors.invalid("spec.selector", spec["selector"].clone(), why),
            Ok(selector) if selector.is_everything() => {
                let why = format!("empty selector is invalid for {kind}");
                errors.invalid("spec.selector", spec["selector"].clone(), why);
            }
            Ok(selector) if !selector.matches(template) => {
                let labels = template["metadata"].get("labels").cloned().unwrap_or_else(|| json!({}));
                let why = "`selector` does not match template `labels`";
                errors.invalid("spec.template.metadata.labels", labels, why);
            }
            Ok(_) => {}
        }
    }
    pod::validate_template(template, "spec.template", errors);
    let policy = text(&template["spec"], "restartPolicy");
    if policy != "Always" {
        errors.unsupported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if is_set(&template["spec"], "activeDeadlineSeconds") {
        errors.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            &format!("activeDeadlineSeconds in {kind} is not supported"),
        );
    }
}

/// An absolute number or a percentage, at least zero. Returns whether it is certainly zero.
fn amount(owner: &Value, key: &str, path: &str, errors: &mut Errors) -> bool {
    let path = format!("{path}.{key}");
    match owner.get(key) {
        Some(Value::String(percent)) => {
            let number = percent.strip_suffix('%').and_then(|digits| digits.parse::<u32>().ok());
            match number {
                Some(number) if key == "maxUnavailable" && number > 100 => {
                    errors.invalid(&path, percent.as_str(), "must not be greater than 100%");
                }
                Some(_) => {}
                None => errors.invalid(
                    &path,
                    percent.as_str(),
                    "must be an integer or percentage (e.g '5%%')".replace("%%", "%"),
                ),
            }
            number == Some(0)
        }
        Some(value) => {
            let number = value.as_i64().unwrap_or(0);
            if number < 0 {
                errors.invalid(&path, number, "must be greater than or equal to 0");
            }
            number == 0
        }
        None => true,
    }
}

fn rolling(strategy: &Value, path: &str, kinds: &[&str], errors: &mut Errors) {
    let kind = text(strategy, "type");
    let path = format!("spec.{path}");
    if !kinds.contains(&kind) {
        errors.unsupported(&format!("{path}.type"), kind, kinds);
        return;
    }
    let path = format!("{path}.rollingUpdate");
    let Some(rolling) = strategy.get("rollingUpdate") else { return };
    if kind != "RollingUpdate" {
        errors.forbidden(&path, &format!("may not be specified when strategy `type` is '{kind}'"));
        return;
    }
    let no_unavailable = amount(rolling, "maxUnavailable", &path, errors);
    let no_surge = amount(rolling, "maxSurge", &path, errors);
    if no_unavailable && no_surge {
        errors.invalid(
            &format!("{path}.maxUnavailable"),
            rolling.get("maxUnavailable").cloned().unwrap_or_else(|| 0.into()),
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

fn validate_deployment(object: &Value, errors: &mut Errors) {
    validate_common(object, "Deployment", errors);
    let spec = &object["spec"];
    not_negative(spec, "replicas", errors);
    rolling(&spec["strategy"], "strategy", &["Recreate", "RollingUpdate"], errors);
    let (deadline, ready) = (integer(spec, "progressDeadlineSeconds"), integer(spec, "minReadySeconds"));
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready.unwrap_or(0)) {
        errors.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
}

fn validate_daemon_set(object: &Value, errors: &mut Errors) {
    validate_common(object, "DaemonSet", errors);
    rolling(&object["spec"]["updateStrategy"], "updateStrategy", &["OnDelete", "RollingUpdate"], errors);
}

fn immutable_selector(new: &Value, old: &Value, errors: &mut Errors) {
    if new["spec"].get("selector") != old["spec"].get("selector") {
        errors.invalid("spec.selector", new["spec"]["selector"].clone(), "field is immutable");
    }
}
