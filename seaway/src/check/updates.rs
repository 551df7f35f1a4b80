//! Rows: how soon traffic follows when a Deployment is scaled, and that nothing fails on the way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use seaway_images::probe::{ErrorKind, Kind};

use super::fixture::Fixture;
use super::paths::{ask, of_family};
use super::report::Report;

const SERVICE_TCP: u16 = 81;
const BURST: u32 = 24;
const DEADLINE: Duration = Duration::from_secs(20);

/// All rows of this file. They run in order: each scales from where the former left off.
pub async fn rows(fixture: &Fixture, report: &mut Report) {
    report.row("scale to 5: traffic reaches all five", scale(fixture, 5)).await;
    report.row("scale to 1: traffic leaves the four", scale(fixture, 1)).await;
    report.row("scale to 0: refused at once", scale_to_zero(fixture)).await;
    report.row("scale to 2: traffic comes back", scale(fixture, 2)).await;
}

/// Scales, waits for the pods, and measures from then on until exactly they answer.
async fn scale(fixture: &Fixture, replicas: usize) -> Result<String> {
    let ip = of_family(&fixture.cluster_ips("echo").await?, 0)?;
    fixture.scale("echo", replicas).await?;
    let pods = fixture.ready_pods("echo", replicas).await?;
    let since = Instant::now();
    let wanted: BTreeSet<String> = pods.into_iter().map(|pod| pod.name).collect();
    loop {
        let answered = burst(fixture, ip).await?;
        if answered == wanted {
            return Ok(format!("{replicas} servers after {} ms", since.elapsed().as_millis()));
        }
        if since.elapsed() > DEADLINE {
            bail!("{answered:?} answered, the Ready pods are {wanted:?}");
        }
    }
}

/// Who answers; a failure is an error, since at every moment some server runs.
async fn burst(fixture: &Fixture, ip: IpAddr) -> Result<BTreeSet<String>> {
    let mut request = ask(Kind::Tcp, ip, SERVICE_TCP);
    request.count = BURST * 2;
    let result = fixture.pod_on(fixture.node_with_server()?)?.send(&request).await?;
    // Before the first of new servers is known a refusal is the right answer.
    if !result.ok && result.errors.keys().any(|kind| *kind != ErrorKind::Refused) {
        bail!("{} of {} failed: {}", result.failed, BURST * 2, result.message.unwrap_or_default());
    }
    Ok(result.answered_by.into_keys().collect())
}

async fn scale_to_zero(fixture: &Fixture) -> Result<String> {
    let ip = of_family(&fixture.cluster_ips("echo").await?, 0)?;
    fixture.scale("echo", 0).await?;
    fixture.ready_pods("echo", 0).await?;
    let from = fixture.pod_on(fixture.node_with_server()?)?;
    let since = Instant::now();
    loop {
        let refused = super::policies::must_be_refused(&from, ask(Kind::Tcp, ip, SERVICE_TCP)).await;
        match refused {
            Ok(detail) => {
                return Ok(format!("{detail}, {} ms after the last pod left", since.elapsed().as_millis()));
            }
            Err(error) if since.elapsed() > DEADLINE => return Err(error),
            Err(_) => {}
        }
    }
}
