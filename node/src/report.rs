//! What the agent tells about itself: `/status` and `/services` on its socket, and `/healthz`.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use prometheus::{Encoder, Registry, TextEncoder};
use seaway_model::Snapshot;
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

    /// The handler of the health port.
    pub(crate) fn health(self: Arc<Self>) -> Handler {
        Arc::new(move |path| match path {
            "/healthz" | "/livez" | "/readyz" => {
                let healthy = !self.config.proxy || self.proxy.healthy();
                let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let last = self.proxy.status().last_sync_unix_s.and_then(|s| i64::try_from(s).ok());
                let last = last.and_then(|s| Timestamp::from_second(s).ok()).map(|t| t.to_string());
                let body = json!({"lastUpdated": last, "currentTime": Timestamp::now().to_string()});
                (status, "application/json", body.to_string())
            }
            _ => not_found(),
        })
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
            "pods": pods,
        })
    }
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
