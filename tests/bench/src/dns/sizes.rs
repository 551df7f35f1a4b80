//! Over loopback, server and client (dnsperf) on a core each: the CPU time of an answer from a large zone beside that from
//! a small one, and of a miss beside a hit. A virtual machine is a fifth slower from one second to the next: all take turns
//! of a tenth of a second, so that none of them meets a slower machine than the others.

use anyhow::Result;
use seaway_lab::LabNode;

use super::Effort;
use super::comparison::{Comparison, Costs, Rows};
use super::peers::{Spent, questions};
use super::records::Case;
use super::server::Server;
use crate::row::{Report, Target};

const MISS_TARGET: f64 = 1.1;
const SIZE_TARGET: f64 = 1.05;

/// Measures. All sizes and kinds of question take turns.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("small and large zones over loopback");
    let servers = effort.sizes.iter().map(|&size| Server::ours(node, size, 1, "0"));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let mut comparison = Comparison::new(effort.sizes);
    for _ in 0..effort.rounds {
        let mut spent: Vec<[Spent; Case::ALL.len()]> = vec![Default::default(); servers.len()];
        for _ in 0..effort.turns() {
            for case in Case::ALL {
                for ((server, &size), spent) in servers.iter().zip(effort.sizes).zip(&mut spent) {
                    let questions = questions(node, case, size)?;
                    spent[case as usize].ask(node, server, "1", &questions)?;
                }
            }
        }
        let costs_us: Vec<Costs> = spent.iter().map(|cases| cases.map(Spent::each_us)).collect();
        comparison.push(&costs_us);
    }
    let (miss, size) = (Target::RatioAtMost(MISS_TARGET), Target::RatioAtMost(SIZE_TARGET));
    comparison.report(&Rows { suffix: "", miss, size }, report);
    Ok(())
}
