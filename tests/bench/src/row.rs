//! A row of a report: what was compared, the ratio and both sides, and whether the target is reached.

use serde::Serialize;

use crate::stats::Compared;

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Shown for comparison only.
    None,
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The ratio lies between 1 − x and 1 + x.
    RatioWithin(f64),
    /// Our figure is at most this.
    OursAtMost(f64),
}

impl Target {
    fn number(self) -> Option<f64> {
        match self {
            Self::None => None,
            Self::RatioAtMost(x) | Self::RatioAtLeast(x) | Self::OursAtMost(x) => Some(x),
            Self::RatioWithin(x) => Some(1.0 + x),
        }
    }

    fn reached(self, ours: f64, ratio: Option<f64>) -> bool {
        let ratio = ratio.unwrap_or(f64::NAN);
        match self {
            Self::None => true,
            Self::RatioAtMost(x) => ratio <= x,
            Self::RatioAtLeast(x) => ratio >= x,
            Self::RatioWithin(x) => (ratio - 1.0).abs() <= x,
            Self::OursAtMost(x) => ours <= x,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::None => "–".to_owned(),
            Self::RatioAtMost(x) => format!("ratio ≤ {x}"),
            Self::RatioAtLeast(x) => format!("ratio ≥ {x}"),
            Self::RatioWithin(x) => format!("ratio 1 ± {x}"),
            Self::OursAtMost(x) => format!("≤ {x}"),
        }
    }
}

/// One figure with its peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    bench: &'static str,
    case: String,
    size: usize,
    unit: &'static str,
    ours: f64,
    peer: Option<String>,
    theirs: Option<f64>,
    ratio: Option<f64>,
    target: Option<f64>,
    ok: bool,
    /// Quartiles: of the ratio where there is one, else of our figure.
    spread: Option<[f64; 2]>,
    /// What limits a figure that falls short, or what it is made of.
    note: Option<String>,
    #[serde(skip)]
    target_text: String,
}

impl Row {
    /// Our figure beside a peer's.
    pub fn beside(
        case: &str,
        size: usize,
        unit: &'static str,
        peer: &str,
        compared: Compared,
        target: Target,
    ) -> Self {
        let ratio = compared.ratio;
        Self {
            peer: Some(peer.to_owned()),
            theirs: Some(compared.theirs),
            ratio: Some(ratio),
            spread: Some(compared.spread),
            ok: target.reached(compared.ours, Some(ratio)),
            ..Self::alone(case, size, unit, compared.ours, target)
        }
    }

    /// Our figure alone.
    pub fn alone(case: &str, size: usize, unit: &'static str, ours: f64, target: Target) -> Self {
        Self {
            bench: "",
            case: case.to_owned(),
            size,
            unit,
            ours,
            peer: None,
            theirs: None,
            ratio: None,
            target: target.number(),
            ok: target.reached(ours, None),
            spread: None,
            note: None,
            target_text: target.shown(),
        }
    }

    /// The same with quartiles of our figure.
    #[must_use]
    pub fn with_spread(self, low: f64, high: f64) -> Self {
        Self { spread: Some([low, high]), ..self }
    }

    /// The same with a remark.
    #[must_use]
    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// The same with a remark on what limits it, if it falls short.
    #[must_use]
    pub fn limited_by(self, what: &str) -> Self {
        if self.ok { self } else { self.with_note(format!("falls short: {what}")) }
    }

    /// Whether the target is reached.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    fn line(&self) -> String {
        let side = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), figure);
        let spread = self
            .spread
            .map_or_else(String::new, |[low, high]| format!("[{}, {}]", figure(low), figure(high)));
        let mut line = format!(
            "{:<30} {:>6} {:>6} {:>10} {:>10} {:>8} {:<16} {:<14} {:<4} {}",
            self.case,
            self.size,
            self.unit,
            figure(self.ours),
            side(self.theirs),
            side(self.ratio),
            spread,
            self.target_text,
            if self.ok { "ok" } else { "NOT" },
            self.peer.as_deref().unwrap_or(""),
        );
        if let Some(note) = &self.note {
            line = format!("{}\n{:>32}{note}", line.trim_end(), "");
        }
        line.trim_end().to_owned()
    }
}

/// Three or four digits that mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        x if x >= 1000.0 => format!("{value:.0}"),
        x if x >= 100.0 => format!("{value:.1}"),
        x if x >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Prints rows as they come.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
    json: bool,
    rows: Vec<Row>,
}

impl Report {
    /// A report of `bench`.
    pub fn new(bench: &'static str, json: bool) -> Self {
        if !json {
            println!(
                "{:<30} {:>6} {:>6} {:>10} {:>10} {:>8} {:<16} {:<14} {:<4} peer",
                "case", "size", "unit", "ours", "theirs", "ratio", "quartiles", "target", "ok"
            );
        }
        Self { bench, json, rows: Vec::new() }
    }

    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let row = Row { bench: self.bench, ..row };
        match serde_json::to_string(&row) {
            Ok(text) if self.json => println!("{text}"),
            _ => println!("{}", row.line()),
        }
        self.rows.push(row);
    }

    /// Says on standard error what goes on.
    pub fn progress(what: &str) {
        eprintln!("bench: {what}");
    }

    /// Says how many targets are reached.
    pub fn finish(&self) {
        let with_target = self.rows.iter().filter(|row| row.target.is_some());
        let (reached, missed): (Vec<&Row>, Vec<&Row>) = with_target.partition(|row| row.ok);
        eprintln!("bench: {} targets reached, {} not", reached.len(), missed.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn compared(ours: f64, theirs: f64) -> Compared {
        let ratio = ours / theirs;
        Compared { ours, theirs, ratio, spread: [ratio - 0.01, ratio + 0.01] }
    }

    #[test]
    fn json_has_the_agreed_fields() {
        let row = Row::beside(
            "clusterip-connect",
            10_000,
            "us",
            "direct",
            compared(51.0, 50.0),
            Target::RatioAtMost(1.03),
        );
        let row = Row { bench: "service", ..row };
        expect![[r#"{"bench":"service","case":"clusterip-connect","size":10000,"unit":"us","ours":51.0,"peer":"direct","theirs":50.0,"ratio":1.02,"target":1.03,"ok":true,"spread":[1.01,1.03],"note":null}"#]]
        .assert_eq(&serde_json::to_string(&row).unwrap());
    }

    #[test]
    fn lines_are_for_people() {
        let rate = Row::beside(
            "nodeport-rate",
            10,
            "1/s",
            "iptables",
            compared(12_000.0, 10_000.0),
            Target::RatioAtLeast(1.3),
        );
        let rss = Row::alone("agent-rss", 30_000, "MB", 80.25, Target::OursAtMost(100.0));
        expect![[r"
            nodeport-rate                      10    1/s      12000      10000    1.200 [1.190, 1.210]   ratio ≥ 1.3    NOT  iptables
                                            falls short: the client
            agent-rss                       30000     MB      80.25          –        –                  ≤ 100          ok"]]
        .assert_eq(&format!("{}\n{}", rate.limited_by("the client").line(), rss.limited_by("").line()));
    }

    #[test]
    fn targets_hold_on_their_side_only() {
        assert!(Target::RatioWithin(0.02).reached(0.0, Some(0.981)));
        assert!(!Target::RatioWithin(0.02).reached(0.0, Some(0.97)));
        assert!(!Target::RatioAtLeast(1.3).reached(9.0, Some(1.29)));
        assert!(Target::OursAtMost(10.0).reached(10.0, None));
        assert!(!Target::RatioAtMost(1.0).reached(0.0, None), "a target on a ratio needs one");
    }
}
