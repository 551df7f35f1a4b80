//! How long a container that ended waits before it runs again: at once the first time, then 10 s doubling to 5 min; a
//! run of 10 min is forgiven. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
const FORGIVEN: Duration = Duration::from_secs(600);

/// The back-off of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Backoff {
    restarts: u32,
}

impl Backoff {
    /// The delay between the end of a run and the next start.
    pub(crate) fn delay(self) -> Duration {
        doubled(FIRST, self.restarts, LONGEST)
    }

    /// A run of this length ended.
    pub(crate) fn ended(&mut self, ran: Duration) {
        if ran >= FORGIVEN {
            self.restarts = 0;
        }
    }

    /// It was started again.
    pub(crate) fn restarted(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
    }
}

/// Zero for the first time, then `first` doubling with every further time, at most `longest`.
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    match times {
        0 => Duration::ZERO,
        n => first.saturating_mul(1 << (n - 1).min(16)).min(longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut delays = Vec::new();
        for _ in 0..8 {
            delays.push(backoff.delay().as_secs());
            backoff.restarted();
            backoff.ended(Duration::from_secs(1));
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let mut backoff = Backoff { restarts: 7 };
        backoff.ended(Duration::from_secs(599));
        assert_eq!(backoff.delay(), LONGEST);
        backoff.ended(Duration::from_secs(600));
        assert_eq!(backoff.delay(), Duration::ZERO);
    }
}
