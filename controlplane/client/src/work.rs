//! Workers: take keys from a queue, reconcile them, retry what failed.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace, warn};

use crate::queue::Queue;

/// Why an object could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The API server refused, or could not be reached.
    #[error("cannot {action} {object}")]
    Api {
        /// What was tried: `create pod`, …
        action: &'static str,
        /// On which object.
        object: String,
        /// What came back.
        source: kube::Error,
    },
    /// A selector that cannot be evaluated.
    #[error("selector of {object} is not valid: {reason}")]
    Selector {
        /// Whose selector.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl WorkError {
    /// For `map_err`: the error of doing `action` to `object`.
    pub fn api<'a>(
        action: &'static str,
        object: &'a (impl Display + ?Sized),
    ) -> impl FnOnce(kube::Error) -> Self + 'a {
        move |source| Self::Api { action, object: object.to_string(), source }
    }

    /// The Status code that the server answered with, if it did.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status.code),
            Self::Api { .. } | Self::Selector { .. } => None,
        }
    }

    /// Whether the namespace is on its way out: nothing can be created in it any more, and nothing has to.
    pub fn is_in_ending_namespace(&self) -> bool {
        let Self::Api { source: kube::Error::Api(status), .. } = self else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    }

    /// Whether somebody else was faster, so that trying again on what is there now is all it needs.
    pub fn is_race(&self) -> bool {
        matches!(self.code(), Some(404 | 409))
    }
}

/// Reconciles keys of `queue` with `workers` tasks at a time, until `shutdown` is cancelled. The reconciler says when it
/// wants to see the key again, if nothing happens before.
pub fn work<K, F, R>(
    name: &'static str,
    queue: &Arc<Queue<K>>,
    workers: usize,
    reconcile: F,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) where
    K: Clone + Ord + Hash + Debug + Send + Sync + 'static,
    F: Fn(K) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Option<Duration>, WorkError>> + Send,
{
    for _ in 0..workers.max(1) {
        let (queue, reconcile, shutdown) = (Arc::clone(queue), reconcile.clone(), shutdown.clone());
        tasks.spawn(async move {
            let ended = shutdown.cancelled();
            tokio::select! {
                () = ended => {}
                () = work_forever(name, &queue, reconcile) => {}
            }
        });
    }
}

async fn work_forever<K, F, R>(name: &'static str, queue: &Queue<K>, reconcile: F)
where
    K: Clone + Ord + Hash + Debug,
    F: Fn(K) -> R,
    R: Future<Output = Result<Option<Duration>, WorkError>>,
{
    loop {
        let key = queue.next().await;
        trace!(controller = name, ?key, "reconciling");
        match reconcile(key.clone()).await {
            Ok(again) => {
                queue.succeeded(&key);
                if let Some(delay) = again {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(error) if error.is_in_ending_namespace() => {
                debug!(controller = name, ?key, %error, "given up: the namespace is terminating");
                queue.succeeded(&key);
            }
            Err(error) => {
                report(name, &key, &error);
                queue.retry(key.clone());
            }
        }
        queue.done(&key);
    }
}

fn report(name: &str, key: &impl Debug, error: &WorkError) {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    if error.is_race() {
        debug!(controller = name, ?key, %error, source, "trying again");
    } else {
        warn!(controller = name, ?key, %error, source, "cannot reconcile, trying again");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn refused(code: u16, cause: &str) -> WorkError {
        let status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "code": code, "message": "no", "reason": "Forbidden",
            "details": {"causes": [{"reason": cause, "message": "no", "field": "metadata.namespace"}]},
        }));
        WorkError::api("create", "pod a/b")(kube::Error::Api(Box::new(status.unwrap())))
    }

    /// How often a key is tried whose first try ends with `error`.
    async fn tries(error: fn() -> WorkError) -> u32 {
        let (queue, tried) = (Arc::new(Queue::default()), Arc::new(AtomicU32::new(0)));
        let (mut tasks, shutdown) = (JoinSet::new(), CancellationToken::new());
        let counter = Arc::clone(&tried);
        let reconcile = move |_: u32| {
            let first = counter.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if first { Err(error()) } else { Ok(None) } }
        };
        work("test", &queue, 1, reconcile, &mut tasks, &shutdown);
        queue.add(1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        shutdown.cancel();
        tasks.join_all().await;
        tried.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_unless_its_namespace_ends() {
        assert_eq!(tries(|| refused(403, "Quota")).await, 2);
        assert_eq!(tries(|| refused(409, "")).await, 2);
        assert_eq!(tries(|| refused(403, "NamespaceTerminating")).await, 1);
    }
}
