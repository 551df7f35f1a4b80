//! Over loopback, the servers on one core and their clients (dnsperf) on the other: the CPU time of an answer from a large
//! zone beside that from a small one, and of a miss beside a hit.
//!
//! The two of a pair are asked at once. A virtual machine is a tenth slower or faster from one moment to the next, however
//! short turns are; servers that share a core meet the same machine, and their ratio spreads a quarter as far. They share
//! the core's caches as well, of which each has less than it would have alone.

use std::path::{Path, PathBuf};

use anyhow::Result;
use seaway_lab::LabNode;

use super::Effort;
use super::comparison::{Comparison, MISSES, Rows};
use super::peers::{Asking, questions, side_by_side};
use super::records::Case;
use super::server::Server;
use crate::row::{Report, Target};

const MISS_TARGET: f64 = 1.1;
const SIZE_TARGET: f64 = 1.05;
/// How long a pair is asked at a time, in seconds.
pub const TURN_S: f64 = 0.1;

/// Two servers with the same records, and the questions about them.
struct Twins {
    one: Server,
    other: Server,
    questions: Vec<PathBuf>,
}

/// Measures. All pairs take turns.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("small and large zones over loopback");
    let twins = effort.sizes.iter().map(|&size| Twins::start(node, size)).collect::<Result<Vec<_>>>()?;
    let mut comparison = Comparison::new(effort.sizes);
    for turn in 0..effort.rounds * effort.turns() {
        // Whoever is asked first is ahead by the start of the other's client.
        let swapped = turn % 2 == 1;
        for (at, twins) in twins.iter().enumerate() {
            for (place, miss) in MISSES.into_iter().enumerate() {
                let asked = [(&twins.one, twins.about(miss)), (&twins.other, twins.about(Case::Hit))];
                comparison.push_beside_hit(at, place, pair(node, asked, swapped)?);
            }
        }
        for (at, large) in twins.iter().enumerate().skip(1) {
            for case in Case::ALL {
                let asked = [(&large.one, large.about(case)), (&twins[0].one, twins[0].about(case))];
                comparison.push_beside_small(at, case, pair(node, asked, swapped)?);
            }
        }
    }
    let (miss, size) = (Target::RatioAtMost(MISS_TARGET), Target::RatioAtMost(SIZE_TARGET));
    comparison.report(&Rows { suffix: "", miss, size }, report);
    Ok(())
}

impl Twins {
    fn start(node: &LabNode, size: usize) -> Result<Self> {
        let server = || Server::ours(node, size, 1, "0");
        let questions = Case::ALL.iter().map(|&case| questions(node, case, size));
        Ok(Self { one: server()?, other: server()?, questions: questions.collect::<Result<_>>()? })
    }

    fn about(&self, case: Case) -> &Path {
        &self.questions[case as usize]
    }
}

/// What an answer costs each of two servers, in microseconds.
fn pair(node: &LabNode, asked: [(&Server, &Path); 2], swapped: bool) -> Result<[f64; 2]> {
    let mut asking = asked.map(|(server, questions)| Asking { server, questions, sockets: 4, under_way: 64 });
    if swapped {
        asking.reverse();
    }
    let costs_us = side_by_side(node, &asking, "1", TURN_S)?;
    Ok(if swapped { [costs_us[1], costs_us[0]] } else { [costs_us[0], costs_us[1]] })
}
