//! The rules of ownership, on objects as people apply them.

use serde_json::{Value, json};

use super::*;
use crate::{CreateContext, Registry};

fn kind(group: &str, plural: &str) -> std::sync::Arc<Kind> {
    std::sync::Arc::clone(Registry::builtin().resource(group, "v1", plural).unwrap())
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn writer(manager: &str, second: i64) -> Writer<'_> {
    Writer { manager, subresource: "", now: at(second) }
}

fn deployment(replicas: Option<i64>, image: &str) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]}}}});
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = replicas.into();
    }
    object
}

/// One cluster with one object.
struct Live {
    kind: std::sync::Arc<Kind>,
    object: Value,
}

impl Live {
    fn new(group: &str, plural: &str) -> Self {
        Self { kind: kind(group, plural), object: Value::Null }
    }

    fn store(&mut self, mut object: Value, managed: Value) {
        if managed.as_array().is_some_and(|list| !list.is_empty()) {
            object["metadata"]["managedFields"] = managed;
        }
        self.object = object;
    }

    fn create(&mut self, object: Value, by: Writer<'_>) {
        let context = CreateContext { namespace: Some("default"), uid: "u", suffix: "xxxxx", now: by.now };
        let made = self.kind.prepare_create(object, &context).unwrap();
        let managed = updated(&self.kind, &Value::Null, &made, None, by);
        self.store(made, managed);
    }

    fn update(&mut self, by: Writer<'_>, change: impl FnOnce(&mut Value)) {
        let mut new = self.object.clone();
        change(&mut new);
        let new = self.kind.prepare_update(new, &self.object, by.now).unwrap();
        let managed = updated(&self.kind, &self.object, &new, None, by);
        self.store(new, managed);
    }

    fn apply(&mut self, config: &Value, by: Writer<'_>, force: bool) -> Result<(), ApiError> {
        let config =
            crate::decode::conform(&self.kind.body(), config.clone(), crate::FieldValidation::Strict)?;
        let applied = apply(&self.kind, &self.object, &config.object, by, force)?;
        let object =
            crate::decode::conform(&self.kind.body(), applied.object, crate::FieldValidation::Ignore)?.object;
        let made = if self.object.is_null() {
            let context =
                CreateContext { namespace: Some("default"), uid: "u", suffix: "xxxxx", now: by.now };
            self.kind.prepare_create(object, &context)?
        } else {
            self.kind.prepare_update(object, &self.object, by.now)?
        };
        self.store(made, applied.managed);
        Ok(())
    }

    /// What a manager owns, in paths.
    fn owned(&self, manager: &str) -> Vec<String> {
        let managers = Managers::from_json(&self.object["metadata"]["managedFields"]).unwrap();
        let own = managers.0.iter().filter(|(id, _)| id.manager == manager);
        own.flat_map(|(_, owned)| owned.fields.paths()).collect()
    }
}

#[test]
fn who_creates_owns_what_upstream_says() {
    let mut live = Live::new("apps", "deployments");
    live.create(deployment(Some(2), "a"), writer("kubectl-create", 0));
    let entries = live.object["metadata"]["managedFields"].clone();
    assert_eq!(entries.as_array().map(Vec::len), Some(1));
    let entry = &entries[0];
    assert_eq!((&entry["manager"], &entry["operation"]), (&json!("kubectl-create"), &json!("Update")));
    assert_eq!((&entry["apiVersion"], &entry["fieldsType"]), (&json!("apps/v1"), &json!("FieldsV1")));
    assert_eq!(entry["time"], "2027-01-15T08:00:00Z");
    // As a cluster of upstream shows it: structs are there before, maps, lists and pointers come into being.
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
            "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
                "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {},
                    "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                        {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                    "f:resources": {}, "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
                "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                "f:terminationGracePeriodSeconds": {}}}}})
    );
}

