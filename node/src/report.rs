//! What the agent tells about itself: `/status` and `/services` on its socket, and `/healthz`.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use prometheus::{Encoder, Registry, TextEncoder};
use seaway_model::Snapshot;
use seaway_proxy::dataplane::userspace::Presence;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::NodeConfig;
use crate::http::{Answer, Handler, not_found, text};
use crate::register::Readiness;
use crate::supervise::Parts;

/// Everything that can be asked about.
#[derive(Clone)]
pub(crate) struct Report {
    pub(crate) config: NodeConfig,
    pub(crate) started_at: Timestamp,
    pub(crate) parts: Parts,
    pub(crate) readiness: watch::Receiver<Readiness>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) pods: watch::Receiver<BTreeMap<String, Arc<Pod>>>,
    pub(crate) proxy: seaway_proxy::StatusHandle,
    pub(crate) proxy_metrics: Option<seaway_proxy::Metrics>,
    pub(crate) dns_metrics: Option<seaway_dns::Metrics>,
    pub(crate) registry: Registry,
}

impl Report {
    /// The handler of the local socket.
    pub(crate) fn socket(self: Arc<Self>) -> Handler {
        Arc::new(move |path| match path {
            "/status" => json_answer(&self.status()),
            "/services" => json_answer(&serde_json::to_value(self.proxy.services()).unwrap_or_default()),
            _ => not_found(),
        })
    }

    /// The handler of the health port. /healthz is what load balancers ask: it also tells that the node is about to go
    /// (KEP-3836). /livez only tells whether the proxy itself is stuck. /health and /ready tell of DNS, as CoreDNS does.
    pub(crate) fn health(self: Arc<Self>) -> Handler {
        Arc::new(move |path| match path {
            "/healthz" | "/readyz" => {
                let eligible = self.node_is_eligible();
                let (status, times) =
                    self.health_of(eligible && (!self.config.proxy || self.proxy.healthy()));
                if let Some(metrics) = &self.proxy_metrics {
                    metrics.healthz_answered(status.as_u16());
                }
                (status, "application/json", format!("{{{times}, \"nodeEligible\": {eligible}}}"))
            }
            "/livez" => {
                let (status, times) = self.health_of(!self.config.proxy || self.proxy.alive());
                if let Some(metrics) = &self.proxy_metrics {
                    metrics.livez_answered(status.as_u16());
                }
                (status, "application/json", format!("{{{times}}}"))
            }
            "/health" if self.dns_metrics.is_some() => dns_answer(self.parts.running("dns")),
            "/ready" => self.dns_metrics.as_ref().map_or_else(not_found, |dns| dns_answer(dns.ready())),
            _ => not_found(),
        })
    }

    /// The status, and the two times of the body as kube-proxy writes them: one that is well is always up to date.
    fn health_of(&self, healthy: bool) -> (StatusCode, String) {
        let now = Timestamp::now();
        let synced = self.proxy.status().last_sync_unix_s.and_then(|s| i64::try_from(s).ok());
        let synced = synced.and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
        let (status, updated) =
            if healthy { (StatusCode::OK, now) } else { (StatusCode::SERVICE_UNAVAILABLE, synced) };
        (status, format!("\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\""))
    }

    /// The node is not about to be deleted, as far as is known.
    fn node_is_eligible(&self) -> bool {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        snapshot.nodes.get(self.config.name.as_str()).is_none_or(|node| !node.draining)
    }

    /// The handler of the metrics port.
    pub(crate) fn metrics(self: Arc<Self>) -> Handler {
        Arc::new(move |path| match path {
            "/metrics" => {
                let mut page = Vec::new();
                match TextEncoder::new().encode(&self.registry.gather(), &mut page) {
                    Ok(()) => (
                        StatusCode::OK,
                        "text/plain; version=0.0.4; charset=utf-8",
                        String::from_utf8_lossy(&page).into_owned(),
                    ),
                    Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                }
            }
            _ => not_found(),
        })
    }

    /// The processes that serve in user space, former ones with connections left included.
    fn workers(&self) -> Vec<Value> {
        let found = seaway_proxy::dataplane::userspace::workers(&self.config.workers_dir());
        let found = found.unwrap_or_else(|error| {
            tracing::debug!(%error, "the userspace workers cannot be listed");
            Vec::new()
        });
        let line = |worker: &Presence| {
            json!({
                "pid": worker.pid,
                "version": worker.version,
                "serving": worker.serving,
                "connections": worker.busy,
            })
        };
        found.iter().map(line).collect()
    }

    fn status(&self) -> Value {
        let readiness = self.readiness.borrow().clone();
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let pods: Vec<Value> = self.pods.borrow().values().map(|pod| pod_line(pod)).collect();
        json!({
            "node": self.config.name,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "startedAt": self.started_at.to_string(),
            "memoryBytes": resident_bytes(),
            "ready": readiness.missing.is_empty(),
            "missing": readiness.missing,
            "parts": self.parts.all(),
            "snapshot": {
                "version": snapshot.version,
                "synced": snapshot.synced,
                "services": snapshot.services.len(),
                "nodes": snapshot.nodes.len(),
            },
            "proxy": serde_json::to_value(self.proxy.status()).unwrap_or_default(),
            "workers": self.workers(),
            "pods": pods,
        })
    }
}

/// As CoreDNS says it.
fn dns_answer(good: bool) -> Answer {
    if good { text(StatusCode::OK, "OK") } else { text(StatusCode::SERVICE_UNAVAILABLE, "kubernetes") }
}

fn json_answer(value: &Value) -> Answer {
    (StatusCode::OK, "application/json", value.to_string())
}

fn pod_line(pod: &Pod) -> Value {
    let status = pod.status.as_ref();
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let ips: Vec<&str> =
        status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str()).collect();
    json!({
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "phase": status.and_then(|s| s.phase.as_deref()),
        "ready": ready,
        "ips": ips,
    })
}

/// The resident memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0);
    kib * 1024
}
