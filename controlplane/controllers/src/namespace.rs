//! Empties namespaces that are being deleted, then lets them go; those that do not go say why.

mod conditions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, Request, discovery::Scope};
use kube::discovery::{Discovery, verbs};
use seaway_client::{Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use self::conditions::{Remaining, conditions, look_again};
use crate::context::Context;

/// What keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";
/// A namespace that goes within this time does not say what it waits for.
const PATIENCE: Duration = Duration::from_secs(1);

struct Namespaces {
    context: Arc<Context>,
    namespaces: Arc<Informer<Namespace>>,
    kinds: Mutex<Option<Arc<Vec<ContentKind>>>>,
}

/// A kind that lives in namespaces.
struct ContentKind {
    resource: ApiResource,
    collectively: bool,
}

/// What a namespace holds of one kind, as far as it matters here: whole metadata, with the owner of every field, take
/// many times the memory.
#[derive(Debug, serde::Deserialize)]
struct Content {
    items: Vec<Item>,
}

#[derive(Debug, serde::Deserialize)]
struct Item {
    metadata: ItemMeta,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemMeta {
    name: String,
    #[serde(default)]
    finalizers: Vec<String>,
    deletion_timestamp: Option<String>,
}

impl ContentKind {
    fn remaining(&self, items: &[Item]) -> Remaining {
        let mut finalizers = BTreeMap::new();
        for name in items.iter().flat_map(|item| &item.metadata.finalizers) {
            *finalizers.entry(name.clone()).or_default() += 1;
        }
        let resource = format!("{}.{}", self.resource.plural, self.resource.group);
        Remaining { resource, count: items.len(), finalizers }
    }
}

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let namespaces = context.caches.namespaces();
    namespaces.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            let going = change.new.iter().filter(|one| is_ours_to_empty(one));
            going.for_each(|one| queue.add(Key::of(one.as_ref())));
        }
    });
    let kinds = Mutex::new(None);
    let controller = Arc::new(Namespaces { context: Arc::clone(context), namespaces, kinds });
    let reconcile = move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.reconcile(&key).await }
    };
    work("namespace", &queue, context.config.workers, reconcile, tasks, &context.shutdown);
}

fn finalizers(namespace: &Namespace) -> &[String] {
    namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default()
}

fn is_ours_to_empty(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers(namespace).iter().any(|one| one == FINALIZER)
}

impl Namespaces {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, WorkError> {
        let Some(namespace) = self.namespaces.store().get(key).filter(|one| is_ours_to_empty(one)) else {
            return Ok(None);
        };
        let kinds = self.kinds().await?;
        let emptied = join_all(kinds.iter().map(|kind| self.empty(&key.name, kind))).await;
        let remaining = emptied.into_iter().collect::<Result<Vec<Remaining>, _>>()?;
        if remaining.iter().any(|kind| kind.count > 0) {
            let now = Timestamp::now();
            let since = namespace.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
            let age = now.duration_since(since).try_into().unwrap_or_default();
            if age >= PATIENCE {
                self.tell(&namespace, &remaining, now).await?;
            }
            return Ok(Some(look_again(age)));
        }
        self.finalize(&namespace).await.map(|()| None)
    }

    /// The kinds that live in namespaces, asked for once per start (and again after a failure).
    async fn kinds(&self) -> Result<Arc<Vec<ContentKind>>, WorkError> {
        if let Some(kinds) = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(kinds);
        }
        let discovery = Discovery::new(self.context.client.clone()).run().await;
        let discovery = discovery.map_err(WorkError::api("discover", "the served kinds"))?;
        let mut kinds = Vec::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                let deletable = capabilities.supports_operation(verbs::DELETE);
                if capabilities.scope == Scope::Namespaced
                    && deletable
                    && capabilities.supports_operation(verbs::LIST)
                {
                    let collectively = capabilities.supports_operation(verbs::DELETE_COLLECTION);
                    kinds.push(ContentKind { resource, collectively });
                }
            }
        }
        let kinds = Arc::new(kinds);
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&kinds));
        Ok(kinds)
    }

    /// Writes into the status what is left.
    async fn tell(
        &self,
        namespace: &Namespace,
        remaining: &[Remaining],
        now: Timestamp,
    ) -> Result<(), WorkError> {
        let known =
            namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let conditions = conditions(remaining, known, now);
        if conditions == known {
            return Ok(());
        }
        let patch = Patch::Merge(serde_json::json!({"status": {"conditions": conditions}}));
        let name = namespace.name_any();
        match self.context.cluster::<Namespace>().patch_status(&name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(WorkError::api("tell what is left in namespace", &name)),
        }
    }

    /// Deletes what there is of one kind; says how much is left.
    async fn empty(&self, namespace: &str, kind: &ContentKind) -> Result<Remaining, WorkError> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let list = async |what: &str| {
            let request = Request::new(api.resource_url()).list_metadata(&ListParams::default());
            let request = request.map_err(kube::Error::BuildRequest).map_err(WorkError::api("list", what))?;
            let listed = self.context.client.request::<Content>(request).await;
            listed.map(|list| list.items).map_err(WorkError::api("list", what))
        };
        let items = list("the content of a namespace").await?;
        let params = DeleteParams::background();
        let pending = items.iter().filter(|item| item.metadata.deletion_timestamp.is_none());
        let pending: Vec<_> = pending.collect();
        if pending.is_empty() {
            return Ok(kind.remaining(&items));
        }
        if kind.collectively {
            // The answer holds every object that went: thousands, which are not to be looked at.
            let request = Request::new(api.resource_url());
            let request = request.delete_collection(&params, &ListParams::default());
            let request =
                request.map_err(kube::Error::BuildRequest).map_err(WorkError::api("empty", namespace))?;
            let deleted = self.context.client.request_text(request).await;
            deleted.map_err(WorkError::api("empty", namespace))?;
        } else {
            for item in pending {
                match api.delete(&item.metadata.name, &params).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    other => drop(other.map_err(WorkError::api("delete", &item.metadata.name))?),
                }
            }
        }
        Ok(kind.remaining(&list("the rest of a namespace").await?))
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), WorkError> {
        let mut released = namespace.clone();
        if let Some(finalizers) = released.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|one| one != FINALIZER);
        }
        let api = self.context.cluster::<Namespace>();
        let name = namespace.name_any();
        match api.replace_subresource("finalize", &name, &PostParams::default(), &released).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(WorkError::api("finalize namespace", &name)),
        }
    }
}
