//! Empties namespaces that are being deleted, then lets them go.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PartialObjectMeta, PostParams};
use kube::core::{ApiResource, discovery::Scope};
use kube::discovery::{Discovery, verbs};
use seaway_client::{Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;

/// What keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";
/// How soon to look again while things in it are ending.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

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
        let mut left = 0;
        for remaining in emptied {
            left += remaining?;
        }
        if left > 0 {
            return Ok(Some(LOOK_AGAIN));
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

    /// Deletes what there is of one kind; says how much is left.
    async fn empty(&self, namespace: &str, kind: &ContentKind) -> Result<usize, WorkError> {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let list = |left: &'static str| {
            let api = api.clone();
            async move {
                let listed = api.list(&ListParams::default()).await;
                listed.map(|list| list.items).map_err(WorkError::api("list", left))
            }
        };
        let items = list("the content of a namespace").await?;
        let params = DeleteParams::background();
        let pending = items.iter().filter(|item| item.metadata.deletion_timestamp.is_none());
        let pending: Vec<_> = pending.collect();
        if pending.is_empty() {
            return Ok(items.len());
        }
        if kind.collectively {
            let deleted = api.delete_collection(&params, &ListParams::default()).await;
            deleted.map_err(WorkError::api("empty", namespace))?;
        } else {
            for item in pending {
                match api.delete(&item.name_any(), &params).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    other => drop(other.map_err(WorkError::api("delete", &item.name_any()))?),
                }
            }
        }
        Ok(list("the rest of a namespace").await?.len())
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
