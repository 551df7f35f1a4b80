//! One list and watch per kind, feeding a [`Store`] and whoever asked to hear of changes.

use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::store::{Change, Store};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// A watch that lives at least this long was not a failure.
const HEALTHY_WATCH: Duration = Duration::from_secs(5);

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// Keeps the objects of one kind in memory and tells of each change.
///
/// Handlers run in the order of the changes, between them no change is lost; they must only mark work as due.
pub struct Informer<K> {
    api: Api<K>,
    fields: Option<String>,
    trim: fn(&mut K),
    store: Store<K>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// An informer on what `api` lists.
    pub fn new(api: Api<K>, store: Store<K>) -> Self {
        Self {
            api,
            fields: None,
            trim: |_| (),
            store,
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
        }
    }

    /// The same for the objects that match a field selector only.
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = Some(selector.into());
        self
    }

    /// Lets `trim` drop parts of each object before it is kept.
    #[must_use]
    pub fn trim(mut self, trim: fn(&mut K)) -> Self {
        self.trim = trim;
        self
    }

    /// Calls `handler` for every change from now on. Register before [`Informer::run`].
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// The cached objects.
    pub fn store(&self) -> &Store<K> {
        &self.store
    }

    /// Waits until the first list is in the store.
    pub async fn wait_until_synced(&self) {
        // The sender lives in `self`, so that waiting can only end by the value.
        self.synced.subscribe().wait_for(|synced| *synced).await.ok();
    }

    /// Tells the cache and the handlers of an object that a write returned.
    pub fn wrote(&self, mut object: K) {
        (self.trim)(&mut object);
        self.notify(self.store.wrote(object));
    }

    /// Tells the cache and the handlers that the server has deleted an object.
    pub fn forget(&self, key: &crate::Key, uid: &str) {
        self.notify(self.store.forget(key, uid));
    }

    /// Lists and watches until `shutdown` is cancelled, through errors and restarts of the server.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let ended = shutdown.cancelled();
        tokio::select! {
            () = ended => {}
            () = self.list_and_watch_forever() => {}
        }
    }

    async fn list_and_watch_forever(&self) {
        let mut backoff = Backoff::default();
        loop {
            match self.list().await {
                Ok(version) => {
                    self.watch_from(version, &mut backoff).await;
                }
                Err(error) => {
                    warn!(kind = %self.api.resource_url(), %error, "cannot list");
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn list(&self) -> Result<String, kube::Error> {
        let params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() };
        let mut list = self.api.list(&params).await?;
        list.items.iter_mut().for_each(self.trim);
        let version = list.metadata.resource_version.clone().unwrap_or_default();
        let changes = self.store.replace(list.items, version.parse().unwrap_or(0));
        for change in changes {
            self.notify(Some(change));
        }
        self.synced.send_replace(true);
        Ok(version)
    }

    /// Watches from `version`, resuming after errors, until the server has forgotten where we were.
    async fn watch_from(&self, mut version: String, backoff: &mut Backoff) {
        let mut failures = 0_u32;
        loop {
            let started = Instant::now();
            let end = self.watch_once(&mut version).await;
            if started.elapsed() >= HEALTHY_WATCH {
                backoff.reset();
                failures = 0;
            }
            match end {
                Ok(()) if started.elapsed() >= Duration::from_secs(1) => {}
                Ok(()) => sleep(backoff.next()).await,
                Err(WatchEnd::Expired) => return,
                Err(WatchEnd::Failed(error)) => {
                    failures += 1;
                    debug!(kind = %self.api.resource_url(), %error, "watch failed");
                    sleep(backoff.next()).await;
                    // A server that refuses to resume may be another one: start over from a list.
                    if failures >= 3 {
                        return;
                    }
                }
            }
        }
    }

    async fn watch_once(&self, version: &mut String) -> Result<(), WatchEnd> {
        let params = WatchParams { field_selector: self.fields.clone(), ..WatchParams::default() };
        let mut stream = self.api.watch(&params, version).await.map_err(WatchEnd::from)?.boxed();
        while let Some(event) = stream.next().await {
            match event.map_err(WatchEnd::from)? {
                WatchEvent::Added(mut object) | WatchEvent::Modified(mut object) => {
                    (self.trim)(&mut object);
                    *version = object.resource_version().unwrap_or_default();
                    self.notify(self.store.observe(object));
                }
                WatchEvent::Deleted(object) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.notify(self.store.observe_deleted(&object));
                }
                WatchEvent::Bookmark(mark) => {
                    self.store.bookmark(mark.metadata.resource_version.parse().unwrap_or(0));
                    *version = mark.metadata.resource_version;
                }
                WatchEvent::Error(status) => return Err(WatchEnd::from(kube::Error::Api(status))),
            }
        }
        Ok(())
    }

    fn notify(&self, change: Option<Change<K>>) {
        let Some(change) = change else { return };
        for handler in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(&change);
        }
    }
}

enum WatchEnd {
    /// 410 Gone: the version is compacted, only a list helps.
    Expired,
    Failed(kube::Error),
}

impl From<kube::Error> for WatchEnd {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Failed(error),
        }
    }
}

struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_BACKOFF)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST_BACKOFF);
        wait
    }

    fn reset(&mut self) {
        self.0 = FIRST_BACKOFF;
    }
}
