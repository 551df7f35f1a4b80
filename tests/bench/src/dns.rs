//! `bench dns`: what an answer costs, beside a hit, beside a small zone, and beside other servers with the same records;
//! memory, the time from a change to its answer, and what is left of the service under ten times too many questions.

mod answers;
mod comparison;
mod overload;
mod peers;
mod programming;
pub mod records;
mod scaling;
mod server;
mod sizes;

use std::net::UdpSocket;

use anyhow::{Context, Result};
use seaway_lab::{Lab, LabNode};

use crate::Options;
use crate::driver::{Talker, program};
use crate::row::{Report, Row, Target};
use crate::worker::footprint::Said;

/// The Services and pods of the row about memory: those of Kubernetes's test of 5,000 nodes.
const MEMORY_SERVICES: usize = 8_200;
const MEMORY_PODS: usize = 150_000;
const MEMORY_TARGET_MB: f64 = 60.0;
/// What CoreDNS's documentation says that it takes for them.
const COREDNS_MB: f64 = 212.0;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// How often each side is measured, in turn.
    rounds: usize,
    /// Answers of one measurement without sockets.
    answers: usize,
    /// Records beside the first size, which is what the others are compared with.
    sizes: &'static [usize],
    /// Records at which other servers are measured.
    peer_sizes: &'static [usize],
    /// How long a client asks, in seconds.
    seconds: f64,
    /// Changes of an EndpointSlice.
    changes: usize,
    /// How long there are too many questions, in seconds.
    overload_s: u64,
}

const FULL: Effort = Effort {
    rounds: 5,
    answers: 100_000,
    sizes: &[1_000, 10_000, 50_000],
    peer_sizes: &[1_000, 10_000, 50_000],
    seconds: 1.0,
    changes: 500,
    overload_s: 60,
};

const QUICK: Effort = Effort {
    rounds: 3,
    answers: 20_000,
    sizes: &[1_000, 50_000],
    peer_sizes: &[1_000],
    seconds: 0.4,
    changes: 100,
    overload_s: 3,
};

impl Effort {
    /// How many short turns a client's time is made of.
    fn turns(&self) -> usize {
        (self.seconds / sizes::TURN_S).round() as usize
    }
}

/// Measures.
pub fn run(options: Options, report: &mut Report) -> Result<()> {
    let effort = if options.quick { QUICK } else { FULL };
    answers::run(effort, report)?;
    let lab = Lab::new(1)?;
    let node = lab.node(0);
    memory(node, report)?;
    sizes::run(node, effort, report)?;
    peers::run(node, effort, report)?;
    scaling::run(node, effort, report)?;
    programming::run(node, effort, report)?;
    overload::run(node, effort, report)
}

fn memory(node: &LabNode, report: &mut Report) -> Result<()> {
    Report::progress("memory");
    let (services, pods) = (MEMORY_SERVICES.to_string(), MEMORY_PODS.to_string());
    let arguments = ["footprint", "--services", &services, "--pods", &pods];
    let Said { model_mb, total_mb } = Talker::start(node.command(&program()?), &arguments)?.said()?;
    let target = Target::OursAtMost(MEMORY_TARGET_MB);
    let row = Row::alone("memory", MEMORY_PODS, "MB", total_mb, target);
    let short = if row.is_ok() { "" } else { "falls short; " };
    report.add(row.with_note(format!(
        "{short}{MEMORY_SERVICES} Services; the snapshot alone, which the whole agent shares: {model_mb:.1}; CoreDNS's \
         documentation: {COREDNS_MB}"
    )));
    Ok(())
}

/// A socket of the node, whoever uses it.
fn socket(node: &LabNode, from: &str) -> Result<UdpSocket> {
    node.run(|| UdpSocket::bind((from, 0))).context("cannot bind a client's socket")
}
