//! What a check needs in the cluster: a client pod on every node, echo servers on fewer nodes than there are, and
//! one Service of every kind in front of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};

use super::vantage::Vantage;
use crate::cluster::demo::{apply_manifests, is_ready};
use crate::cluster::{ClusterSpec, Layout};

/// The namespace of the fixtures.
pub const NAMESPACE: &str = "seaway-check";
const MANIFESTS: &str = include_str!("../../demo/check.yaml");
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A pod that serves or probes.
#[derive(Debug, Clone)]
pub struct PodAt {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// The fixtures, ready.
pub struct Fixture {
    /// A client of the API.
    pub client: Client,
    /// The cluster.
    pub spec: ClusterSpec,
    layout: Layout,
    /// A client pod per node.
    pub clients: Vec<PodAt>,
    /// The echo servers.
    pub servers: Vec<PodAt>,
}

impl Fixture {
    /// Makes the fixtures and waits until they are ready.
    pub async fn create(client: Client, spec: ClusterSpec, layout: Layout) -> Result<Self> {
        remove_namespace(&client).await.context("cannot clear away the fixtures of an earlier check")?;
        apply_manifests(&client, MANIFESTS).await?;
        let mut fixture = Self { client, spec, layout, clients: Vec::new(), servers: Vec::new() };
        let replicas = usize::from(fixture.spec.nodes.saturating_sub(1).clamp(1, 2));
        fixture.scale("echo", replicas).await?;
        let found = fixture.wait_for_pods(replicas).await;
        if let Err(error) = found {
            remove_namespace(&fixture.client).await?;
            return Err(error);
        }
        Ok(fixture)
    }

    async fn wait_for_pods(&mut self, replicas: usize) -> Result<()> {
        let nodes = usize::from(self.spec.nodes);
        self.clients = self.ready_pods("client", nodes).await?;
        self.servers = self.ready_pods("echo", replicas).await?;
        Ok(())
    }

    /// Waits until exactly `count` pods of an app exist and all are Ready.
    pub async fn ready_pods(&self, app: &str, count: usize) -> Result<Vec<PodAt>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let selector = ListParams::default().labels(&format!("app={app}"));
        let end = Instant::now() + DEADLINE;
        loop {
            let pods = api.list(&selector).await?.items;
            let ready: Vec<PodAt> = pods.iter().filter(|pod| is_ready(pod)).filter_map(pod_at).collect();
            if ready.len() == count && pods.len() == count {
                return Ok(ready);
            }
            if Instant::now() > end {
                bail!(
                    "{} of {count} pods with app={app} are Ready after {} s",
                    ready.len(),
                    DEADLINE.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sets a Deployment's replicas.
    pub async fn scale(&self, deployment: &str, replicas: usize) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let patch = serde_json::json!({"spec": {"replicas": replicas}});
        api.patch_scale(deployment, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("cannot scale {deployment} to {replicas}"))?;
        Ok(())
    }

    /// A Service of the fixtures.
    pub async fn service(&self, name: &str) -> Result<Service> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        api.get(name).await.with_context(|| format!("Service {name} is missing"))
    }

    /// The ClusterIPs of a Service.
    pub async fn cluster_ips(&self, name: &str) -> Result<Vec<IpAddr>> {
        let spec = self.service(name).await?.spec.unwrap_or_default();
        let ips = spec.cluster_ips.unwrap_or_default();
        ips.iter()
            .map(|ip| ip.parse().with_context(|| format!("Service {name} has the ClusterIP {ip:?}")))
            .collect()
    }

    /// The node port of a Service's port.
    pub async fn node_port(&self, name: &str, port: &str) -> Result<u16> {
        let ports = self.service(name).await?.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let found = ports.iter().find(|p| p.name.as_deref() == Some(port)).and_then(|p| p.node_port);
        let found = found.with_context(|| format!("Service {name} has no node port for {port:?}"))?;
        Ok(u16::try_from(found)?)
    }

    /// The addresses that a Service's load balancer has.
    pub async fn load_balancer_ips(&self, name: &str) -> Result<Vec<IpAddr>> {
        let status = self.service(name).await?.status.and_then(|status| status.load_balancer);
        let ips: Vec<IpAddr> = status
            .and_then(|lb| lb.ingress)
            .unwrap_or_default()
            .iter()
            .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
            .collect();
        if ips.is_empty() {
            bail!("Service {name} has no load balancer address");
        }
        Ok(ips)
    }

    /// The client pod of a node, as a vantage point.
    pub fn pod_on(&self, node: &str) -> Result<Vantage> {
        let pod = self.clients.iter().find(|pod| pod.node == node);
        let pod = pod.with_context(|| format!("no client pod on {node}"))?;
        let ip = *pod.ips.first().with_context(|| format!("pod {} has no address", pod.name))?;
        Ok(Vantage::pod(&self.layout, node, &pod.name, ip))
    }

    /// A node, as a vantage point.
    pub fn node(&self, node: &str) -> Vantage {
        Vantage::node(&self.layout, node)
    }

    /// The client outside, as a vantage point.
    pub fn outside(&self) -> Vantage {
        Vantage::outside(&self.layout)
    }

    /// The nodes, with their addresses.
    pub fn nodes(&self) -> BTreeMap<String, [IpAddr; 2]> {
        (0..self.spec.nodes).map(|index| (ClusterSpec::node_name(index), self.spec.node_ips(index))).collect()
    }

    /// A node that runs an echo server.
    pub fn node_with_server(&self) -> Result<&str> {
        self.servers.first().map(|pod| pod.node.as_str()).context("there is no echo server")
    }

    /// A node that runs none.
    pub fn node_without_server(&self) -> Result<String> {
        let free = self.nodes().into_keys().find(|node| self.servers.iter().all(|pod| pod.node != *node));
        free.context("every node runs an echo server: this row needs a cluster of at least two nodes")
    }

    /// Removes the fixtures.
    pub async fn remove(self) -> Result<()> {
        remove_namespace(&self.client).await.context("cannot remove the fixtures")
    }
}

fn pod_at(pod: &Pod) -> Option<PodAt> {
    let ips = pod.status.as_ref()?.pod_ips.as_ref()?;
    Some(PodAt {
        name: pod.metadata.name.clone()?,
        node: pod.spec.as_ref()?.node_name.clone()?,
        ips: ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
    })
}

/// Deletes the namespace and waits until it is gone.
async fn remove_namespace(client: &Client) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let end = Instant::now() + DEADLINE;
    if api.get_opt(NAMESPACE).await?.is_none() {
        return Ok(());
    }
    // Pods of a DaemonSet come back while their owner lives: take the owners first.
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    drop(sets.delete_collection(&DeleteParams::background(), &ListParams::default()).await);
    api.delete(NAMESPACE, &DeleteParams::default()).await?;
    while api.get_opt(NAMESPACE).await?.is_some() {
        if Instant::now() > end {
            bail!("namespace {NAMESPACE} is still there {} s after its deletion", DEADLINE.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
