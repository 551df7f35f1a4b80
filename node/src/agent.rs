//! Puts the parts of a node together and keeps them going.

mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::header::{HeaderValue, USER_AGENT};
use jiff::Timestamp;
use prometheus::Registry;
use prometheus::process_collector::ProcessCollector;
use seaway_model::{Masquerade, Snapshot};
use seaway_proxy::MasqueradedAt;
use seaway_proxy::dataplane::userspace::WorkerConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::beside;
use crate::cni::Network;
use crate::config::NodeConfig;
use crate::dns::{self, dns_config};
use crate::events::Recorder;
use crate::http;
use crate::kubelet::{self, Kubelet};
use crate::pods::{self, Runner};
use crate::proxy_events;
use crate::readiness::{DnsWatcher, ReadinessWatcher};
use crate::register::{self, Machine, Readiness};
use crate::report::Report;
use crate::runtime::Runtime;
use crate::runtime::builtin::Builtin;
use crate::supervise::Parts;

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kubeconfig cannot be used.
    #[error("cannot use {}: {message}", kubeconfig_or_pod(path))]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The API server's URL is none.
    #[error("cannot use {url:?} as the API server's URL: {message}")]
    ApiServer {
        /// What was given.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// A directory cannot be made.
    #[error("cannot create {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The settings do not make a node.
    #[error("the node {name:?} has no address: give at least one of its own")]
    NoAddress {
        /// The node's name.
        name: String,
    },
    /// Two metrics have one name.
    #[error("cannot register the metrics of {part}: {source}")]
    Metrics {
        /// Whose.
        part: &'static str,
        /// Why.
        #[source]
        source: prometheus::Error,
    },
}

/// Runs the agent until `shutdown`. Parts that fail are restarted with back-off and reported; pods and the kernel's
/// state stay when it returns.
pub async fn run(mut config: NodeConfig, shutdown: CancellationToken) -> Result<(), NodeError> {
    if config.node_ips.is_empty() && config.register {
        return Err(NodeError::NoAddress { name: config.name });
    }
    let pods_dir = config.run_pods.then(|| config.state_dir.join("pods"));
    for path in std::iter::once(config.state_dir.clone()).chain(pods_dir) {
        std::fs::create_dir_all(&path).map_err(|source| NodeError::Directory { path, source })?;
    }
    let registry = Registry::new();
    // Memory, CPU time, files: dashboards of CoreDNS and kube-proxy show them.
    registry
        .register(Box::new(ProcessCollector::for_self()))
        .map_err(|source| NodeError::Metrics { part: "process", source })?;
    let dns_metrics = config.dns.then(|| seaway_dns::Metrics::new(&registry)).transpose();
    let dns_metrics = dns_metrics.map_err(|source| NodeError::Metrics { part: "dns", source })?;
    let client = client(&config, dns_metrics.clone()).await?;
    if config.node_ips.is_empty() && (config.cni || config.dns) {
        let addresses = beside::addresses(client.clone(), &config.name);
        let Some(found) = shutdown.run_until_cancelled(addresses).await else { return Ok(()) };
        config.node_ips = found;
    }
    let recorder = Recorder::new(client.clone(), &config.name);
    let pods_wanted = config.dns.then(|| seaway_dns::PodsWanted::new(&dns_config(&config), false));
    let (pods_wanted, all_pods) = pods_wanted.unzip();
    let watched = seaway_watch::Options {
        metrics: Some(seaway_watch::Metrics::new(&registry)),
        own_node: (config.proxy || config.dns).then(|| config.name.clone()),
        all_pods,
        namespaces: config.dns,
        on_invalid: Some(proxy_events::on_invalid(recorder.clone())),
    };
    let data_plane_end = CancellationToken::new();
    let (snapshots, watching) = seaway_watch::spawn_for(client.clone(), watched, data_plane_end.clone());
    let agent = Agent {
        parts: Parts::default(),
        readiness: watch::Sender::new(Readiness {
            missing: vec!["the agent is starting".to_owned()],
            network: false,
        }),
        dns_up: watch::Sender::new(false),
        pods: watch::Sender::new(BTreeMap::new()),
        proxy: seaway_proxy::StatusHandle::default(),
        masquerade: watch::Sender::new(None),
        // Where there is no proxy, nobody needs to wait for its word.
        masqueraded: watch::Sender::new((!config.proxy).then(MasqueradedAt::default)),
        dns_metrics,
        pods_wanted,
        proxy_metrics: config.proxy.then(|| seaway_proxy::Metrics::new(&registry)),
        recorder,
        registry,
        snapshots,
        client,
        config,
        shutdown,
        data_plane_end,
    };
    let (mut tasks, mut proxy) = (JoinSet::new(), JoinSet::new());
    agent.spawn_proxy(&mut proxy);
    agent.spawn_data_plane(&mut tasks)?;
    agent.spawn_node(&mut tasks);
    agent.spawn_servers(&mut tasks);
    agent.spawn_pods(&mut tasks);
    tracing::info!(node = %agent.config.name, "node agent started");
    while tasks.join_next().await.is_some() {}
    agent.data_plane_end.cancel();
    while proxy.join_next().await.is_some() {}
    if watching.await.is_err() {
        tracing::warn!("the watch of the cluster panicked");
    }
    Ok(())
}

