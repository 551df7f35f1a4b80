//! The HTTP server side of the images: a listener, connections that finish what they have begun when told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Who asks, and at which of our addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// Something that answers requests.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn answer(
        &self,
        peer: Peer,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Serves until `stop`, then lets the requests that are under way finish. Connections run on `tasks`.
pub(crate) async fn serve<S: Service>(
    listener: TcpListener,
    service: Arc<S>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(connection(stream, Arc::clone(&service), stop.clone()));
            }
            // Out of file descriptors, most likely: give connections time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection<S: Service>(stream: TcpStream, service: Arc<S>, stop: CancellationToken) {
    let (Ok(client), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    // A small answer must not wait for the acknowledgement of the one before; without the option it only comes later.
    stream.set_nodelay(true).ok();
    let peer = Peer { client: crate::identity::canonical(client), local: crate::identity::canonical(local) };
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(peer, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    // A client that breaks off in the middle is the client's affair.
    tokio::select! {
        ended = connection.as_mut() => drop(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

/// An answer in plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body.into())
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, "application/json", body.into())
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// The query parameters, percent-decoded, in order.
pub(crate) fn query(request: &Request<Incoming>) -> Vec<(String, String)> {
    parse_query(request.uri().query().unwrap_or_default())
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// Percent-decoding; what is not well-formed stays as it is.
fn decode(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        let escaped = match (byte, hex(bytes.get(at)), hex(bytes.get(at + 1))) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        match (byte, escaped) {
            (_, Some(value)) => {
                decoded.push(value);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters() {
        let pairs = |query| {
            parse_query(query).into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            pairs("kind=tcp&target=%5Bfd00%3A%3A1%5D:80&send=a+b%&x"),
            "kind=tcp|target=[fd00::1]:80|send=a b%|x="
        );
        assert_eq!(pairs(""), "");
    }

    proptest::proptest! {
        #[test]
        fn decoding_takes_anything(text in ".*") {
            decode(&text);
        }
    }
}
