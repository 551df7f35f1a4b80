//! The garbage collector: objects whose owners are gone go too (or are let go, or hold their owner until they are gone).
//!
//! A graph of owner references is kept from the watches. Nothing is deleted on the graph's word alone: an owner that it
//! lacks is asked for at the server, and deletions name UID and version of what they were decided on.

mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Resource, ResourceExt};
use seaway_client::{Informer, Queue, Store, WorkError, work};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::context::Context;
use crate::owner;
use graph::{Decision, FOREGROUND, Graph, KindRef, ORPHAN, Owner, Propagation};

type Metadata = PartialObjectMeta<DynamicObject>;

/// How many absent owners are remembered, so that the server is asked once per owner and not per dependent.
const ABSENT: usize = 1000;

struct Garbage {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    /// Kinds by `apiVersion` and kind.
    kinds: HashMap<KindRef, (ApiResource, Scope)>,
    absent: Mutex<HashSet<(String, String)>>,
}

/// Starts the controller: as soon as the served kinds are known.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let context = Arc::clone(context);
    tasks.spawn(async move {
        let shutdown = context.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = collect(context) => {}
        }
    });
}

async fn collect(context: Arc<Context>) {
    let discovered = discover(&context).await;
    let mut kinds = HashMap::new();
    let mut informers = Vec::new();
    for (resource, scope) in discovered {
        let kind = KindRef { api_version: resource.api_version.clone(), kind: resource.kind.clone() };
        let api: Api<Metadata> = Api::all_with(context.client.clone(), &resource);
        informers.push((kind.clone(), Arc::new(Informer::new(api, Store::default()).trim(trim))));
        kinds.insert(kind, (resource, scope));
    }
    let workers = context.config.workers;
    let shutdown = context.shutdown.clone();
    let garbage = Arc::new(Garbage { context, graph: Mutex::default(), kinds, absent: Mutex::default() });
    let queue: Arc<Queue<String>> = Arc::default();
    let mut tasks = JoinSet::new();
    for (kind, informer) in &informers {
        let (garbage, queue, kind) = (Arc::clone(&garbage), Arc::clone(&queue), kind.clone());
        informer.on_change(move |change| {
            let mut graph = garbage.lock();
            let mut due = Vec::new();
            // An object of the same name may be another one.
            let uid = change.new.as_ref().and_then(|new| new.uid());
            if let Some(old) = change.old.as_ref().filter(|old| old.uid() != uid) {
                due = graph.remove(&old.uid().unwrap_or_default());
            }
            if let Some(new) = &change.new {
                due.extend(graph.set(&kind, new.meta()));
            }
            for uid in due {
                queue.add(uid);
            }
        });
        tasks.spawn(Arc::clone(informer).run(shutdown.clone()));
    }
    for (_, informer) in &informers {
        informer.wait_until_synced().await;
    }
    info!(kinds = informers.len(), "garbage collector synced");
    let reconcile = move |uid: String| {
        let garbage = Arc::clone(&garbage);
        async move { garbage.reconcile(&uid).await }
    };
    work("garbagecollector", &queue, workers, reconcile, &mut tasks, &shutdown);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            warn!(%error, "a task of the garbage collector panicked");
            shutdown.cancel();
        }
    }
}

/// Drops what the graph does not ask for: this cache holds every object there is.
fn trim(object: &mut Metadata) {
    object.metadata.annotations = None;
    object.metadata.labels = None;
}

