//! Who owns which field of an object (`metadata.managedFields`), and server-side apply, which is made of it: an applier
//! owns what it says, loses what it no longer says, and is told of a conflict where somebody else owns what it changes.
//! The rules are those of upstream's structured-merge-diff.

mod fields;
mod managers;
mod merge;
mod walk;

use jiff::Timestamp;
use serde_json::{Value, json};

use self::fields::{Branch, FieldSet};
use self::managers::{ManagerId, Managers, Operation, Owned};
use self::walk::{Form, Walk};
use crate::{ApiError, Kind, schema, time};

/// The annotation in which `kubectl apply` without `--server-side` keeps what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Owns what an object had before anybody kept account.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// What nobody owns: it says which object it is, or belongs to the server.
const UNOWNED: &[&str] = &["f:apiVersion", "f:kind"];
const UNOWNED_METADATA: &[&str] = &[
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
    "f:deletionTimestamp",
    "f:deletionGracePeriodSeconds",
];

/// Who writes, through what and when.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The `fieldManager` of the request, or what its `User-Agent` begins with.
    pub manager: &'a str,
    /// The subresource that is written; empty for the object itself.
    pub subresource: &'a str,
    /// The time of the write.
    pub now: Timestamp,
}

impl Writer<'_> {
    fn id(&self, operation: Operation, api_version: &str) -> ManagerId {
        ManagerId {
            operation,
            manager: self.manager.to_owned(),
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
            subresource: self.subresource.to_owned(),
        }
    }
}

/// What an apply makes of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The object, its `managedFields` left as they were. Members may be null, which means absent.
    pub object: Value,
    /// The `metadata.managedFields` that go with it.
    pub managed: Value,
}

/// The `metadata.managedFields` after a write other than an apply made `new` out of `old` (null for a new object).
/// `requested` is what the client itself said about `managedFields`: an empty list, or one empty entry, resets them.
pub fn updated(
    kind: &Kind,
    old: &Value,
    new: &Value,
    requested: Option<&Value>,
    writer: Writer<'_>,
) -> Value {
    let Some((walk, root)) = walk_of(kind) else { return known_list(old) };
    let mut managers = requested_managers(old, requested, writer);
    let empty = json!({"metadata": {}});
    let old = if old.is_null() { &empty } else { old };
    let difference = walk.compare(root, Some(old), Some(new));
    let mut taken = unowned(&difference.modified.union(&difference.added));
    if writer.subresource.is_empty() && kind.subresource("status").is_some() {
        // What the server fills in there is nobody's.
        taken.insert("f:status".to_owned(), Branch::default());
    }
    managers.take(&taken.union(&difference.removed), None);
    if !taken.is_empty() {
        let api_version = kind.api_version();
        let id = writer.id(Operation::Update, &api_version);
        let own = managers.0.entry(id).or_insert_with(|| Owned {
            api_version,
            time: String::new(),
            fields: FieldSet::default(),
        });
        own.fields = own.fields.union(&taken);
        own.time = time::seconds(writer.now);
        managers.cap();
    }
    managers.to_json()
}

/// Lays `config` (complete, conformed) over `old`, null where there is no such object yet.
pub fn apply(
    kind: &Kind,
    old: &Value,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Applied, ApiError> {
    let Some((walk, root)) = walk_of(kind) else {
        return Err(ApiError::internal(format!("no schema for {}", kind.kind)));
    };
    let config = writable(kind, config, writer);
    if let Some(path) = walk.doubles(root, &config, "") {
        return Err(ApiError::bad_request(format!(
            "failed to create typed patch object: duplicate entries for key {path}"
        )));
    }
    let mut managers = managers_of(kind, walk, root, old);
    let empty = json!({"metadata": {}});
    let live = if old.is_null() { &empty } else { old };
    let id = writer.id(Operation::Apply, "");
    let last = managers.0.remove(&id);
    let fields = unowned(&walk.fields(root, &config));
    let unchanged = last.as_ref().is_some_and(|last| last.fields == fields);
    let own = Owned { api_version: kind.api_version(), time: time::seconds(writer.now), fields };
    managers.0.insert(id.clone(), own);
    let merged = walk.merge(root, live, &config);
    let mut object = match &last {
        Some(last) => prune(walk, root, &merged, &managers, &last.fields),
        None => merged,
    };
    let difference = walk.compare(root, Some(live), Some(&object));
    let changed = difference.modified.union(&difference.added);
    if !force && !old.is_null() {
        let allowed = kubectls_own(walk, root, live, writer);
        refuse_conflicts(&managers, &id, &changed.difference(&allowed))?;
    }
    managers.take(&changed.union(&difference.removed), Some(&id));
    if let (true, Some(last), Some(own)) = (unchanged, last, managers.0.get_mut(&id)) {
        // Nothing new was said: the time stays, so that applying the same again changes nothing.
        own.time = last.time;
    }
    keep_last_applied(live, &config, writer, &mut object);
    Ok(Applied { object, managed: managers.to_json() })
}

/// The part of the configuration that the path takes: an object without its status, or the status alone.
fn writable(kind: &Kind, config: &Value, writer: Writer<'_>) -> Value {
    let mut config = config.clone();
    let has_status = kind.subresource("status").is_some();
    if let Some(members) = config.as_object_mut().filter(|_| has_status) {
        match writer.subresource {
            "status" => members.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "status")),
            _ => drop(members.remove("status")),
        }
    }
    config
}

