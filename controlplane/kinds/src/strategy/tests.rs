//! What each kind gets, refuses and keeps, as tables.

mod created;
mod refused;

use expect_test::Expect;
use serde_json::{Value, json};

use crate::{ApiError, CreateContext, Registry};

fn now() -> jiff::Timestamp {
    "2026-11-21T07:00:00Z".parse().unwrap()
}

fn create(api: &str, kind: &str, mut object: Value) -> Result<Value, ApiError> {
    let registry = Registry::builtin();
    let kind = registry.kind(api, kind).unwrap();
    if object["metadata"].is_null() {
        object["metadata"] = json!({"name": "web"});
    }
    let namespace = kind.namespaced.then_some("default");
    let context = CreateContext { namespace, uid: "uid-1", suffix: "x7k2p", now: now() };
    kind.prepare_create(object, &context)
}

fn update(old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, ApiError> {
    let registry = Registry::builtin();
    let kind = registry.kind(old["apiVersion"].as_str().unwrap(), old["kind"].as_str().unwrap()).unwrap();
    let mut new = old.clone();
    change(&mut new);
    kind.prepare_update(new, old, now())
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

fn check(got: &Value, wanted: Expect) {
    wanted.assert_eq(&pretty(got));
}

/// The faults of a refused object, a line each.
fn faults(result: Result<Value, ApiError>) -> String {
    let error = result.expect_err("the object should be refused");
    let causes = error.details.as_ref().and_then(|details| details["causes"].as_array().cloned());
    let lines: Vec<String> = causes
        .unwrap_or_default()
        .iter()
        .map(|cause| {
            let text = |key: &str| cause[key].as_str().unwrap_or_default().to_owned();
            format!("{}: {}: {}", text("field"), text("reason"), text("message"))
        })
        .collect();
    if lines.is_empty() { format!("{} {}", error.code, error.message) } else { lines.join("\n") }
}

fn template(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "seaway/echo"}]}})
}

fn deployment() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(json!({"app": "web"}))}})
}

fn service(spec: Value) -> Result<Value, ApiError> {
    create("v1", "Service", json!({"spec": spec}))
}

#[test]
fn updates_keep_what_is_the_servers() {
    let old = create("apps/v1", "Deployment", deployment()).unwrap();
    let mut old = old;
    old["metadata"]["resourceVersion"] = "5".into();
    old["status"] = json!({"replicas": 1});
    let new = update(&old, |new| {
        new["metadata"] = json!({"name": "web", "labels": {"a": "b"}});
        new["status"] = json!({"replicas": 9});
    })
    .unwrap();
    assert_eq!(new["status"], old["status"]);
    assert_eq!(
        (&new["metadata"]["generation"], &new["metadata"]["resourceVersion"], &new["metadata"]["uid"]),
        (&json!(1), &json!("5"), &json!("uid-1"))
    );
    assert_eq!(new["metadata"]["labels"], json!({"a": "b"}));
    let new = update(&old, |new| new["spec"]["replicas"] = 3.into()).unwrap();
    assert_eq!(new["metadata"]["generation"], 2);
    let error = update(&old, |new| new["metadata"]["uid"] = "other".into()).unwrap_err();
    assert_eq!((error.code, error.reason), (409, "Conflict"));
    let got = faults(update(&old, |new| {
        new["spec"]["selector"] = json!({"matchLabels": {"app": "web", "x": "y"}});
        new["spec"]["template"] = template(json!({"app": "web", "x": "y"}));
    }));
    assert!(got.ends_with("field is immutable"), "{got}");
}

#[test]
fn status_updates_change_nothing_else() {
    let registry = Registry::builtin();
    let old = create("apps/v1", "Deployment", deployment()).unwrap();
    let mut new = old.clone();
    new["spec"]["replicas"] = 7.into();
    new["metadata"]["labels"] = json!({"x": "y"});
    new["metadata"]["annotations"] = json!({"revision": "1"});
    new["status"] = json!({"replicas": 1});
    let kind = registry.kind("apps/v1", "Deployment").unwrap();
    let got = kind.prepare_status_update(new, &old, now()).unwrap();
    assert_eq!((&got["spec"], &got["status"]["replicas"]), (&old["spec"], &json!(1)));
    assert_eq!(got["metadata"]["generation"], 1);
    assert!(got["metadata"].get("labels").is_none());
    assert_eq!(got["metadata"]["annotations"]["revision"], "1");
}

