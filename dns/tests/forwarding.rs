//! Upstreams over TLS and kept connections, policies, health, and the cache's habits, as a settings file asks for them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/resolver.rs"]
mod resolver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use prometheus::proto::MetricFamily;
use resolver::{Behaviour, Resolver};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use seaway_dns::{DnsConfig, Metrics, Server};
use seaway_model::Snapshot;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

struct Running {
    address: SocketAddr,
    registry: prometheus::Registry,
    shutdown: CancellationToken,
    _dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A server with one zone, everything, whose settings are `zone`.
fn start(zone: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dns.toml");
    std::fs::write(&file, format!("[[zone]]\nname = \".\"\n{zone}\n")).unwrap();
    let config = DnsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        sockets: 1,
        file: Some(file),
        forward_attempt_timeout: Duration::from_millis(300),
        forward_timeout: Duration::from_millis(1000),
        ..DnsConfig::default()
    };
    let server = Server::bind(&config).unwrap();
    let address = server.local_addrs()[0];
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let synced = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    let (_writer, snapshots) = watch::channel(Arc::new(synced));
    let shutdown = CancellationToken::new();
    tokio::spawn(server.serve(snapshots, metrics, shutdown.clone()));
    Running { address, registry, shutdown, _dir: dir }
}

fn question(name: &str) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

async fn ask(server: &Running, name: &str) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question(name).to_vec().unwrap(), server.address).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn first(answer: &Message) -> String {
    answer.answers.first().map_or_else(|| answer.metadata.response_code.to_string(), |r| r.data.to_string())
}

/// The sum over all labels of a counter.
fn metric(running: &Running, name: &str) -> f64 {
    let families = running.registry.gather();
    let counters = families.iter().filter(|family| family.name() == name).flat_map(MetricFamily::get_metric);
    counters.map(|metric| metric.get_counter().get_value()).sum()
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "does not become true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A resolver over TLS; counts connections.
struct TlsResolver {
    address: SocketAddr,
    connections: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for TlsResolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tls_resolver(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> TlsResolver {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                loop {
                    let length = stream.read_u16().await?;
                    let mut packet = vec![0; length.into()];
                    stream.read_exact(&mut packet).await?;
                    let mut message = Message::from_vec(&packet).unwrap();
                    message.metadata.message_type = MessageType::Response;
                    let name = message.queries[0].name().clone();
                    message.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 5))));
                    let reply = message.to_vec().unwrap();
                    stream.write_u16(u16::try_from(reply.len()).unwrap()).await?;
                    stream.write_all(&reply).await?;
                    stream.flush().await?;
                }
                #[allow(unreachable_code, reason = "the loop's type")]
                Ok::<_, std::io::Error>(())
            });
        }
    });
    TlsResolver { address, connections, task }
}

#[tokio::test]
async fn over_tls_on_one_connection_and_only_with_the_right_certificate() {
    let names = vec!["resolver.example".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let upstream = tls_resolver(made.cert.der().clone(), key).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let zone = |name: &str| {
        format!(
            "forward = {{ to = [\"tls://{}\"], tls-ca = \"{}\", tls-server-name = \"{name}\" }}",
            upstream.address,
            ca.display()
        )
    };
    let running = start(&zone("resolver.example"));
    for n in 0..3 {
        assert_eq!(first(&ask(&running, &format!("n{n}.example.")).await), "192.0.2.5");
    }
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1);
    assert!(metric(&running, "coredns_proxy_conn_cache_hits_total") >= 2.0);
    // A name of its own goes before that of all.
    let (ip, port) = (upstream.address.ip(), upstream.address.port());
    let own = zone("other.example")
        .replace(&upstream.address.to_string(), &format!("{ip}%resolver.example:{port}"));
    assert_eq!(first(&ask(&start(&own), "www.example.").await), "192.0.2.5");
    let other = start(&zone("other.example"));
    assert_eq!(first(&ask(&other, "www.example.").await), "Server Failure");
}

#[tokio::test]
async fn policies() {
    let (one, two) = (Resolver::start(Behaviour::Answer).await, Resolver::start(Behaviour::Answer).await);
    let asked = async |policy: &str| {
        let before = (one.asked(), two.asked());
        let running = start(&format!(
            "forward = {{ to = [\"{}\", \"{}\"], policy = \"{policy}\" }}",
            one.address, two.address
        ));
        for n in 0..40 {
            ask(&running, &format!("n{n}.{policy}.example.")).await;
        }
        (one.asked() - before.0, two.asked() - before.1)
    };
    assert_eq!(asked("sequential").await, (40, 0));
    assert_eq!(asked("round_robin").await, (20, 20));
    let (a, b) = asked("random").await;
    assert!(a + b == 40 && a > 0 && b > 0, "{a} {b}");
}

