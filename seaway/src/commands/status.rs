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

/// What an agent says of itself, on one line: what is missing first.
fn detail(agent: &Value) -> String {
    let at = |path: &str| {
        agent.pointer(path).map_or_else(|| "?".to_owned(), |value| value.to_string().replace('"', ""))
    };
    let pods = agent.get("pods").and_then(Value::as_array).map_or(0, Vec::len);
    let mut words: Vec<String> = troubles(agent);
    words.push(format!("{pods} pods, {} services, proxy {}", at("/proxy/services"), at("/proxy/mode")));
    if let Some(announced) =
        agent.pointer("/proxy/announced").and_then(Value::as_array).filter(|all| !all.is_empty())
    {
        let addresses: Vec<&str> = announced.iter().filter_map(Value::as_str).collect();
        words.push(format!("answers for {}", addresses.join(" ")));
    }
    words.extend(pod_path(agent));
    words.extend(xdp(agent));
    words.extend(agent.get("workers").and_then(Value::as_array).into_iter().flatten().map(worker));
    words.join("; ")
}

/// Which way packets between pods go on a node, where its proxy has a say in it.
fn pod_path(agent: &Value) -> Option<String> {
    let path = agent.pointer("/proxy/pod_path")?;
    if path.get("direct")?.as_bool()? {
        return Some("pods are handed over directly".to_owned());
    }
    let reason = path.get("reason").and_then(Value::as_str).unwrap_or("for no reason that it told");
    Some(format!("pods go through the stack: {reason}"))
}

/// What uplinks run of XDP, where it is switched on.
fn xdp(agent: &Value) -> Option<String> {
    let xdp = agent.pointer("/proxy/xdp")?;
    let uplinks = xdp.get("uplinks")?.as_array().filter(|uplinks| !uplinks.is_empty())?;
    let uplink = |uplink: &Value| {
        let note = uplink.get("note").and_then(Value::as_str).map(|note| format!(" ({note})"));
        format!("{} {}{}", text(uplink, "device"), text(uplink, "mode"), note.unwrap_or_default())
    };
    let uplinks: Vec<String> = uplinks.iter().map(uplink).collect();
    let packets = xdp.get("packets").and_then(Value::as_u64).unwrap_or_default();
    Some(format!("XDP: {}, {packets} packets", uplinks.join(", ")))
}

/// A process that serves in user space.
fn worker(worker: &Value) -> String {
    let number = |name: &str| worker.get(name).and_then(Value::as_u64).unwrap_or_default();
    let serving = worker.get("serving").and_then(Value::as_bool).unwrap_or_default();
    let role = if serving { "userspace worker" } else { "former userspace worker" };
    format!("{role} {} with {} connections", number("pid"), number("connections"))
}

fn troubles(agent: &Value) -> Vec<String> {
    let mut troubles = Vec::new();
    troubles.extend(agent.get("error").and_then(Value::as_str).map(str::to_owned));
    let missing = agent.get("missing").and_then(Value::as_array).into_iter().flatten();
    troubles.extend(missing.filter_map(Value::as_str).map(|what| format!("waiting for {what}")));
    for (part, state) in agent.get("parts").and_then(Value::as_object).into_iter().flatten() {
        let down = state.get("running").and_then(Value::as_bool) == Some(false);
        if let Some(error) = state.get("lastError").and_then(Value::as_str).filter(|_| down) {
            troubles.push(format!("{part}: {error}"));
        }
    }
    troubles
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

/// One line per frontend, in-cluster ones first; a frontend that is the same in both scopes is shown once.
fn print_services(services: &Value) {
    say(&format!("  {:<34} {:<13} {:<46} BACKENDS", "SERVICE", "KIND", "FRONTEND"));
    for service in services.as_array().into_iter().flatten() {
        let name = format!("{}/{}", text(service, "namespace"), text(service, "name"));
        let mut shown = Vec::new();
        for frontend in service.get("frontends").and_then(Value::as_array).into_iter().flatten() {
            let line = format!(
                "  {name:<34} {:<13} {:<46} {}",
                text(frontend, "kind"),
                format!("{}/{}", text(frontend, "address"), text(frontend, "protocol")),
                backends(frontend)
            );
            if !shown.contains(&line) {
                say(&line);
                shown.push(line);
            }
        }
    }
}

/// So many backends, and how many of them are on this node.
fn backends(frontend: &Value) -> String {
    let all = frontend.get("backends").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let local =
        all.iter().filter(|backend| backend.get("local").and_then(Value::as_bool) == Some(true)).count();
    match all.len() {
        0 => "none: refused".to_owned(),
        count => format!("{count} ({local} here)"),
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_way_of_packets_between_pods_is_told_where_there_is_a_choice() {
        let told = |path: Value| {
            let agent = json!({"pods": [], "proxy": {"services": 1, "mode": "ebpf", "pod_path": path}});
            detail(&agent)
        };
        let begin = "0 pods, 1 services, proxy ebpf";
        let direct = json!({"direct": true, "reason": null});
        assert_eq!(told(direct), format!("{begin}; pods are handed over directly"));
        let reason = "table ip filter has rules at forward";
        let stack = json!({"direct": false, "reason": reason});
        assert_eq!(told(stack), format!("{begin}; pods go through the stack: {reason}"));
        assert_eq!(told(Value::Null), begin);
    }

    #[test]
    fn what_runs_of_xdp_is_told_link_by_link() {
        let told = |uplinks: Value| xdp(&json!({"proxy": {"xdp": {"uplinks": uplinks, "packets": 7}}}));
        assert_eq!(told(json!([])), None);
        let uplinks = json!([
            {"device": "eth0", "mode": "native", "note": null},
            {"device": "wg0", "mode": "off", "note": "it has no MAC address"},
        ]);
        let line = "XDP: eth0 native, wg0 off (it has no MAC address), 7 packets";
        assert_eq!(told(uplinks).as_deref(), Some(line));
    }
}