#[test]
fn a_field_that_an_applier_drops_goes_unless_somebody_else_owns_it() {
    let mut live = Live::new("", "configmaps");
    let config = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    live.apply(&config(json!({"a": "1", "b": "2", "c": "3"})), writer("one", 0), false).unwrap();
    live.apply(&config(json!({"c": "3"})), writer("two", 1), false).unwrap();
    live.update(writer("hand", 2), |object| object["data"]["d"] = "4".into());
    live.apply(&config(json!({"b": "2"})), writer("one", 3), false).unwrap();
    assert_eq!(live.object["data"], json!({"b": "2", "c": "3", "d": "4"}));
    assert_eq!(live.owned("one"), [".data.b"]);
    assert_eq!(live.owned("two"), [".data.c"]);
    assert_eq!(live.owned("hand"), [".data.d"]);
}

#[test]
fn conflicts_are_told_and_can_be_forced() {
    let mut live = Live::new("apps", "deployments");
    live.apply(&deployment(Some(2), "a"), writer("one", 0), false).unwrap();
    live.update(writer("scaler", 1), |object| object["spec"]["replicas"] = 5.into());
    assert_eq!(live.owned("scaler"), [".spec.replicas"]);
    let error = live.apply(&deployment(Some(2), "b"), writer("two", 2), false).unwrap_err();
    assert_eq!((error.code, error.reason), (409, "Conflict"));
    let causes = &error.details.as_ref().unwrap()["causes"];
    assert_eq!(causes[0]["reason"], "FieldManagerConflict");
    assert_eq!(causes[0]["field"], ".spec.template.spec.containers[name=\"c\"].image");
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.template.spec.containers[name=\"c\"].image\n\
         conflicts with \"scaler\" using apps/v1:\n- .spec.replicas"
    );
    let error = live.apply(&deployment(Some(2), "a"), writer("one", 3), false).unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas"
    );
    // The same value is shared, not fought over.
    live.apply(&deployment(Some(5), "a"), writer("two", 4), false).unwrap();
    assert!(live.owned("two").contains(&".spec.replicas".to_owned()));
    assert!(live.owned("scaler").contains(&".spec.replicas".to_owned()));
    live.apply(&deployment(Some(2), "b"), writer("two", 5), true).unwrap();
    assert_eq!(live.object["spec"]["replicas"], 2);
    assert!(live.owned("scaler").is_empty());
    assert!(!live.owned("one").contains(&".spec.replicas".to_owned()));
    // Left out, it is nobody's, and keeps the value.
    live.apply(&deployment(None, "b"), writer("two", 6), false).unwrap();
    assert_eq!(live.object["spec"]["replicas"], 1, "back to the default, as upstream has it");
}

#[test]
fn lists_with_keys_are_merged_by_them() {
    let service = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}});
    let mut live = Live::new("", "services");
    live.apply(
        &service(json!([{"name": "a", "port": 53}, {"name": "c", "port": 80}])),
        writer("one", 0),
        false,
    )
    .unwrap();
    live.apply(&service(json!([{"name": "b", "port": 53, "protocol": "UDP"}])), writer("two", 1), false)
        .unwrap();
    let names: Vec<&Value> =
        live.object["spec"]["ports"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["a", "c", "b"]);
    live.apply(&service(json!([{"name": "c", "port": 80}])), writer("one", 2), false).unwrap();
    let names: Vec<&Value> =
        live.object["spec"]["ports"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["c", "b"], "one's port 53 is TCP, two's is UDP");
    let twice = service(json!([{"name": "x", "port": 1}, {"name": "y", "port": 1}]));
    let error = live.apply(&twice, writer("one", 3), false).unwrap_err();
    assert!(error.code == 400 && error.message.contains("duplicate entries"), "{error}");
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let mut live = Live::new("apps", "deployments");
    live.apply(&deployment(Some(2), "a"), writer("one", 0), false).unwrap();
    let before = live.object.clone();
    live.apply(&deployment(Some(2), "a"), writer("one", 9), false).unwrap();
    assert_eq!(live.object, before);
    live.update(writer("hand", 10), |_| {});
    assert_eq!(live.object, before);
}

#[test]
fn what_was_there_before_anybody_kept_account_has_an_owner() {
    let mut live = Live::new("", "configmaps");
    live.object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default",
        "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}, "data": {"a": "1"}});
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "2"}});
    let error = live.apply(&config, writer("one", 0), false).unwrap_err();
    assert!(error.message.contains("conflict with \"before-first-apply\" using v1: .data.a"), "{error}");
}

