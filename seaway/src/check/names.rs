//! Rows: DNS as a pod sees it, through the cluster DNS address, over UDP and TCP.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use seaway_images::probe::{Attempt, ErrorKind, Kind, ProbeRequest};

use super::fixture::{Fixture, NAMESPACE};
use super::report::Report;

const ZONE: &str = "svc.cluster.local";

/// All rows of this file.
pub async fn rows(fixture: &Fixture, report: &mut Report) {
    for (transport, tcp) in [("UDP", false), ("TCP", true)] {
        report.row(&format!("DNS A of a Service, {transport}"), addresses(fixture, "A", tcp)).await;
        report.row(&format!("DNS AAAA of a Service, {transport}"), addresses(fixture, "AAAA", tcp)).await;
    }
    report.row("DNS short name through the search path", short_name(fixture)).await;
    report.row("DNS headless Service", headless(fixture)).await;
    report.row("DNS SRV", srv(fixture)).await;
    report.row("DNS PTR of a ClusterIP", ptr(fixture)).await;
    report.row("DNS ExternalName", external_name(fixture)).await;
    report.row("DNS name that does not exist", missing(fixture)).await;
    report.row("DNS at the second family's address", second_family(fixture)).await;
    report.row("HTTP by Service name, from a pod", http_by_name(fixture)).await;
}

fn question(name: &str, record_type: &str) -> ProbeRequest {
    let mut request = ProbeRequest::new(Kind::Dns, name);
    request.record_type = Some(record_type.into());
    request.retries = 1;
    request
}

async fn answer(fixture: &Fixture, request: &ProbeRequest) -> Result<Attempt> {
    let from = fixture.pod_on(fixture.node_with_server()?)?;
    let result = from.expect(request).await?;
    result.attempts.into_iter().next().context("no attempt was made")
}

async fn addresses(fixture: &Fixture, record_type: &str, tcp: bool) -> Result<String> {
    let mut request = question(&format!("echo.{NAMESPACE}.{ZONE}"), record_type);
    request.tcp = tcp;
    let got = answer(fixture, &request).await?.addresses;
    let wanted: Vec<IpAddr> = fixture.cluster_ips("echo").await?;
    let wanted: Vec<IpAddr> = wanted.into_iter().filter(|ip| ip.is_ipv4() == (record_type == "A")).collect();
    if got == wanted { Ok(format!("{got:?}")) } else { bail!("{got:?}, but the Service has {wanted:?}") }
}

async fn short_name(fixture: &Fixture) -> Result<String> {
    let mut request = question("echo", "A");
    request.search = true;
    let got = answer(fixture, &request).await?.addresses;
    let wanted = fixture.cluster_ips("echo").await?;
    if got.iter().all(|ip| wanted.contains(ip)) && !got.is_empty() {
        Ok(format!("echo -> {got:?}"))
    } else {
        bail!("echo -> {got:?}, but the Service has {wanted:?}")
    }
}

async fn headless(fixture: &Fixture) -> Result<String> {
    let name = format!("echo-headless.{NAMESPACE}.{ZONE}");
    for (record_type, v4) in [("A", true), ("AAAA", false)] {
        let mut got = answer(fixture, &question(&name, record_type)).await?.addresses;
        let ips = fixture.servers.iter().flat_map(|pod| &pod.ips).filter(|ip| ip.is_ipv4() == v4);
        let mut wanted: Vec<IpAddr> = ips.copied().collect();
        got.sort();
        wanted.sort();
        if got != wanted {
            bail!("{record_type} is {got:?}, but the pods have {wanted:?}");
        }
    }
    Ok(format!("one A and one AAAA for each of {} pods", fixture.servers.len()))
}

async fn srv(fixture: &Fixture) -> Result<String> {
    let name = format!("_tcp._tcp.echo.{NAMESPACE}.{ZONE}");
    let answers = answer(fixture, &question(&name, "SRV")).await?.answers;
    let target = format!(" 81 echo.{NAMESPACE}.{ZONE}");
    match answers.iter().find(|answer| answer.contains(&target)) {
        Some(found) => Ok(found.clone()),
        None => bail!("no answer names{target}: {answers:?}"),
    }
}

async fn ptr(fixture: &Fixture) -> Result<String> {
    for ip in fixture.cluster_ips("echo").await? {
        let answers = answer(fixture, &question(&reverse_name(ip), "PTR")).await?.answers;
        let wanted = format!("echo.{NAMESPACE}.{ZONE}");
        if !answers.iter().any(|answer| answer.contains(&wanted)) {
            bail!("{ip} is {answers:?}, not {wanted}");
        }
    }
    Ok("both families lead back to the Service".into())
}

fn reverse_name(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let nibbles =
                ip.octets().into_iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}

async fn external_name(fixture: &Fixture) -> Result<String> {
    let name = format!("echo-alias.{NAMESPACE}.{ZONE}");
    let attempt = answer(fixture, &question(&name, "A")).await?;
    let cname = attempt.answers.iter().any(|answer| answer.contains("CNAME"));
    let wanted = fixture.cluster_ips("echo").await?;
    if cname && attempt.addresses.iter().any(|ip| wanted.contains(ip)) {
        Ok("a CNAME and the target's address".into())
    } else {
        bail!("want a CNAME and {wanted:?}, got {:?}", attempt.answers)
    }
}

async fn missing(fixture: &Fixture) -> Result<String> {
    let from = fixture.pod_on(fixture.node_with_server()?)?;
    let result = from.send(&question(&format!("nobody.{NAMESPACE}.{ZONE}"), "A")).await?;
    match result.error() {
        Some(ErrorKind::NxDomain) => Ok("NXDOMAIN".into()),
        other => bail!("want NXDOMAIN, got {other:?} ({})", result.message.unwrap_or_default()),
    }
}

async fn second_family(fixture: &Fixture) -> Result<String> {
    let api: Api<Service> = Api::namespaced(fixture.client.clone(), "kube-system");
    let ips = api.get("kube-dns").await?.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    let ip = ips.iter().find(|ip| ip.contains(':')).context("kube-dns has no IPv6 address")?;
    let mut request = question(&format!("echo.{NAMESPACE}.{ZONE}"), "A");
    request.server = Some(SocketAddr::new(ip.parse()?, 53));
    answer(fixture, &request).await?;
    Ok(format!("answered at {ip}"))
}

async fn http_by_name(fixture: &Fixture) -> Result<String> {
    let url = format!("http://echo.{NAMESPACE}/hostname");
    let attempt = answer(fixture, &ProbeRequest::new(Kind::Http, url)).await?;
    Ok(attempt.reply.unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_of_both_families() {
        assert_eq!(reverse_name("10.96.0.1".parse().unwrap()), "1.0.96.10.in-addr.arpa");
        let v6 = reverse_name("fd00::a".parse().unwrap());
        assert!(v6.starts_with("a.0.0.0.") && v6.ends_with("0.0.d.f.ip6.arpa"), "{v6}");
    }
}
