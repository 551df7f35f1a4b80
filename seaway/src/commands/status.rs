//! `seaway status` and `seaway services`: what runs and what the nodes' agents see, for people and for scripts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::up::layout;
use crate::cli::Show;
use crate::cluster::bringup::running_components;
use crate::cluster::{ClusterSpec, Layout};
use crate::telemetry::say;

const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize)]
struct Row {
    component: String,
    pid: Option<u32>,
    /// Resident memory that is the process's own (VmRSS less file pages that it shares with others), in KiB.
    memory_kib: Option<u64>,
    resident_kib: Option<u64>,
    /// What the agent says of itself.
    agent: Option<Value>,
}

/// Shows the processes of a cluster, their memory, and what each agent reports. Exit code 1 if something is down.
pub fn status(args: &Show) -> Result<ExitCode> {
    let (spec, layout) = cluster(args)?;
    let rows: Vec<Row> =
        running_components(&spec, &layout).into_iter().map(|(name, pid)| row(&layout, name, pid)).collect();
    let healthy = rows.iter().all(|row| row.pid.is_some() && row.agent.as_ref().is_none_or(is_ready));
    if args.json {
        for row in &rows {
            say(&serde_json::to_string(row)?);
        }
    } else {
        print_status(&rows);
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cluster(args: &Show) -> Result<(ClusterSpec, Layout)> {
    let layout = layout(&args.which)?;
    let spec = layout.load_spec()?;
    let spec = spec
        .with_context(|| format!("there is no cluster {:?}: start one with `seaway up`", args.which.name))?;
    Ok((spec, layout))
}

fn row(layout: &Layout, component: String, pid: Option<u32>) -> Row {
    let socket = layout.node_dir(&component).join("agent.sock");
    let agent = socket.exists().then(|| match ask(&socket, "/status") {
        Ok(answer) => answer,
        Err(error) => serde_json::json!({"ready": false, "error": format!("{error:#}")}),
    });
    let (anonymous, resident) = pid.and_then(memory_kib).unzip();
    Row { component, pid, memory_kib: anonymous, resident_kib: resident, agent }
}

fn is_ready(agent: &Value) -> bool {
    agent.get("ready").and_then(Value::as_bool).unwrap_or(false)
}

/// Anonymous and whole resident memory of a process (proc(5), status).
fn memory_kib(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((field("RssAnon:")?, field("VmRSS:")?))
}

fn print_status(rows: &[Row]) {
    say(&format!(
        "{:<12} {:>8}  {:>10}  {:>10}  {:<6} DETAIL",
        "COMPONENT", "PID", "MEMORY", "RESIDENT", "READY"
    ));
    for row in rows {
        let mib = |kib: Option<u64>| kib.map_or_else(|| "-".into(), |kib| format!("{:.1} MiB", mib(kib)));
        let pid = row.pid.map_or_else(|| "down".into(), |pid| pid.to_string());
        let ready = row.agent.as_ref().map_or(row.pid.is_some(), is_ready);
        say(&format!(
            "{:<12} {pid:>8}  {:>10}  {:>10}  {:<6} {}",
            row.component,
            mib(row.memory_kib),
            mib(row.resident_kib),
            if ready { "yes" } else { "no" },
            row.agent.as_ref().map(detail).unwrap_or_default(),
        ));
    }
}

#[allow(clippy::cast_precision_loss, reason = "memory in KiB is far below 2^52")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The agent's top-level facts on one line.
fn detail(agent: &Value) -> String {
    let Some(fields) = agent.as_object() else { return String::new() };
    let shown = fields.iter().filter(|(name, _)| *name != "ready").filter_map(|(name, value)| match value {
        Value::String(text) if !text.is_empty() => Some(format!("{name}={text}")),
        Value::Number(number) => Some(format!("{name}={number}")),
        Value::Bool(flag) => Some(format!("{name}={flag}")),
        _ => None,
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Shows the Services as each node's proxy serves them.
pub fn services(args: &Show) -> Result<ExitCode> {
    let (spec, layout) = cluster(args)?;
    for index in 0..spec.nodes {
        let node = ClusterSpec::node_name(index);
        let services = ask(&layout.node_dir(&node).join("agent.sock"), "/services")
            .with_context(|| format!("the agent of {node} does not answer"))?;
        if args.json {
            say(&serde_json::to_string(&serde_json::json!({"node": node, "services": services}))?);
        } else {
            say(&format!("{node}:"));
            print_services(&services);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_services(services: &Value) {
    for service in services.as_array().into_iter().flatten() {
        say(&format!("  {}", service.as_str().map_or_else(|| service.to_string(), str::to_owned)));
    }
}

/// Asks an agent over its local socket.
fn ask(socket: &Path, path: &str) -> Result<Value> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer from {}", socket.display()))?;
    let Some((_, body)) = answer.split_once("\r\n\r\n") else { bail!("{} speaks no HTTP", socket.display()) };
    serde_json::from_str(body).with_context(|| format!("{} did not answer JSON", socket.display()))
}