/// The kinds that can be listed, watched and deleted. Events are left out: they expire by themselves.
async fn discover(context: &Context) -> Vec<(ApiResource, Scope)> {
    let mut wait = Duration::from_millis(50);
    let discovery = loop {
        match Discovery::new(context.client.clone()).run().await {
            Ok(discovery) => break discovery,
            Err(error) => {
                debug!(%error, "cannot discover the served kinds");
                sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
        }
    };
    let resources = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
    resources
        .filter(|(resource, _)| resource.kind != "Event")
        .filter(|(_, can)| {
            [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| can.supports_operation(verb))
        })
        .map(|(resource, can)| (resource, can.scope))
        .collect()
}

impl Garbage {
    async fn reconcile(&self, uid: &str) -> Result<Option<Duration>, WorkError> {
        let unknown = self.lock().unknown_owners(uid);
        for owner in unknown {
            self.look_for(uid, &owner).await?;
        }
        let decision = self.lock().decide(uid);
        let Some((object, decision)) = decision else { return Ok(None) };
        match decision {
            Decision::Keep => {}
            Decision::Disown(uids) => self.disown(&object, &uids).await?,
            Decision::Delete(propagation) => self.delete(&object, propagation).await?,
            Decision::Orphan(dependents) => {
                for dependent in dependents {
                    self.disown(&dependent, &[uid.to_owned()].into()).await?;
                }
                self.release(&object, ORPHAN).await?;
            }
            Decision::Release => self.release(&object, FOREGROUND).await?,
            Decision::Await(dependents) => {
                for dependent in dependents {
                    self.delete(&dependent, Propagation::Default).await?;
                }
            }
        }
        Ok(None)
    }

    /// Asks the server for an owner that no watch has shown.
    async fn look_for(&self, uid: &str, owner: &OwnerReference) -> Result<(), WorkError> {
        let Some(namespace) = self.lock().get(uid).map(|object| object.key.namespace.clone()) else {
            return Ok(());
        };
        let known = (owner.uid.clone(), namespace.clone());
        if self.absent().contains(&known) {
            self.lock().mark_absent(uid, &owner.uid);
            return Ok(());
        }
        let kind = KindRef { api_version: owner.api_version.clone(), kind: owner.kind.clone() };
        let Some((resource, scope)) = self.kinds.get(&kind) else {
            // A kind that nobody serves (now): whether its objects exist cannot be known.
            debug!(kind = owner.kind, api_version = owner.api_version, "owner of an unknown kind");
            return Ok(());
        };
        let namespace = if *scope == Scope::Cluster { "" } else { &*namespace };
        let live = self.api(resource, namespace).get_opt(&owner.name).await;
        let live = live.map_err(WorkError::api("read", &format!("owner {} {}", owner.kind, owner.name)))?;
        match live {
            // It is there; its watch will show it. Taking it from here might bring back what the watch saw go.
            Some(live) if live.metadata.uid.as_deref() == Some(&owner.uid) => {}
            _ => {
                let mut absent = self.absent();
                if absent.len() >= ABSENT {
                    absent.clear();
                }
                absent.insert(known);
                drop(absent);
                self.lock().mark_absent(uid, &owner.uid);
            }
        }
        Ok(())
    }

    async fn delete(&self, object: &Owner, propagation: Propagation) -> Result<(), WorkError> {
        let Some((resource, _)) = self.kinds.get(&object.kind) else { return Ok(()) };
        let mut params = match propagation.for_object(&object.meta) {
            Propagation::Foreground => DeleteParams::foreground(),
            Propagation::Orphan => DeleteParams::orphan(),
            Propagation::Background | Propagation::Default => DeleteParams::background(),
        };
        params = params.preconditions(Preconditions {
            uid: object.meta.uid.clone(),
            resource_version: object.meta.resource_version.clone(),
        });
        debug!(kind = object.kind.kind, object = %object.key, "deleting an object without owner");
        let api = self.api(resource, &object.key.namespace);
        match api.delete(&object.key.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            // Changed meanwhile: decide again on what it is now, once the watch has shown it.
            Err(error) => Err(WorkError::api("delete", &object.title())(error)),
        }
    }

    /// Takes owners out of the object's references.
    async fn disown(&self, object: &Owner, uids: &HashSet<String>) -> Result<(), WorkError> {
        let owners: Vec<_> = object
            .meta
            .owner_references
            .iter()
            .flatten()
            .filter(|owner| !uids.contains(&owner.uid))
            .cloned()
            .collect();
        self.patch(object, &owner::owners_patch(&object.meta, &owners)).await
    }

    /// Takes a finalizer off the object.
    async fn release(&self, object: &Owner, finalizer: &str) -> Result<(), WorkError> {
        let left: Vec<_> = object.meta.finalizers.iter().flatten().filter(|one| *one != finalizer).collect();
        let patch = json!({"metadata": {
            "uid": object.meta.uid, "resourceVersion": object.meta.resource_version, "finalizers": left,
        }});
        self.patch(object, &patch).await
    }

    async fn patch(&self, object: &Owner, patch: &serde_json::Value) -> Result<(), WorkError> {
        let Some((resource, _)) = self.kinds.get(&object.kind) else { return Ok(()) };
        let api = self.api(resource, &object.key.namespace);
        match api.patch(&object.key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(WorkError::api("patch", &object.title())),
        }
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<Metadata> {
        if namespace.is_empty() {
            Api::all_with(self.context.client.clone(), resource)
        } else {
            Api::namespaced_with(self.context.client.clone(), namespace, resource)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn absent(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
