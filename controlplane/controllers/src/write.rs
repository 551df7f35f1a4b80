//! Writes whose results go into the caches at once, so that the next decision already knows of them.

use std::fmt::Debug;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource};
use seaway_client::{Informer, Key, WorkError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a kind must be able to do for these functions.
pub(crate) trait Object:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Creates `object`.
pub(crate) async fn create<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    object: &K,
) -> Result<K, WorkError> {
    let created = api.create(&PostParams::default(), object).await;
    let created = created.map_err(WorkError::api("create", &name_of(object)))?;
    informer.wrote(created.clone());
    Ok(created)
}

/// Replaces `object`, if it still is what its resource version says.
pub(crate) async fn replace<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    object: &K,
) -> Result<K, WorkError> {
    let name = object.meta().name.as_deref().unwrap_or_default();
    let replaced = api.replace(name, &PostParams::default(), object).await;
    let replaced = replaced.map_err(WorkError::api("update", &name_of(object)))?;
    informer.wrote(replaced.clone());
    Ok(replaced)
}

/// Replaces the status of `object`, if it still is what its resource version says.
pub(crate) async fn replace_status<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    object: &K,
) -> Result<(), WorkError> {
    let name = object.meta().name.as_deref().unwrap_or_default();
    let replaced = api.replace_status(name, &PostParams::default(), object).await;
    informer.wrote(replaced.map_err(WorkError::api("update the status of", &name_of(object)))?);
    Ok(())
}

/// Merges `patch` into the object of `name`.
pub(crate) async fn merge<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    name: &str,
    patch: &Value,
) -> Result<(), WorkError> {
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    informer.wrote(patched.map_err(WorkError::api("patch", &kind_and(K::kind(&()), name)))?);
    Ok(())
}

/// Merges `patch` into the status of the object of `name`.
pub(crate) async fn merge_status<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    name: &str,
    patch: &Value,
) -> Result<(), WorkError> {
    let patched = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    let patched = patched.map_err(WorkError::api("patch the status of", &kind_and(K::kind(&()), name)))?;
    informer.wrote(patched);
    Ok(())
}

/// Deletes exactly `object`, not another of its name. That it is gone already is no error.
pub(crate) async fn delete<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    object: &K,
    params: DeleteParams,
) -> Result<(), WorkError> {
    let uid = object.meta().uid.clone().unwrap_or_default();
    let preconditions = Preconditions { uid: Some(uid.clone()), ..Preconditions::default() };
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api.delete(name, &params.preconditions(preconditions)).await {
        Ok(answer) => match answer.left() {
            Some(pending) if pending.meta().deletion_timestamp.is_some() => informer.wrote(pending),
            _ => informer.forget(&Key::of(object), &uid),
        },
        Err(kube::Error::Api(status)) if status.code == 404 => informer.forget(&Key::of(object), &uid),
        Err(error) if matches!(&error, kube::Error::Api(status) if status.code == 409) => {
            // Another object has the name by now, or the server has some other reason.
            let live = api.get_opt(name).await.map_err(WorkError::api("read", &name_of(object)))?;
            if live.is_some_and(|live| live.meta().uid.as_ref() == Some(&uid)) {
                return Err(WorkError::api("delete", &name_of(object))(error));
            }
            informer.forget(&Key::of(object), &uid);
        }
        Err(error) => return Err(WorkError::api("delete", &name_of(object))(error)),
    }
    Ok(())
}

fn name_of<K: Object>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_ref().or(meta.generate_name.as_ref());
    let key = Key::new(meta.namespace.clone().unwrap_or_default(), name.cloned().unwrap_or_default());
    kind_and(K::kind(&()), &key.to_string())
}

fn kind_and(kind: impl AsRef<str>, name: &str) -> String {
    format!("{} {name}", kind.as_ref().to_lowercase())
}
