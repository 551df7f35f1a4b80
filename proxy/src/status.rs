//! How the proxy is doing, for people and for health checks.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use seaway_model::Family;
use serde::Serialize;

use crate::desired::{Conflict, Desired};
use crate::firewall::PodPath;
use crate::frontend::{FrontendKind, Scope};

/// The proxy of one node at a glance.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// The backend in use, such as `ebpf`; empty before it is set up.
    pub mode: String,
    /// Every list has been read and the kernel holds what follows from them.
    pub synced: bool,
    /// Seconds since 1970 of the last sync that succeeded.
    pub last_sync_unix_s: Option<u64>,
    /// How long the last sync took.
    pub last_sync_us: Option<u64>,
    /// Why the last sync failed, if it did.
    pub last_error: Option<String>,
    /// Services that are served here.
    pub services: usize,
    /// Frontends, both scopes counted.
    pub frontends: usize,
    /// Backends over all frontends.
    pub backends: usize,
    /// Frontends that more than one Service claims.
    pub conflicts: Vec<Conflict>,
    /// LoadBalancer addresses that this node answers for.
    pub announced: Vec<IpAddr>,
    /// The links that traffic from outside arrives on.
    pub devices: Vec<String>,
    /// Which way packets between pods go; `None`: the backend has nothing to do with them.
    pub pod_path: Option<PodPath>,
    /// What XDP does here.
    pub xdp: Xdp,
    /// Dropped packets by reason, since the maps were made.
    pub drops: Vec<DropCount>,
}

/// What XDP does on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Xdp {
    /// The uplinks, where it is switched on.
    pub uplinks: Vec<XdpUplink>,
    /// Packets that were sent on, since the maps were made.
    pub packets: u64,
}

/// What an uplink runs of XDP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct XdpUplink {
    /// The link's name.
    pub device: String,
    /// `native`, `generic`, or `off`: it runs none.
    pub mode: &'static str,
    /// Why it does not, or what it cannot.
    pub note: Option<String>,
}

/// Packets dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DropCount {
    /// The reason's name.
    pub reason: String,
    /// How many packets.
    pub packets: u64,
}

/// Rules of iptables in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleCount {
    /// The family.
    pub family: Family,
    /// `nat` or `filter`.
    pub table: &'static str,
    /// Those that are ours, as read back last.
    pub owned: usize,
    /// Those that the last change wrote.
    pub written: usize,
}

/// One Service as this node serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its frontends.
    pub frontends: Vec<FrontendStatus>,
}

/// One frontend as this node serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrontendStatus {
    /// The kind of address.
    pub kind: FrontendKind,
    /// The name of the Service port.
    pub port_name: String,
    /// Address and port.
    pub address: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// Who asks.
    pub scope: Scope,
    /// Session affinity in seconds.
    pub affinity_s: Option<u64>,
    /// Where packets end.
    pub backends: Vec<BackendStatus>,
}

/// One backend of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BackendStatus {
    /// Address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
}

/// Shared between the proxy, which writes, and whoever shows it. Clones are the same status.
#[derive(Debug, Clone, Default)]
pub struct StatusHandle {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    status: Status,
    desired: Desired,
    /// Since when something is waiting to be programmed.
    pending_since: Option<Instant>,
}

/// A sync that has not gone through for this long makes the proxy unhealthy (kube-proxy: twice the resync period).
const UNHEALTHY_AFTER: Duration = Duration::from_secs(60);

impl StatusHandle {
    /// The present status.
    pub fn status(&self) -> Status {
        self.with(|inner| inner.status.clone())
    }

    /// All Services that are served, by name.
    pub fn services(&self) -> Vec<ServiceStatus> {
        let desired = self.with(|inner| inner.desired.clone());
        crate::desired::services_of(&desired)
    }

    /// The first sync is done and no later one is stuck: what /healthz tells, together with the node's own fate.
    pub fn healthy(&self) -> bool {
        self.status().synced && self.alive()
    }

    /// No sync is stuck: what /livez tells. A proxy that waits for its first lists is alive; starting it anew would not
    /// bring them any sooner.
    pub fn alive(&self) -> bool {
        self.with(|inner| inner.pending_since.is_none_or(|since| since.elapsed() < UNHEALTHY_AFTER))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.with(|inner| change(&mut inner.status));
    }

    pub(crate) fn pending(&self) {
        self.with(|inner| {
            inner.pending_since.get_or_insert_with(Instant::now);
        });
    }

    pub(crate) fn sync_done(&self, desired: &Desired, took: Duration, complete: bool) {
        self.with(|inner| {
            inner.pending_since = None;
            let status = &mut inner.status;
            status.synced = complete;
            status.last_sync_unix_s =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
            status.last_sync_us = u64::try_from(took.as_micros()).ok();
            status.services = desired.service_count();
            status.frontends = desired.frontends.len();
            status.backends = desired.backend_count();
            status.conflicts = desired.conflicts();
            inner.desired = desired.clone();
        });
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
