//! Two cores beside one. Server and client cannot have two cores each on a machine that has two, so what is compared is the
//! CPU time of an answer: threads that neither wait for each other nor take each other's memory away spend no more of it
//! than one thread does, and have twice the answers in the same time.
//!
//! Both servers are asked at once, the one with twice the cores by twice the clients. In turn, the only thread of the one
//! would have its core nearly to itself, with the client on the other core, while each thread of the other one shared its
//! core with a client: that is a tenth of an answer's cost, and says nothing about threads.

use anyhow::Result;
use seaway_lab::LabNode;

use super::Effort;
use super::peers::{Asking, questions, side_by_side};
use super::records::Case;
use super::server::Server;
use super::sizes::TURN_S;
use crate::row::{Report, Row, Target};
use crate::stats::Pairs;

const SIZE: usize = 10_000;
const TARGET: f64 = 1.8;
/// One server has both cores and the other one of them: a disturbance of a core does not meet both alike, and it takes more
/// turns than elsewhere until that is even.
const TURNS_TIMES: usize = 4;

/// Measures.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("one core and two");
    let questions = questions(node, Case::Hit, SIZE)?;
    let (one, two) = (Server::ours(node, SIZE, 1, "0")?, Server::ours(node, SIZE, 2, "0,1")?);
    let asking = |server, times: usize| Asking {
        server,
        questions: &questions,
        sockets: 4 * times,
        under_way: 64 * times,
    };
    let mut pairs = Pairs::new();
    for _ in 0..TURNS_TIMES * effort.rounds * effort.turns() {
        let costs_us = side_by_side(node, &[asking(&two, 2), asking(&one, 1)], "0,1", TURN_S)?;
        // Answers of two cores and of one, in as much time.
        pairs.push(2.0 / costs_us[0], 1.0 / costs_us[1]);
    }
    let row =
        Row::beside("two-cores", SIZE, "1/us", "one core", pairs.compared(), Target::RatioAtLeast(TARGET));
    report.add(if row.is_ok() {
        row.with_note("by the CPU time of an answer, both asked at once: clients need the cores, too")
    } else {
        row.limited_by("clients share the two cores, and the caches with them")
    });
    Ok(())
}