#[test]
fn clients_may_write_the_list_itself_and_do_not_lose_it_by_leaving_it_out() {
    let mut live = Live::new("", "configmaps");
    live.create(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}),
        writer("csa", 0),
    );
    let list = live.object["metadata"]["managedFields"].clone();
    let told = |requested: Option<&Value>| {
        updated(&live.kind, &live.object, &live.object, requested, writer("x", 1))
    };
    assert_eq!(told(None), list);
    assert_eq!(told(Some(&json!([]))), json!([]));
    assert_eq!(told(Some(&json!([{}]))), json!([]));
    assert_eq!(told(Some(&json!([{"operation": "Steal", "fieldsV1": {}}]))), list);
    let mut renamed = list.clone();
    renamed[0]["manager"] = "kubectl".into();
    renamed[0]["operation"] = "Apply".into();
    assert_eq!(told(Some(&renamed)), renamed);
    let status = Writer { subresource: "status", ..writer("x", 1) };
    assert_eq!(updated(&live.kind, &live.object, &live.object, Some(&json!([])), status), list);
}

#[test]
fn the_status_belongs_to_those_who_write_it() {
    let mut live = Live::new("apps", "deployments");
    let mut config = deployment(Some(1), "a");
    config["status"] = json!({"replicas": 7});
    live.apply(&config, writer("one", 0), false).unwrap();
    assert!(!live.owned("one").iter().any(|path| path.starts_with(".status")));
    let status = Writer { subresource: "status", ..writer("two", 1) };
    let mut new = live.object.clone();
    new["status"] = json!({"replicas": 3, "conditions": [{"type": "Available", "status": "True"}]});
    let managed = updated(&live.kind, &live.object, &new, None, status);
    live.store(new, managed);
    assert_eq!(
        live.owned("two"),
        [
            ".status.conditions",
            ".status.conditions[type=\"Available\"]",
            ".status.conditions[type=\"Available\"].status",
            ".status.conditions[type=\"Available\"].type",
            ".status.replicas",
        ]
    );
    assert_eq!(live.object["metadata"]["managedFields"][1]["subresource"], "status");
}

#[test]
fn the_oldest_of_many_updaters_become_one() {
    let mut live = Live::new("", "configmaps");
    live.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}), writer("w", 0));
    for number in 0..14 {
        let name = format!("m{number:02}");
        live.update(writer(&name, number), |object| object["data"][&name] = "x".into());
    }
    assert_eq!(live.object["metadata"]["managedFields"].as_array().map(Vec::len), Some(10));
    let ancient = live.owned("ancient-changes");
    assert!(
        ancient.contains(&".data.m00".to_owned()) && !ancient.contains(&".data.m13".to_owned()),
        "{ancient:?}"
    );
}

#[test]
fn kubectl_may_change_what_it_applied_on_the_clients_side() {
    let config = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    let mut live = Live::new("", "configmaps");
    let mut old = config(json!({"a": "1", "b": "1"}));
    old["metadata"]["annotations"] = json!({LAST_APPLIED: old.to_string()});
    live.create(old, writer("kubectl-client-side-apply", 0));
    live.update(writer("hand", 1), |object| object["data"]["b"] = "2".into());
    let wanted = config(json!({"a": "3", "b": "3"}));
    let error = live.apply(&wanted, writer("kubectl", 2), false).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"hand\" using v1: .data.b");
    let error = live.apply(&wanted, writer("else", 2), false).unwrap_err();
    assert!(error.message.starts_with("Apply failed with 2 conflicts"), "{error}");
    live.apply(&config(json!({"a": "3"})), writer("kubectl", 3), false).unwrap();
    assert_eq!(live.object["data"], json!({"a": "3", "b": "2"}));
}

#[test]
fn kubectls_annotation_follows_its_applies() {
    let mut live = Live::new("", "configmaps");
    let mut config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}});
    let mut old = config.clone();
    old["metadata"]["annotations"] = json!({LAST_APPLIED: "{}"});
    live.create(old, writer("kubectl-client-side-apply", 0));
    config["data"]["b"] = "2".into();
    live.apply(&config, writer("kubectl", 1), false).unwrap();
    let kept = live.object["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(kept).unwrap(), config);
}
