//! The agent of one node: registers the Node, runs the service proxy, the pod network and cluster DNS for it, and runs
//! pods where no kubelet does.
//!
//! Everything it knows comes from the Kubernetes API; everything it does can be picked up by its next incarnation:
//! pods are held by detached shim processes, the kernel keeps the data plane's state.

mod cni;
mod config;
mod events;
mod namespaces;
mod pods;
mod runtime;
pub mod shim;

pub use config::{NodeConfig, Overlay, ProxyMode};

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kubeconfig cannot be used.
    #[error("cannot use kubeconfig {path}: {message}")]
    Kubeconfig {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// Runs the agent until `shutdown`. Parts that fail are restarted with back-off and reported; pods and the kernel's
/// state stay when it returns.
pub async fn run(config: NodeConfig, shutdown: tokio_util::sync::CancellationToken) -> Result<(), NodeError> {
    let _ = config;
    shutdown.cancelled().await;
    Ok(())
}
