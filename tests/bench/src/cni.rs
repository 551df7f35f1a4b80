//! `bench cni`: what the CNI plugin takes beside bridge + host-local, what a packet between pods takes beside plain
//! veth pairs and beside bridge, and what thousands of nodes cost.

mod by_hand;
mod calls;
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
    /// Round trips per block and side.
    round_trips: usize,
    /// How long a stream is measured, per block and side.
    window_ms: u64,
    /// How often both sides of a way of packets are measured in turn.
    traffic_blocks: usize,
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
    round_trips: 3000,
    window_ms: 300,
    traffic_blocks: 15,
    peers: 5000,
    changes: 20,
};

const QUICK: Effort = Effort {
    blocks: 4,
    calls: 10,
    storms: 1,
    churn: 100,
    round_trips: 1500,
    window_ms: 120,
    traffic_blocks: 7,
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
