//! HTTP: who answers, as text and as JSON, and a readiness that can be switched.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::Shared;
use crate::http::{Peer, Service, json as json_answer, query, text};
use crate::identity::Answer;

/// The longest body that `/echo` takes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The longest that `/delay` waits.
const DELAY_MS_MAX: u64 = 600_000;

pub(super) struct Web {
    shared: Arc<Shared>,
    requests: AtomicU64,
}

impl Web {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, requests: AtomicU64::new(0) }
    }

    fn who(&self, peer: Peer) -> Answer<'_> {
        Answer {
            identity: &self.shared.identity,
            protocol: "http",
            client: peer.client,
            local: peer.local,
            requests: self.requests.load(Ordering::Relaxed),
        }
    }

    fn as_text(&self, peer: Peer, request: &Request<Incoming>) -> String {
        let answer = self.who(peer);
        let identity = answer.identity;
        let mut lines = vec![format!("pod: {}", identity.pod)];
        lines.extend(identity.namespace.iter().map(|namespace| format!("namespace: {namespace}")));
        lines.extend(identity.node.iter().map(|node| format!("node: {node}")));
        lines.push(format!("hostname: {}", identity.hostname));
        lines.push(format!("client: {}", answer.client));
        lines.push(format!("local: {}", answer.local));
        lines.push(format!("request: {} {}\n", request.method(), request.uri()));
        lines.join("\n")
    }

    fn as_json(&self, peer: Peer, request: &Request<Incoming>) -> String {
        let mut value = serde_json::to_value(self.who(peer)).unwrap_or_default();
        value["method"] = json!(request.method().as_str());
        value["path"] = json!(request.uri().path());
        let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
        value["host"] = json!(host);
        format!("{value}\n")
    }

    fn readiness(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() == Method::POST {
            let wanted = query(request).into_iter().find(|(name, _)| name == "ready");
            match wanted.map(|(_, value)| value.parse::<bool>()) {
                Some(Ok(ready)) => self.shared.ready.store(ready, Ordering::Relaxed),
                _ => return text(StatusCode::BAD_REQUEST, "want ?ready=true or ?ready=false\n"),
            }
            return text(StatusCode::OK, "done\n");
        }
        if self.shared.ready.load(Ordering::Relaxed) {
            text(StatusCode::OK, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}

impl Service for Web {
    async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match request.uri().path() {
            "/" => text(StatusCode::OK, self.as_text(peer, &request)),
            "/json" => json_answer(StatusCode::OK, self.as_json(peer, &request)),
            "/healthz" | "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.readiness(&request),
            "/hostname" => text(StatusCode::OK, format!("{}\n", self.shared.identity.pod)),
            "/clientip" => text(StatusCode::OK, format!("{}\n", peer.client)),
            "/delay" => {
                let wanted = query(&request).into_iter().find(|(name, _)| name == "ms");
                let Some(Ok(delay_ms)) = wanted.map(|(_, value)| value.parse::<u64>()) else {
                    return text(StatusCode::BAD_REQUEST, "want ?ms=NUMBER\n");
                };
                tokio::time::sleep(Duration::from_millis(delay_ms.min(DELAY_MS_MAX))).await;
                json_answer(StatusCode::OK, self.as_json(peer, &request))
            }
            "/echo" => match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
                Ok(body) => text(StatusCode::OK, body.to_bytes()),
                Err(error) => text(StatusCode::BAD_REQUEST, format!("body: {error}\n")),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "want /, /json, /hostname, /clientip, /healthz, /readyz, /delay?ms=N or /echo\n",
            ),
        }
    }
}
