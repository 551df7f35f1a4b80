//! HTTP/1.1: one request, its status and body.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;

use super::attempt::Failure;
use super::{Attempt, ErrorKind, ProbeRequest, connect};

/// The longest body that is read.
const BODY_BYTES_MAX: usize = 1 << 20;

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

impl Connection {
    async fn open(request: &ProbeRequest, uri: &Uri) -> Result<Self, Failure> {
        let host = uri.host().unwrap_or_default();
        let stream = connect::tcp(request, &format!("{host}:{}", uri.port_u16().unwrap_or(80))).await?;
        let (local, peer) = (stream.local_addr().ok(), stream.peer_addr().ok());
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| failure("connect", &error))?;
        // Ends with the sender; its error also reaches the request that is under way.
        tokio::spawn(connection);
        Ok(Self { sender, local, peer })
    }
}

pub(super) async fn attempt(
    request: &ProbeRequest,
    kept: &mut Option<Connection>,
) -> Result<Attempt, Failure> {
    let uri = url(&request.target)?;
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(request, &uri).await?,
    };
    let mut attempt = Attempt { local: connection.local, peer: connection.peer, ..Attempt::default() };
    let message = compose(request, &uri)?;
    connection.sender.ready().await.map_err(|error| failure("send", &error))?;
    let response =
        connection.sender.send_request(message).await.map_err(|error| failure("request", &error))?;
    let status = response.status();
    attempt.status = Some(status.as_u16());
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| Failure::new(ErrorKind::Closed, format!("read the body: {error}")))?;
    attempt.reply = Some(String::from_utf8_lossy(&body.to_bytes()).into_owned());
    if request.keep_alive {
        *kept = Some(connection);
    }
    if status.as_u16() >= 400 {
        let message = format!("{} answered {status}", request.target);
        return Err(Failure { kind: ErrorKind::Status, message, attempt: Some(Box::new(attempt)) });
    }
    Ok(attempt)
}

fn url(target: &str) -> Result<Uri, Failure> {
    let invalid = |why: &str| Failure::new(ErrorKind::Invalid, format!("target {target:?}: {why}"));
    let spelled = if target.contains("://") { target.to_owned() } else { format!("http://{target}") };
    let uri: Uri = spelled.parse().map_err(|error| invalid(&format!("{error}")))?;
    if uri.scheme_str() != Some("http") {
        return Err(invalid("only http:// is spoken"));
    }
    Ok(uri)
}

fn compose(request: &ProbeRequest, uri: &Uri) -> Result<Request<Full<Bytes>>, Failure> {
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut message = Request::builder()
        .method(if request.send.is_some() { Method::POST } else { Method::GET })
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, request.host.as_deref().unwrap_or(&authority));
    if !request.keep_alive {
        message = message.header(CONNECTION, "close");
    }
    message
        .body(Full::new(Bytes::from(request.send.clone().unwrap_or_default())))
        .map_err(|error| Failure::new(ErrorKind::Invalid, format!("request: {error}")))
}

fn failure(doing: &str, error: &hyper::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Failure::io(doing, error);
        }
        cause = error.source();
    }
    let kind = if error.is_parse() { ErrorKind::Mismatch } else { ErrorKind::Closed };
    Failure::new(kind, format!("{doing}: {error}"))
}
