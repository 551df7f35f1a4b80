//! Starts and stops the server: certificates, store, what must be there, then connections until told to stop.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use seaway_kinds::{ApiError, Registry};
use seaway_store::{Engine, EngineConfig, StoreError};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Pki, PkiError, ServerConfig,
    allocate::Allocations,
    api::{self, Api},
    auth::Identity,
    body::Body,
    bootstrap,
    documents::Documents,
    events,
    metrics::Metrics,
    node_client::NodeClient,
    pending,
    pki::{self, KeyedCertificate, MASTERS},
    response,
    services::Services,
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests and watches on one HTTP/2 connection: a controller manager holds dozens of watches on one.
const STREAMS: u32 = 2000;

/// Why a server cannot start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Keys or certificates.
    #[error("cannot prepare the certificates")]
    Pki(#[from] PkiError),
    /// The TLS library refuses the certificates.
    #[error("cannot use the certificates")]
    Tls(#[from] rustls::Error),
    /// The verifier of client certificates cannot be made.
    #[error("cannot verify client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// What must be there at the start cannot be made.
    #[error("cannot prepare the cluster")]
    Bootstrap(#[source] ApiError),
    /// A listener cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The listener's address.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The metrics cannot be registered.
    #[error("cannot register the metrics")]
    Metrics(#[from] prometheus::Error),
    /// No listener was given.
    #[error("the server needs at least one listener")]
    NoListener,
}

/// Serves until `shutdown`. Returns when every request is finished (or `drain_timeout` has passed) and the store is closed.
pub async fn run(config: ServerConfig, shutdown: CancellationToken) -> Result<(), ServerError> {
    if config.listeners.is_empty() {
        return Err(ServerError::NoListener);
    }
    let data_dir = config.data_dir.clone();
    let engine = Arc::new(open_store(data_dir.join("store"), config.history_events).await?);
    let pki = Pki::open_or_create(data_dir.join("pki"))?;
    let services =
        Allocations::new(&config.service_cidrs, &config.load_balancer_pools, config.node_port_range.clone());
    let services = Services::new(services);
    let sans = sans(&config, &services.first_addresses().await);
    let acceptor = TlsAcceptor::from(Arc::new(server_tls(&pki, &pki.serving(sans)?)?));
    let server_url = config.server_url();
    let api = Arc::new(Api {
        store: Arc::clone(&engine) as _,
        registry: Registry::builtin(),
        services,
        documents: Documents::new(Arc::clone(&engine), server_url.trim_start_matches("https://").to_owned()),
        metrics: Metrics::new()?,
        nodes: NodeClient::new(Arc::new(client_tls(&pki, &pki.kubelet_client()?)?)),
        bookmark_interval: config.bookmark_interval,
        closing: shutdown.clone(),
    });
    drop(engine);
    prepare(&api, &config).await.map_err(ServerError::Bootstrap)?;
    let admin = pki.kubeconfig(&server_url, "kubernetes-admin", &[MASTERS])?;
    keep_admin(&data_dir.join("admin.kubeconfig"), &admin)?;

    let tasks = TaskTracker::new();
    for listener in config.listeners {
        let listener = listen(listener)?;
        let server = Acceptor { tls: acceptor.clone(), api: Arc::clone(&api), tasks: tasks.clone() };
        tasks.spawn(server.accept(listener, shutdown.clone()));
    }
    tasks.spawn(events::expire(Arc::clone(&api), shutdown.clone()));
    tasks.spawn(pending::serve(Arc::clone(&api), shutdown.clone()));
    tracing::info!(url = server_url, "serving the Kubernetes API");
    shutdown.cancelled().await;
    tasks.close();
    if tokio::time::timeout(config.drain_timeout, tasks.wait()).await.is_err() {
        tracing::warn!(timeout = ?config.drain_timeout, "some requests did not finish in time");
    }
    Ok(())
}

/// Writes the administrator's kubeconfig. On a full disk the one of an earlier run does as well: the server must start, or
/// nobody can make room through it.
fn keep_admin(path: &Path, kubeconfig: &str) -> Result<(), PkiError> {
    match pki::write_secret(path, kubeconfig) {
        Err(error) if path.exists() => {
            let path = path.display();
            tracing::warn!(error = &error as &dyn std::error::Error, %path, "the file of an earlier run stays");
            Ok(())
        }
        other => other,
    }
}

async fn open_store(dir: PathBuf, history_events: usize) -> Result<Engine, StoreError> {
    let config = EngineConfig { history_events, ..EngineConfig::new(dir) };
    let opened = tokio::task::spawn_blocking(move || Engine::open(config)).await;
    opened.unwrap_or(Err(StoreError::Closed))
}

async fn prepare(api: &Api, config: &ServerConfig) -> Result<(), ApiError> {
    let services = api.registry.resource("", "v1", "services");
    let services = services.ok_or_else(|| ApiError::internal("services are not served"))?;
    api.services.restore(&*api.store, services).await?;
    bootstrap::run(api, &config.advertise_addresses, config.advertise_port).await
}

/// All names and addresses under which clients reach the server.
fn sans(config: &ServerConfig, service_addresses: &[IpAddr]) -> Vec<String> {
    let domain = &config.cluster_domain;
    let mut sans: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "::1"]
            .map(str::to_owned)
            .to_vec();
    sans.push(format!("kubernetes.default.svc.{domain}"));
    sans.extend(service_addresses.iter().chain(&config.advertise_addresses).map(ToString::to_string));
    let bound = config.listeners.iter().filter_map(|listener| listener.local_addr().ok());
    sans.extend(bound.map(|address| address.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
    sans.extend(config.sans.iter().cloned());
    sans.sort();
    sans.dedup();
    sans
}

fn listen(listener: std::net::TcpListener) -> Result<TcpListener, ServerError> {
    let address = listener.local_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    listener.map_err(|source| ServerError::Listen { address, source })
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    pki::der(pem).map(CertificateDer::from).into_iter().collect()
}

fn key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pki::der(pem).unwrap_or_default()))
}

fn roots(pki: &Pki) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for cert in chain(pki.ca_pem()) {
        roots.add(cert)?;
    }
    Ok(Arc::new(roots))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server_tls(pki: &Pki, serving: &KeyedCertificate) -> Result<rustls::ServerConfig, ServerError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(pki)?, provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(&serving.cert_pem), key(&serving.key_pem))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client_tls(pki: &Pki, client: &KeyedCertificate) -> Result<rustls::ClientConfig, ServerError> {
    Ok(rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(chain(&client.cert_pem), key(&client.key_pem))?)
}

