//! The demo application: applied once the API server answers, and watched until it is ready.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Api, Client, Error as KubeError};
use serde::Deserialize;

/// The demo's namespace.
pub const NAMESPACE: &str = "demo";
const MANIFESTS: &str = include_str!("../../demo/demo.yaml");
const ALREADY_EXISTS: u16 = 409;

/// Creates every object of the demo; those that exist are left as they are.
pub async fn apply(client: &Client) -> Result<()> {
    apply_manifests(client, MANIFESTS).await.context("cannot install the demo")
}

/// Creates every object of a stream of YAML documents.
pub async fn apply_manifests(client: &Client, manifests: &str) -> Result<()> {
    for document in serde_yaml_ng::Deserializer::from_str(manifests) {
        let object = DynamicObject::deserialize(document).context("not a Kubernetes object")?;
        create(client, object).await?;
    }
    Ok(())
}

async fn create(client: &Client, object: DynamicObject) -> Result<()> {
    let types = object.types.clone().context("an object without apiVersion and kind")?;
    let gvk = GroupVersionKind::try_from(&types)?;
    let resource = ApiResource::from_gvk(&gvk);
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(KubeError::Api(status)) if status.code == ALREADY_EXISTS => Ok(()),
        Err(error) => Err(error).with_context(|| {
            format!("cannot create {} {}", gvk.kind, object.metadata.name.unwrap_or_default())
        }),
    }
}

/// How many of the demo's pods are Ready, and how many there should be.
pub async fn ready(client: &Client, namespace: &str) -> Result<(usize, usize)> {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::namespaced(client.clone(), namespace);
    let wanted = deployments.list(&ListParams::default()).await?.items;
    let wanted = wanted.iter().filter_map(|d| d.spec.as_ref()?.replicas).sum::<i32>();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&ListParams::default()).await?.items;
    Ok((pods.iter().filter(|pod| is_ready(pod)).count(), usize::try_from(wanted).unwrap_or_default()))
}

/// The pod's Ready condition is True.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// The address that the frontend's load balancer got.
pub async fn frontend_address(client: &Client) -> Result<String> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let frontend = services.get("frontend").await.context("the demo's frontend is missing")?;
    let status = frontend.status.and_then(|status| status.load_balancer);
    let first =
        status.and_then(|lb| lb.ingress).and_then(|all| all.into_iter().find_map(|ingress| ingress.ip));
    let Some(ip) = first else {
        bail!("Service demo/frontend has no load balancer address: is the pool empty?")
    };
    Ok(ip)
}
