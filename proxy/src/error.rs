//! Why the proxy could not start or go on.

use std::path::PathBuf;

use thiserror::Error;

use crate::dataplane::DataplaneError;

/// The proxy could not start.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// The kernel side could not be set up.
    #[error("cannot set up the {backend} data plane")]
    Open {
        /// The backend's name.
        backend: &'static str,
        /// Why.
        #[source]
        source: DataplaneError,
    },
    /// The kernel side could not be removed.
    #[error("cannot remove the data plane below {}", path.display())]
    Cleanup {
        /// The bpffs directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: DataplaneError,
    },
    /// The tables could not be removed.
    #[error("cannot remove the tables of Services")]
    Tables(#[source] DataplaneError),
    /// The worker of the userspace mode could not be ended.
    #[error("cannot end the userspace worker")]
    Worker(#[source] std::io::Error),
    /// A part of the proxy panicked.
    #[error("a part of the proxy ended unexpectedly")]
    Part(#[source] tokio::task::JoinError),
    /// A part of the proxy gave up.
    #[error("a part of the proxy ended before it was told to")]
    Ended,
}
