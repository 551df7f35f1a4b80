//! Pod to pod through a ClusterIP, beside the same pod addressed directly, and beside the nftables peer.

use anyhow::Result;

use super::bed::Bed;
use super::{Effort, GROWING, LARGE, NFTABLES};
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
    hooks(bed, effort, report)
}

fn load_nftables(bed: &Bed, size: usize) -> Result<()> {
    let rules = nftables::rules(&crate::cluster::services(size, NFTABLES));
    // Declared first, so that it can be deleted whether it is there or not.
    let anew = format!("table ip kube-proxy\ndelete table ip kube-proxy\n{rules}");
    bed.load(NFTABLES, &["nft", "-f", "-"], &anew)
}

fn connects(bed: &mut Bed, effort: Effort, size: usize, nftables: bool, report: &mut Report) -> Result<()> {
    let (mut direct, mut peer, mut peer_direct) = (Pairs::default(), Pairs::default(), Pairs::default());
    for _ in effort.blocks() {
        let asker = &mut bed.station(GROWING).asker;
        let times = asker.connects(&[GROWING.service(), GROWING.direct()], effort.rounds)?;
        let ours = median_us(&times[0]);
        direct.push(ours, median_us(&times[1]));
        if nftables {
            let asker = &mut bed.station(NFTABLES).asker;
            let times = asker.connects(&[NFTABLES.service(), NFTABLES.direct()], effort.rounds)?;
            peer.push(ours, median_us(&times[0]));
            peer_direct.push(median_us(&times[0]), median_us(&times[1]));
        }
    }
    let target = Target::RatioAtMost(1.03);
    report
        .add(Row::beside("clusterip-connect", size, "us", "direct", direct.compared(), target).limited_by(
            "the look-up and the socket's own entry at connect, against a connection this short",
        ));
    if nftables {
        let none = Target::None;
        report.add(Row::beside("clusterip-connect", size, "us", PEER_NFTABLES, peer.compared(), none));
        let compared = peer_direct.compared();
        report.add(
            Row::beside("nftables-clusterip-connect", size, "us", "direct", compared, none)
                .with_note("the peer's own ratio, on its own node"),
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

/// What the hooks cost connections that have no Service.
fn hooks(bed: &mut Bed, effort: Effort, report: &mut Report) -> Result<()> {
    let mut pairs = Pairs::default();
    for _ in effort.blocks() {
        let station = bed.station(GROWING);
        let hooked = station.asker.connects(&[GROWING.direct()], effort.rounds)?;
        let bare = station.unhooked.connects(&[GROWING.direct()], effort.rounds)?;
        pairs.push(median_us(&hooked[0]), median_us(&bare[0]));
    }
    let compared = pairs.compared();
    report.add(Row::beside("direct-connect", LARGE, "us", "a process without hooks", compared, Target::None));
    Ok(())
}
