//! Packet to packet, without sockets: CPU time of this thread per answer. A miss beside a hit, and a large zone beside a small
//! one, in turn. This is a sixth of what an answer over a socket costs (`sizes`, which has the targets), so that it shows
//! what is lost in the noise there.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};
use seaway_dns::{DnsConfig, Metrics, Responder};

use super::Effort;
use super::comparison::{Comparison, Costs, Rows};
use super::records::{Case, snapshot};
use crate::row::{Report, Target};

/// Different questions of one measurement.
const PACKETS: usize = 512;
/// So many turns have all sides in one measurement.
const TURNS: usize = 16;

/// A server without sockets, and questions for it.
struct Side {
    responder: Responder,
    packets: Vec<Vec<Vec<u8>>>,
}

/// Measures.
pub fn run(effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("answers without sockets");
    let sides = effort.sizes.iter().map(|&size| Side::new(size)).collect::<Result<Vec<_>>>()?;
    let mut comparison = Comparison::new(effort.sizes);
    // What is measured first finds everything cold.
    costs(&sides, effort.answers / 10)?;
    for _ in 0..3 * effort.rounds {
        comparison.push(&costs(&sides, effort.answers)?);
    }
    comparison.report(&Rows { suffix: "-bare", miss: Target::None, size: Target::None }, report);
    Ok(())
}

impl Side {
    fn new(size: usize) -> Result<Self> {
        let metrics = Metrics::new(&prometheus::Registry::new())?;
        let responder = Responder::new(&DnsConfig::default(), &Arc::new(snapshot(size)), &metrics)?;
        let packets = Case::ALL.iter().map(|case| case.packets(size, PACKETS)).collect::<Result<_>>()?;
        Ok(Self { responder, packets })
    }

    /// CPU time of `answers` answers to one kind of question, in nanoseconds.
    fn cost_ns(&self, case: usize, round: usize, answers: usize) -> Result<u64> {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut reply = Vec::new();
        let began_ns = cpu_ns();
        for packet in self.packets[case].iter().cycle().skip(round * answers % PACKETS).take(answers) {
            if !self.responder.respond(std::hint::black_box(packet), client, &mut reply) {
                bail!("no answer");
            }
        }
        Ok(cpu_ns() - began_ns)
    }
}

/// CPU time per answer, in microseconds, of each side and each kind of question. All take turns of a few milliseconds, so
/// that none of them meets a slower machine than the others.
fn costs(sides: &[Side], answers: usize) -> Result<Vec<Costs>> {
    let turn = answers.div_ceil(TURNS);
    let mut spent_ns = vec![[0; Case::ALL.len()]; sides.len()];
    for round in 0..TURNS {
        for (case, _) in Case::ALL.iter().enumerate() {
            for (side, spent_ns) in sides.iter().zip(&mut spent_ns) {
                spent_ns[case] += side.cost_ns(case, round, turn)?;
            }
        }
    }
    let each_us = |spent_ns: u64| spent_ns as f64 / 1e3 / (turn * TURNS) as f64;
    Ok(spent_ns.into_iter().map(|cases| cases.map(each_us)).collect())
}

/// What this thread has run, in nanoseconds.
fn cpu_ns() -> u64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    spent.tv_sec.unsigned_abs() * 1_000_000_000 + spent.tv_nsec.unsigned_abs()
}
