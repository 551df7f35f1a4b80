//! Carries probes out: one task per probe of a running container. HTTP and TCP from the node, exec inside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::probe::{Machine, ProbeKind};
use crate::runtime::Sandbox;

/// What a probe found out.
#[derive(Debug)]
pub(crate) struct News {
    /// The container.
    pub(crate) container: String,
    /// The run of it.
    pub(crate) id: String,
    /// The probe.
    pub(crate) kind: ProbeKind,
    /// The health changed to this.
    pub(crate) changed: Option<bool>,
    /// A failure that counts.
    pub(crate) failure: Option<String>,
}

/// What one probe does.
#[derive(Debug, Clone)]
enum Check {
    Http { url: HttpTarget },
    Tcp { host: String, port: u16 },
    Exec { args: Vec<String> },
    Impossible(String),
}

#[derive(Debug, Clone)]
struct HttpTarget {
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

/// Where and for whom a probe runs.
pub(crate) struct Target {
    /// The container.
    pub(crate) container: Container,
    /// The run of it.
    pub(crate) id: String,
    /// The pod's first address.
    pub(crate) ip: Option<IpAddr>,
    /// For exec.
    pub(crate) sandbox: Arc<Sandbox>,
    /// The arguments of an exec probe, as the runtime accepts them.
    pub(crate) exec: Option<Result<Vec<String>, String>>,
}

/// Probes until the handle is dropped.
pub(crate) fn spawn(
    target: Target,
    kind: ProbeKind,
    probe: Probe,
    news: mpsc::UnboundedSender<News>,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let check = check(&target, &probe);
        let limit = Duration::from_secs(u64::from(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs()));
        sleep(Duration::from_secs(u64::from(probe.initial_delay_seconds.unwrap_or(0).max(0).unsigned_abs())))
            .await;
        let mut machine = Machine::new(kind, &probe);
        let since = Instant::now();
        while !machine.is_done() {
            let result = run(&check, &target, limit).await;
            let verdict = machine.result(result.is_ok(), since.elapsed());
            let failure = result.err().filter(|_| verdict.failed);
            if verdict.changed.is_some() || failure.is_some() {
                let (container, id) = (target.container.name.clone(), target.id.clone());
                let sent = news.send(News { container, id, kind, changed: verdict.changed, failure });
                if sent.is_err() {
                    return;
                }
            }
            sleep(verdict.again_after).await;
        }
    }))
}

/// What `probe` says, carried out a single time.
pub(crate) async fn once(target: &Target, probe: &Probe, limit: Duration) -> Result<(), String> {
    run(&check(target, probe), target, limit).await
}

fn check(target: &Target, probe: &Probe) -> Check {
    let pod = target.ip.map(|ip| ip.to_string()).unwrap_or_default();
    let host_or_pod = |host: Option<&String>| host.filter(|h| !h.is_empty()).cloned().unwrap_or(pod);
    if let Some(get) = &probe.http_get {
        return http_check(target, get, host_or_pod(get.host.as_ref()));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return match port(&target.container, &tcp.port) {
            Ok(port) => Check::Tcp { host: host_or_pod(tcp.host.as_ref()), port },
            Err(message) => Check::Impossible(message),
        };
    }
    match &target.exec {
        Some(Ok(args)) => Check::Exec { args: args.clone() },
        Some(Err(message)) => Check::Impossible(message.clone()),
        None => Check::Impossible(
            "this kind of probe is not supported: use httpGet, tcpSocket or exec".to_owned(),
        ),
    }
}

fn http_check(target: &Target, get: &HTTPGetAction, host: String) -> Check {
    if get.scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
        return Check::Impossible("httpGet probes speak HTTP only, not HTTPS".to_owned());
    }
    let port = match port(&target.container, &get.port) {
        Ok(port) => port,
        Err(message) => return Check::Impossible(message),
    };
    let path = get.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let headers = get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    Check::Http { url: HttpTarget { host, port, path, headers } }
}

/// A number, or the name of one of the container's ports.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.into_iter().find(|p| p.name.as_ref() == Some(name)).map(|p| p.container_port);
            named.or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    number.ok_or_else(|| format!("container {} has no port {port:?}", container.name))
}

async fn run(check: &Check, target: &Target, limit: Duration) -> Result<(), String> {
    let late = |_| format!("no answer within {} s", limit.as_secs());
    match check {
        Check::Http { url } => timeout(limit, http_get(url)).await.map_err(late)?,
        Check::Tcp { host, port } => timeout(limit, connect(host, *port)).await.map_err(late)?.map(drop),
        Check::Exec { args } => {
            let result = target.sandbox.exec(&target.container.name, args.clone(), limit).await;
            match result.code {
                Some(0) => Ok(()),
                Some(code) => Err(format!("exit code {code}: {}", result.output.trim())),
                None => Err(format!("it was ended: {}", result.output.trim())),
            }
        }
        Check::Impossible(message) => Err(message.clone()),
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let failed = |error: std::io::Error| format!("connect to {host} port {port}: {error}");
    match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await.map_err(failed),
        Err(_) => TcpStream::connect((host, port)).await.map_err(failed),
    }
}

async fn http_get(url: &HttpTarget) -> Result<(), String> {
    let stream = connect(&url.host, url.port).await?;
    let failed = |error: &dyn std::error::Error| format!("GET {}: {error}", url.path);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| failed(&e))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let mut request = hyper::Request::get(&url.path)
        .header("user-agent", "kube-probe/seaway")
        .header("accept", "*/*")
        .header("connection", "close");
    if !url.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", format!("{host}:{}", url.port));
    }
    for (name, value) in &url.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<hyper::body::Bytes>::new()).map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = response.status();
    if (200..400).contains(&status.as_u16()) {
        return Ok(());
    }
    let body =
        response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    Err(format!("GET {}: HTTP {status}: {}", url.path, text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn ports_by_number_and_by_name() {
        let container: Container =
            serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}))
                .unwrap();
        assert_eq!(port(&container, &IntOrString::Int(80)), Ok(80));
        assert_eq!(port(&container, &IntOrString::String("web".into())), Ok(8080));
        assert_eq!(port(&container, &IntOrString::String("81".into())), Ok(81));
        assert!(port(&container, &IntOrString::String("nope".into())).is_err());
        assert!(port(&container, &IntOrString::Int(70_000)).is_err());
    }

    #[tokio::test]
    async fn http_status_decides() {
        for (status, ok) in
            [("200 OK", true), ("302 Found", true), ("404 Not Found", false), ("500 X", false)]
        {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nbody");
                stream.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8_lossy(&request[..read]).into_owned()
            });
            let headers = vec![("x-a".to_owned(), "b".to_owned())];
            let url = HttpTarget { host: "127.0.0.1".into(), port, path: "/healthz?x=1".into(), headers };
            assert_eq!(http_get(&url).await.is_ok(), ok, "{status}");
            let request = server.await.unwrap();
            assert!(request.starts_with("GET /healthz?x=1 HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("x-a: b"), "{request}");
        }
    }
}
