//! Events about objects that the data plane cannot serve: what the service proxy and the watch have to say, on the
//! objects themselves.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use seaway_proxy::{Allowance, Notice, Reporter};

use crate::events::{Recorder, Severity};

/// Writes what the proxy says as Warning Events.
#[derive(Debug)]
pub(crate) struct ProxyEvents(pub(crate) Recorder);

impl Reporter for ProxyEvents {
    fn warn(&self, notice: Notice) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(notice.kind.to_owned()),
            namespace: Some(notice.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
            name: Some(notice.name.to_string()),
            uid: Some(notice.uid.to_string()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        };
        self.0.note(about, Severity::Warning, notice.reason, notice.message);
    }
}

/// Writes what the watch leaves out as Warning Events, not too many at a time.
pub(crate) fn on_invalid(recorder: Recorder) -> seaway_watch::OnInvalid {
    let allowance = Mutex::new(Allowance::default());
    Arc::new(move |about, error| {
        if allowance.lock().unwrap_or_else(PoisonError::into_inner).take() {
            recorder.note(about, Severity::Warning, "InvalidObject", format!("left out: {error}"));
        }
    })
}
