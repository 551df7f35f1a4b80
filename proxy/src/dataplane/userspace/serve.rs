//! What becomes of those who reach a socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::frontend::{Backend, Frontend, Group};

/// What becomes of those who reach a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serve {
    /// They are refused.
    Refuse,
    /// They are handed on.
    HandOn {
        /// The Service port, whose frontends share affinity.
        group: Group,
        /// To one of these.
        backends: Arc<[Backend]>,
        /// One client keeps its backend for this long.
        affinity: Option<Duration>,
        /// Only these sources may enter. Empty: everyone.
        source_ranges: Arc<[IpNet]>,
        /// By consistent hashing rather than by chance.
        hashed: bool,
    },
}

impl Serve {
    pub(super) fn of(frontend: &Frontend) -> Self {
        Self::HandOn {
            group: frontend.group,
            backends: Arc::clone(&frontend.backends),
            affinity: frontend.affinity,
            source_ranges: Arc::clone(&frontend.source_ranges),
            hashed: frontend.maglev,
        }
    }

    /// Whether a client may enter.
    pub(super) fn admits(&self, client: IpAddr) -> bool {
        match self {
            Self::Refuse => true,
            Self::HandOn { source_ranges, .. } => {
                source_ranges.is_empty() || source_ranges.iter().any(|range| range.contains(&client))
            }
        }
    }
}