#[test]
fn a_status_keeps_what_its_writer_left_out() {
    let registry = Registry::builtin();
    let old = create("v1", "Pod", json!({"spec": {"containers": [{"name": "c", "image": "a"}]}})).unwrap();
    let mut new = old.clone();
    new["status"] = json!({"phase": "Running"});
    let got = registry.kind("v1", "Pod").unwrap().prepare_status_update(new, &old, now()).unwrap();
    assert_eq!(got["status"], json!({"phase": "Running", "qosClass": "BestEffort"}));
    let old = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]})).unwrap();
    let mut new = old.clone();
    new["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.30.0.192"}]}});
    let got = registry.kind("v1", "Service").unwrap().prepare_status_update(new, &old, now()).unwrap();
    assert_eq!(got["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    assert_eq!(got["spec"], old["spec"]);
}

#[test]
fn pods_hardly_change() {
    let old = create("v1", "Pod", json!({"spec": {"containers": [{"name": "c", "image": "a"}]}})).unwrap();
    let image = update(&old, |new| new["spec"]["containers"][0]["image"] = "b".into()).unwrap();
    assert_eq!(image["spec"]["containers"][0]["image"], "b");
    let toleration = json!({"key": "k", "operator": "Exists"});
    assert!(update(&old, |new| new["spec"]["tolerations"].as_array_mut().unwrap().push(toleration)).is_ok());
    assert!(update(&old, |new| new["spec"]["tolerations"] = json!([])).is_err());
    assert!(update(&old, |new| new["spec"]["activeDeadlineSeconds"] = 5.into()).is_ok());
    let got = faults(update(&old, |new| new["spec"]["containers"][0]["env"] = json!([{"name": "A"}])));
    assert!(got.ends_with("changed: spec.containers[0].env"), "{got}");
    assert!(update(&old, |new| new["spec"]["nodeName"] = "n".into()).is_err());
}

#[test]
fn services_keep_their_addresses() {
    let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    old["spec"]["clusterIP"] = "10.96.0.7".into();
    old["spec"]["clusterIPs"] = json!(["10.96.0.7"]);
    old["spec"]["ipFamilies"] = json!(["IPv4"]);
    old["spec"]["ports"][0]["nodePort"] = 30080.into();
    // kubectl replace with a file that never knew the allocated values.
    let again =
        update(&old, |new| new["spec"] = json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
    assert_eq!(again["spec"], old["spec"]);
    let inner = update(&old, |new| new["spec"]["type"] = "ClusterIP".into()).unwrap();
    assert!(inner["spec"]["ports"][0].get("nodePort").is_none());
    assert!(inner["spec"].get("externalTrafficPolicy").is_none());
    assert_eq!(inner["spec"]["clusterIP"], "10.96.0.7");
    let outer = update(&old, |new| {
        new["spec"]["type"] = "ExternalName".into();
        new["spec"]["externalName"] = "example.com".into();
    })
    .unwrap();
    assert!(outer["spec"].get("clusterIP").is_none() && outer["spec"].get("clusterIPs").is_none());
    let got = faults(update(&old, |new| new["spec"]["clusterIP"] = "10.96.0.8".into()));
    assert!(got.contains("may not change once set"), "{got}");
}

#[test]
fn immutable_data_and_finalizers() {
    let old = create("v1", "ConfigMap", json!({"immutable": true, "data": {"a": "1"}})).unwrap();
    assert!(
        faults(update(&old, |new| new["data"]["a"] = "2".into())).starts_with("data: FieldValueForbidden")
    );
    assert!(update(&old, |new| new["metadata"]["labels"] = json!({"x": "y"})).is_ok());
    let mut deleting = create("v1", "ConfigMap", json!({})).unwrap();
    deleting["metadata"]["deletionTimestamp"] = "2026-11-21T07:00:00Z".into();
    let got = faults(update(&deleting, |new| new["metadata"]["finalizers"] = json!(["a/b"])));
    assert!(got.starts_with("metadata.finalizers: FieldValueForbidden"), "{got}");
    let kept = update(&deleting, |new| {
        new["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
    })
    .unwrap();
    assert_eq!(kept["metadata"]["deletionTimestamp"], "2026-11-21T07:00:00Z");
}
