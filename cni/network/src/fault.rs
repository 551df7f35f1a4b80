//! A place to break off: tests stop the work before any single write or netlink request, as a kill would.
//!
//! Without the feature `faults`, which only tests of this project switch on, there is nothing here.

#[cfg(feature = "faults")]
mod armed {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    static LEFT: AtomicU64 = AtomicU64::new(0);
    static HURRY: AtomicBool = AtomicBool::new(false);

    /// What [`super::step`] panics with.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Killed;

    /// Lets `steps` steps pass and stops at the next one, whoever takes it. 0: none is stopped.
    pub fn arm(steps: u64) {
        LEFT.store(steps, Ordering::SeqCst);
    }

    /// From now on, whoever waits for another process gives up at once; or waits again as usual.
    pub fn hurry(on: bool) {
        HURRY.store(on, Ordering::SeqCst);
    }

    pub(crate) fn wait(usual: Duration) -> Duration {
        if HURRY.load(Ordering::SeqCst) { Duration::from_millis(1) } else { usual }
    }

    pub(crate) fn step() {
        let counted = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if counted == Ok(1) {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }
}

#[cfg(feature = "faults")]
pub use armed::{Killed, arm, hurry};

use std::time::Duration;

/// Before each change of a file (`disk`), each netlink request that changes something (`Netlink::flush`), and each of
/// nftables.
pub(crate) fn step() {
    #[cfg(feature = "faults")]
    armed::step();
}

/// How long another process is waited for.
pub(crate) fn wait(usual: Duration) -> Duration {
    #[cfg(feature = "faults")]
    return armed::wait(usual);
    #[cfg(not(feature = "faults"))]
    usual
}