#[tokio::test]
async fn an_upstream_that_is_well_again_is_asked_again() {
    let silent = Resolver::start(Behaviour::Silent).await;
    let good = Resolver::start(Behaviour::Answer).await;
    let running = start(&format!(
        "forward = {{ to = [\"{}\", \"{}\"], max-fails = 1, health-check = \"50ms\" }}",
        silent.address, good.address
    ));
    ask(&running, "a.example.").await;
    eventually(async || metric(&running, "coredns_proxy_healthcheck_failures_total") > 0.0).await;
    let address = silent.address;
    drop(silent);
    let again = Resolver::start_at(address, Behaviour::Answer).await;
    let mut n = 0;
    eventually(async || {
        n += 1;
        let before = good.asked();
        ask(&running, &format!("n{n}.example.")).await;
        good.asked() == before
    })
    .await;
    assert!(again.asked() > 0);
}

#[tokio::test]
async fn an_old_answer_at_once_while_somebody_asks_anew() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let running = start(&format!(
        "forward = {{ to = [\"{}\"] }}\ncache = {{ serve-stale = {{ immediate = true, ttl = 7 }} }}",
        resolver.address
    ));
    ask(&running, "short.example.").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let old = ask(&running, "short.example.").await;
    assert_eq!((first(&old).as_str(), old.answers[0].ttl), ("192.0.2.1", 7));
    eventually(async || resolver.asked() == 2).await;
    assert_eq!(metric(&running, "coredns_cache_served_stale_total").to_string(), "1");
}

#[tokio::test]
async fn an_old_answer_where_upstream_takes_its_time() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let running = start(&format!(
        "forward = {{ to = [\"{}\"], attempt-timeout = \"8s\", timeout = \"9s\" }}\n\
         cache = {{ serve-stale = {{ verify-timeout = \"50ms\", ttl = 7 }} }}",
        resolver.address
    ));
    ask(&running, "short.example.").await;
    let address = resolver.address;
    drop(resolver);
    let _silent = Resolver::start_at(address, Behaviour::Silent).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // Long before upstream's time is over, which is longer than `ask` waits.
    let old = ask(&running, "short.example.").await;
    assert_eq!((first(&old).as_str(), old.answers[0].ttl), ("192.0.2.1", 7));
}

#[tokio::test]
async fn who_joins_a_slow_question_gets_the_old_answer_too_and_the_new_one_comes_to_be_known() {
    let slow = Resolver::start(Behaviour::Late(Duration::from_millis(250))).await;
    let running = start(&format!(
        "forward = {{ to = [\"{}\"] }}\ncache = {{ serve-stale = {{ verify-timeout = \"50ms\", ttl = 7 }} }}",
        slow.address
    ));
    ask(&running, "short.example.").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let joining = async {
        tokio::time::sleep(Duration::from_millis(25)).await;
        ask(&running, "short.example.").await
    };
    let (old, joined) = tokio::join!(ask(&running, "short.example."), joining);
    for answer in [old, joined] {
        assert_eq!(first(&answer), "192.0.2.1");
        assert_eq!(answer.answers[0].ttl, 7);
    }
    // Upstream is always slower than anybody waits.
    eventually(async || ask(&running, "short.example.").await.answers[0].ttl == 1).await;
}

#[tokio::test]
async fn what_is_much_asked_for_never_ends() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let running = start(&format!(
        "forward = {{ to = [\"{}\"] }}\ncache = {{ ttl-max = 2, prefetch = {{ amount = 2, percentage = 50 }} }}",
        resolver.address
    ));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(3500) {
        assert_eq!(first(&ask(&running, "www.example.").await), "192.0.2.1");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(metric(&running, "coredns_cache_prefetch_total") >= 2.0);
    // Only the first one had to wait.
    assert_eq!(metric(&running, "coredns_cache_misses_total").to_string(), "1");
    assert!(resolver.asked() <= 5, "{}", resolver.asked());
}

#[tokio::test]
async fn a_failure_is_remembered_for_a_moment() {
    let failing = Resolver::start(Behaviour::Fail(hickory_proto::op::ResponseCode::ServFail)).await;
    let running =
        start(&format!("forward = {{ to = [\"{}\"] }}\ncache = {{ servfail-ttl = 30 }}", failing.address));
    for _ in 0..5 {
        assert_eq!(first(&ask(&running, "www.example.").await), "Server Failure");
    }
    assert_eq!(failing.asked(), 1);
}
