//! Medians and how far figures spread around them.

/// The value below which the fraction `p` of `values` lies, by linear interpolation; 0 for none.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = p.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The middle of `values`.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Two sides that were measured in turn, block by block.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// What came of two sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// The median of our blocks.
    pub ours: f64,
    /// The median of theirs.
    pub theirs: f64,
    /// The median of the blocks' ratios, ours by theirs: what disturbs the machine for longer than a block disturbs
    /// both sides of it alike.
    pub ratio: f64,
    /// The quartiles of the blocks' ratios.
    pub spread: [f64; 2],
}

impl Pairs {
    /// None yet.
    pub const fn new() -> Self {
        Self { ours: Vec::new(), theirs: Vec::new() }
    }

    /// Takes a block in.
    pub fn push(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// Both sides over all blocks.
    pub fn compared(&self) -> Compared {
        let both = self.ours.iter().zip(&self.theirs);
        let ratios: Vec<f64> = both.filter(|(_, theirs)| **theirs > 0.0).map(|(o, t)| o / t).collect();
        Compared {
            ours: median(&self.ours),
            theirs: median(&self.theirs),
            ratio: median(&ratios),
            spread: [percentile(&ratios, 0.25), percentile(&ratios, 0.75)],
        }
    }
}

/// The median of times in nanoseconds, in microseconds.
pub fn median_us(times_ns: &[u64]) -> f64 {
    let times: Vec<f64> = times_ns.iter().map(|ns| *ns as f64 / 1e3).collect();
    median(&times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "exact by construction")]
    fn percentiles_interpolate() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(percentile(&[0.0, 10.0], 0.99), 9.9);
        assert_eq!(percentile(&[5.0, 1.0, 3.0], 1.0), 5.0);
        assert_eq!(median_us(&[1000, 2000, 9000]), 2.0);
    }

    #[test]
    fn a_disturbance_of_both_sides_of_a_block_does_not_show_in_the_ratio() {
        let mut pairs = Pairs::default();
        for load in [1.0, 1.0, 8.0, 8.0, 1.0] {
            pairs.push(102.0 * load, 100.0 * load);
        }
        let compared = pairs.compared();
        assert!((compared.ratio - 1.02).abs() < 1e-9, "{compared:?}");
        assert!((compared.spread[1] - compared.spread[0]).abs() < 1e-9, "{compared:?}");
    }

    proptest! {
        #[test]
        fn a_percentile_lies_between_the_extremes_and_grows(
            values in prop::collection::vec(0.0..1e6_f64, 1..50),
            p in 0.0..1.0_f64,
        ) {
            let (low, high) = (percentile(&values, 0.0), percentile(&values, 1.0));
            let at = percentile(&values, p);
            prop_assert!(low <= at && at <= high);
            prop_assert!(at <= percentile(&values, f64::midpoint(p, 1.0)) + 1e-9);
        }
    }
}
