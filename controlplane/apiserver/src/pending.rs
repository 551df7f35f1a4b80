//! Load balancer addresses for Services that found the pools empty, or the address that they want taken: as soon as
//! another Service gives one back, and when the server starts, since the pools may be larger than they were. Until then
//! an Event says what each of them waits for.

use std::{collections::HashMap, sync::Arc};

use seaway_kinds::{ApiError, Kind};
use seaway_store::{ListOptions, StoreError};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{api::Api, events, objects, services};

/// What is said about a Service that waits.
const REASON: &str = "AllocationFailed";

/// What each waiting Service was last told, by uid.
type Told = HashMap<String, String>;

/// Gives waiting Services their addresses until `shutdown`.
pub(crate) async fn serve(api: Arc<Api>, shutdown: CancellationToken) {
    let Some(kind) = api.registry.resource("", "v1", "services") else { return };
    let mut told = Told::new();
    loop {
        if let Err(error) = settle(&api, kind, &mut told).await {
            tracing::warn!(%error, "Services may wait for a load balancer address that is free");
        }
        if shutdown.run_until_cancelled(api.services.unsettled()).await.is_none() {
            return;
        }
    }
}

async fn settle(api: &Api, kind: &Kind, told: &mut Told) -> Result<(), ApiError> {
    let failed = |error| objects::store_error(kind, "", error);
    let page = api.store.list(&objects::prefix(kind, None), ListOptions::default()).await.map_err(failed)?;
    let mut waiting = Told::new();
    for entry in page.entries {
        let old = objects::shown(kind, &entry.value)?;
        if !services::is_pending(&old) {
            continue;
        }
        let mut new = old.clone();
        let mut claim = api.services.claim(kind, &entry.key, Some(&old), &mut new).await?;
        if new != old {
            let put = objects::encode(&kind.to_storage(new.clone()));
            match api.store.update(&entry.key, put, entry.mod_revision).await {
                Ok(_) => claim.confirm(),
                // Whoever wrote it in between looked for an address as well.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        drop(claim);
        if let Some(why) = api.services.why_pending(&entry.key, &new).await {
            tell(api, &new, &why, told).await;
            waiting.insert(objects::meta(&new, "uid").to_owned(), why);
        }
    }
    *told = waiting;
    Ok(())
}

async fn tell(api: &Api, service: &Value, why: &str, told: &Told) {
    if told.get(objects::meta(service, "uid")).is_some_and(|known| known == why) {
        return;
    }
    let message = format!("Failed to allocate a load balancer address: {why}");
    if let Err(error) = events::warn(api, service, REASON, &message).await {
        tracing::warn!(%error, %message, "an event is lost");
    }
}
