//! Events: those that the server itself has to tell, and the end of all of them. They are news: after an hour they go, so
//! that a long-running cluster does not fill its store with them.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use seaway_kinds::{ApiError, CreateContext};
use seaway_store::{Expect, ListOptions, Store as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{api::Api, objects, write};

const KEPT: SignedDuration = SignedDuration::from_hours(1);
const SWEEP: Duration = Duration::from_secs(5 * 60);

/// Who says it.
const COMPONENT: &str = "seaway-apiserver";

/// Records a warning about an object that lives in a namespace.
pub(crate) async fn warn(api: &Api, about: &Value, reason: &str, message: &str) -> Result<(), ApiError> {
    let Some(kind) = api.registry.resource("", "v1", "events") else { return Ok(()) };
    let now = Timestamp::now();
    let (namespace, name) = (objects::meta(about, "namespace"), objects::meta(about, "name"));
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let event = json!({
        "metadata": {"name": format!("{name}.{:016x}", now.as_nanosecond())},
        "involvedObject": {
            "apiVersion": about["apiVersion"], "kind": about["kind"], "namespace": namespace, "name": name,
            "uid": objects::meta(about, "uid"), "resourceVersion": objects::meta(about, "resourceVersion"),
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1,
        "firstTimestamp": time, "lastTimestamp": time,
        "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": "",
    });
    let uid = uuid::Uuid::new_v4().to_string();
    let context = CreateContext { namespace: Some(namespace), uid: &uid, suffix: "", now };
    let mut prepared = kind.prepare_create(event, &context)?;
    write::insert(api, kind, Some(namespace), &mut prepared, false).await.map(drop)
}

/// Removes old Events until `shutdown`.
pub(crate) async fn expire(api: Arc<Api>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
        sweep(&api, Timestamp::now() - KEPT).await;
    }
}

async fn sweep(api: &Api, oldest: Timestamp) {
    let Some(kind) = api.registry.resource("", "v1", "events") else { return };
    let Ok(page) = api.store.list(&objects::prefix(kind, None), ListOptions::default()).await else { return };
    for entry in page.entries {
        let old = objects::decode(&entry.value)
            .is_ok_and(|event| last_seen(&event).is_some_and(|seen| seen < oldest));
        if old && let Err(error) = api.store.delete(&entry.key, Expect::Revision(entry.mod_revision)).await {
            tracing::debug!(%error, "an old event stays");
        }
    }
}

/// When the event last happened.
fn last_seen(event: &Value) -> Option<Timestamp> {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    times.into_iter().find_map(|time| time.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_time_counts() {
        let created = json!({"creationTimestamp": "2026-01-01T00:00:00Z"});
        let event = json!({"metadata": created, "lastTimestamp": "2026-01-01T01:00:00Z", "eventTime": null});
        assert_eq!(last_seen(&event), Some("2026-01-01T01:00:00Z".parse().unwrap()));
        assert_eq!(last_seen(&json!({"metadata": created})), Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(last_seen(&json!({})), None);
    }
}
