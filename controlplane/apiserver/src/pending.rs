//! Load balancer addresses for Services that found the pools empty, or the address that they want taken: as soon as
//! another Service gives one back, and when the server starts, since the pools may be larger than they were.

use std::sync::Arc;

use seaway_kinds::{ApiError, Kind};
use seaway_store::{ListOptions, StoreError};
use tokio_util::sync::CancellationToken;

use crate::{api::Api, objects, services};

/// Gives waiting Services their addresses until `shutdown`.
pub(crate) async fn serve(api: Arc<Api>, shutdown: CancellationToken) {
    let Some(kind) = api.registry.resource("", "v1", "services") else { return };
    loop {
        if let Err(error) = settle(&api, kind).await {
            tracing::warn!(%error, "Services may wait for a load balancer address that is free");
        }
        if shutdown.run_until_cancelled(api.services.freed()).await.is_none() {
            return;
        }
    }
}

async fn settle(api: &Api, kind: &Kind) -> Result<(), ApiError> {
    let failed = |error| objects::store_error(kind, "", error);
    let page = api.store.list(&objects::prefix(kind, None), ListOptions::default()).await.map_err(failed)?;
    for entry in page.entries {
        let old = objects::shown(kind, &entry.value)?;
        if !services::is_pending(&old) {
            continue;
        }
        let mut new = old.clone();
        let mut claim = api.services.claim(kind, &entry.key, Some(&old), &mut new).await?;
        if new == old {
            continue;
        }
        let put = objects::encode(&kind.to_storage(new));
        match api.store.update(&entry.key, put, entry.mod_revision).await {
            Ok(_) => claim.confirm(),
            // Whoever wrote it in between looked for an address as well.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}
