//! The hidden `seaway probe`: one network probe, from the place that its flags name. `seaway check` runs it for
//! each vantage point, as a process of its own, because a cgroup is a property of processes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seaway_images::probe::{self, ProbeRequest, ProbeResult};

use crate::cli::Probe;
use crate::telemetry::say;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the client image may take beyond the probe's own time.
const MARGIN: Duration = Duration::from_secs(5);

/// Reads a ProbeRequest, prints a ProbeResult.
pub fn run(args: &Probe) -> Result<ExitCode> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the request")?;
    args.place.enter()?;
    let request: ProbeRequest = serde_json::from_str(&text).context("not a probe request")?;
    let result: ProbeResult = match args.via {
        None => probe::execute_blocking(request),
        Some(client) => dial(client, &request)?,
    };
    say(&serde_json::to_string(&result)?);
    Ok(ExitCode::SUCCESS)
}

/// Has the client image that listens at `client` execute the probe.
fn dial(client: SocketAddr, request: &ProbeRequest) -> Result<ProbeResult> {
    let mut stream = TcpStream::connect_timeout(&client, CONNECT_TIMEOUT)
        .with_context(|| format!("cannot reach the client pod at {client}"))?;
    let budget_ms = u64::from(request.count) * (request.timeout_ms + request.interval_ms);
    stream.set_read_timeout(Some(Duration::from_millis(budget_ms) + MARGIN))?;
    let body = serde_json::to_string(request)?;
    let head = format!(
        "POST /dial HTTP/1.1\r\nhost: {client}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("no answer from the client pod at {client}"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the client pod at {client} answered no HTTP: {answer:?}");
    };
    serde_json::from_str(body).with_context(|| {
        format!("the client pod at {client} answered {:?}: {body}", head.lines().next().unwrap_or_default())
    })
}
