//! What load balancers are told.
#![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use expect_test::expect;
use seaway_model::{Endpoint, EndpointSet};

use super::*;

fn snapshot(ready_here: usize, terminating_here: usize, elsewhere: usize) -> Snapshot {
    let mut service = Service::new(ServiceKey::new("shop", "web"));
    service.kind = ServiceKind::LoadBalancer;
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(31_000);
    let mut endpoints = Vec::new();
    for (node, ready, count) in
        [("here", true, ready_here), ("here", false, terminating_here), ("there", true, elsewhere)]
    {
        for _ in 0..count {
            endpoints.push(Endpoint {
                node: Some(node.into()),
                ready,
                terminating: !ready,
                ..Endpoint::new(IpAddr::from([10, 244, 0, u8::try_from(endpoints.len()).unwrap()]), [].into())
            });
        }
    }
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    snapshot.endpoints.insert(service.key.clone(), Arc::new(EndpointSet { endpoints: endpoints.into() }));
    snapshot.services.insert(service.key.clone(), Arc::new(service));
    snapshot
}

#[test]
fn only_ready_endpoints_of_this_node_count() {
    assert_eq!(checks(&snapshot(2, 1, 3), "here")[&31_000].local_endpoints, 2);
    assert_eq!(checks(&snapshot(0, 1, 3), "here")[&31_000].local_endpoints, 0);
}

#[test]
fn services_that_serve_everywhere_are_not_checked() {
    let mut snapshot = snapshot(1, 0, 0);
    let mut service = (**snapshot.services.values().next().unwrap()).clone();
    service.external_policy = TrafficPolicy::Cluster;
    snapshot.services.insert(service.key.clone(), Arc::new(service));
    assert!(checks(&snapshot, "here").is_empty());
}

#[test]
fn the_answer_is_kube_proxys() {
    let check = HealthCheck { service: ServiceKey::new("shop", "web"), local_endpoints: 2 };
    expect![[r#"
        HTTP/1.1 200 OK
        Content-Type: application/json
        X-Content-Type-Options: nosniff
        X-Load-Balancing-Endpoint-Weight: 2
        Content-Length: 91
        Connection: close

        {"localEndpoints":2,"service":{"name":"web","namespace":"shop"},"serviceProxyHealthy":true}"#]]
    .assert_eq(&answer(&check, true).replace("\r\n", "\n"));
    assert!(answer(&check, false).starts_with("HTTP/1.1 503 "));
    let none = HealthCheck { local_endpoints: 0, ..check };
    assert!(answer(&none, true).starts_with("HTTP/1.1 503 "));
}

async fn ask(port: u16) -> std::io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut text = String::new();
    connection.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn a_port_is_served_while_its_service_is_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let with_port = |mut snapshot: Snapshot| {
        let mut service = (**snapshot.services.values().next().unwrap()).clone();
        service.health_check_node_port = Some(free);
        snapshot.services.insert(service.key.clone(), Arc::new(service));
        Arc::new(snapshot)
    };
    let (sender, receiver) = watch::channel(with_port(snapshot(0, 0, 1)));
    let stop = CancellationToken::new();
    let task = tokio::spawn(run("here".into(), receiver, StatusHandle::default(), stop.clone()));
    let until = |wanted: &'static str| async move {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let answer = ask(free).await;
            let found = answer.as_ref().map_or_else(|_| "refused", |text| text.as_str());
            if found.contains(wanted) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "wanted {wanted:?}, found {found:?}");
            tokio::task::yield_now().await;
        }
    };
    until("\"localEndpoints\":0").await;
    sender.send_replace(with_port(snapshot(3, 0, 1)));
    until("\"localEndpoints\":3").await;
    sender.send_replace(Arc::new(Snapshot { synced: true, ..Snapshot::default() }));
    until("refused").await;
    stop.cancel();
    task.await.unwrap();
}