fn kubeconfig_or_pod(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        "a pod's credentials for the API server (without a kubeconfig)".to_owned()
    } else {
        format!("kubeconfig {}", path.display())
    }
}

/// How the API server is reached, but for its address where the settings name another one.
async fn credentials(config: &NodeConfig, url: Option<&::http::Uri>) -> Result<kube::Config, NodeError> {
    let bad = |message: String| NodeError::Kubeconfig { path: config.kubeconfig.clone(), message };
    if config.kubeconfig.as_os_str().is_empty() {
        return match (kube::Config::incluster(), url) {
            // What a pod has is not for everybody to read on the way.
            (Ok(of_pod), Some(url)) if url.scheme_str() == Some("https") => Ok(of_pod),
            // As kube-proxy: no credentials are needed to an address that is named without any.
            (_, Some(url)) => Ok(kube::Config::new(url.clone())),
            (of_pod, None) => of_pod.map_err(|e| bad(e.to_string())),
        };
    }
    let file = kube::config::Kubeconfig::read_from(&config.kubeconfig).map_err(|e| bad(e.to_string()))?;
    let options = kube::config::KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| bad(e.to_string()))
}

async fn client(
    config: &NodeConfig,
    metrics: Option<seaway_dns::Metrics>,
) -> Result<kube::Client, NodeError> {
    let bad = |message: String| NodeError::Kubeconfig { path: config.kubeconfig.clone(), message };
    let url = config.api_server.as_deref().map(api_server).transpose()?;
    let mut loaded = credentials(config, url.as_ref()).await?;
    if let Some(url) = url {
        loaded.cluster_url = url;
    }
    let client = match metrics {
        None => kube::Client::try_from(named(loaded)),
        Some(metrics) => seaway_watch::observed_client(named(loaded), dns::counting_requests(metrics)),
    };
    client.map_err(|e| bad(e.to_string()))
}

fn api_server(url: &str) -> Result<::http::Uri, NodeError> {
    let refused = |message: String| NodeError::ApiServer { url: url.to_owned(), message };
    // As kube-proxy: a host and a port without a scheme are plain HTTP.
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let parsed: ::http::Uri =
        whole.parse().map_err(|error: ::http::uri::InvalidUri| refused(error.to_string()))?;
    match (parsed.scheme_str(), parsed.host()) {
        (Some("http" | "https"), Some(_)) => Ok(parsed),
        _ => Err(refused("want one such as https://192.0.2.1:6443".to_owned())),
    }
}

