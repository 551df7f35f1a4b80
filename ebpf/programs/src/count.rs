//! Counting, without which nothing is dropped.

use seaway_ebpf_abi::Counter;

use crate::maps::COUNTERS;

/// Adds one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's; an interrupted addition may lose one count, no more.
        unsafe { *slot += 1 };
    }
}
