//! What runs pods: a small trait, and the handle of a sandbox that looks the same whoever runs it. `builtin` runs images
//! that the binary carries itself; a runtime that speaks CRI would be the second implementation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cni::{CniError, PodIdentity};
use crate::shim::protocol::{ContainerRecord, ContainerSpec};

pub(crate) mod builtin;
mod connection;

/// Why the runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// A file or directory of the pod.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The process that holds the pod.
    #[error("cannot start the pod's sandbox: {0}")]
    Shim(String),
    /// The pod's network.
    #[error("{0}")]
    Network(#[from] CniError),
    /// The sandbox is gone.
    #[error("the pod's sandbox is gone")]
    Gone,
}

/// A container that this runtime will never run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such image.
    Image(String),
    /// The image is there, the settings cannot be met.
    Settings(String),
}

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub(crate) struct SandboxRequest {
    /// The pod.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid, which names everything that it has on the node.
    pub(crate) uid: String,
    /// The host name.
    pub(crate) hostname: String,
    /// The name below the cluster's zone, when the pod has a subdomain.
    pub(crate) fqdn: Option<String>,
    /// Shares the node's network.
    pub(crate) host_network: bool,
    /// The node's addresses, which are the pod's with `host_network`.
    pub(crate) node_ips: Vec<IpAddr>,
    /// `hostAliases`.
    pub(crate) host_aliases: Vec<(String, Vec<String>)>,
    /// The text of /etc/resolv.conf.
    pub(crate) resolv_conf: String,
    /// Capability arguments for CNI.
    pub(crate) runtime_config: BTreeMap<String, Value>,
}

/// What is kept about a sandbox on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxMeta {
    /// Who it is.
    pub(crate) pod: PodIdentity,
    /// Shares the node's network.
    pub(crate) host_network: bool,
    /// The process that holds it, once started.
    pub(crate) pid: Option<i32>,
    /// Its network, from before it is made until it is taken away.
    pub(crate) attachment: Option<crate::cni::Attachment>,
    /// Its addresses.
    pub(crate) ips: Vec<IpAddr>,
    /// All of it was made.
    pub(crate) complete: bool,
}

/// What a sandbox looks like now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SandboxState {
    /// The process that holds it lives.
    pub(crate) alive: bool,
    /// The latest run of every container.
    pub(crate) containers: BTreeMap<String, ContainerRecord>,
}

/// How an exec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecResult {
    /// Its exit code; `None` when it never ran or was killed.
    pub(crate) code: Option<i32>,
    /// The beginning of what it printed.
    pub(crate) output: String,
}

/// What is asked of a sandbox.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Start a container.
    Start(Box<ContainerSpec>, oneshot::Sender<Result<ContainerRecord, String>>),
    /// End a container.
    Stop { name: String, force: bool },
    /// Run a sub-command of the image.
    Exec { name: String, args: Vec<String>, timeout: Duration, answer: oneshot::Sender<ExecResult> },
}

/// A pod's sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What it is.
    pub(crate) meta: SandboxMeta,
    /// What it looks like, always current.
    pub(crate) state: watch::Receiver<SandboxState>,
    asks: mpsc::UnboundedSender<Ask>,
}

impl Sandbox {
    /// Starts a container.
    pub(crate) async fn start(&self, spec: ContainerSpec) -> Result<ContainerRecord, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || RuntimeError::Gone.to_string();
        self.asks.send(Ask::Start(Box::new(spec), answer)).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Ends a container, gently or not.
    pub(crate) fn stop(&self, name: &str, force: bool) {
        // A sandbox that is gone has no running containers.
        let _gone = self.asks.send(Ask::Stop { name: name.to_owned(), force });
    }

    /// Runs a sub-command of the image inside a container.
    pub(crate) async fn exec(&self, name: &str, args: Vec<String>, timeout: Duration) -> ExecResult {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Exec { name: name.to_owned(), args, timeout, answer };
        let gone = || ExecResult { code: None, output: RuntimeError::Gone.to_string() };
        if self.asks.send(ask).is_err() {
            return gone();
        }
        answered.await.unwrap_or_else(|_| gone())
    }
}

/// Runs pods.
pub(crate) trait Runtime: Send + Sync + 'static {
    /// As `status.nodeInfo.containerRuntimeVersion` says it.
    fn version(&self) -> String;

    /// The arguments that a container's image gets, or why it cannot run here. Pure.
    fn accept(&self, container: &Container) -> Result<Vec<String>, Refusal>;

    /// The arguments for an exec probe, or why it cannot run here. Pure.
    fn accept_exec(&self, image: &str, command: &[String]) -> Result<Vec<String>, Refusal>;

    /// Makes a sandbox with its network. What was half-made when it fails is undone.
    fn create(&self, request: &SandboxRequest) -> impl Future<Output = Result<Sandbox, RuntimeError>> + Send;

    /// Sandboxes of a former incarnation, dead ones too.
    fn adopt(&self) -> impl Future<Output = Vec<Sandbox>> + Send;

    /// Ends what runs in a sandbox, takes its network away, keeps logs and volumes.
    fn remove(&self, sandbox: &Sandbox) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// The directory of a pod: its logs and volumes.
    fn pod_dir(&self, uid: &str) -> PathBuf;

    /// Forgets a pod whose sandbox was removed: logs and volumes go.
    fn purge(&self, uid: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Mounts that every container of a pod has.
    fn pod_mounts(&self, uid: &str) -> Vec<crate::shim::protocol::BindMount>;
}
