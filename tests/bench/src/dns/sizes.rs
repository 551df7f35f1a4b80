//! Over loopback, server and client (dnsperf) on a core each: the CPU time of an answer from a large zone beside that from
//! a small one, and of a miss beside a hit.

use anyhow::Result;
use seaway_lab::LabNode;

use super::Effort;
use super::peers::{load, questions};
use super::records::Case;
use super::server::Server;
use crate::row::{Report, Row, Target};
use crate::stats::Pairs;

const MISS_TARGET: f64 = 1.1;
const SIZE_TARGET: f64 = 1.05;

/// Measures. All sizes and kinds of question take turns.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("small and large zones over loopback");
    let servers = effort.sizes.iter().map(|&size| Server::ours(node, size, 1, "0"));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let mut beside_small = vec![[const { Pairs::new() }; Case::ALL.len()]; servers.len()];
    let mut beside_hit = vec![[const { Pairs::new() }; 2]; servers.len()];
    for _ in 0..effort.rounds {
        let mut hits_us = Vec::new();
        for (case, kind) in Case::ALL.into_iter().enumerate() {
            let mut costs_us = Vec::new();
            for (server, &size) in servers.iter().zip(effort.sizes) {
                costs_us.push(load(node, server, "1", &questions(node, kind, size)?, effort.seconds)?.cpu_us);
            }
            for (at, cost_us) in costs_us.iter().enumerate() {
                beside_small[at][case].push(*cost_us, costs_us[0]);
                if let Some(miss) = misses().position(|miss| miss == kind) {
                    let hits_us: &Vec<f64> = &hits_us;
                    beside_hit[at][miss].push(*cost_us, hits_us[at]);
                }
            }
            if kind == Case::Hit {
                hits_us = costs_us;
            }
        }
    }
    let small = format!("{} records", effort.sizes[0]);
    for (at, &size) in effort.sizes.iter().enumerate() {
        for (pairs, miss) in beside_hit[at].iter().zip(misses()) {
            let (name, target) = (format!("{}-beside-hit", miss.name()), Target::RatioAtMost(MISS_TARGET));
            let row = Row::beside(&name, size, "us", "hit", pairs.compared(), target);
            report.add(
                row.limited_by("the SOA record that a denial carries: three names more than an address"),
            );
        }
        for (pairs, case) in beside_small[at].iter().zip(Case::ALL).filter(|_| at > 0) {
            let (name, target) = (format!("{}-by-size", case.name()), Target::RatioAtMost(SIZE_TARGET));
            let row = Row::beside(&name, size, "us", &small, pairs.compared(), target);
            report.add(row.limited_by("the records do not fit the processor's caches"));
        }
    }
    Ok(())
}

fn misses() -> impl Iterator<Item = Case> {
    [Case::NxDomain, Case::NoData].into_iter()
}
