//! Writes a pod's status to the API and takes its object away at the end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

/// The API object of one pod.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) api: Api<Pod>,
    pub(super) name: String,
    pub(super) uid: String,
}

/// How a write went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// It is there, as of this version.
    Done(Option<String>),
    /// The object is gone, or another pod has its name.
    Gone,
}

impl Writer {
    /// Writes `status`, trying until the API takes it or knows the pod no more.
    pub(super) async fn status(self, status: PodStatus) -> (PodStatus, Written) {
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        let mut delay = Duration::from_millis(100);
        loop {
            let error = match self.api.patch_status(&self.name, &PatchParams::default(), &patch).await {
                Ok(pod) if pod.metadata.uid.as_ref() != Some(&self.uid) => return (status, Written::Gone),
                Ok(pod) => return (status, Written::Done(pod.metadata.resource_version)),
                Err(error) if self.is_gone(&error).await => return (status, Written::Gone),
                Err(error) => error,
            };
            tracing::warn!(%error, pod = %self.name, "cannot write the pod's status; trying again");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        }
    }

    /// Takes the object away, now that nothing runs any more.
    pub(super) async fn delete(&self) {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let mut delay = Duration::from_millis(100);
        loop {
            match self.api.delete(&self.name, &params).await {
                Ok(_) => return,
                Err(error) if self.is_gone(&error).await => return,
                Err(error) => {
                    tracing::warn!(%error, pod = %self.name, "cannot delete the pod's object; trying again");
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        }
    }

    /// Not found is gone; a conflict may also mean that another pod has the name now.
    async fn is_gone(&self, error: &kube::Error) -> bool {
        let kube::Error::Api(status) = error else { return false };
        if !status.is_conflict() {
            return status.is_not_found();
        }
        match self.api.get_opt(&self.name).await {
            Ok(pod) => pod.is_none_or(|pod| pod.metadata.uid.as_ref() != Some(&self.uid)),
            Err(_) => false,
        }
    }
}
