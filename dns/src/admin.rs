//! Health, readiness and metrics over HTTP, for a server that runs alone.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{DnsError, Metrics};

/// Serves `/health` (it runs), `/ready` (it listens, its zone is complete and it is not told to stop) and `/metrics` at
/// `address` until `shutdown`.
///
/// # Errors
/// When the address cannot be listened at.
pub async fn serve_admin(
    address: SocketAddr,
    metrics: Metrics,
    registry: Registry,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let listener = TcpListener::bind(address).await.map_err(|source| DnsError::Listen {
        protocol: "TCP",
        address,
        source,
    })?;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: give connections time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (metrics, registry, end) = (metrics.clone(), registry.clone(), shutdown.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &metrics, &registry);
                async { Ok::<_, Infallible>(response) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Whoever asks may break off.
            tokio::select! {
                () = end.cancelled() => {}
                ended = connection => drop(ended),
            }
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, registry: &Registry) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/health" => (StatusCode::OK, "OK".to_owned()),
        "/ready" if metrics.ready() => (StatusCode::OK, "OK".to_owned()),
        "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "the zone is not complete yet".to_owned()),
        "/metrics" => match TextEncoder::new().encode_to_string(&registry.gather()) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => (StatusCode::NOT_FOUND, "want /health, /ready or /metrics".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