/// Turns sockets into served connections.
struct Acceptor {
    tls: TlsAcceptor,
    api: Arc<Api>,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn accept(self, listener: TcpListener, shutdown: CancellationToken) {
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    let served =
                        connection(stream, self.tls.clone(), Arc::clone(&self.api), shutdown.clone());
                    self.tasks.spawn(served);
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must close first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Serves one connection until its client closes it, or until its requests are finished after `shutdown`.
async fn connection(stream: TcpStream, tls: TlsAcceptor, api: Arc<Api>, shutdown: CancellationToken) {
    // Small frames are what watches are made of.
    stream.set_nodelay(true).unwrap_or_default();
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = certificate.and_then(|certificate| Identity::from_certificate(certificate));
    let identity = Arc::new(identity.unwrap_or_else(Identity::anonymous));
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let (api, identity) = (Arc::clone(&api), Arc::clone(&identity));
        async move { Ok::<Response<Body>, std::convert::Infallible>(answer(api, identity, request).await) }
    });
    let builder = http_builder();
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let served = if let Some(served) = shutdown.run_until_cancelled(connection.as_mut()).await {
        served
    } else {
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

/// A read ends with its client. A write that has begun is brought to its end: otherwise one that is stored while its
/// client goes away would leave its addresses unrecorded.
async fn answer(api: Arc<Api>, identity: Arc<Identity>, request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return api::handle(api, identity, request).await;
    }
    tokio::spawn(api::handle(api, identity, request)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request ended abnormally");
        response::error(&ApiError::internal("the request ended abnormally"))
    })
}

fn http_builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_room_for_a_new_kubeconfig_the_old_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.kubeconfig");
        keep_admin(&path, "first").unwrap();
        // A directory is in the way of the new file.
        std::fs::create_dir(dir.path().join("admin.kubeconfig.tmp")).unwrap();
        keep_admin(&path, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        std::fs::remove_file(&path).unwrap();
        assert!(keep_admin(&path, "third").is_err());
    }
}
