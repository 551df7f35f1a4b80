//! Who answers: the pod as it knows itself from its environment (downward API) and its host name.

use std::env;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The answering pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// `POD_NAME`, else the host name.
    pub(crate) pod: String,
    /// `POD_NAMESPACE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// `NODE_NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// The host name.
    pub(crate) hostname: String,
}

impl Identity {
    pub(crate) fn of_this_process() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            pod: set("POD_NAME").unwrap_or_else(|| hostname.clone()),
            namespace: set("POD_NAMESPACE"),
            node: set("NODE_NAME"),
            hostname,
        }
    }
}

/// What every answer carries, as one line of JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Answer<'a> {
    #[serde(flatten)]
    pub(crate) identity: &'a Identity,
    /// `http`, `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    /// From where it was asked.
    pub(crate) client: SocketAddr,
    /// The address that it was asked at, as this pod sees it (UDP: the listening one).
    pub(crate) local: SocketAddr,
    /// How many requests this process has answered over this protocol, this one included.
    pub(crate) requests: u64,
}

impl Answer<'_> {
    /// One line, with its end.
    pub(crate) fn line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// An IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d` is an IPv4 address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
