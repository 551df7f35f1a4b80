//! Lifecycle hooks: what is done for a container right after it has started, and before it is told to end.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LifecycleHandler, Probe};

use super::prober::{self, Target};
use crate::runtime::Sandbox;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookKind {
    /// After the start; when it fails, the container ends.
    PostStart,
    /// Before the end, which it delays and cannot prevent.
    PreStop,
}

impl HookKind {
    /// The reason of the event that tells of a failure.
    pub(crate) const fn failure(self) -> &'static str {
        match self {
            Self::PostStart => "FailedPostStartHook",
            Self::PreStop => "FailedPreStopHook",
        }
    }

    /// As messages name it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::PostStart => "PostStartHook",
            Self::PreStop => "PreStopHook",
        }
    }
}

/// Does what the hook says, within `limit`.
pub(crate) async fn run(handler: &LifecycleHandler, target: &Target, limit: Duration) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        let wanted = Duration::from_secs(sleep.seconds.max(0).unsigned_abs());
        tokio::time::sleep(wanted.min(limit)).await;
        return Ok(());
    }
    let probe = Probe {
        exec: handler.exec.clone(),
        http_get: handler.http_get.clone(),
        tcp_socket: handler.tcp_socket.clone(),
        ..Probe::default()
    };
    prober::once(target, &probe, limit).await
}

/// Whether `id` is still the run of the container: a hook must not end the next one.
pub(crate) fn is_current(sandbox: &Arc<Sandbox>, container: &str, id: &str) -> bool {
    sandbox.state.borrow().containers.get(container).is_some_and(|run| run.id == id && run.exit.is_none())
}
