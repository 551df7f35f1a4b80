//! ADD and DEL as a runtime sees them: the process started, fed and read to its end.
//!
//! Each side has a node and pods' namespaces of its own. Ours leaves the deletion of links for after its answer: before
//! the other side has its turn, that is waited for, and it is shown in rows of its own.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result};
use seaway_cni_network::Overlay;
use seaway_cni_network::netlink::Netlink;
use seaway_cni_network::netns::sysctl;
use seaway_lab::{Lab, LabNode};

use super::Effort;
use super::runtime::{Agent, Plugin, Sandbox, ms_since, node_object, settle, snapshot};
use crate::row::{Report, Row, Target};
use crate::stats::{Compared, Pairs, median, percentile};

const PEER: &str = "bridge";
/// How many are called at once.
const STORM: usize = 100;
/// How many pods a node has while they come and go.
const ALIVE: usize = 100;

/// A plugin on its node.
struct Side<'a> {
    node: &'a LabNode,
    plugin: Plugin,
    netlink: Netlink,
}

impl<'a> Side<'a> {
    fn new(node: &'a LabNode, plugin: Plugin) -> Result<Self> {
        Ok(Self { node, plugin, netlink: node.netlink()? })
    }

    /// Does what a runtime on this node does.
    fn run<T: Send>(&self, work: impl FnOnce(&Plugin) -> Result<T> + Send) -> Result<T> {
        self.node.run(|| work(&self.plugin))
    }
}

/// Measures.
pub fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new(2)?;
    let (ours, theirs) = (lab.node(0), lab.node(1));
    let own = node_object(ours.name(), &ours.addresses(), &["10.244.0.0/22".parse()?]);
    let _agent = Agent::start(ours, Overlay::None, snapshot([own]))?;
    theirs.run(|| sysctl::write("net/ipv4/ip_forward", "1"))?;
    let mut sides = [Side::new(ours, Plugin::installed(ours)?)?, Side::new(theirs, Plugin::bridge(theirs)?)?];
    one_at_a_time(&mut sides, effort, report)?;
    at_once(&mut sides, effort, report)?;
    churn(&mut sides, effort, report)
}

/// Times of one verb, per side.
#[derive(Default)]
struct Times {
    blocks: Pairs,
    all: [Vec<f64>; 2],
}

impl Times {
    fn push(&mut self, block: [Vec<f64>; 2]) {
        self.blocks.push(median(&block[0]), median(&block[1]));
        for (all, block) in self.all.iter_mut().zip(block) {
            all.extend(block);
        }
    }

    fn report(&self, verb: &str, target: Target, report: &mut Report) {
        let compared = self.blocks.compared();
        report.add(Row::beside(&format!("{verb}-p50"), 1, "ms", PEER, compared, target));
        let [ours, theirs] = [percentile(&self.all[0], 0.99), percentile(&self.all[1], 0.99)];
        let ratio = ours / theirs;
        let tail = Compared { ours, theirs, ratio, spread: [ratio, ratio] };
        report.add(Row::beside(&format!("{verb}-p99"), 1, "ms", PEER, tail, Target::None));
    }
}

