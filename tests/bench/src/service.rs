//! `bench service`: what a Service costs a connection, a round trip and a stream, beside the pod addressed directly and
//! beside kube-proxy's modes.

mod bed;
mod east_west;
mod lookup;
mod north_south;
pub mod proxy;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Options;
use crate::cluster::Place;
use crate::row::Report;
use bed::Bed;

/// The largest size: the one that the targets name.
const LARGE: usize = 30_000;
/// The smallest.
const SMALL: usize = 10;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How often both sides are measured in turn.
    pub blocks: usize,
    /// Connections or round trips per block and side.
    pub rounds: usize,
    /// How long rates are measured, per block and side.
    pub window_ms: u64,
    /// Sizes of connections inside.
    pub sizes: &'static [usize],
    /// Sizes at which the nftables peer is loaded: its rules take minutes at the largest.
    pub nftables_sizes: &'static [usize],
    /// The larger size of the iptables peer.
    pub iptables_large: usize,
    /// From then on the fewest blocks have to do.
    pub deadline: Option<Instant>,
}

impl Effort {
    /// Both sides are measured in turn at least so often.
    const FEWEST: usize = 3;

    /// The numbers of the blocks, as many as there is time for.
    pub fn blocks(self) -> impl Iterator<Item = usize> {
        let late = move || self.deadline.is_some_and(|deadline| Instant::now() > deadline);
        (0..self.blocks).take_while(move |block| *block < Self::FEWEST || !late())
    }
}

/// A quick run has to end within 45 s: what is begun after this is short.
const QUICK_LIMIT: Duration = Duration::from_secs(32);

const FULL: Effort = Effort {
    blocks: 40,
    rounds: 200,
    window_ms: 300,
    sizes: &[SMALL, 1_000, 10_000, LARGE],
    nftables_sizes: &[SMALL, 1_000],
    iptables_large: LARGE,
    deadline: None,
};

const QUICK: Effort = Effort {
    blocks: 10,
    rounds: 100,
    window_ms: 120,
    sizes: &[SMALL, LARGE],
    nftables_sizes: &[SMALL],
    iptables_large: 1_000,
    deadline: None,
};

/// The node whose proxy takes every size.
const GROWING: Place = Place(1);
/// The node that the nftables peer serves.
const NFTABLES: Place = Place(2);
/// The node whose proxy has the largest size.
const BIG: Place = Place(3);
/// The nodes that the iptables peer serves, with few Services and with many.
const IPTABLES: [Place; 2] = [Place(4), Place(5)];

/// Measures.
pub fn run(options: Options, report: &mut Report) -> Result<()> {
    let deadline = Some(Instant::now() + QUICK_LIMIT);
    let effort = if options.quick { Effort { deadline, ..QUICK } } else { FULL };
    let mut bed = Bed::new(5)?;
    bed.serve(GROWING, SMALL)?;
    bed.serve(BIG, LARGE)?;
    north_south::run(&mut bed, effort, report)?;
    lookup::run(&bed, effort, report)?;
    east_west::run(&mut bed, effort, report)
}