fn walk_of(kind: &Kind) -> Option<(Walk<'static>, Form<'static>)> {
    let schema = schema::builtin();
    let owner = kind.body().schema_type(schema).ok()?;
    Some((Walk { schema }, Form::Struct(owner)))
}

fn known_list(object: &Value) -> Value {
    object["metadata"]["managedFields"].clone()
}

/// The managers that a write starts from. Who does not understand `managedFields` does not lose them.
fn requested_managers(old: &Value, requested: Option<&Value>, writer: Writer<'_>) -> Managers {
    let known = || Managers::from_json(&known_list(old)).unwrap_or_default();
    let Some(list) = requested.and_then(Value::as_array).filter(|_| writer.subresource.is_empty()) else {
        return known();
    };
    if list.is_empty() || *list == [json!({})] {
        return Managers::default();
    }
    match requested.map(Managers::from_json) {
        Some(Ok(managers)) if !managers.0.is_empty() => managers,
        _ => known(),
    }
}

/// The managers that an apply starts from. What was there before anybody kept account has an owner as well.
fn managers_of(kind: &Kind, walk: Walk<'static>, root: Form<'static>, old: &Value) -> Managers {
    let list = known_list(old);
    if old.is_null() || list.as_array().is_some_and(|list| !list.is_empty()) {
        return Managers::from_json(&list).unwrap_or_default();
    }
    let mut managers = Managers::default();
    let fields = unowned(&walk.fields(root, old));
    if !fields.is_empty() {
        let api_version = kind.api_version();
        let id = ManagerId {
            operation: Operation::Update,
            manager: BEFORE_FIRST_APPLY.to_owned(),
            api_version: api_version.clone(),
            subresource: String::new(),
        };
        let time = old["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        managers.0.insert(id, Owned { api_version, time, fields });
    }
    managers
}

/// The set without what nobody owns.
fn unowned(set: &FieldSet) -> FieldSet {
    let metadata = |branch: &Branch| {
        let mut below = branch.below.clone();
        for step in UNOWNED_METADATA {
            below.insert((*step).to_owned(), Branch::default());
        }
        below
    };
    let mut kept = set.map(|step, branch| match step {
        "f:metadata" => Branch { owned: false, below: metadata(branch) },
        _ => branch.clone(),
    });
    for step in UNOWNED {
        kept.insert((*step).to_owned(), Branch::default());
    }
    kept
}

/// Takes away what the applier said the last time and says no longer, unless somebody else owns it too.
fn prune(walk: Walk<'_>, root: Form<'_>, merged: &Value, managers: &Managers, last: &FieldSet) -> Value {
    let named = |set: &FieldSet| walk.with_named(root, set);
    let last = named(last);
    let all = named(&walk.fields(root, merged));
    let kept = |object: &Value| named(&walk.fields(root, object));
    let pruned = walk.remove(root, merged, &last);
    let owned = managers.0.values().fold(FieldSet::default(), |all, owned| all.union(&owned.fields));
    let gone = all.difference(&kept(&pruned).union(&named(&owned)));
    let pruned = walk.remove(root, merged, &gone);
    // What nobody owned stays, also below something that went.
    walk.remove(root, merged, &all.difference(&kept(&pruned)).intersection(&last))
}

/// What kubectl applied on the client's side and nobody has changed since: it may change that now on the server's side,
/// whoever is written down as the owner.
fn kubectls_own(walk: Walk<'_>, root: Form<'_>, live: &Value, writer: Writer<'_>) -> FieldSet {
    let annotation = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let applied =
        annotation.filter(|_| is_kubectl(writer)).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(applied) = applied.filter(|applied| applied["apiVersion"] == live["apiVersion"]) else {
        return FieldSet::default();
    };
    let since = walk.compare(root, Some(&applied), Some(live));
    unowned(&walk.fields(root, &applied))
        .difference(&since.modified.union(&since.added).union(&since.removed))
}

fn is_kubectl(writer: Writer<'_>) -> bool {
    writer.manager == "kubectl" && writer.subresource.is_empty()
}

/// Who goes back to `kubectl apply` without `--server-side` shall find there what was applied last.
fn keep_last_applied(live: &Value, config: &Value, writer: Writer<'_>, object: &mut Value) {
    if !is_kubectl(writer) || live["metadata"]["annotations"].get(LAST_APPLIED).is_none() {
        return;
    }
    let mut applied = config.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    object["metadata"]["annotations"][LAST_APPLIED] = format!("{applied}\n").into();
}

/// Fails where what changes is somebody else's.
fn refuse_conflicts(managers: &Managers, applier: &ManagerId, changed: &FieldSet) -> Result<(), ApiError> {
    let others = managers.0.iter().filter(|(id, _)| *id != applier);
    let conflicts: Vec<(String, Vec<String>)> = others
        .map(|(id, owned)| (id.words(), owned.fields.intersection(changed).paths()))
        .filter(|(_, paths)| !paths.is_empty())
        .collect();
    if conflicts.is_empty() {
        return Ok(());
    }
    Err(ApiError::apply_conflict(&conflicts))
}

#[cfg(test)]
mod tests;
