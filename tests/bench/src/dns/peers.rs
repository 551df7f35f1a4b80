//! Over loopback, server and client (dnsperf) on a core each: CPU time per answer, answers per second, and times at half load,
//! of our server and of others with the same records, in turn.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use seaway_lab::LabNode;

use super::Effort;
use super::records::Case;
use super::server::{Server, pinned};
use super::sizes::TURN_S;
use crate::row::{Report, Row, Target};
use crate::stats::{Pairs, median, percentile};

/// Of CoreDNS's CPU time per answer.
const COREDNS_TARGET: f64 = 0.8;

/// What came of a client's run.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// CPU time of the server per answer, in microseconds; seconds per million are the same number.
    pub cpu_us: f64,
    /// Answers per second.
    pub rate: f64,
}

/// Measures at every size.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    for &size in effort.peer_sizes {
        Report::progress(&format!("{size} records over loopback"));
        let mut servers = vec![Server::ours(node, size, 1, "0")?];
        servers.extend(Server::peers(node, size)?);
        for case in Case::ALL {
            let questions = questions(node, case, size)?;
            costs(node, &servers, (case, size), &questions, effort, report)?;
            if case == Case::Hit {
                times(node, &servers, size, &questions, effort, report)?;
            }
        }
    }
    Ok(())
}

/// The questions as a file for dnsperf.
pub fn questions(node: &LabNode, case: Case, size: usize) -> Result<PathBuf> {
    let file = node.state_dir().join(format!("{}-{size}.txt", case.name()));
    std::fs::write(&file, case.lines(size))?;
    Ok(file)
}

fn costs(
    node: &LabNode,
    servers: &[Server],
    (case, size): (Case, usize),
    questions: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut pairs = vec![Pairs::new(); servers.len()];
    let mut rates = vec![Vec::new(); servers.len()];
    for _ in 0..effort.rounds {
        let loads = servers.iter().map(|server| load(node, server, "1", questions, effort.seconds));
        let loads = loads.collect::<Result<Vec<_>>>()?;
        for (at, load) in loads.iter().enumerate() {
            pairs[at].push(loads[0].cpu_us, load.cpu_us);
            rates[at].push(load.rate);
        }
    }
    for (at, server) in servers.iter().enumerate().skip(1) {
        let target =
            if server.name == "coredns" { Target::RatioAtMost(COREDNS_TARGET) } else { Target::None };
        let name = format!("{}-cpu", case.name());
        let row = Row::beside(&name, size, "us", server.name, pairs[at].compared(), target);
        let (ours, theirs) = (median(&rates[0]), median(&rates[at]));
        report.add(row.with_note(format!("answers per second: {ours:.0}, {theirs:.0}")));
    }
    Ok(())
}

/// The server's CPU time while a client asks as fast as it gets answers.
pub fn load(node: &LabNode, server: &Server, core: &str, questions: &Path, seconds: f64) -> Result<Load> {
    let before = server.cpu_ns()?;
    let arguments = ["-c", "4", "-q", "64", "-l", &seconds.to_string()];
    let text = dnsperf(node, core, server.port, questions, &arguments)?;
    let cpu_ns = server.cpu_ns()? - before;
    let answers = field(&text, "Queries completed:")?;
    Ok(Load { cpu_us: cpu_ns / 1e3 / answers, rate: field(&text, "Queries per second:")? })
}

/// A client that asks one of several servers which are asked at once.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    pub server: &'a Server,
    pub questions: &'a Path,
    /// Its sockets.
    pub sockets: usize,
    /// Questions that it has under way.
    pub under_way: usize,
}

/// CPU time per answer, in microseconds, of each server, while clients on `cores` ask all of them at once.
pub fn side_by_side(node: &LabNode, asking: &[Asking<'_>], cores: &str, seconds: f64) -> Result<Vec<f64>> {
    let seconds = seconds.to_string();
    let mut running = Vec::new();
    for asking in asking {
        let (sockets, under_way) = (asking.sockets.to_string(), asking.under_way.to_string());
        let arguments = ["-c", &sockets, "-q", &under_way, "-l", &seconds];
        let mut command = client(node, cores, asking.server.port, asking.questions, &arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let before_ns = asking.server.cpu_ns()?;
        running.push((asking.server, before_ns, command.spawn().context("cannot run dnsperf")?));
    }
    // All of them have to end before one may fail.
    let ended: Vec<_> = running
        .into_iter()
        .map(|(server, before_ns, child)| (server, before_ns, child.wait_with_output()))
        .collect();
    let cost = |(server, before_ns, output): (&Server, f64, io::Result<Output>)| {
        let text = told(&output.context("cannot run dnsperf")?)?;
        Ok((server.cpu_ns()? - before_ns) / 1e3 / field(&text, "Queries completed:")?)
    };
    ended.into_iter().map(cost).collect()
}

fn dnsperf(node: &LabNode, cores: &str, port: u16, questions: &Path, arguments: &[&str]) -> Result<String> {
    told(&client(node, cores, port, questions, arguments).output().context("cannot run dnsperf")?)
}

fn client(node: &LabNode, cores: &str, port: u16, questions: &Path, arguments: &[&str]) -> Command {
    let mut command = pinned(node, cores, "dnsperf");
    command.args(["-s", "127.0.0.1", "-p", &port.to_string(), "-d"]).arg(questions).args(arguments);
    command
}

fn told(output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("dnsperf: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn field(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("dnsperf does not say {name:?}: {text}"))
}

/// The slowest hundredth of answers at half of what the slowest server can do.
fn times(
    node: &LabNode,
    servers: &[Server],
    size: usize,
    questions: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut slowest = f64::INFINITY;
    for server in servers {
        slowest = slowest.min(load(node, server, "1", questions, effort.seconds / 2.0)?.rate);
    }
    let rate = (slowest / 2.0).round();
    let mut pairs = vec![Pairs::new(); servers.len()];
    for _ in 0..effort.rounds {
        // The machine stands still at times, which takes one turn of somebody: the median turn is another.
        let mut turns_us = vec![Vec::new(); servers.len()];
        for turn in 0..effort.turns() {
            for step in 0..servers.len() {
                let at = (turn + step) % servers.len();
                turns_us[at].push(p99_us(node, &servers[at], questions, rate)?);
            }
        }
        for (pairs, theirs) in pairs.iter_mut().zip(&turns_us) {
            pairs.push(median(&turns_us[0]), median(theirs));
        }
    }
    for (server, pairs) in servers.iter().zip(&pairs).skip(1) {
        let target = Target::RatioAtMost(1.0);
        let row = Row::beside("p99-at-half-load", size, "us", server.name, pairs.compared(), target);
        let row = row.limited_by("the client's own waits, and whoever else runs on this machine");
        report.add(if row.is_ok() { row.with_note(format!("{rate:.0} questions per second")) } else { row });
    }
    Ok(())
}

/// The slowest hundredth of answers in a turn, while so many questions are asked a second.
fn p99_us(node: &LabNode, server: &Server, questions: &Path, rate: f64) -> Result<f64> {
    let (rate, seconds) = (rate.to_string(), TURN_S.to_string());
    let arguments = ["-c", "4", "-l", &seconds, "-Q", &rate, "-v"];
    let text = dnsperf(node, "1", server.port, questions, &arguments)?;
    // "> NOERROR name A 0.000123"
    let times = text.lines().filter(|line| line.starts_with("> "));
    let times: Vec<f64> = times.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    if times.is_empty() {
        bail!("dnsperf tells no times: {text}");
    }
    Ok(percentile(&times, 0.99) * 1e6)
}
