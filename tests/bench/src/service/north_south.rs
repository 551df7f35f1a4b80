//! From outside: connections per second through NodePort and load balancer address beside the iptables peer, and one
//! stream beside plain forwarding.

use std::net::SocketAddr;

use anyhow::Result;

use super::bed::Bed;
use super::{BIG, Effort, GROWING, IPTABLES, LARGE, NFTABLES, SMALL};
use crate::cluster::{Place, services};
use crate::driver::STREAM_BYTES;
use crate::row::{Report, Row, Target};
use crate::rules::iptables;
use crate::stats::Pairs;

/// Enough to keep two cores busy.
const CLIENT_THREADS: usize = 4;
/// Turns of a stream per block and side.
const STREAM_TURNS: usize = 20;
const PEER_IPTABLES: &str = "iptables, kube-proxy's shape";

/// Measures.
pub fn run(bed: &mut Bed, effort: Effort, report: &mut Report) -> Result<()> {
    for (place, size) in IPTABLES.into_iter().zip([SMALL, effort.iptables_large]) {
        bed.load(place, &["iptables-restore", "--noflush"], &iptables::rules(&services(size, place)))?;
    }
    rates(bed, effort, "nodeport-rate", Place::node_port, report)?;
    rates(bed, effort, "loadbalancer-rate", Place::load_balancer, report)?;
    streams(bed, effort, report)
}

fn rates(
    bed: &mut Bed,
    effort: Effort,
    case: &str,
    target: fn(Place) -> SocketAddr,
    report: &mut Report,
) -> Result<()> {
    let targets = [
        target(GROWING),
        target(IPTABLES[0]),
        target(BIG),
        target(IPTABLES[1]),
        // A pod of a node that translates nothing: what is possible here at all.
        NFTABLES.direct(),
    ];
    let [mut small, mut large, mut growth, mut plain] = std::array::from_fn(|_| Pairs::default());
    for block in effort.blocks() {
        let mut figures = [0.0; 5];
        for step in 0..targets.len() {
            let index = (block + step) % targets.len();
            figures[index] = bed.outside.rate(targets[index], CLIENT_THREADS, effort.window_ms)?;
        }
        let [ours_small, theirs_small, ours_large, theirs_large, forwarded] = figures;
        small.push(ours_small, theirs_small);
        large.push(ours_large, theirs_large);
        growth.push(ours_large, ours_small);
        plain.push(ours_small, forwarded);
    }
    let machine = "client, backend and their network stacks take most of the two cores: see plain forwarding";
    let row =
        |size, peer, pairs: &Pairs, target| Row::beside(case, size, "1/s", peer, pairs.compared(), target);
    report.add(row(SMALL, PEER_IPTABLES, &small, Target::RatioAtLeast(1.3)).limited_by(machine));
    report.add(row(SMALL, "plain forwarding, no Service", &plain, Target::None));
    let ten = Target::RatioAtLeast(0.97);
    report.add(row(LARGE, "ourselves with 10 Services", &growth, ten).limited_by("caches, and noise"));
    let mut against = row(LARGE, PEER_IPTABLES, &large, Target::None);
    if effort.iptables_large != LARGE {
        against = against.with_note(format!("the peer with {} Services only", effort.iptables_large));
    }
    report.add(against);
    Ok(())
}

fn streams(bed: &mut Bed, effort: Effort, report: &mut Report) -> Result<()> {
    for (place, size) in [(GROWING, SMALL), (BIG, LARGE)] {
        let mut pairs = Pairs::default();
        for block in effort.blocks() {
            let targets = [place.node_port_stream(), place.direct_stream()];
            let mut seconds = [0.0; 2];
            for turn in 0..STREAM_TURNS {
                for step in 0..2 {
                    let index = (block + turn + step) % 2;
                    seconds[index] += bed.outside.stream(targets[index])?;
                }
            }
            let rate = |seconds: f64| (STREAM_TURNS as u64 * STREAM_BYTES * 8) as f64 / 1e9 / seconds;
            pairs.push(rate(seconds[0]), rate(seconds[1]));
        }
        let target = Target::RatioAtLeast(0.97);
        report.add(
            Row::beside("nodeport-stream", size, "Gb/s", "plain forwarding", pairs.compared(), target)
                .limited_by("two look-ups of the flow and a rewrite per packet of up to 64 KiB"),
        );
    }
    Ok(())
}
