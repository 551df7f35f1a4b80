//! Rows: who reaches whom, directly and through Services of every kind.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use seaway_images::probe::{Kind, ProbeRequest};

use super::fixture::Fixture;
use super::report::Report;
use super::vantage::Vantage;
use crate::cluster::topology::EXTERNAL_NETS;

/// Ports of the echo image.
const TCP_PORT: u16 = 8081;
const UDP_PORT: u16 = 8082;
/// Ports of the fixtures' Services.
const SERVICE_TCP: u16 = 81;
const SERVICE_UDP: u16 = 82;
/// So many probes meet every backend, all but surely.
const ENOUGH: u32 = 24;
/// A path that is not there should not take minutes to say so.
const TIMEOUT_MS: u64 = 1000;
const PARALLEL: u32 = 4;
const PROPAGATION_DEADLINE: Duration = Duration::from_secs(5);

/// All rows of this file.
pub async fn rows(fixture: &Fixture, report: &mut Report) {
    report.always("a new Service is served on every node", served_everywhere(fixture)).await;
    for (family, at) in [("IPv4", 0), ("IPv6", 1)] {
        report.row(&format!("pod to pod, same node, {family}"), pod_to_pod(fixture, at, true)).await;
        report.row(&format!("pod to pod, across nodes, {family}"), pod_to_pod(fixture, at, false)).await;
        report.row(&format!("node to pod, across nodes, {family}"), node_to_pod(fixture, at)).await;
        for from in ["pod", "node"] {
            report
                .row(&format!("{from} to ClusterIP, TCP, {family}"), cluster_ip(fixture, at, from, Kind::Tcp))
                .await;
            report
                .row(&format!("{from} to ClusterIP, UDP, {family}"), cluster_ip(fixture, at, from, Kind::Udp))
                .await;
        }
        report.row(&format!("pod to itself through a Service, {family}"), hairpin(fixture, at)).await;
        for (node, ips) in fixture.nodes() {
            let has = fixture.servers.iter().any(|pod| pod.node == node);
            let note = if has { "" } else { " (no endpoint there)" };
            for kind in [Kind::Tcp, Kind::Udp] {
                let name = format!("outside to NodePort of {node}{note}, {}, {family}", label(kind));
                report.row(&name, node_port(fixture, fixture.outside(), ips[at], kind)).await;
            }
        }
        report
            .row(&format!("pod to NodePort of another node, {family}"), pod_to_node_port(fixture, at))
            .await;
        for kind in [Kind::Tcp, Kind::Udp] {
            let name = format!("outside to LoadBalancer, {}, {family}", label(kind));
            report.row(&name, load_balancer(fixture, fixture.outside(), at, kind)).await;
        }
        report.row(&format!("pod to LoadBalancer, TCP, {family}"), pod_to_load_balancer(fixture, at)).await;
        report.row(&format!("outside to external IP, TCP, {family}"), external_ip(fixture, at)).await;
    }
}

/// The fixtures' pods became Ready a moment ago: how long until every node's proxy sends traffic to all of them.
async fn served_everywhere(fixture: &Fixture) -> Result<String> {
    let since = Instant::now();
    for node in fixture.nodes().into_keys() {
        let from = fixture.pod_on(&node)?;
        for ip in fixture.cluster_ips("echo").await? {
            let mut request = ask(Kind::Tcp, ip, SERVICE_TCP);
            request.count = ENOUGH;
            request.parallel = PARALLEL;
            while from.send(&request).await?.answered_by.len() != fixture.servers.len() {
                if since.elapsed() > PROPAGATION_DEADLINE {
                    bail!("{node} does not send traffic for {ip} to every server");
                }
            }
        }
    }
    Ok(format!("on {} nodes after {} ms", fixture.spec.nodes, since.elapsed().as_millis()))
}

fn label(kind: Kind) -> &'static str {
    if kind == Kind::Udp { "UDP" } else { "TCP" }
}

/// A probe that the echo image answers with its name: over TCP it greets, over UDP it replies.
pub fn ask(kind: Kind, ip: IpAddr, port: u16) -> ProbeRequest {
    let mut request = ProbeRequest::new(kind, SocketAddr::new(ip, port).to_string());
    request.greeting = kind == Kind::Tcp;
    request.retries = u32::from(kind == Kind::Udp);
    request.timeout_ms = TIMEOUT_MS;
    request
}

/// The address of the wanted family (0: IPv4, 1: IPv6).
pub fn of_family(ips: &[IpAddr], at: usize) -> Result<IpAddr> {
    ips.iter().copied().find(|ip| ip.is_ipv4() == (at == 0)).context("there is no address of this family")
}

async fn pod_to_pod(fixture: &Fixture, at: usize, same_node: bool) -> Result<String> {
    let server = fixture.servers.first().context("there is no echo server")?;
    let other = || fixture.clients.iter().find(|pod| pod.node != server.node).map(|pod| pod.node.clone());
    let node = if same_node { Some(server.node.clone()) } else { other() };
    let from = fixture.pod_on(&node.context("this row needs a cluster of at least two nodes")?)?;
    let result = from.expect(&ask(Kind::Tcp, of_family(&server.ips, at)?, TCP_PORT)).await?;
    from.expect(&ask(Kind::Udp, of_family(&server.ips, at)?, UDP_PORT)).await?;
    let reply = result.attempts.first().and_then(|attempt| attempt.reply.clone()).unwrap_or_default();
    let client =
        fixture.clients.iter().find(|pod| from.name.contains(&pod.name)).context("no such client")?;
    let ip = of_family(&client.ips, at)?;
    if !seen_from(&reply, ip) {
        bail!("the server did not see the pod's own address {ip}: {reply}");
    }
    Ok(format!("TCP and UDP, {} -> {}, source kept", from.name, server.name))
}

