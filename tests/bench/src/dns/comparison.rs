//! What answers cost, compared two ways: a miss beside a hit, and a large zone beside the smallest.

use super::records::Case;
use crate::row::{Report, Row, Target};
use crate::stats::Pairs;

/// Questions about what is not there.
pub const MISSES: [Case; 2] = [Case::NxDomain, Case::NoData];

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
            for (place, miss) in MISSES.into_iter().enumerate() {
                self.push_beside_hit(at, place, [cost[miss as usize], cost[Case::Hit as usize]]);
            }
            for case in Case::ALL {
                self.push_beside_small(at, case, [cost[case as usize], costs[0][case as usize]]);
            }
        }
    }

    /// Takes in what a miss, by its place in [`MISSES`], and a hit cost in the zone of the size at `at`.
    pub fn push_beside_hit(&mut self, at: usize, miss: usize, [miss_us, hit_us]: [f64; 2]) {
        self.beside_hit[at][miss].push(miss_us, hit_us);
    }

    /// Takes in what a question costs in the zone of the size at `at` and in the smallest one.
    pub fn push_beside_small(&mut self, at: usize, case: Case, [large_us, small_us]: [f64; 2]) {
        self.beside_small[at][case as usize].push(large_us, small_us);
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
