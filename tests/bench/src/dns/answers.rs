//! Packet to packet, without sockets: CPU time of this thread per answer. A miss beside a hit, and a large zone beside a small
//! one, in turn.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use seaway_dns::{DnsConfig, Metrics, Responder};

use super::Effort;
use super::records::{Case, snapshot};
use crate::row::{Report, Row, Target};
use crate::stats::Pairs;

const MISS_TARGET: f64 = 1.1;
const SIZE_TARGET: f64 = 1.05;
/// Different questions of one measurement.
const PACKETS: usize = 512;

/// A server without sockets, and questions for it.
struct Side {
    responder: Responder,
    packets: Vec<Vec<Vec<u8>>>,
}

/// Measures.
pub fn run(effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("answers without sockets");
    let sides = effort.sizes.iter().map(|&size| Side::new(size)).collect::<Result<Vec<_>>>()?;
    let mut beside_hit = vec![[const { Pairs::new() }; 2]; sides.len()];
    let mut beside_small = vec![[const { Pairs::new() }; 4]; sides.len()];
    // What is measured first finds everything cold.
    sides.iter().try_for_each(|side| side.costs(effort.answers / 10).map(drop))?;
    for _ in 0..3 * effort.rounds {
        let costs = sides.iter().map(|side| side.costs(effort.answers)).collect::<Result<Vec<_>>>()?;
        for (at, cost) in costs.iter().enumerate() {
            for (pairs, miss) in beside_hit[at].iter_mut().zip([1, 2]) {
                pairs.push(cost[miss], cost[0]);
            }
            for (case, pairs) in beside_small[at].iter_mut().enumerate() {
                pairs.push(cost[case], costs[0][case]);
            }
        }
    }
    for (at, &size) in effort.sizes.iter().enumerate() {
        for (pairs, case) in beside_hit[at].iter().zip([Case::NxDomain, Case::NoData]) {
            let (name, target) = (format!("{}-beside-hit", case.name()), Target::RatioAtMost(MISS_TARGET));
            let row = Row::beside(&name, size, "us", "hit", pairs.compared(), target);
            report.add(
                row.limited_by("the SOA record that a denial carries: three names more than an address"),
            );
        }
        if at == 0 {
            continue;
        }
        for (pairs, case) in beside_small[at].iter().zip(Case::ALL) {
            let (name, target) = (format!("{}-by-size", case.name()), Target::RatioAtMost(SIZE_TARGET));
            let peer = format!("{} records", effort.sizes[0]);
            let row = Row::beside(&name, size, "us", &peer, pairs.compared(), target);
            report.add(row.limited_by("the index is deeper, and no longer fits the processor's caches"));
        }
    }
    Ok(())
}

impl Side {
    fn new(size: usize) -> Result<Self> {
        let metrics = Metrics::new(&prometheus::Registry::new())?;
        let responder = Responder::new(&DnsConfig::default(), &Arc::new(snapshot(size)), &metrics)?;
        let packets = Case::ALL.iter().map(|case| case.packets(size, PACKETS)).collect::<Result<_>>()?;
        Ok(Self { responder, packets })
    }

    /// CPU time per answer, in microseconds, of each kind of question.
    fn costs(&self, answers: usize) -> Result<Vec<f64>> {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut reply = Vec::new();
        let mut costs = Vec::new();
        for packets in &self.packets {
            let began = cpu_ns()?;
            for packet in packets.iter().cycle().take(answers) {
                if !self.responder.respond(std::hint::black_box(packet), client, &mut reply) {
                    bail!("no answer");
                }
            }
            costs.push((cpu_ns()? - began) / 1e3 / answers as f64);
        }
        Ok(costs)
    }
}

/// What this thread has run, in nanoseconds.
fn cpu_ns() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().context("an empty schedstat")?.parse()?)
}
