//! Pod to pod through a ClusterIP, beside the same pod addressed directly, and beside the nftables peer.

use anyhow::Result;

use super::bed::Bed;
use super::{Effort, GROWING, NFTABLES};
use crate::row::{Report, Row, Target};
use crate::rules::nftables;
use crate::stats::{Pairs, median_us};

const PEER_NFTABLES: &str = "nftables, kube-proxy's shape";

/// Measures every size.
pub fn run(bed: &mut Bed, effort: Effort, report: &mut Report) -> Result<()> {
    for size in effort.sizes {
        bed.serve(GROWING, *size)?;
        let nftables = effort.nftables_sizes.contains(size);
        if nftables {
            load_nftables(bed, *size)?;
        }
        connects(bed, effort, *size, nftables, report)?;
        round_trips(bed, effort, *size, report)?;
    }
    Ok(())
}

fn load_nftables(bed: &Bed, size: usize) -> Result<()> {
    let rules = nftables::rules(&crate::cluster::services(size, NFTABLES));
    // Declared first, so that it can be deleted whether it is there or not.
    let anew = format!("table ip kube-proxy\ndelete table ip kube-proxy\n{rules}");
    bed.load(NFTABLES, &["nft", "-f", "-"], &anew)
}

fn connects(bed: &mut Bed, effort: Effort, size: usize, nftables: bool, report: &mut Report) -> Result<()> {
    let (mut direct, mut peer) = (Pairs::default(), Pairs::default());
    for _ in effort.blocks() {
        let asker = &mut bed.station(GROWING).asker;
        let times = asker.connects(&[GROWING.service(), GROWING.direct()], effort.rounds)?;
        let ours = [median_us(&times[0]), median_us(&times[1])];
        direct.push(ours[0], ours[1]);
        if nftables {
            let asker = &mut bed.station(NFTABLES).asker;
            let times = asker.connects(&[NFTABLES.service(), NFTABLES.direct()], effort.rounds)?;
            // Two processes differ by more than what is to be seen here: each side is told in its own direct times.
            peer.push(ours[0] / ours[1], median_us(&times[0]) / median_us(&times[1]));
        }
    }
    let target = Target::RatioAtMost(1.03);
    report
        .add(Row::beside("clusterip-connect", size, "us", "direct", direct.compared(), target).limited_by(
            "the look-up and the socket's own entry at connect, against a connection this short",
        ));
    if nftables {
        report.add(
            Row::beside("clusterip-connect", size, "direct", PEER_NFTABLES, peer.compared(), Target::None)
                .with_note("each as a multiple of its own direct connections"),
        );
    }
    Ok(())
}

fn round_trips(bed: &mut Bed, effort: Effort, size: usize, report: &mut Report) -> Result<()> {
    let mut pairs = Pairs::default();
    let asker = &mut bed.station(GROWING).asker;
    for block in effort.blocks() {
        // Who is opened first alternates, too: both connections keep the backend's thread that they got.
        let mut targets = [GROWING.service(), GROWING.direct()];
        targets.rotate_left(block % 2);
        let mut times = asker.round_trips(&targets, effort.rounds * 2)?;
        times.rotate_left(block % 2);
        pairs.push(median_us(&times[0]), median_us(&times[1]));
    }
    let target = Target::RatioWithin(0.02);
    let row = Row::beside("clusterip-round-trip", size, "us", "direct", pairs.compared(), target);
    report.add(row.limited_by("nothing of ours is on the way of an open connection: noise of the machine"));
    Ok(())
}
