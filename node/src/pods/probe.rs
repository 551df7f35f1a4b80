//! The state machine of one probe. Pure.
//!
//! A container that has just started is probed at once and, while nothing answers yet, again after a few milliseconds:
//! within its first period a failure says only that it is not up yet, and does not count.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    /// Holds the others back until it passes.
    Startup,
    /// Ends the container when it fails.
    Liveness,
    /// Takes the container out of service while it fails.
    Readiness,
}

impl ProbeKind {
    /// As events name it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What follows from one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The health changed to this.
    pub(crate) changed: Option<bool>,
    /// A failure that counts.
    pub(crate) failed: bool,
    /// Probe again after this.
    pub(crate) again_after: Duration,
}

/// One probe of one run of a container.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    kind: ProbeKind,
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    successes: u32,
    failures: u32,
    healthy: Option<bool>,
    eager: Duration,
}

const EAGER_FIRST: Duration = Duration::from_millis(5);
const EAGER_LONGEST: Duration = Duration::from_millis(500);

impl Machine {
    /// With the API's defaults.
    pub(crate) fn new(kind: ProbeKind, probe: &Probe) -> Self {
        let count = |value: Option<i32>, default: u32| value.map_or(default, |v| v.max(1).unsigned_abs());
        Self {
            kind,
            period: Duration::from_secs(count(probe.period_seconds, 10).into()),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
            successes: 0,
            failures: 0,
            healthy: None,
            eager: EAGER_FIRST,
        }
    }

    /// Takes one result; `running_for` is the time since the first probe was due.
    pub(crate) fn result(&mut self, ok: bool, running_for: Duration) -> Verdict {
        if !ok && self.healthy.is_none() && self.failures == 0 && running_for < self.period {
            let again_after = self.eager.min(self.period);
            self.eager = (self.eager * 2).min(EAGER_LONGEST);
            self.successes = 0;
            return Verdict { changed: None, failed: false, again_after };
        }
        if ok {
            self.successes += 1;
            self.failures = 0;
        } else {
            self.failures += 1;
            self.successes = 0;
        }
        let now = if ok && self.successes >= self.success_threshold {
            Some(true)
        } else if !ok && self.failures >= self.failure_threshold {
            Some(false)
        } else {
            // A readiness probe that has not passed yet is not ready without further proof.
            self.healthy
        };
        let changed = (now != self.healthy).then_some(now).flatten();
        self.healthy = now;
        Verdict { changed, failed: !ok, again_after: self.period }
    }

    /// Nothing more to find out.
    pub(crate) fn is_done(&self) -> bool {
        self.kind == ProbeKind::Startup && self.healthy == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(kind: ProbeKind, success: i32, failure: i32) -> Machine {
        let probe = Probe {
            period_seconds: Some(2),
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Probe::default()
        };
        Machine::new(kind, &probe)
    }

    const LATE: Duration = Duration::from_secs(60);

    fn changes(machine: &mut Machine, results: &[bool]) -> Vec<Option<bool>> {
        results.iter().map(|ok| machine.result(*ok, LATE).changed).collect()
    }

    #[test]
    fn thresholds_count_in_a_row() {
        let mut readiness = machine(ProbeKind::Readiness, 2, 3);
        let results = [true, false, true, true, true, false, false, true, false, false, false, false];
        let want = [None, None, None, Some(true), None, None, None, None, None, None, Some(false), None];
        assert_eq!(changes(&mut readiness, &results), want);
        assert_eq!(changes(&mut readiness, &[true, true]), [None, Some(true)]);
    }

    #[test]
    fn a_container_that_is_not_up_yet_is_asked_again_soon_and_forgiven() {
        let mut readiness = machine(ProbeKind::Readiness, 1, 1);
        let mut at = Duration::ZERO;
        let mut tries = 0;
        while at < Duration::from_secs(2) {
            let verdict = readiness.result(false, at);
            assert_eq!((verdict.changed, verdict.failed), (None, false));
            at += verdict.again_after;
            tries += 1;
        }
        assert!((7..20).contains(&tries), "{tries}");
        let verdict = readiness.result(false, at);
        assert_eq!(
            verdict,
            Verdict { changed: Some(false), failed: true, again_after: Duration::from_secs(2) }
        );
    }

    #[test]
    fn success_comes_through_at_once() {
        let mut readiness = machine(ProbeKind::Readiness, 1, 3);
        readiness.result(false, Duration::ZERO);
        let verdict = readiness.result(true, Duration::from_millis(5));
        assert_eq!(verdict.changed, Some(true));
        let verdict = readiness.result(false, Duration::from_millis(10));
        assert_eq!((verdict.changed, verdict.again_after), (None, Duration::from_secs(2)));
    }

    #[test]
    fn a_startup_probe_is_done_once() {
        let mut startup = machine(ProbeKind::Startup, 1, 2);
        assert!(!startup.is_done());
        startup.result(true, Duration::ZERO);
        assert!(startup.is_done());
        let mut failing = machine(ProbeKind::Startup, 1, 2);
        assert_eq!(changes(&mut failing, &[false, false]), [None, Some(false)]);
        assert!(!failing.is_done());
    }
}
