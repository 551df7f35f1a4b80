//! Two cores beside one. Server and client cannot have two cores each on a machine that has two, so what is compared is the
//! CPU time of an answer: threads that neither wait for each other nor take each other's memory away spend no more of it
//! than one thread does, and have twice the answers in the same time.
//!
//! The server with two cores is asked by twice the clients, and at the same time a server on each of the cores: cores of a
//! virtual machine differ by a fifth at times. In turn, the only thread of a server would have its core nearly to itself,
//! with the client on the other core, while each thread of the other server shared its core with a client: that is a tenth
//! of an answer's cost, and says nothing about threads.

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
/// Threads come by the cores as the kernel has it, and it takes more turns than elsewhere until that is even.
const TURNS_TIMES: usize = 4;

/// Measures.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("one core and two");
    let questions = questions(node, Case::Hit, SIZE)?;
    let two = Server::ours(node, SIZE, 2, "0,1")?;
    let alone = [Server::ours(node, SIZE, 1, "0")?, Server::ours(node, SIZE, 1, "1")?];
    let asking = |server, times: usize| Asking {
        server,
        questions: &questions,
        sockets: 4 * times,
        under_way: 64 * times,
    };
    let mut pairs = Pairs::new();
    for _ in 0..TURNS_TIMES * effort.rounds * effort.turns() {
        let asked = [asking(&two, 2), asking(&alone[0], 1), asking(&alone[1], 1)];
        let costs_us = side_by_side(node, &asked, "0,1", TURN_S)?;
        // Answers of two cores and of one, in as much time.
        pairs.push(2.0 / costs_us[0], 2.0 / (costs_us[1] + costs_us[2]));
    }
    let row =
        Row::beside("two-cores", SIZE, "1/us", "one core", pairs.compared(), Target::RatioAtLeast(TARGET));
    report.add(if row.is_ok() {
        row.with_note("by the CPU time of an answer, all asked at once: clients need the cores, too")
    } else {
        row.limited_by("clients share the two cores, and the caches with them")
    });
    Ok(())
}
