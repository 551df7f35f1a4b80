//! The decision for one pod: filter, score, choose. Pure, and the same every time for the same seed.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::filter::{self, Reason};
use crate::{interpod, score};

/// Clusters up to this size are looked at completely.
const LOOK_AT_ALL: usize = 100;

/// What was decided.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The node to bind to.
    Node(String),
    /// No node does.
    Nowhere {
        /// For people.
        message: String,
        /// Whether the end of some pod may change it.
        depends_on_pods: bool,
    },
}

/// Chooses among equals, and where the search starts in a large cluster.
#[derive(Debug)]
pub(crate) struct Chooser {
    state: u64,
    next: usize,
}

impl Chooser {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, next: 0 }
    }

    /// `SplitMix64`: a seeded sequence is all that is needed.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Decides where `pod` goes.
    pub(crate) fn decide(&mut self, pod: &PodInfo, cluster: &Cluster) -> Decision {
        let total = cluster.nodes().len();
        let demands = interpod::demands(pod, cluster);
        let mut rejections: BTreeMap<Reason, usize> = BTreeMap::new();
        let mut feasible: Vec<&NodeInfo> = Vec::new();
        let enough = enough(total);
        let start = if total == 0 { 0 } else { self.next % total };
        let mut looked_at = 0;
        for node in cluster.nodes().skip(start).chain(cluster.nodes().take(start)) {
            looked_at += 1;
            let reasons = filter::filter(pod, &demands, node);
            if reasons.is_empty() {
                feasible.push(node);
                if feasible.len() >= enough {
                    break;
                }
            }
            for reason in reasons {
                *rejections.entry(reason).or_default() += 1;
            }
        }
        if total > LOOK_AT_ALL {
            self.next = (start + looked_at) % total;
        }
        if feasible.is_empty() {
            let depends_on_pods = rejections.keys().any(Reason::depends_on_pods);
            return Decision::Nowhere { message: filter::message(total, &rejections), depends_on_pods };
        }
        self.best(pod, &feasible)
    }

    fn best(&mut self, pod: &PodInfo, feasible: &[&NodeInfo]) -> Decision {
        let scores = score::score(pod, feasible);
        let top = scores.iter().copied().max().unwrap_or(0);
        let equals: Vec<_> = feasible.iter().zip(&scores).filter(|(_, score)| **score == top).collect();
        let count = u64::try_from(equals.len()).unwrap_or(1).max(1);
        let chosen = usize::try_from(self.random() % count).unwrap_or(0);
        Decision::Node(equals.get(chosen).map(|(node, _)| node.name.clone()).unwrap_or_default())
    }
}

/// How many nodes that do are enough: in large clusters half of them down to a twentieth, as upstream has it.
fn enough(total: usize) -> usize {
    if total <= LOOK_AT_ALL {
        return total.max(1);
    }
    let percent = 50_usize.saturating_sub(total / 125).max(5);
    (total * percent / 100).max(LOOK_AT_ALL)
}
