//! POST, PUT and PATCH: body to object, object through its kind's rules and the allocation of addresses, into the store
//! under the version that was read. Changes that lose a race are decided anew on what is there then.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use jiff::Timestamp;
use seaway_kinds::{
    ApiError, CreateContext, Decoded, Kind,
    patch::{self, PatchType},
};
use seaway_store::{Entry, Store, StoreError};
use serde_json::Value;

use crate::{
    api::{Api, Call, yaml},
    delete, list, objects,
    response::{self, ApiResult},
};

/// How often a change is decided anew when somebody else was faster.
const ATTEMPTS: usize = 256;
/// How many generated names are tried.
const NAME_ATTEMPTS: usize = 8;

/// POST.
pub(crate) async fn create(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let Decoded { object, warnings } = call.decode(&call.kind.body(), body)?;
    create_object(call, object, warnings, 201).await
}

async fn create_object(call: &Call<'_>, object: Value, warnings: Vec<String>, code: u16) -> ApiResult {
    let (output, encoding) = call.negotiate()?;
    let dry_run = call.query.dry_run()?;
    for attempt in 1.. {
        let mut prepared = prepare_new(call, object.clone()).await?;
        let name = objects::meta(&prepared, "name").to_owned();
        match insert(call.api, call.kind, call.namespace(), &mut prepared, dry_run).await {
            Ok(entry) => {
                let mut response = match entry {
                    Some(entry) => list::one(call, output, encoding, code, &entry.value)?,
                    None => list::value_as(call, output, encoding, code, &prepared)?,
                };
                response::warn(&mut response, &warnings);
                return Ok(response);
            }
            Err(error) if error.reason == "AlreadyExists" => {
                let generated = objects::meta(&object, "name").is_empty();
                if !generated || attempt >= NAME_ATTEMPTS {
                    return Err(ApiError::already_exists(call.kind, &name));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::internal("no name could be generated"))
}

/// A new object with everything that the server decides about it, apart from addresses.
async fn prepare_new(call: &Call<'_>, object: Value) -> Result<Value, ApiError> {
    let uid = uuid::Uuid::new_v4().to_string();
    let suffix = suffix();
    let context =
        CreateContext { namespace: call.namespace(), uid: &uid, suffix: &suffix, now: Timestamp::now() };
    let prepared = call.kind.prepare_create(object, &context)?;
    call.identity.check_write(call.kind, &prepared)?;
    if let Some(namespace) = call.namespace() {
        check_namespace(call.api, call.kind, namespace, objects::meta(&prepared, "name")).await?;
    }
    Ok(prepared)
}

/// Five random characters without vowels, so that they make no words.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    random
        .as_bytes()
        .iter()
        .take(5)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

/// Objects are only made in a namespace that is there and stays.
async fn check_namespace(api: &Api, kind: &Kind, namespace: &str, name: &str) -> Result<(), ApiError> {
    let Some(namespaces) = api.registry.resource("", "v1", "namespaces") else { return Ok(()) };
    let entry = list::entry(api, namespaces, &objects::key(namespaces, None, namespace), namespace).await?;
    let object = objects::decode(&entry.value)?;
    if object["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut error = ApiError::forbidden(kind, name, &why);
    if let Some(details) = &mut error.details {
        details["causes"] = serde_json::json!([{
            "reason": "NamespaceTerminating", "field": "metadata.namespace",
            "message": format!("namespace {namespace} is being terminated"),
        }]);
    }
    Err(error)
}

/// Writes a prepared new object; for a Service its addresses are found and taken in the same step.
pub(crate) async fn insert(
    api: &Api,
    kind: &Kind,
    namespace: Option<&str>,
    object: &mut Value,
    dry_run: bool,
) -> Result<Option<Arc<Entry>>, ApiError> {
    let name = objects::meta(object, "name").to_owned();
    let key = objects::key(kind, namespace, &name);
    let mut claim = api.services.claim(kind, &key, None, object).await?;
    let failed = |error| objects::store_error(kind, &name, error);
    if dry_run {
        return match api.store.get(&key).await.map_err(failed)? {
            Some(_) => Err(ApiError::already_exists(kind, &name)),
            None => Ok(None),
        };
    }
    let entry =
        api.store.create(&key, objects::encode(&kind.to_storage(object.clone()))).await.map_err(failed)?;
    claim.confirm();
    Ok(Some(entry))
}

/// PUT of an object or of its status.
pub(crate) async fn update(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let Decoded { object, warnings } = call.decode(&call.kind.body(), body)?;
    let name = objects::meta(&object, "name");
    if !name.is_empty() && name != call.name() {
        let why =
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.name());
        return Err(ApiError::bad_request(why));
    }
    change(call, warnings, |_| Ok(Decoded { object: object.clone(), warnings: Vec::new() })).await
}

/// PATCH of an object or of its status.
pub(crate) async fn patch(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let patch_type = PatchType::parse(call.header(header::CONTENT_TYPE))?;
    let validation = call.query.field_validation()?;
    if patch_type != PatchType::Apply {
        return change(call, Vec::new(), |old| patch::apply_to(call.kind, patch_type, old, body, validation))
            .await;
    }
    let applied = yaml(body)?;
    if call.query.get("fieldManager").is_none() {
        return Err(ApiError::bad_request("fieldManager is required for apply patch"));
    }
    let warnings = vec!["server-side apply merges fields here without tracking who owns them".to_owned()];
    let exists = call.api.store.get(&call.key()).await.is_ok_and(|entry| entry.is_some());
    if !exists && call.path.subresource.is_none() {
        let mut decoded = seaway_kinds::decode::conform(&call.kind.body(), applied, validation)?;
        decoded.object["metadata"]["name"] = call.name().into();
        decoded.warnings.extend(warnings);
        return create_object(call, decoded.object, decoded.warnings, 201).await;
    }
    let merged = serde_json::to_vec(&applied).map_err(ApiError::internal)?;
    change(call, warnings, |old| patch::apply_to(call.kind, PatchType::Strategic, old, &merged, validation))
        .await
}

/// Reads, decides and writes until nobody was in between. `decide` makes the wanted object out of the current one.
pub(crate) async fn change(
    call: &Call<'_>,
    mut warnings: Vec<String>,
    decide: impl Fn(&Value) -> Result<Decoded, ApiError>,
) -> ApiResult {
    let (output, encoding) = call.negotiate()?;
    let key = call.key();
    for _ in 0..ATTEMPTS {
        let entry = list::entry(call.api, call.kind, &key, call.name()).await?;
        let old = objects::shown(call.kind, &entry.value)?;
        let decided = decide(&old)?;
        // A version in the body is a precondition; without one the change is wanted whatever happened meanwhile.
        let version = objects::meta(&decided.object, "resourceVersion");
        if !version.is_empty() && version != objects::meta(&old, "resourceVersion") {
            return Err(ApiError::modified(call.kind, call.name()));
        }
        let uid = objects::meta(&decided.object, "uid");
        if !uid.is_empty() && uid != objects::meta(&old, "uid") {
            return Err(ApiError::modified(call.kind, call.name()));
        }
        match replace(call, &entry, &old, decided.object).await? {
            Outcome::Raced => {}
            Outcome::Stored(value) => {
                warnings.extend(decided.warnings);
                let mut response = list::one(call, output, encoding, 200, &value)?;
                response::warn(&mut response, &warnings);
                return Ok(response);
            }
            Outcome::Tried(object) => return list::value_as(call, output, encoding, 200, &object),
        }
    }
    Err(ApiError::modified(call.kind, call.name()))
}

/// How a replacement went.
pub(crate) enum Outcome {
    /// The object is now these bytes.
    Stored(Bytes),
    /// A dry run: it would now be this.
    Tried(Value),
    /// Somebody else wrote in between.
    Raced,
}

/// Replaces the entry by what `new` makes of it.
async fn replace(
    call: &Call<'_>,
    entry: &Arc<Entry>,
    old: &Value,
    mut new: Value,
) -> Result<Outcome, ApiError> {
    let (kind, now) = (call.kind, Timestamp::now());
    call.identity.check_write(kind, old)?;
    let prepared = match call.path.subresource {
        Some("status") => kind.prepare_status_update(new, old, now)?,
        Some("finalize") => finalized(old, &new),
        _ => {
            crate::services::carry_over(kind, &mut new, old);
            kind.prepare_update(new, old, now)?
        }
    };
    store_change(call, entry, old, prepared).await
}

/// Only `spec.finalizers` of a Namespace is taken.
fn finalized(old: &Value, new: &Value) -> Value {
    let mut object = old.clone();
    object["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
    object
}

/// Writes a prepared change, or removes the object when it was the last thing that its deletion waited for.
pub(crate) async fn store_change(
    call: &Call<'_>,
    entry: &Arc<Entry>,
    old: &Value,
    mut prepared: Value,
) -> Result<Outcome, ApiError> {
    let (api, kind, key) = (call.api, call.kind, call.key());
    let dry_run = call.query.dry_run()?;
    let mut claim = api.services.claim(kind, &key, Some(old), &mut prepared).await?;
    prepared["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
    if dry_run {
        return Ok(Outcome::Tried(prepared));
    }
    if delete::is_finished(kind, &prepared) {
        drop(claim);
        return delete::remove(api, kind, entry).await;
    }
    if prepared == *old {
        claim.confirm();
        return Ok(Outcome::Stored(entry.value.clone()));
    }
    let put = objects::encode(&kind.to_storage(prepared));
    match api.store.update(&key, put, entry.mod_revision).await {
        Ok(entry) => {
            claim.confirm();
            Ok(Outcome::Stored(entry.value.clone()))
        }
        Err(StoreError::Conflict { .. }) => Ok(Outcome::Raced),
        Err(error) => Err(objects::store_error(kind, call.name(), error)),
    }
}
