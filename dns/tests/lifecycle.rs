//! How the server starts, stops, and is watched: addresses, draining, rates, health, the time of programming.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/resolver.rs"]
mod resolver;
#[path = "support/running.rs"]
mod running;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use resolver::{Behaviour, Resolver};
use running::{
    CLUSTER, ask, config, data, eventually, metric, over_tcp, over_udp, question_bytes, start, start_with,
};
use seaway_dns::DnsConfig;
use seaway_model::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn answers_leave_from_the_address_that_was_asked() {
    let listen = vec!["0.0.0.0:0".parse().unwrap(), "[::]:0".parse().unwrap()];
    let running = start(&DnsConfig { listen, ..config(&[]) });
    let question = question_bytes("web.shop.svc.cluster.local.", RecordType::A);
    // A connected socket takes nothing from another address. The kernel by itself would answer from 127.0.0.1.
    for address in ["127.0.0.1", "127.0.0.2", "127.9.8.7"] {
        let server = SocketAddr::new(address.parse().unwrap(), running.v4.port());
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(server).await.unwrap();
        client.send(&question).await.unwrap();
        let mut buffer = [0; 512];
        let length = timeout(Duration::from_secs(3), client.recv(&mut buffer)).await.expect(address).unwrap();
        assert_eq!(data(&Message::from_vec(&buffer[..length]).unwrap()), ["10.96.0.1"]);
    }
    let server = SocketAddr::new("::1".parse().unwrap(), running.v6.port());
    assert!(over_udp(server, &question).await.is_some());
    // Also where the answer has to wait for an upstream.
    let resolver = Resolver::start(Behaviour::Late(Duration::from_millis(50))).await;
    let listen = vec!["0.0.0.0:0".parse().unwrap(), "[::]:0".parse().unwrap()];
    let running = start(&DnsConfig { listen, ..config(&[resolver.address]) });
    let server = SocketAddr::new("127.0.0.3".parse().unwrap(), running.v4.port());
    assert_eq!(data(&ask(server, "www.example.", RecordType::A).await), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_answers_until_nobody_asks() {
    let quiet = Duration::from_millis(300);
    let running = start(&DnsConfig { drain_quiet: quiet, drain_max: Duration::from_secs(10), ..config(&[]) });
    ask(running.v4, "web.shop.svc.cluster.local.", RecordType::A).await;
    running.shutdown.cancel();
    for _ in 0..10 {
        tokio::time::sleep(quiet / 6).await;
        assert_eq!(data(&ask(running.v4, "web.shop.svc.cluster.local.", RecordType::A).await), ["10.96.0.1"]);
        assert!(!running.metrics.ready());
    }
    assert!(!running.task.is_finished());
    timeout(Duration::from_secs(5), running.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_source_gets_its_rate() {
    let running = start(&DnsConfig { rate_limit: Some(5), ..config(&[]) });
    let packet = question_bytes("web.shop.svc.cluster.local.", RecordType::A);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..30 {
        client.send_to(&packet, running.v4).await.unwrap();
    }
    let mut count = 0;
    let mut buffer = [0; 512];
    while timeout(Duration::from_millis(100), client.recv(&mut buffer)).await.is_ok() {
        count += 1;
    }
    assert!((5..=8).contains(&count), "{count}");
    assert!(metric(&running, "seaway_dns_shed_total").parse::<f64>().unwrap() > 20.0);
    // Another source, and TCP, are not concerned.
    let other = UdpSocket::bind("127.0.0.77:0").await.unwrap();
    other.send_to(&packet, running.v4).await.unwrap();
    timeout(Duration::from_secs(3), other.recv(&mut buffer)).await.unwrap().unwrap();
    over_tcp(running.v4, &packet).await;
}

#[tokio::test]
async fn health_and_readiness_over_http() {
    let running = start_with(&config(&[]), Snapshot::default());
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stop = CancellationToken::new();
    let admin =
        seaway_dns::serve_admin(address, running.metrics.clone(), running.registry.clone(), stop.clone());
    let admin = tokio::spawn(admin);
    let get = async |path: &str| {
        let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    eventually(async || get("/health").await.contains(" 200 ")).await;
    assert!(get("/ready").await.contains(" 503 "));
    running.snapshots.send(Arc::new(cluster::snapshot(CLUSTER))).unwrap();
    eventually(async || get("/ready").await.contains(" 200 ")).await;
    assert!(get("/metrics").await.contains("coredns_build_info"));
    assert!(get("/other").await.contains(" 404 "));
    // It asks itself, too.
    let asked = "coredns_health_request_duration_seconds_count ";
    let told = async |line: &str| get("/metrics").await.contains(line);
    eventually(async || told(asked).await && !told(&format!("{asked}0")).await).await;
    assert!(told("coredns_health_request_failures_total 0").await);
    stop.cancel();
    admin.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_time_from_a_change_to_its_answer_is_measured() {
    let running = start(&config(&[]));
    // The first state is no change.
    ask(running.v4, "web.shop.svc.cluster.local.", RecordType::A).await;
    let triggered_at = Some(std::time::SystemTime::now() - Duration::from_millis(10));
    let grown = cluster::snapshot(&format!("{CLUSTER}service shop/new cluster 10.96.0.9"));
    running.snapshots.send(Arc::new(Snapshot { version: 8, triggered_at, ..grown })).unwrap();
    let text = || prometheus::TextEncoder::new().encode_to_string(&running.registry.gather()).unwrap();
    let name = "coredns_kubernetes_dns_programming_duration_seconds_count";
    eventually(async || text().contains(&format!("{name}{{service_kind=\"cluster_ip\"}} 1"))).await;
}
