//! `bench cni`: what the CNI plugin takes beside bridge + host-local, what a packet between pods takes beside plain
//! veth pairs and beside bridge, and what thousands of nodes cost.

mod by_hand;
mod calls;
mod paths;
mod peers;
pub mod runtime;
mod traffic;

use anyhow::Result;

use crate::Options;
use crate::row::Report;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How often both sides are measured in turn.
    blocks: usize,
    /// Calls of each verb per block and side.
    calls: usize,
    /// How often a hundred are called at once, per side.
    storms: usize,
    /// Pods that come and go.
    churn: usize,
    /// How often all ways of packets are compared.
    traffic_blocks: usize,
    /// How many turns each way takes in a block.
    turns: usize,
    /// Other nodes.
    peers: u16,
    /// Changes of one node that are measured.
    changes: usize,
}

const FULL: Effort = Effort {
    blocks: 10,
    calls: 20,
    storms: 5,
    churn: 1000,
    traffic_blocks: 15,
    turns: 14,
    peers: 5000,
    changes: 20,
};

const QUICK: Effort = Effort {
    blocks: 4,
    calls: 10,
    storms: 1,
    churn: 100,
    traffic_blocks: 7,
    turns: 5,
    peers: 5000,
    changes: 5,
};

/// Measures.
pub fn run(options: Options, report: &mut Report) -> Result<()> {
    let effort = if options.quick { QUICK } else { FULL };
    calls::run(effort, report)?;
    traffic::run(effort, report)?;
    peers::run(effort, report)
}
