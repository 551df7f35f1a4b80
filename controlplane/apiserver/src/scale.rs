//! The `scale` subresource: the replicas of a workload as an object of their own.

use http::header;
use jiff::Timestamp;
use seaway_kinds::{ApiError, decode, patch, patch::PatchType, scale};
use serde_json::Value;

use crate::{
    api::Call,
    list, objects,
    response::{self, ApiResult},
    write::{self, Outcome},
};

/// How often a change is decided anew when somebody else was faster.
const ATTEMPTS: usize = 256;

/// GET.
pub(crate) async fn get(call: &Call<'_>) -> ApiResult {
    let (_, encoding) = call.negotiate()?;
    let entry = list::entry(call.api, call.kind, &call.key(), call.name()).await?;
    response::value(200, encoding, &scale::read(&objects::shown(call.kind, &entry.value)?))
}

/// PUT and PATCH.
pub(crate) async fn write(call: &Call<'_>, verb: &str, body: &[u8]) -> ApiResult {
    let (_, encoding) = call.negotiate()?;
    for _ in 0..ATTEMPTS {
        let entry = list::entry(call.api, call.kind, &call.key(), call.name()).await?;
        let old = objects::shown(call.kind, &entry.value)?;
        let wanted = wanted(call, verb, &old, body)?;
        let version = objects::meta(&wanted, "resourceVersion");
        if !version.is_empty() && version != objects::meta(&old, "resourceVersion") {
            return Err(ApiError::modified(call.kind, call.name()));
        }
        let scaled = scale::write(&old, &wanted)?;
        let mut prepared = call.kind.prepare_update(scaled, &old, Timestamp::now())?;
        write::own(call, &old, &mut prepared, None, None);
        match write::store_change(call, &entry, &old, prepared).await? {
            Outcome::Raced => {}
            Outcome::Stored(value) => {
                return response::value(200, encoding, &scale::read(&objects::shown(call.kind, &value)?));
            }
            Outcome::Tried(object) => return response::value(200, encoding, &scale::read(&object)),
        }
    }
    Err(ApiError::modified(call.kind, call.name()))
}

fn wanted(call: &Call<'_>, verb: &str, old: &Value, body: &[u8]) -> Result<Value, ApiError> {
    if verb == "update" {
        return Ok(call.decode(&decode::SCALE, body)?.object);
    }
    let patch_type = PatchType::parse(call.header(header::CONTENT_TYPE))?;
    let validation = call.query.field_validation()?;
    Ok(patch::apply(&decode::SCALE, patch_type, &scale::read(old), body, validation)?.object)
}
