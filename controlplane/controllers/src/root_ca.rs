//! Each namespace has a ConfigMap with the CA of the API server, so that pods can verify it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt;
use seaway_client::{Informer, Key, Queue, WorkError, work};
use serde_json::json;
use tokio::task::JoinSet;

use crate::context::Context;
use crate::serviceaccount::is_active;
use crate::write;

/// The ConfigMap's name.
pub(crate) const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";

/// Starts the controller, if there is a CA to publish.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let Some(ca) = context.config.root_ca_pem.clone() else { return };
    let ca: Arc<str> = ca.into();
    let queue: Arc<Queue<String>> = Arc::default();
    let (namespaces, maps) = (context.caches.namespaces(), context.caches.root_cas());
    namespaces.on_change({
        let queue = Arc::clone(&queue);
        move |change| change.new.iter().for_each(|one| queue.add(one.name_any()))
    });
    maps.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            change.latest().and_then(|one| one.namespace()).into_iter().for_each(|name| queue.add(name));
        }
    });
    let reconcile = {
        let context = Arc::clone(context);
        move |namespace: String| {
            let (context, namespaces, maps) =
                (Arc::clone(&context), Arc::clone(&namespaces), Arc::clone(&maps));
            let ca = Arc::clone(&ca);
            async move { reconcile(&context, &namespaces, &maps, &namespace, &ca).await.map(|()| None) }
        }
    };
    work("root-ca", &queue, 1, reconcile, tasks, &context.shutdown);
}

async fn reconcile(
    context: &Context,
    namespaces: &Informer<Namespace>,
    maps: &Informer<ConfigMap>,
    namespace: &str,
    ca: &str,
) -> Result<(), WorkError> {
    maps.wait_until_synced().await;
    if !is_active(namespaces, namespace) {
        return Ok(());
    }
    let api = context.namespaced::<ConfigMap>(namespace);
    let data = BTreeMap::from([(KEY.to_owned(), ca.to_owned())]);
    let Some(existing) = maps.store().get(&Key::new(namespace, NAME)) else {
        let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        map.metadata.name = Some(NAME.to_owned());
        map.metadata.namespace = Some(namespace.to_owned());
        return match write::create(&api, maps, &map).await {
            Err(error) if error.code() == Some(409) => Ok(()),
            other => other.map(drop),
        };
    };
    if existing.data.as_ref() == Some(&data) {
        return Ok(());
    }
    write::merge(&api, maps, NAME, &json!({"data": data})).await
}
