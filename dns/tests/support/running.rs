//! A server that runs on loopback with a small cluster, and how tests ask it.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "support of tests; not every one uses all of it"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use prometheus::proto::MetricFamily;
use seaway_dns::{DnsConfig, Metrics, Server};
use seaway_model::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cluster;

pub const CLUSTER: &str = "
service kube-system/kube-dns cluster 10.96.0.10 ports dns/udp/53
service shop/web cluster 10.96.0.1 fd00:96::1 ports http/tcp/80
service shop/out external www.example.com
service shop/in external web.shop.svc.cluster.local
service shop/many headless ports http/tcp/80
";

pub struct Running {
    pub v4: SocketAddr,
    pub v6: SocketAddr,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub metrics: Metrics,
    pub registry: prometheus::Registry,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Result<(), seaway_dns::DnsError>>,
}

pub fn config(upstreams: &[SocketAddr]) -> DnsConfig {
    DnsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()],
        upstreams: upstreams.to_vec(),
        sockets: 2,
        forward_attempt_timeout: Duration::from_millis(300),
        forward_timeout: Duration::from_millis(1000),
        tcp_idle_timeout: Duration::from_millis(500),
        ..DnsConfig::default()
    }
}

pub fn many() -> Snapshot {
    let endpoints: Vec<String> =
        (0..=249).map(|n| format!("endpoint shop/many 10.244.0.{n} ports http/tcp/8080")).collect();
    cluster::snapshot(&format!("{CLUSTER}{}", endpoints.join("\n")))
}

pub fn start(config: &DnsConfig) -> Running {
    start_with(config, many())
}

pub fn start_with(config: &DnsConfig, snapshot: Snapshot) -> Running {
    let server = Server::bind(config).unwrap();
    let addrs = server.local_addrs();
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let (snapshots, receiver) = watch::channel(Arc::new(snapshot));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(server.serve(receiver, metrics.clone(), shutdown.clone()));
    Running { v4: addrs[0], v6: addrs[1], snapshots, metrics, registry, shutdown, task }
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub async fn over_udp(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = vec![0; 65_536];
    let length = timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await.ok()?.unwrap();
    buffer.truncate(length);
    Some(buffer)
}

pub async fn over_tcp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    tcp_send(&mut stream, packet).await;
    tcp_receive(&mut stream).await
}

pub async fn tcp_send(stream: &mut TcpStream, packet: &[u8]) {
    let length = u16::try_from(packet.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await.unwrap();
}

pub async fn tcp_receive(stream: &mut TcpStream) -> Vec<u8> {
    let length = timeout(Duration::from_secs(3), stream.read_u16()).await.unwrap().unwrap();
    let mut reply = vec![0; length.into()];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

pub async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let question = question(name, kind);
    let reply = over_udp(server, &question.to_vec().unwrap()).await.expect("an answer");
    let answer = Message::from_vec(&reply).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

pub fn data(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition().await {
        assert!(Instant::now() < deadline, "does not become true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn question_bytes(name: &str, kind: RecordType) -> Vec<u8> {
    question(name, kind).to_vec().unwrap()
}

/// The sum over all labels of a counter.
pub fn metric(running: &Running, name: &str) -> String {
    let families = running.registry.gather();
    let counters = families.iter().filter(|family| family.name() == name).flat_map(MetricFamily::get_metric);
    counters.map(|metric| metric.get_counter().get_value()).sum::<f64>().to_string()
}
