//! DELETE: preconditions, finalizers, grace and propagation decide whether an object goes now or is only marked.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use seaway_kinds::{ApiError, Kind, decode, error};
use seaway_store::{Entry, Expect, Store, StoreError};
use serde_json::{Value, json};

use crate::{
    api::{Api, Call},
    list, objects,
    query::{ListQuery, Selection},
    response::{self, ApiResult},
    write::Outcome,
};

/// How often a deletion is decided anew when somebody else was faster.
const ATTEMPTS: usize = 256;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Namespaces without which a cluster is none.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// What becomes of the objects that the deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`, from body and query.
#[derive(Debug, Default, Clone)]
struct Options {
    grace_s: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    propagation: Option<Propagation>,
    dry_run: bool,
}

impl Options {
    fn parse(call: &Call<'_>, body: &[u8]) -> Result<Self, ApiError> {
        let object =
            if body.is_empty() { Value::Null } else { call.decode(&decode::DELETE_OPTIONS, body)?.object };
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let policy = text(&object["propagationPolicy"])
            .or_else(|| call.query.get("propagationPolicy").map(str::to_owned));
        let orphan = object["orphanDependents"].as_bool();
        let orphan = orphan.or_else(|| call.query.get("orphanDependents").map(|text| text == "true"));
        let propagation = match (policy.as_deref(), orphan) {
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, None) => None,
            (Some(other), _) => {
                return Err(ApiError::bad_request(format!(
                    "invalid propagationPolicy {other:?}: must be Background, Foreground or Orphan"
                )));
            }
        };
        let grace_s = object["gracePeriodSeconds"].as_i64();
        let grace_s = if grace_s.is_some() { grace_s } else { call.query.number("gracePeriodSeconds")? };
        Ok(Self {
            grace_s: grace_s.map(|seconds| seconds.max(0)),
            uid: text(&object["preconditions"]["uid"]),
            resource_version: text(&object["preconditions"]["resourceVersion"]),
            propagation,
            dry_run: call.query.dry_run()?
                || object["dryRun"].as_array().is_some_and(|stages| !stages.is_empty()),
        })
    }

    fn check(&self, kind: &Kind, object: &Value) -> Result<(), ApiError> {
        for (field, wanted) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            let actual = objects::meta(object, field);
            if let Some(wanted) = wanted
                && wanted != actual
            {
                let word = if field == "uid" { "UID" } else { "ResourceVersion" };
                let why = format!(
                    "the {word} in the precondition ({wanted}) does not match the {word} in record ({actual}). The object might have been deleted and then recreated"
                );
                return Err(ApiError::conflict(kind, objects::meta(object, "name"), &why));
            }
        }
        Ok(())
    }
}

/// DELETE of one object.
pub(crate) async fn delete(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let options = Options::parse(call, body)?;
    delete_with(call, &call.key(), call.name(), &options).await
}

/// POST of an Eviction: a deletion that a disruption budget could refuse. There are no budgets yet.
pub(crate) async fn evict(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let eviction = call.decode(&decode::EVICTION, body)?.object;
    let options = &eviction["deleteOptions"];
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let options = Options {
        grace_s: options["gracePeriodSeconds"].as_i64(),
        uid: text(&options["preconditions"]["uid"]),
        resource_version: text(&options["preconditions"]["resourceVersion"]),
        dry_run: call.query.dry_run()?
            || options["dryRun"].as_array().is_some_and(|stages| !stages.is_empty()),
        propagation: None,
    };
    delete_with(call, &call.key(), call.name(), &options).await?;
    let (_, encoding) = call.negotiate()?;
    response::value(201, encoding, &error::success(201))
}

async fn delete_with(call: &Call<'_>, key: &str, name: &str, options: &Options) -> ApiResult {
    let (_, encoding) = call.negotiate()?;
    let (object, gone) = delete_one(call, key, name, options).await?;
    if gone {
        let uid = objects::meta(&object, "uid");
        return response::value(200, encoding, &error::deleted(call.kind, name, uid));
    }
    response::value(200, encoding, &object)
}

