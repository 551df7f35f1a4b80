//! The endpoint that the API server asks for logs: HTTPS, and only clients with a certificate of the cluster's CA for
//! the API server's own user are let in.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::Pod;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use logs::{LogQuery, RunLog};

mod logs;

/// The only client.
const CLIENT: &str = "kube-apiserver-kubelet-client";
/// Pieces of a log that wait for a slow reader.
const LOG_QUEUE: usize = 64;
/// Who does not finish the TLS handshake in this time is no client.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// Why the endpoint does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletError {
    /// A certificate or key.
    #[error("cannot use {path}: {message}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// TLS does not like them together.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What the endpoint needs.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    /// Pods' directories, by uid.
    pub(crate) pods_dir: PathBuf,
    /// The pods of this node, by uid.
    pub(crate) pods: watch::Receiver<BTreeMap<String, Arc<Pod>>>,
}

type Body = BoxBody<Bytes, Infallible>;

/// Serves until dropped.
pub(crate) async fn run(kubelet: Kubelet) -> Result<(), KubeletError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&kubelet)?));
    let kubelet = Arc::new(kubelet);
    let mut listeners = JoinSet::new();
    for ip in &kubelet.addresses {
        let address = SocketAddr::new(*ip, kubelet.port);
        let listener =
            TcpListener::bind(address).await.map_err(|source| KubeletError::Listen { address, source })?;
        listeners.spawn(accept(listener, acceptor.clone(), Arc::clone(&kubelet)));
    }
    while listeners.join_next().await.is_some() {}
    Ok(())
}

fn tls(kubelet: &Kubelet) -> Result<rustls::ServerConfig, KubeletError> {
    let bad = |path: &Path, message: String| KubeletError::Pem { path: path.to_owned(), message };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, KubeletError> {
        let read = CertificateDer::pem_file_iter(path).map_err(|e| bad(path, e.to_string()))?;
        read.collect::<Result<_, _>>().map_err(|e| bad(path, e.to_string()))
    };
    let chain = certificates(&kubelet.cert)?;
    let key = PrivateKeyDer::from_pem_file(&kubelet.key).map_err(|e| bad(&kubelet.key, e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&kubelet.ca)? {
        roots.add(certificate).map_err(|e| bad(&kubelet.ca, e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| KubeletError::Tls(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| KubeletError::Tls(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| KubeletError::Tls(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, kubelet: Arc<Kubelet>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, acceptor.clone(), Arc::clone(&kubelet)));
            }
            // Out of file descriptors, most likely: it passes.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, kubelet: Arc<Kubelet>) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let peer =
        stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|cert| common_name(cert));
    let allowed = peer.as_deref() == Some(CLIENT);
    let service = service_fn(move |request| {
        let kubelet = Arc::clone(&kubelet);
        async move { Ok::<_, Infallible>(answer(&kubelet, allowed, &request)) }
    });
    // A connection that breaks is the client's affair.
    let _broken =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

fn answer(kubelet: &Kubelet, allowed: bool, request: &Request<Incoming>) -> Response<Body> {
    if !allowed {
        return text(StatusCode::FORBIDDEN, format!("only {CLIENT} may ask here\n"));
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    let parts: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    match parts.as_slice() {
        ["healthz"] => text(StatusCode::OK, "ok".to_owned()),
        ["pods"] => {
            let pods: Vec<Arc<Pod>> = kubelet.pods.borrow().values().cloned().collect();
            let items: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
            text(
                StatusCode::OK,
                json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).to_string(),
            )
        }
        ["containerLogs", namespace, pod, container] => {
            logs(kubelet, namespace, pod, container, request.uri().query().unwrap_or_default())
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
    }
}

fn logs(kubelet: &Kubelet, namespace: &str, pod: &str, container: &str, query: &str) -> Response<Body> {
    let query = match LogQuery::parse(query, jiff::Timestamp::now()) {
        Ok(query) => query,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let is_it = |p: &&Arc<Pod>| {
        p.metadata.name.as_deref() == Some(pod) && p.metadata.namespace.as_deref() == Some(namespace)
    };
    let found = kubelet.pods.borrow().values().find(is_it).cloned();
    let Some(found) = found else {
        return text(StatusCode::NOT_FOUND, format!("pod {namespace}/{pod} is not on this node"));
    };
    let spec = found.spec.as_ref();
    let known = spec.is_some_and(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| c.name == container)
    });
    if !known {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}"));
    }
    let uid = found.metadata.uid.as_deref().unwrap_or_default();
    let Some(run) = RunLog::find(&kubelet.pods_dir.join(uid), container, query.previous) else {
        let message = if query.previous {
            format!("previous terminated container {container:?} in pod {pod:?} not found")
        } else {
            let why = waits_for(&found, container).map(|why| format!(": {why}")).unwrap_or_default();
            format!("container {container:?} in pod {pod:?} is waiting to start{why}")
        };
        return text(StatusCode::BAD_REQUEST, message);
    };
    let (sender, receiver) = mpsc::channel::<Vec<u8>>(LOG_QUEUE);
    tokio::task::spawn_blocking(move || {
        let send = |bytes: Vec<u8>| {
            if bytes.is_empty() { !sender.is_closed() } else { sender.blocking_send(bytes).is_ok() }
        };
        if let Err(error) = run.read(&query, send) {
            tracing::warn!(%error, "cannot read a container's log");
        }
    });
    let frames = stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(bytes))), receiver))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let plain = hyper::header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, plain);
    response
}

/// What a container that has not run yet waits for, in the kubelet's words.
fn waits_for(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut all =
        [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten();
    let reason = all.find(|one| one.name == container)?.state.as_ref()?.waiting.as_ref()?.reason.clone()?;
    Some(match reason.as_str() {
        "ErrImagePull" => "image can't be pulled".to_owned(),
        "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
        _ => reason,
    })
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_waits_says_for_what() {
        let pod = |waiting: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": waiting}]}}),
            )
            .unwrap()
        };
        let waiting = |reason: &str| waits_for(&pod(json!({"waiting": {"reason": reason}})), "a");
        assert_eq!(waiting("ErrImagePull").as_deref(), Some("image can't be pulled"));
        assert_eq!(waiting("ContainerCreating").as_deref(), Some("ContainerCreating"));
        assert_eq!(waits_for(&pod(json!({"running": {}})), "a"), None);
        assert_eq!(waits_for(&pod(json!({})), "b"), None);
    }
}