fn one_at_a_time(sides: &mut [Side<'_>; 2], effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("ADD and DEL, one at a time");
    let sandboxes = [Sandbox::new()?, Sandbox::new()?];
    let (mut add, mut del, mut settled) = (Times::default(), Times::default(), Times::default());
    for block in 0..effort.blocks {
        let mut took: [[Vec<f64>; 2]; 3] = Default::default();
        for call in 0..effort.calls {
            for index in [call % 2, 1 - call % 2] {
                let (side, sandbox) = (&mut sides[index], &sandboxes[index]);
                let id = format!("one{block}x{call}");
                took[0][index].push(side.run(|plugin| plugin.call("ADD", &id, sandbox))?.0);
                let begun = Instant::now();
                took[1][index].push(side.run(|plugin| plugin.call("DEL", &id, sandbox))?.0);
                settle(&mut side.netlink, 0)?;
                took[2][index].push(ms_since(begun));
            }
        }
        for (times, block) in [&mut add, &mut del, &mut settled].into_iter().zip(took) {
            times.push(block);
        }
    }
    add.report("add", Target::RatioAtMost(0.333), report);
    del.report("del", Target::RatioAtMost(0.25), report);
    settled.report("del-link-gone", Target::None, report);
    Ok(())
}

/// All of them are started, then all are waited for.
fn storm(side: &Side<'_>, verb: &str, sandboxes: &[Sandbox]) -> Result<f64> {
    side.run(|plugin| {
        let begun = Instant::now();
        let started = sandboxes.iter().enumerate();
        let children: Vec<_> =
            started.map(|(id, one)| plugin.start(verb, &format!("storm{id}"), one)).collect::<Result<_>>()?;
        children.into_iter().try_for_each(|child| Plugin::finish(child).map(drop))?;
        Ok(ms_since(begun))
    })
}

fn at_once(sides: &mut [Side<'_>; 2], effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("a hundred at once");
    let sandboxes = (0..2 * STORM).map(|_| Sandbox::new()).collect::<Result<Vec<_>>>()?;
    let (ours, theirs) = sandboxes.split_at(STORM);
    let mut times: [Pairs; 3] = Default::default();
    // The first one is for caches.
    for round in 0..=effort.storms {
        let mut took = [[0.0; 2]; 3];
        for (index, sandboxes) in [ours, theirs].into_iter().enumerate() {
            let side = &mut sides[index];
            took[0][index] = storm(side, "ADD", sandboxes)?;
            let begun = Instant::now();
            took[1][index] = storm(side, "DEL", sandboxes)?;
            settle(&mut side.netlink, 0)?;
            took[2][index] = ms_since(begun);
        }
        if round > 0 {
            for (times, [ours, theirs]) in times.iter_mut().zip(took) {
                times.push(ours, theirs);
            }
        }
    }
    let names = ["add-at-once", "del-at-once", "del-at-once-links-gone"];
    let targets = [Target::RatioAtMost(0.25), Target::RatioAtMost(0.25), Target::None];
    for ((name, target), times) in names.into_iter().zip(targets).zip(&times) {
        report.add(Row::beside(name, STORM, "ms", PEER, times.compared(), target));
    }
    Ok(())
}

/// Pods come and go, a hundred being there; the time until the last link is gone.
fn churn(sides: &mut [Side<'_>; 2], effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("pods come and go");
    let count = effort.churn;
    let mut totals = [0.0; 2];
    for (side, total) in sides.iter_mut().zip(&mut totals) {
        let sandboxes = (0..=ALIVE).map(|_| Sandbox::new()).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        side.run(|plugin| {
            let mut free: VecDeque<&Sandbox> = sandboxes.iter().collect();
            let mut alive = VecDeque::new();
            for number in 0..count {
                let sandbox = free.pop_front().context("a namespace for one more pod")?;
                plugin.call("ADD", &format!("churn{number}"), sandbox)?;
                alive.push_back((number, sandbox));
                if alive.len() > ALIVE
                    && let Some((oldest, sandbox)) = alive.pop_front()
                {
                    plugin.call("DEL", &format!("churn{oldest}"), sandbox)?;
                    free.push_back(sandbox);
                }
            }
            for (number, sandbox) in alive {
                plugin.call("DEL", &format!("churn{number}"), sandbox)?;
            }
            Ok(())
        })?;
        settle(&mut side.netlink, 0)?;
        *total = ms_since(begun);
    }
    let [ours, theirs] = totals.map(|total| total / count as f64);
    let ratio = ours / theirs;
    let compared = Compared { ours, theirs, ratio, spread: [ratio, ratio] };
    report.add(
        Row::beside("churn-per-pod", count, "ms", PEER, compared, Target::None)
            .with_note("ADD and DEL of a pod on a /22, the last link being gone"),
    );
    Ok(())
}
