//! Connections to an upstream, TCP or TLS: kept for the next question for a while, one question at a time on each.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::DnsError;
use crate::settings::{ForwardSettings, UpstreamSettings};

/// Idle connections that are kept.
const IDLE_MAX: usize = 16;

/// Whom to trust.
pub(super) type TlsConfig = Arc<ClientConfig>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connections to one upstream.
pub(super) struct Connections {
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    expire: Duration,
    idle: Mutex<Vec<(Box<dyn Stream>, Instant)>>,
    reused: AtomicU64,
    opened: AtomicU64,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connections {
    pub(super) fn new(
        upstream: &UpstreamSettings,
        tls: Option<TlsConfig>,
        settings: &ForwardSettings,
    ) -> Self {
        let address = upstream.address;
        // A name has been found good when it was read.
        let name = upstream.tls_name.as_ref().or(settings.tls_server_name.as_ref());
        let name = name.and_then(|name| ServerName::try_from(name.clone()).ok());
        let name = name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
        Self {
            address,
            tls: tls.map(|config| (TlsConnector::from(config), name)),
            expire: settings.expire,
            idle: Mutex::default(),
            reused: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }

    /// How often a connection was used again, and opened, since the last time this was asked.
    pub(super) fn take_counts(&self) -> (u64, u64) {
        (self.reused.swap(0, Ordering::Relaxed), self.opened.swap(0, Ordering::Relaxed))
    }

    /// Sends a question and receives its answer.
    pub(super) async fn exchange(&self, wire: &[u8]) -> io::Result<Vec<u8>> {
        while let Some(mut stream) = self.take_idle() {
            // The other side may have closed it meanwhile: then another one will do.
            if let Ok(reply) = exchange_on(&mut stream, wire).await {
                self.reused.fetch_add(1, Ordering::Relaxed);
                self.keep(stream);
                return Ok(reply);
            }
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut stream = self.open().await?;
        let reply = exchange_on(&mut stream, wire).await?;
        self.keep(stream);
        Ok(reply)
    }

    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
            None => Ok(Box::new(stream)),
        }
    }

    fn take_idle(&self) -> Option<Box<dyn Stream>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < self.expire);
        idle.pop().map(|(stream, _)| stream)
    }

    fn keep(&self, stream: Box<dyn Stream>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push((stream, Instant::now()));
        }
    }
}

async fn exchange_on(stream: &mut Box<dyn Stream>, wire: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), wire].concat()).await?;
    stream.flush().await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; length.into()];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// A TLS configuration that trusts the certificates of `ca`, or the system's.
pub(super) fn tls_config(ca: Option<&Path>) -> Result<TlsConfig, DnsError> {
    let mut roots = RootCertStore::empty();
    let wrong = |why: String| DnsError::Certificates {
        path: ca.map_or_else(|| "the system's store".to_owned(), |path| path.display().to_string()),
        why,
    };
    if let Some(path) = ca {
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    } else {
        // Single ones that make no sense are passed over; none at all is a mistake.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
