//! Rows: session affinity, traffic policies, and what a Service without endpoints does.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use seaway_images::probe::{ErrorKind, Kind};

use super::fixture::Fixture;
use super::paths::{ask, of_family, seen_from};
use super::report::Report;
use super::vantage::Vantage;

const SERVICE_TCP: u16 = 81;
const SERVICE_UDP: u16 = 82;
const MANY: u32 = 24;
/// A refusal that takes longer was no refusal "at once".
const AT_ONCE_MS: u64 = 200;
/// After such a pause a kernel sends an address another ICMP error in any case.
const ICMP_INTERVAL: Duration = Duration::from_millis(1100);

/// All rows of this file.
pub async fn rows(fixture: &Fixture, report: &mut Report) {
    for (family, at) in [("IPv4", 0), ("IPv6", 1)] {
        report.row(&format!("session affinity, from a pod, {family}"), affinity_from_pod(fixture, at)).await;
        report
            .row(&format!("session affinity, from outside, {family}"), affinity_from_outside(fixture, at))
            .await;
        report
            .row(
                &format!("externalTrafficPolicy Local keeps the source, {family}"),
                external_local(fixture, at),
            )
            .await;
        report
            .row(
                &format!("externalTrafficPolicy Local, other node, {family}"),
                external_elsewhere(fixture, at),
            )
            .await;
        report.row(&format!("internalTrafficPolicy Local, {family}"), internal_local(fixture, at)).await;
        report
            .row(
                &format!("internalTrafficPolicy Local, other node, {family}"),
                internal_elsewhere(fixture, at),
            )
            .await;
        report
            .row(&format!("no endpoints: TCP is refused at once, {family}"), refused(fixture, at, Kind::Tcp))
            .await;
        report
            .row(&format!("no endpoints: UDP is refused at once, {family}"), refused(fixture, at, Kind::Udp))
            .await;
    }
}

async fn affinity_from_pod(fixture: &Fixture, at: usize) -> Result<String> {
    let ip = of_family(&fixture.cluster_ips("echo-affinity").await?, at)?;
    let from = fixture.pod_on(fixture.node_with_server()?)?;
    sticks(&from, ip, SERVICE_TCP).await
}

async fn affinity_from_outside(fixture: &Fixture, at: usize) -> Result<String> {
    let port = fixture.node_port("echo-affinity", "tcp").await?;
    let nodes = fixture.nodes();
    let ip = nodes.values().next().context("no nodes")?[at];
    sticks(&fixture.outside(), ip, port).await
}

async fn sticks(from: &Vantage, ip: std::net::IpAddr, port: u16) -> Result<String> {
    let mut request = ask(Kind::Tcp, ip, port);
    request.count = MANY;
    let result = from.expect(&request).await?;
    match result.answered_by.keys().collect::<Vec<_>>().as_slice() {
        [one] => Ok(format!("{MANY} connections, all answered by {one}")),
        several => bail!("{MANY} connections of one client were answered by {several:?}"),
    }
}

async fn external_local(fixture: &Fixture, at: usize) -> Result<String> {
    let node = fixture.node_with_server()?.to_owned();
    let port = fixture.node_port("echo-external-local", "tcp").await?;
    let outside = fixture.outside();
    let mut request = ask(Kind::Tcp, fixture.nodes()[&node][at], port);
    request.count = MANY;
    let result = outside.expect(&request).await?;
    let there: Vec<&str> =
        fixture.servers.iter().filter(|pod| pod.node == node).map(|pod| pod.name.as_str()).collect();
    if let Some(stranger) = result.answered_by.keys().find(|pod| !there.contains(&pod.as_str())) {
        bail!("{stranger} of another node answered");
    }
    let client = fixture.spec.client_ips()[at];
    let reply = result.attempts.first().and_then(|attempt| attempt.reply.as_deref()).unwrap_or_default();
    if !seen_from(reply, client) {
        bail!("the server did not see the client's address {client}: {reply}");
    }
    Ok(format!("only servers of {node} answered, and saw {client}"))
}

async fn external_elsewhere(fixture: &Fixture, at: usize) -> Result<String> {
    let node = fixture.node_without_server()?;
    let port = fixture.node_port("echo-external-local", "tcp").await?;
    let mut request = ask(Kind::Tcp, fixture.nodes()[&node][at], port);
    request.timeout_ms = 300;
    let result = fixture.outside().send(&request).await?;
    match result.error() {
        // A proxy in user space cannot refuse before it has accepted.
        Some(ErrorKind::Refused | ErrorKind::Timeout | ErrorKind::Reset) => {
            Ok(format!("{node} has no endpoint and does not serve"))
        }
        other => bail!("{node} has no endpoint, yet: ok={} {other:?}", result.ok),
    }
}

async fn internal_local(fixture: &Fixture, at: usize) -> Result<String> {
    let node = fixture.node_with_server()?.to_owned();
    let ip = of_family(&fixture.cluster_ips("echo-internal-local").await?, at)?;
    let mut request = ask(Kind::Tcp, ip, SERVICE_TCP);
    request.count = MANY;
    let result = fixture.pod_on(&node)?.expect(&request).await?;
    let is_local =
        |pod: &String| fixture.servers.iter().any(|server| server.name == *pod && server.node == node);
    if !result.answered_by.keys().all(is_local) {
        bail!("a server of another node answered: {:?}", result.answered_by);
    }
    Ok(format!("a pod on {node} met only servers of {node}"))
}

async fn internal_elsewhere(fixture: &Fixture, at: usize) -> Result<String> {
    let node = fixture.node_without_server()?;
    let ip = of_family(&fixture.cluster_ips("echo-internal-local").await?, at)?;
    must_be_refused(&fixture.pod_on(&node)?, ask(Kind::Tcp, ip, SERVICE_TCP)).await
}

async fn refused(fixture: &Fixture, at: usize, kind: Kind) -> Result<String> {
    let ip = of_family(&fixture.cluster_ips("empty").await?, at)?;
    let port = if kind == Kind::Udp { SERVICE_UDP } else { SERVICE_TCP };
    must_be_refused(&fixture.pod_on(fixture.node_with_server()?)?, ask(kind, ip, port)).await
}

/// Refused, and at once.
///
/// A kernel sends an address no ICMP error within a second of a redirect (`net.ipv4.icmp_ratelimit`), which hairpin
/// connections of the same pod lead to: a datagram that nothing is heard of is sent again after that.
pub async fn must_be_refused(
    from: &Vantage,
    mut request: seaway_images::probe::ProbeRequest,
) -> Result<String> {
    request.retries = 0;
    let mut result = from.send(&request).await?;
    if request.kind == Kind::Udp && result.error() == Some(ErrorKind::Timeout) {
        tokio::time::sleep(ICMP_INTERVAL).await;
        result = from.send(&request).await?;
    }
    let took_ms = result.attempts.first().map_or(0, |attempt| attempt.latency_us) / 1000;
    match result.error() {
        Some(ErrorKind::Refused) if took_ms < AT_ONCE_MS => Ok(format!("refused after {took_ms} ms")),
        Some(ErrorKind::Refused) => bail!("refused, but only after {took_ms} ms"),
        Some(other) => bail!("not refused: {other:?} ({})", result.message.unwrap_or_default()),
        None => bail!("it was answered by {:?}", result.answered_by),
    }
}
