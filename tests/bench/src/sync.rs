//! `bench sync`: from the API server to packets. A cold start, one change among many, and memory, of an agent that is a
//! process of its own with the real watch and the real proxy.

pub mod footprint;
pub mod server;

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seaway_lab::{Lab, LabNode, LabPod};

use crate::Options;
use crate::cluster::{self, PORT, Place, STREAM_TARGET, Spec, TARGET};
use crate::driver::{Asker, Talker, program};
use crate::objects;
use crate::row::{Report, Row, Target};
use crate::stats::{Pairs, median, percentile};
use crate::worker::agent::Said;
use crate::worker::asker::{Answer, Ask};
use footprint::Footprint;
use server::ApiServer;

const SIZE: usize = 30_000;
const PLACE: Place = Place(1);
/// How long packets may take to follow before it counts as broken.
const FOLLOW_LIMIT_MS: u64 = 2_000;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    cold_starts: usize,
    changes: usize,
}

const FULL: Effort = Effort { cold_starts: 7, changes: 500 };
const QUICK: Effort = Effort { cold_starts: 2, changes: 200 };
/// How much longer than its list a cold start may take.
const EBPF_TARGET_MS: f64 = 500.0;
const NFTABLES_TARGET_MS: f64 = 3_000.0;

/// Measures.
pub fn run(options: Options, report: &mut Report) -> Result<()> {
    let effort = if options.quick { QUICK } else { FULL };
    let site = Site::new()?;
    let (agent, footprints) = cold_starts(&site, "ebpf", EBPF_TARGET_MS, effort, report)?;
    changes(&site, effort, report)?;
    memory(&footprints, &agent, report)?;
    drop(agent);
    let once = Effort { cold_starts: if options.quick { 1 } else { 3 }, ..effort };
    cold_starts(&site, "nftables", NFTABLES_TARGET_MS, once, report).map(drop)
}

/// How an agent came up, from its first list on.
#[derive(Debug, Clone, Copy)]
struct ColdStart {
    /// Until everything was done.
    total_ms: f64,
    /// Until everything was read and converted.
    synced_ms: f64,
    /// What the proxy's own sync took.
    sync_ms: f64,
    services: usize,
}

/// One node with a pod that answers and one that asks, and an API server that knows many Services.
struct Site {
    server: ApiServer,
    specs: Vec<Spec>,
    _backend: Talker,
    pods: [LabPod; 2],
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::new(1)?;
        let node = lab.node(0);
        let backends: Vec<IpAddr> = PLACE.backends().map(IpAddr::from).into();
        let pods = [node.add_pod("backend", &backends)?, node.add_pod("asker", &[PLACE.client().into()])?];
        let (port, stream_port) = (TARGET.to_string(), STREAM_TARGET.to_string());
        let arguments = ["backend", "--port", &port, "--stream-port", &stream_port];
        let mut backend = Talker::start(pods[0].command(&program()?), &arguments)?;
        backend.line()?;
        let specs = cluster::services(SIZE, PLACE);
        Report::progress("writing the lists of the API server");
        // The socket belongs to the node's namespace, wherever it is served.
        let listener = node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let server = ApiServer::start(listener, &specs, PLACE)?;
        Ok(Self { server, specs, _backend: backend, pods, lab })
    }

    fn node(&self) -> &LabNode {
        self.lab.node(0)
    }

    /// Starts an agent and waits until it is done.
    fn agent(&self, work: &str) -> Result<(Talker, ColdStart)> {
        self.server.forget_requests();
        let node = self.node();
        let (url, cgroup, bpffs) = (self.server.url(), node.cgroup().display(), node.bpffs().display());
        let arguments = format!(
            "agent --server {url} --work {work} --node {} --cgroup {cgroup} --bpffs {bpffs}",
            PLACE.node()
        );
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let mut agent = Talker::start(node.command(&program()?), &arguments)?;
        let Said::Done { at_ns, synced_at_ns, services, sync_us, .. } = agent.said()?;
        let begun = self.server.first_request_ns().context("the agent asked for no list")?;
        let since_begun_ms = |at_ns: u64| at_ns.saturating_sub(begun) as f64 / 1e6;
        let (total_ms, synced_ms) = (since_begun_ms(at_ns), since_begun_ms(synced_at_ns));
        Ok((agent, ColdStart { total_ms, synced_ms, sync_ms: sync_us as f64 / 1e3, services }))
    }

    /// Takes away what the agent has left in the kernel.
    fn make_cold(&self) -> Result<()> {
        seaway_ebpf_loader::remove_all(self.node().bpffs())?;
        // The namespace is the bench's own.
        self.node().ok(&["nft", "flush", "ruleset"]);
        Ok(std::fs::create_dir_all(self.node().bpffs())?)
    }
}

