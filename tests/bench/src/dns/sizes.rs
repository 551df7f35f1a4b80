//! Over loopback, server and client (dnsperf) on a core each: the CPU time of an answer from a large zone beside that from
//! a small one, and of a miss beside a hit.

use anyhow::Result;
use seaway_lab::LabNode;

use super::Effort;
use super::comparison::{Comparison, Costs, Rows};
use super::peers::{load, questions};
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
        let mut costs_us: Vec<Costs> = vec![Costs::default(); servers.len()];
        for case in Case::ALL {
            for ((server, &size), costs_us) in servers.iter().zip(effort.sizes).zip(&mut costs_us) {
                let questions = questions(node, case, size)?;
                costs_us[case as usize] = load(node, server, "1", &questions, effort.seconds)?.cpu_us;
            }
        }
        comparison.push(&costs_us);
    }
    let (miss, size) = (Target::RatioAtMost(MISS_TARGET), Target::RatioAtMost(SIZE_TARGET));
    comparison.report(&Rows { suffix: "", miss, size }, report);
    Ok(())
}
