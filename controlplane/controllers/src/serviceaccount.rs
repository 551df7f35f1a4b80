//! Each namespace has a ServiceAccount `default`: pods that name none run as it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::ResourceExt;
use seaway_client::{Informer, Key, Queue, WorkError, work};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::write;

const DEFAULT: &str = "default";

/// Starts the controller.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let queue: Arc<Queue<String>> = Arc::default();
    let (namespaces, accounts) = (context.caches.namespaces(), context.caches.service_accounts());
    namespaces.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.new.iter().for_each(|one| queue.add(one.name_any()))
    });
    accounts.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            let gone = change.old.iter().filter(|_| change.new.is_none());
            gone.filter_map(|one| one.namespace()).for_each(|name| queue.add(name));
        }
    });
    let reconcile = {
        let context = Arc::clone(context);
        move |namespace: String| {
            let (context, namespaces, accounts) =
                (Arc::clone(&context), Arc::clone(&namespaces), Arc::clone(&accounts));
            async move { reconcile(&context, &namespaces, &accounts, &namespace).await.map(|()| None) }
        }
    };
    work("serviceaccount", &queue, 1, reconcile, tasks, &context.shutdown);
}

/// Whether things may be made in the namespace.
pub(crate) fn is_active(namespaces: &Informer<Namespace>, name: &str) -> bool {
    let namespace = namespaces.store().get(&Key::cluster(name));
    namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

async fn reconcile(
    context: &Context,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    namespace: &str,
) -> Result<(), WorkError> {
    accounts.wait_until_synced().await;
    let there = accounts.store().get(&Key::new(namespace, DEFAULT)).is_some();
    if there || !is_active(namespaces, namespace) {
        return Ok(());
    }
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(DEFAULT.to_owned());
    account.metadata.namespace = Some(namespace.to_owned());
    match write::create(&context.namespaced(namespace), accounts, &account).await {
        // There already, and the watch will say so.
        Err(error) if error.code() == Some(409) => Ok(()),
        other => other.map(drop),
    }
}