/// Agents that start with nothing, and in turn clients that only list. Returns the last agent, running, and what each
/// of them took.
fn cold_starts(
    site: &Site,
    backend: &str,
    target_ms: f64,
    effort: Effort,
    report: &mut Report,
) -> Result<(Talker, Vec<Footprint>)> {
    let (mut starts, mut lists, mut footprints) = (Vec::new(), Vec::new(), Vec::new());
    let mut running = None;
    for number in 1..=effort.cold_starts {
        Report::progress(&format!("{backend}: cold start {number} of {}", effort.cold_starts));
        drop(running.take());
        site.make_cold()?;
        let (client, list) = site.agent("list")?;
        drop(client);
        let (agent, start) = site.agent(backend)?;
        if start.services != SIZE {
            bail!("the agent serves {} Services of {SIZE}", start.services);
        }
        footprints.push(Footprint::of(agent.pid())?);
        starts.push(start);
        lists.push(list.total_ms);
        running = Some(agent);
    }
    let of = |part: fn(&ColdStart) -> f64| starts.iter().map(part).collect::<Vec<f64>>();
    let totals = of(|start| start.total_ms);
    let beyond: Vec<f64> = totals.iter().zip(&lists).map(|(total, list)| total - list).collect();
    let beside_list = |values: &[f64]| {
        let mut pairs = Pairs::default();
        values.iter().zip(&lists).for_each(|(value, list)| pairs.push(*value, *list));
        pairs.compared()
    };
    let (peer, target) = ("the list alone", Target::OursAtMost(target_ms));
    let case = format!("{backend}-cold-sync-beyond-list");
    let row = Row::beside(&case, SIZE, "ms", peer, beside_list(&beyond), target);
    let note = format!(
        "everything read and converted at {:.0} ms, all written at {:.0} ms (of which the proxy's own sync {:.0} ms); the \
         server shares the machine's cores",
        median(&of(|start| start.synced_ms)),
        median(&totals),
        median(&of(|start| start.sync_ms)),
    );
    let note = if row.is_ok() { note } else { format!("falls short: {note}") };
    report.add(row.with_note(note));
    let case = format!("{backend}-cold-sync");
    report.add(Row::beside(&case, SIZE, "ms", peer, beside_list(&totals), Target::None));
    Ok((running.context("no cold start")?, footprints))
}

/// The real Service's only endpoint changes, over and over; a client sees when packets follow.
fn changes(site: &Site, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("one endpoint changes");
    let mut asker = Asker::start(site.pods[1].command(&program()?))?;
    let spec = site.specs.iter().find(|spec| spec.cluster_ip == PLACE.cluster_ip());
    let mut spec = spec.context("the real Service")?.clone();
    let target = (PLACE.cluster_ip(), PORT).into();
    let mut times_ms = Vec::new();
    for number in 0..=effort.changes {
        let backend = PLACE.backends()[number % 2];
        spec.endpoints = vec![backend];
        let ask = Ask::Follow { target, backend: backend.octets()[3], limit_ms: FOLLOW_LIMIT_MS };
        // The first one takes the other endpoints away: until then any of them may answer.
        if number > 0 {
            asker.ask(&ask)?;
        }
        std::thread::sleep(Duration::from_millis(2 + number as u64 % 5));
        let sent_ns = site.server.change_slice(&objects::slice(&spec, 1_000_000 + number as u64))?;
        if number == 0 {
            std::thread::sleep(Duration::from_millis(500));
            continue;
        }
        match asker.answer()? {
            Answer::At(at_ns) => times_ms.push(at_ns.saturating_sub(sent_ns) as f64 / 1e6),
            other => bail!("an answer to something else: {other:?}"),
        }
    }
    let (p50, p99) = (median(&times_ms), percentile(&times_ms, 0.99));
    let quartiles = (percentile(&times_ms, 0.25), percentile(&times_ms, 0.75));
    report.add(
        Row::alone("endpoint-change-p50", SIZE, "ms", p50, Target::None)
            .with_spread(quartiles.0, quartiles.1),
    );
    let note = format!("over {} changes, at most {:.2} ms", times_ms.len(), percentile(&times_ms, 1.0));
    let row = Row::alone("endpoint-change-p99", SIZE, "ms", p99, Target::OursAtMost(10.0));
    let what = if row.is_ok() {
        note
    } else {
        format!("falls short; {note}; server, agent, client and backend share the machine's cores")
    };
    report.add(row.with_note(what));
    Ok(())
}

/// What agents take once they are up, and what the last one takes after all those changes.
fn memory(agents: &[Footprint], last: &Talker, report: &mut Report) -> Result<()> {
    let of =
        |part: fn(&Footprint) -> u64| agents.iter().map(|agent| part(agent) as f64 / 1e6).collect::<Vec<_>>();
    let row = |case: &str, values: &[f64], target| {
        Row::alone(case, SIZE, "MB", median(values), target)
            .with_spread(percentile(values, 0.25), percentile(values, 0.75))
    };
    let target = Target::OursAtMost(100.0);
    let up = row("agent-memory", &of(|agent| agent.resident), target);
    let note = format!("at most {:.0} MB, during the first sync", median(&of(|agent| agent.peak)));
    let limits = "the objects themselves, and what the allocator keeps of the list";
    let note = if up.is_ok() { note } else { format!("falls short: {limits}; {note}") };
    report.add(up.with_note(note));
    let now = Footprint::of(last.pid())?;
    let changed = row("agent-memory-after-changes", &[now.resident as f64 / 1e6], target);
    report.add(changed.limited_by(limits));
    let maps = row("map-memory", &of(|agent| agent.maps), Target::OursAtMost(40.0));
    report.add(maps.with_note(now.largest()));
    Ok(())
}
