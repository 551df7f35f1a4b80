//! The small plain HTTP servers: health, metrics, and the local socket that `seaway status` asks.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// Whoever says nothing for this long is sent away.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer: status, content type, body.
pub(crate) type Answer = (StatusCode, &'static str, String);

/// From path to answer.
pub(crate) type Handler = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// Plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    (status, "text/plain; charset=utf-8", text.into())
}

/// What is not there.
pub(crate) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "not found\n")
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place}: {source}")]
pub(crate) struct HttpError {
    place: String,
    #[source]
    source: io::Error,
}

/// Serves on a port, until dropped.
pub(crate) async fn serve_port(ip: IpAddr, port: u16, handler: Handler) -> Result<(), HttpError> {
    let listener =
        bind(ip, port).await.map_err(|source| HttpError { place: format!("{ip} port {port}"), source })?;
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&handler)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// An unspecified address means both families, where the kernel has both.
async fn bind(ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    if ip.is_unspecified()
        && let Ok(listener) = TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).await
    {
        return Ok(listener);
    }
    TcpListener::bind(SocketAddr::new(ip, port)).await
}

/// Serves on a unix socket that only the owner may use, until dropped.
pub(crate) async fn serve_socket(path: &Path, handler: Handler) -> Result<(), HttpError> {
    let listener =
        bind_socket(path).map_err(|source| HttpError { place: path.display().to_string(), source })?;
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&handler)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    let draft = path.with_extension("new");
    for old in [path, &draft] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&draft)?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&draft, path)?;
    Ok(listener)
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (status, kind, body) = handler(request.uri().path());
        async move {
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status;
            response
                .headers_mut()
                .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    // A connection that breaks is the client's affair.
    let _broken = builder.serve_connection(TokioIo::new(stream), service).await;
}