/// Objects say in `managedFields` who wrote them, by this name.
fn named(mut config: kube::Config) -> kube::Config {
    let agent = HeaderValue::from_static(concat!("seaway-node/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    config
}

pub(crate) struct Agent {
    pub(crate) config: NodeConfig,
    pub(crate) client: kube::Client,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) registry: Registry,
    pub(crate) parts: Parts,
    readiness: watch::Sender<Readiness>,
    pub(crate) dns_up: watch::Sender<bool>,
    pods: watch::Sender<BTreeMap<String, Arc<k8s_openapi::api::core::v1::Pod>>>,
    proxy: seaway_proxy::StatusHandle,
    /// What the pod network wants masqueraded, and where the proxy does it.
    masquerade: watch::Sender<Option<Arc<Masquerade>>>,
    masqueraded: watch::Sender<Option<MasqueradedAt>>,
    proxy_metrics: Option<seaway_proxy::Metrics>,
    pub(crate) dns_metrics: Option<seaway_dns::Metrics>,
    pub(crate) pods_wanted: Option<seaway_dns::PodsWanted>,
    recorder: Recorder,
    pub(crate) shutdown: CancellationToken,
    /// Ends the watch and the service proxy, last of all: pods that asked this node's DNS have to be led to another one's.
    data_plane_end: CancellationToken,
}

/// Removes what the service proxy of this node left: in the kernel, and its worker.
pub fn cleanup_proxy(config: &NodeConfig) -> Result<(), seaway_proxy::ProxyError> {
    let mut proxy = seaway_proxy::ProxyConfig::new(&config.name, &config.cgroup, &config.bpffs);
    proxy.worker = Some(worker(config));
    seaway_proxy::cleanup(&proxy)
}

/// Does what needs privileges that the proxy does not need later: connection tracking is set.
pub fn initialise_proxy(config: &NodeConfig) {
    if let Some(conntrack) = config.conntrack {
        conntrack.apply();
    }
}

/// The process that serves in user space, if that is the mode.
fn worker(config: &NodeConfig) -> WorkerConfig {
    let directory = config.workers_dir();
    WorkerConfig {
        arguments: vec!["userspace-worker".into(), "--directory".into(), directory.clone().into()],
        directory,
        program: config.self_exe.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

impl Agent {
    /// A supervised part that ends by itself when `shutdown` is cancelled.
    pub(crate) fn part<F, T, E>(
        &self,
        tasks: &mut JoinSet<()>,
        name: &'static str,
        start: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let (parts, shutdown) = (self.parts.clone(), self.shutdown.clone());
        tasks.spawn(async move { parts.keep(name, &shutdown, start).await });
    }

    /// As [`Agent::part`], for what runs until it is dropped.
    pub(crate) fn endless<F, T, E>(
        &self,
        tasks: &mut JoinSet<()>,
        name: &'static str,
        mut start: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.part(tasks, name, move || {
            let (work, shutdown) = (start(), shutdown.clone());
            async move { shutdown.run_until_cancelled(work).await.transpose() }
        });
    }

    fn spawn_proxy(&self, tasks: &mut JoinSet<()>) {
        let Some(metrics) = self.proxy_metrics.clone() else { return };
        let (parts, proxy, snapshots) = (self.parts.clone(), self.proxy_config(), self.snapshots.clone());
        let end = self.data_plane_end.clone();
        tasks.spawn(async move {
            let start = || seaway_proxy::run(proxy.clone(), snapshots.clone(), metrics.clone(), end.clone());
            parts.keep("proxy", &end, start).await;
        });
    }

    fn spawn_data_plane(&self, tasks: &mut JoinSet<()>) -> Result<(), NodeError> {
        let config = &self.config;
        let (snapshots, shutdown) = (self.snapshots.clone(), self.shutdown.clone());
        if config.cni {
            let (network, options) = (self.network_config(), self.network_options());
            let metrics = seaway_cni_network::Metrics::new(&self.registry)
                .map_err(|source| NodeError::Metrics { part: "network", source })?;
            let (snapshots, shutdown) = (snapshots.clone(), shutdown.clone());
            self.part(tasks, "network", move || {
                let (network, options, metrics) = (network.clone(), options.clone(), Some(metrics.clone()));
                seaway_cni_network::run_with(network, options, metrics, snapshots.clone(), shutdown.clone())
            });
        }
        if let Some(metrics) = self.dns_metrics.clone() {
            self.spawn_dns(tasks, metrics);
        }
        Ok(())
    }

    fn dns_addresses(&self) -> Vec<SocketAddr> {
        dns_config(&self.config).listen
    }

    /// The Node object, its Lease, and what they depend on.
    fn spawn_node(&self, tasks: &mut JoinSet<()>) {
        if self.config.register {
            self.spawn_registration(tasks);
        } else if self.config.cni {
            self.spawn_beside(tasks);
        }
        let watcher = ReadinessWatcher {
            config: self.config.clone(),
            parts: self.parts.clone(),
            proxy: self.proxy.clone(),
            network: self.pod_network(),
            dns: DnsWatcher {
                parts: self.parts.clone(),
                metrics: self.dns_metrics.clone(),
                addresses: self.dns_addresses(),
                up: self.dns_up.clone(),
            },
            readiness: self.readiness.clone(),
        };
        let shutdown = self.shutdown.clone();
        tasks.spawn(async move {
            shutdown.run_until_cancelled(watcher.watch()).await;
        });
    }

    /// The Node object and its Lease.
    fn spawn_registration(&self, tasks: &mut JoinSet<()>) {
        let machine = Machine::read(&self.runtime().version());
        let (client, config) = (self.client.clone(), self.config.clone());
        let readiness = self.readiness.subscribe();
        self.endless(tasks, "node", move || {
            register::keep_status(client.clone(), config.clone(), machine.clone(), readiness.clone())
        });
        let (client, name, shutdown) = (self.client.clone(), self.config.name.clone(), self.shutdown.clone());
        self.part(tasks, "lease", move || {
            register::heartbeat(client.clone(), name.clone(), shutdown.clone())
        });
    }

    /// What is told of a Node that a kubelet registers.
    fn spawn_beside(&self, tasks: &mut JoinSet<()>) {
        let (client, name) = (self.client.clone(), self.config.name.clone());
        let readiness = self.readiness.subscribe();
        self.endless(tasks, "node", move || {
            beside::keep_told(client.clone(), name.clone(), readiness.clone())
        });
    }

    fn spawn_servers(&self, tasks: &mut JoinSet<()>) {
        let config = &self.config;
        let report = Arc::new(Report {
            config: config.clone(),
            started_at: Timestamp::now(),
            parts: self.parts.clone(),
            readiness: self.readiness.subscribe(),
            snapshots: self.snapshots.clone(),
            pods: self.pods.subscribe(),
            proxy: self.proxy.clone(),
            proxy_metrics: self.proxy_metrics.clone(),
            dns_metrics: self.dns_metrics.clone(),
            registry: self.registry.clone(),
        });
        let (socket, handler) = (config.agent_socket(), Arc::clone(&report).socket());
        self.endless(tasks, "socket", move || {
            let (socket, handler) = (socket.clone(), Arc::clone(&handler));
            async move { http::serve_socket(&socket, handler).await }
        });
        let ip = config.bind_address;
        let metrics_ip = config.metrics_address.unwrap_or(ip);
        for (name, ip, port, handler) in [
            ("healthz", ip, config.healthz_port, Arc::clone(&report).health()),
            ("metrics", metrics_ip, config.metrics_port, Arc::clone(&report).metrics()),
        ] {
            if port != 0 {
                self.endless(tasks, name, move || http::serve_port(ip, port, Arc::clone(&handler)));
            }
        }
    }

    fn spawn_pods(&self, tasks: &mut JoinSet<()>) {
        let config = &self.config;
        if !config.run_pods {
            return;
        }
        let kubelet = Kubelet {
            addresses: config.node_ips.clone(),
            port: config.kubelet_port,
            cert: config.serving_cert.clone(),
            key: config.serving_key.clone(),
            ca: config.ca.clone(),
            pods_dir: config.state_dir.join("pods"),
            pods: self.pods.subscribe(),
        };
        self.endless(tasks, "kubelet", move || kubelet::run(kubelet.clone()));
        let runner = Arc::new(Runner {
            runtime: self.runtime(),
            client: self.client.clone(),
            node: config.name.clone(),
            node_ips: config.node_ips.clone(),
            zone: config.cluster_domain.clone(),
            cluster_dns: config.cluster_dns.clone(),
            recorder: self.recorder.clone(),
            snapshots: self.snapshots.clone(),
            exe: config.self_exe.clone(),
            pods: self.pods.clone(),
        });
        let shutdown = self.shutdown.clone();
        self.part(tasks, "pods", move || {
            let (runner, shutdown) = (Arc::clone(&runner), shutdown.clone());
            async move {
                pods::run(runner, shutdown).await;
                Ok::<_, NodeError>(())
            }
        });
    }

    fn pod_network(&self) -> Network {
        Network { conf_dir: self.config.cni_conf_dir.clone(), bin_dir: self.config.cni_bin_dir.clone() }
    }

    fn runtime(&self) -> Builtin {
        Builtin {
            pods_dir: self.config.state_dir.join("pods"),
            pods_cgroup: self.config.cgroup.join("pods"),
            exe: self.config.self_exe.clone(),
            network: self.pod_network(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_is_named_by_its_url() {
        assert_eq!(api_server("https://192.0.2.1:6443").unwrap().to_string(), "https://192.0.2.1:6443/");
        assert_eq!(api_server("127.0.0.1:8080").unwrap().to_string(), "http://127.0.0.1:8080/");
        for wrong in ["", "ftp://192.0.2.1", "https://", "a b"] {
            let error = api_server(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot use {wrong:?} as the API server's URL")), "{error}");
        }
    }
}