/// The echo image says from which address it was asked.
pub fn seen_from(reply: &str, ip: IpAddr) -> bool {
    let client = serde_json::from_str::<serde_json::Value>(reply).ok();
    let client = client.and_then(|answer| answer.get("client")?.as_str()?.parse::<SocketAddr>().ok());
    client.is_some_and(|client| client.ip() == ip)
}

async fn node_to_pod(fixture: &Fixture, at: usize) -> Result<String> {
    let server = fixture.servers.first().context("there is no echo server")?;
    let node = fixture.nodes().into_keys().find(|node| *node != server.node).unwrap_or(server.node.clone());
    fixture.node(&node).expect(&ask(Kind::Tcp, of_family(&server.ips, at)?, TCP_PORT)).await?;
    Ok(format!("{node} -> {} on {}", server.name, server.node))
}

async fn cluster_ip(fixture: &Fixture, at: usize, from: &str, kind: Kind) -> Result<String> {
    let ip = of_family(&fixture.cluster_ips("echo").await?, at)?;
    let mut seen = String::new();
    for node in fixture.nodes().into_keys() {
        let from = if from == "pod" { fixture.pod_on(&node)? } else { fixture.node(&node) };
        let mut request = ask(kind, ip, if kind == Kind::Udp { SERVICE_UDP } else { SERVICE_TCP });
        request.count = ENOUGH;
        request.parallel = PARALLEL;
        let result = from.expect(&request).await?;
        if result.answered_by.len() != fixture.servers.len() {
            bail!("of {} servers {:?} answered {ENOUGH} requests", fixture.servers.len(), result.answered_by);
        }
        if let Some(latency) = result.latency_us {
            seen = format!(
                "p50 {} us from every node, spread over {} servers",
                latency.p50,
                fixture.servers.len()
            );
        }
    }
    Ok(seen)
}

async fn hairpin(fixture: &Fixture, at: usize) -> Result<String> {
    let ip = of_family(&fixture.cluster_ips("hairpin").await?, at)?;
    let url = format!("http://{}/healthz", SocketAddr::new(ip, 80));
    for pod in &fixture.clients {
        fixture.pod_on(&pod.node)?.expect(&ProbeRequest::new(Kind::Http, url.clone())).await?;
    }
    Ok(format!("{} pods reach themselves at {ip}", fixture.clients.len()))
}

/// Through a node's port, often enough to meet every server: those of this node and those of others.
pub async fn node_port(fixture: &Fixture, from: Vantage, node_ip: IpAddr, kind: Kind) -> Result<String> {
    let name = if kind == Kind::Udp { "udp" } else { "tcp" };
    let port = fixture.node_port("echo-nodeport", name).await?;
    spread(fixture, &from, ask(kind, node_ip, port)).await
}

async fn spread(fixture: &Fixture, from: &Vantage, mut request: ProbeRequest) -> Result<String> {
    request.count = ENOUGH;
    request.parallel = PARALLEL;
    let result = from.expect(&request).await?;
    if result.answered_by.len() != fixture.servers.len() {
        bail!(
            "of {} servers only {:?} answered {ENOUGH} requests",
            fixture.servers.len(),
            result.answered_by
        );
    }
    let p50 = result.latency_us.map_or(0, |latency| latency.p50);
    Ok(format!("{} -> {}, p50 {p50} us", from.name, request.target))
}

async fn pod_to_node_port(fixture: &Fixture, at: usize) -> Result<String> {
    let nodes = fixture.nodes();
    let (first, last) = nodes.iter().next().zip(nodes.iter().next_back()).context("no nodes")?;
    node_port(fixture, fixture.pod_on(first.0)?, last.1[at], Kind::Tcp).await
}

async fn load_balancer(fixture: &Fixture, from: Vantage, at: usize, kind: Kind) -> Result<String> {
    let ip = of_family(&fixture.load_balancer_ips("echo-lb").await?, at)?;
    let port = if kind == Kind::Udp { SERVICE_UDP } else { SERVICE_TCP };
    spread(fixture, &from, ask(kind, ip, port)).await
}

async fn pod_to_load_balancer(fixture: &Fixture, at: usize) -> Result<String> {
    let node = fixture.nodes().into_keys().next_back().context("no nodes")?;
    load_balancer(fixture, fixture.pod_on(&node)?, at, Kind::Tcp).await
}

async fn external_ip(fixture: &Fixture, at: usize) -> Result<String> {
    let ips =
        fixture.service("echo-external").await?.spec.and_then(|spec| spec.external_ips).unwrap_or_default();
    let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let detail =
        spread(fixture, &fixture.outside(), ask(Kind::Tcp, of_family(&ips, at)?, SERVICE_TCP)).await?;
    Ok(format!("{detail} ({} is routed to the first node)", EXTERNAL_NETS[at]))
}
