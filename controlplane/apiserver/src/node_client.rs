//! HTTPS from the server to node agents, with the client certificate that they demand.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("dial tcp {address}: {source}")]
    Connect { address: std::net::SocketAddr, source: std::io::Error },
    #[error("dial tcp {address}: no answer within {CONNECT_TIMEOUT:?}")]
    Timeout { address: std::net::SocketAddr },
    #[error("request to {address} failed: {source}")]
    Http { address: std::net::SocketAddr, source: hyper::Error },
}

/// Opens one connection per request: logs are few and long.
pub(crate) struct NodeClient {
    tls: TlsConnector,
}

impl NodeClient {
    pub(crate) fn new(config: Arc<rustls::ClientConfig>) -> Self {
        Self { tls: TlsConnector::from(config) }
    }

    /// GET of `path_and_query` from the agent at this address.
    pub(crate) async fn get(
        &self,
        ip: IpAddr,
        port: u16,
        path_and_query: &str,
    ) -> Result<Response<Incoming>, NodeError> {
        let address = std::net::SocketAddr::new(ip, port);
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            self.tls.connect(ServerName::from(ip), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| NodeError::Timeout { address })?
            .map_err(|source| NodeError::Connect { address, source })?;
        let failed = |source| NodeError::Http { address, source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with the response's body.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "connection to a node agent ended");
            }
        });
        let request = Request::get(path_and_query)
            .header(http::header::HOST, address.to_string())
            .body(Empty::<Bytes>::new());
        let request = request.unwrap_or_default();
        sender.send_request(request).await.map_err(failed)
    }
}
