//! Keeps the parts of the agent running: one that ends is restarted with back-off and reported, the others go on.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A part that ran this long starts with the shortest delay again.
const PROVEN: Duration = Duration::from_secs(60);

/// How a part is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PartState {
    /// It runs now.
    pub(crate) running: bool,
    /// How often it had to be started again.
    pub(crate) restarts: u32,
    /// What ended it the last time.
    pub(crate) last_error: Option<String>,
}

/// The state of every part, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    states: Arc<Mutex<BTreeMap<&'static str, PartState>>>,
}

impl Parts {
    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, PartState> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a part runs.
    pub(crate) fn running(&self, name: &str) -> bool {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .is_some_and(|state| state.running)
    }

    /// What last ended a part.
    pub(crate) fn last_error(&self, name: &str) -> Option<String> {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .and_then(|s| s.last_error.clone())
    }

    fn update(&self, name: &'static str, change: impl FnOnce(&mut PartState)) {
        change(self.states.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
    }

    /// Runs what `start` makes, again and again, until `shutdown`.
    pub(crate) async fn keep<F, T, E>(
        &self,
        name: &'static str,
        shutdown: &CancellationToken,
        mut start: impl FnMut() -> F,
    ) where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Display + Send + 'static,
    {
        let mut delay = FIRST_DELAY;
        while !shutdown.is_cancelled() {
            self.update(name, |state| state.running = true);
            let since = Instant::now();
            // A task of its own: a panic ends the part, not the agent.
            let ended = tokio::spawn(start()).await;
            if shutdown.is_cancelled() {
                break;
            }
            let error = match ended {
                Ok(Ok(_)) => "it ended by itself".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic.to_string(),
            };
            if since.elapsed() >= PROVEN {
                delay = FIRST_DELAY;
            }
            tracing::error!(part = name, %error, retry_in = ?delay, "a part of the agent ended");
            self.update(name, |state| {
                state.running = false;
                state.restarts += 1;
                state.last_error = Some(error);
            });
            shutdown.run_until_cancelled(tokio::time::sleep(delay)).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
        self.update(name, |state| state.running = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_part_that_fails_or_panics_is_started_again() {
        let (parts, shutdown) = (Parts::default(), CancellationToken::new());
        let runs = Arc::new(AtomicU32::new(0));
        let stop = shutdown.clone();
        let counter = Arc::clone(&runs);
        parts
            .keep("test", &shutdown, move || {
                let (run, stop) = (counter.fetch_add(1, Ordering::SeqCst), stop.clone());
                async move {
                    match run {
                        0 => Err("broken".to_owned()),
                        1 => panic!("on purpose"),
                        _ => {
                            stop.cancel();
                            Ok(())
                        }
                    }
                }
            })
            .await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        let state = &parts.all()["test"];
        assert_eq!((state.restarts, state.running), (2, false));
        assert!(state.last_error.as_ref().unwrap().contains("panic"), "{state:?}");
    }
}