/// Deletes or marks one object; returns its last state and whether it is gone.
async fn delete_one(
    call: &Call<'_>,
    key: &str,
    name: &str,
    options: &Options,
) -> Result<(Value, bool), ApiError> {
    let (api, kind) = (call.api, call.kind);
    if kind.plural == "namespaces" && IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden(kind, name, "this namespace may not be deleted"));
    }
    for _ in 0..ATTEMPTS {
        let entry = list::entry(api, kind, key, name).await?;
        let old = objects::shown(kind, &entry.value)?;
        options.check(kind, &old)?;
        call.identity.check_write(kind, &old)?;
        let marked = mark(kind, &old, options, Timestamp::now());
        if options.dry_run {
            let gone = is_finished(kind, &marked);
            return Ok((marked, gone));
        }
        if marked == old && !is_finished(kind, &marked) {
            return Ok((old, false));
        }
        if is_finished(kind, &marked) {
            match remove(api, kind, &entry).await? {
                Outcome::Raced => continue,
                Outcome::Stored(_) | Outcome::Tried(_) => return Ok((marked, true)),
            }
        }
        let put = objects::encode(&kind.to_storage(marked));
        match api.store.update(key, put, entry.mod_revision).await {
            Ok(entry) => return Ok((objects::shown(kind, &entry.value)?, false)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(objects::store_error(kind, name, error)),
        }
    }
    Err(ApiError::modified(kind, name))
}

/// The object as its deletion leaves it: with a time to go and with the finalizers that the propagation asks for.
fn mark(kind: &Kind, old: &Value, options: &Options, now: Timestamp) -> Value {
    let mut object = old.clone();
    let grace_s = grace_s(kind, old, options);
    let marked = !old["metadata"]["deletionTimestamp"].is_null();
    let running = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if !marked || grace_s < running {
        let counted_from = if marked { began(old, running).unwrap_or(now) } else { now };
        let end = counted_from + SignedDuration::from_secs(grace_s);
        object["metadata"]["deletionTimestamp"] = time(end).into();
        object["metadata"]["deletionGracePeriodSeconds"] = grace_s.into();
    }
    if !marked {
        if kind.plural != "pods" || grace_s == 0 {
            bump_generation(&mut object);
        }
        set_propagation(&mut object, options.propagation);
    }
    if kind.plural == "namespaces" && kind.group.is_empty() {
        object["status"]["phase"] = "Terminating".into();
    }
    object
}

/// When the deletion of an object began that ends after `running` seconds.
fn began(object: &Value, running: i64) -> Option<Timestamp> {
    let end: Timestamp = objects::meta(object, "deletionTimestamp").parse().ok()?;
    Some(end - SignedDuration::from_secs(running))
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        object["metadata"]["generation"] = (generation + 1).into();
    }
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut finalizers: Vec<String> = objects::meta_list(object, "finalizers").map(str::to_owned).collect();
    finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
        Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("finalizers");
        if !finalizers.is_empty() {
            metadata.insert("finalizers".to_owned(), json!(finalizers));
        }
    }
}

/// How long the object may take to go. Only pods that run somewhere take time.
fn grace_s(kind: &Kind, object: &Value, options: &Options) -> i64 {
    if kind.plural != "pods" || !kind.group.is_empty() {
        return 0;
    }
    let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let over = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || over {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace_s.unwrap_or(own)
}

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Whether a deletion has nothing left to wait for.
pub(crate) fn is_finished(kind: &Kind, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let waits = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    let marked = !metadata["deletionTimestamp"].is_null();
    let graceful = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
    let has_content = kind.plural == "namespaces" && waits(&object["spec"]["finalizers"]);
    marked && !graceful && !has_content && !waits(&metadata["finalizers"])
}

/// Removes the entry if it is still the one that was read, and gives its addresses back.
pub(crate) async fn remove(api: &Api, kind: &Kind, entry: &Arc<Entry>) -> Result<Outcome, ApiError> {
    let mut release = api.services.release(kind, &entry.key).await;
    match api.store.delete(&entry.key, Expect::Revision(entry.mod_revision)).await {
        Ok(last) => {
            release.confirm();
            Ok(Outcome::Stored(last.value.clone()))
        }
        Err(StoreError::Conflict { .. }) => Ok(Outcome::Raced),
        Err(error) => Err(objects::store_error(kind, objects::name_of(entry), error)),
    }
}

/// DELETE of all selected objects.
pub(crate) async fn delete_collection(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let (_, encoding) = call.negotiate()?;
    let options = Options::parse(call, body)?;
    let query = ListQuery::parse(call.kind, call.query)?;
    let selection = Selection::parse(call.kind, call.query)?;
    let listed = list::select(call, &query, &selection).await?;
    let mut items = Vec::with_capacity(listed.entries.len());
    for entry in listed.entries {
        match delete_one(call, &entry.key, objects::name_of(&entry), &options).await {
            Ok((object, _)) => items.push(list::json_bytes(&object)),
            // Somebody else was faster.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = json!({"resourceVersion": call.api.store.revision().to_string()});
    let list = list::list_of(&call.kind.kind, &call.kind.api_version(), &metadata, items.into_iter())?;
    response::json(200, encoding, list)
}
