//! Why the kernel could not be read or written.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

/// A table, a set or a connection could not be read or written.
#[derive(Debug, Error)]
pub enum NftError {
    /// The socket failed.
    #[error("netfilter socket: cannot {action}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("netfilter: cannot {action}: {errno}")]
    Refused {
        /// What was tried.
        action: String,
        /// The error number.
        errno: Errno,
    },
    /// Others kept changing things while they were read.
    #[error("netfilter: cannot {action}: it changed {attempts} times while it was read")]
    Unsteady {
        /// What was tried.
        action: String,
        /// How often.
        attempts: u32,
    },
}

impl NftError {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { .. } | Self::Unsteady { .. } => None,
        }
    }
}
