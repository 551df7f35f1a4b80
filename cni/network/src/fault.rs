//! A place to break off: tests stop the work before any single write or netlink request, as a kill would.
//!
//! Without the feature `faults`, which only tests of this project switch on, there is nothing here.

#[cfg(feature = "faults")]
mod armed {
    use std::sync::atomic::{AtomicU64, Ordering};

    static LEFT: AtomicU64 = AtomicU64::new(0);

    /// What [`super::step`] panics with.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Killed;

    /// Lets `steps` steps pass and stops at the next one, whoever takes it. 0: none is stopped.
    pub fn arm(steps: u64) {
        LEFT.store(steps, Ordering::SeqCst);
    }

    pub(crate) fn step() {
        let counted = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if counted == Ok(1) {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }
}

#[cfg(feature = "faults")]
pub use armed::{Killed, arm};

/// Before each write of a file and each netlink request.
pub(crate) fn step() {
    #[cfg(feature = "faults")]
    armed::step();
}
