//! What answers cost, compared two ways: a miss beside a hit, and a large zone beside the smallest.

use super::records::Case;
use crate::row::{Report, Row, Target};
use crate::stats::Pairs;

const MISSES: [Case; 2] = [Case::NxDomain, Case::NoData];

/// Of one measurement and one size: what an answer of each kind costs, in microseconds, in the order of [`Case::ALL`].
pub type Costs = [f64; Case::ALL.len()];

/// The measurements so far, by size.
pub struct Comparison<'a> {
    sizes: &'a [usize],
    beside_hit: Vec<[Pairs; MISSES.len()]>,
    beside_small: Vec<[Pairs; Case::ALL.len()]>,
}

/// How the rows are called, and what is wanted of them.
pub struct Rows {
    pub suffix: &'static str,
    pub miss: Target,
    pub size: Target,
}

impl<'a> Comparison<'a> {
    pub fn new(sizes: &'a [usize]) -> Self {
        let beside_hit = vec![[const { Pairs::new() }; MISSES.len()]; sizes.len()];
        let beside_small = vec![[const { Pairs::new() }; Case::ALL.len()]; sizes.len()];
        Self { sizes, beside_hit, beside_small }
    }

    /// Takes in what one measurement said, size by size.
    pub fn push(&mut self, costs: &[Costs]) {
        for (at, cost) in costs.iter().enumerate() {
            for (pairs, miss) in self.beside_hit[at].iter_mut().zip(MISSES) {
                pairs.push(cost[miss as usize], cost[Case::Hit as usize]);
            }
            for (case, pairs) in self.beside_small[at].iter_mut().enumerate() {
                pairs.push(cost[case], costs[0][case]);
            }
        }
    }

    pub fn report(&self, rows: &Rows, report: &mut Report) {
        let small = format!("{} records", self.sizes[0]);
        for (at, &size) in self.sizes.iter().enumerate() {
            for (pairs, miss) in self.beside_hit[at].iter().zip(MISSES) {
                let name = format!("{}-beside-hit{}", miss.name(), rows.suffix);
                let row = Row::beside(&name, size, "us", "hit", pairs.compared(), rows.miss);
                report.add(
                    row.limited_by("the SOA record that a denial carries: three names more than an address"),
                );
            }
            for (pairs, case) in self.beside_small[at].iter().zip(Case::ALL).filter(|_| at > 0) {
                let name = format!("{}-by-size{}", case.name(), rows.suffix);
                let row = Row::beside(&name, size, "us", &small, pairs.compared(), rows.size);
                report.add(row.limited_by("the records do not fit the processor's caches"));
            }
        }
    }
}
