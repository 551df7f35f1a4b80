//! Health, readiness and metrics over HTTP, for a server that runs alone.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::{Registry, TextEncoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use crate::{DnsError, Metrics};

/// How often the server asks for its own health, and how long that may take, as CoreDNS has it.
const HEALTH_EVERY: Duration = Duration::from_secs(1);
const HEALTH_PATIENCE: Duration = Duration::from_secs(3);

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
    let (serving, asking) = (listener.local_addr().unwrap_or(address), metrics.clone());
    let mut health = JoinSet::new();
    health.spawn(async move { watch_health(serving, "/health", &asking).await });
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

/// Asks this process for its own health now and then, as CoreDNS does, until dropped: how long that takes tells how busy it
/// is. `path` is where it is told at `address`.
pub async fn watch_health(address: SocketAddr, path: &str, metrics: &Metrics) {
    let mut every = tokio::time::interval(HEALTH_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let began = Instant::now();
        let good = timeout(HEALTH_PATIENCE, health(reachable(address), path)).await;
        metrics.health_asked(matches!(good, Ok(Ok(true))), began.elapsed());
    }
}

async fn health(address: SocketAddr, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut status = Vec::new();
    stream.read_to_end(&mut status).await?;
    Ok(status.get(8..13) == Some(b" 200 "))
}

/// An address that stands for all is reached at loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
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
