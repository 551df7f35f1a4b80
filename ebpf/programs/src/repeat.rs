//! Loops that the kernel runs (`bpf_loop`): the verifier looks at a step once, where it would follow a loop of ours
//! through all of its turns, as often as there are ways to come to it.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;

/// What a step returns when another is to come.
pub(crate) const GO_ON: i64 = 0;
/// What a step returns when it was the last.
pub(crate) const END: i64 = 1;

/// Takes up to `times` steps over `state`.
#[inline(always)]
pub(crate) fn repeat<T>(times: u32, step: unsafe extern "C" fn(u64, *mut T) -> i64, state: &mut T) {
    let state: *mut T = state;
    // SAFETY: the helper passes `state`, which lives as long as the call, to each step and to nobody else. It fails for
    // more steps than any caller has.
    unsafe { bpf_loop(times, step as *mut c_void, state.cast(), 0) };
}
