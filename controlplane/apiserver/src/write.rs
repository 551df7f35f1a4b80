//! POST, PUT and PATCH: body to object, object through its kind's rules and the allocation of addresses, into the store
//! under the version that was read. Changes that lose a race are decided anew on what is there then.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use jiff::Timestamp;
use seaway_kinds::{
    ApiError, CreateContext, Decoded, Kind, decode,
    field::Errors,
    managed,
    patch::{self, PatchType},
};
use seaway_store::{Entry, Store, StoreError};
use serde_json::Value;

use crate::{
    api::{Api, Call, yaml},
    auth::withdrawn_dns,
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
    create_object(call, Decided { object, warnings, managed: None }).await
}

/// What a write makes of an object.
pub(crate) struct Decided {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
    /// Who owns its fields then, where that is decided already; otherwise the writer gets what it changes.
    pub(crate) managed: Option<Value>,
}

impl From<Decoded> for Decided {
    fn from(decoded: Decoded) -> Self {
        Self { object: decoded.object, warnings: decoded.warnings, managed: None }
    }
}

async fn create_object(call: &Call<'_>, wanted: Decided) -> ApiResult {
    let (output, encoding) = call.negotiate()?;
    let dry_run = call.query.dry_run()?;
    let Decided { object, warnings, managed } = wanted;
    for attempt in 1.. {
        let mut prepared = prepare_new(call, object.clone()).await?;
        own(call, &Value::Null, &mut prepared, object["metadata"].get("managedFields"), managed.as_ref());
        let name = objects::meta(&prepared, "name").to_owned();
        match insert(call.api, call.kind, call.namespace(), &mut prepared, dry_run).await {
            Ok(entry) => {
                let mut response = match entry {
                    Some(entry) => list::one(call, output, encoding, 201, &entry.value)?,
                    None => list::value_as(call, output, encoding, 201, &prepared)?,
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

/// Says in `new` who owns its fields, now that it is made out of `old`.
pub(crate) fn own(
    call: &Call<'_>,
    old: &Value,
    new: &mut Value,
    requested: Option<&Value>,
    decided: Option<&Value>,
) {
    let managed = match decided {
        Some(decided) => decided.clone(),
        None => managed::updated(call.kind, old, new, requested, call.writer()),
    };
    let Some(metadata) = new["metadata"].as_object_mut() else { return };
    if managed.as_array().is_some_and(|list| !list.is_empty()) {
        metadata.insert("managedFields".to_owned(), managed);
    } else {
        metadata.remove("managedFields");
    }
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
    let decide = |_: &Value| Ok(Decided { object: object.clone(), warnings: Vec::new(), managed: None });
    change(call, warnings, decide).await
}

/// PATCH of an object or of its status.
pub(crate) async fn patch(call: &Call<'_>, body: &[u8]) -> ApiResult {
    let patch_type = PatchType::parse(call.header(header::CONTENT_TYPE))?;
    let validation = call.query.field_validation()?;
    if patch_type == PatchType::Apply {
        return apply(call, body).await;
    }
    let decide =
        |old: &Value| patch::apply_to(call.kind, patch_type, old, body, validation).map(Decided::from);
    change(call, Vec::new(), decide).await
}

/// PATCH with the fields that an applier wants to own.
async fn apply(call: &Call<'_>, body: &[u8]) -> ApiResult {
    if call.query.get("fieldManager").is_none() {
        let mut errors = Errors::default();
        errors.required("fieldManager", "is required for apply patch");
        return Err(ApiError::invalid_as("meta.k8s.io", "PatchOptions", "", &errors.into_vec()));
    }
    let config = applied(call, body)?;
    let force = call.query.flag("force");
    let make = |old: &Value| {
        let made = managed::apply(call.kind, old, &config.object, call.writer(), force)?;
        let conformed = decode::conform(&call.kind.body(), made.object, decode::FieldValidation::Ignore)?;
        Ok(Decided { object: conformed.object, warnings: Vec::new(), managed: Some(made.managed) })
    };
    let exists = call.api.store.get(&call.key()).await.is_ok_and(|entry| entry.is_some());
    if !exists && call.path.subresource.is_none() {
        if !objects::meta(&config.object, "uid").is_empty() {
            let why = "uid mismatch: the provided object specified a uid, and no existing object was found";
            return Err(ApiError::conflict(call.kind, call.name(), why));
        }
        let created =
            create_object(call, Decided { warnings: config.warnings.clone(), ..make(&Value::Null)? }).await;
        match created {
            // Somebody else made it in between.
            Err(error) if error.reason == "AlreadyExists" => {}
            other => return other,
        }
    }
    change(call, config.warnings.clone(), make).await
}

/// The body of an apply: an object that says what it is, and nothing about who owns what.
fn applied(call: &Call<'_>, body: &[u8]) -> Result<Decoded, ApiError> {
    let object = yaml(body)?;
    for field in ["apiVersion", "kind"] {
        if object[field].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(format!("an apply patch must say its {field}")));
        }
    }
    let mut config = decode::conform(&call.kind.body(), object, call.query.field_validation()?)?;
    let metadata = &mut config.object["metadata"];
    if metadata["managedFields"].as_array().is_some_and(|list| !list.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let name = metadata["name"].as_str().unwrap_or_default();
    if !name.is_empty() && name != call.name() {
        let why =
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.name());
        return Err(ApiError::bad_request(why));
    }
    metadata["name"] = call.name().into();
    Ok(config)
}

/// Reads, decides and writes until nobody was in between. `decide` makes the wanted object out of the current one.
pub(crate) async fn change(
    call: &Call<'_>,
    mut warnings: Vec<String>,
    decide: impl Fn(&Value) -> Result<Decided, ApiError>,
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
        match replace(call, &entry, &old, decided.object, decided.managed.as_ref()).await? {
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

/// Whether the caller may make `new` out of `old`.
async fn check_replacement(call: &Call<'_>, old: &Value, new: &Value) -> Result<(), ApiError> {
    let Err(refused) = call.identity.check_write(call.kind, old) else { return Ok(()) };
    match withdrawn_dns(call.kind, old, new) {
        Some(node) if is_silent(call.api, node).await? => Ok(()),
        _ => Err(refused),
    }
}

/// Whether nobody hears of a node any more: its condition Ready is Unknown, or it is gone.
async fn is_silent(api: &Api, node: &str) -> Result<bool, ApiError> {
    let Some(kind) = api.registry.resource("", "v1", "nodes") else { return Ok(false) };
    let found = api.store.get(&objects::key(kind, None, node)).await;
    let Some(entry) = found.map_err(|error| objects::store_error(kind, node, error))? else {
        return Ok(true);
    };
    let known = objects::shown(kind, &entry.value)?;
    let conditions = known["status"]["conditions"].as_array();
    Ok(conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "Unknown"))
}

/// Replaces the entry by what `new` makes of it.
async fn replace(
    call: &Call<'_>,
    entry: &Arc<Entry>,
    old: &Value,
    mut new: Value,
    managed: Option<&Value>,
) -> Result<Outcome, ApiError> {
    let (kind, now) = (call.kind, Timestamp::now());
    check_replacement(call, old, &new).await?;
    let requested = new["metadata"].get("managedFields").cloned();
    let mut prepared = match call.path.subresource {
        Some("status") => kind.prepare_status_update(new, old, now)?,
        Some("finalize") => finalized(old, &new),
        _ => {
            crate::services::carry_over(kind, &mut new, old);
            kind.prepare_update(new, old, now)?
        }
    };
    own(call, old, &mut prepared, requested.as_ref(), managed);
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
