//! A packet buffer, through the kernel's helpers: they work on every layout of it and keep checksum offloads right.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use seaway_ebpf_abi::Counter;

use crate::count::count;
use crate::frame::{Dropped, Frame};
use crate::route::SKIP_NEIGH;

/// The note of a packet that is translated (16 bits).
const TRANSLATED: u32 = 0x5377;

/// A packet buffer.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Frame for Skb {
    /// The neighbour is resolved when the packet leaves.
    const ROUTE_FLAGS: u32 = SKIP_NEIGH;

    #[inline(always)]
    fn context(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn load<T>(self, offset: u32, to: &mut T) -> bool {
        let to: *mut T = to;
        // SAFETY: the helper writes at most the size of T, and callers use integer types, which take any bytes.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to.cast::<c_void>(), size_of::<T>() as u32) == 0 }
    }

    #[inline(always)]
    fn peek<const N: usize>(self, offset: u32, to: &mut [u32; N]) -> bool {
        // SAFETY: the context is valid while the program runs; the verifier admits the reads for the bounds are
        // checked. They are of words wherever these lie: in front of an IP header there is room for that.
        unsafe {
            let start = read_volatile(&raw const (*self.0).data) as usize;
            let end = read_volatile(&raw const (*self.0).data_end) as usize;
            let from = start + offset as usize;
            if from + size_of::<[u32; N]>() <= end {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = read_volatile((from as *const u32).add(i));
                }
                return true;
            }
        }
        self.load(offset, to)
    }

    #[inline(always)]
    fn store<T>(self, offset: u32, from: &T) -> Dropped<()> {
        let from: *const T = from;
        // SAFETY: the helper reads at most the size of T.
        check(unsafe { bpf_skb_store_bytes(self.0, offset, from.cast::<c_void>(), size_of::<T>() as u32, 0) })
    }

    #[inline(always)]
    fn store_covered<T>(self, offset: u32, from: &T) -> Dropped<()> {
        let from: *const T = from;
        let (size, flags) = (size_of::<T>() as u32, BPF_F_RECOMPUTE_CSUM as u64);
        // SAFETY: the helper reads at most the size of T.
        check(unsafe { bpf_skb_store_bytes(self.0, offset, from.cast::<c_void>(), size, flags) })
    }

    #[inline(always)]
    fn pseudo_sum(self, offset: u32, diff: u64, flags: u64) -> Dropped<()> {
        // SAFETY: the helper checks the offset.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, 0, diff, flags | BPF_F_PSEUDO_HDR as u64) })
    }

    #[inline(always)]
    fn data_sum_32(self, offset: u32, from: u32, to: u32, flags: u64) -> Dropped<()> {
        // SAFETY: the helper checks the offset.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, from as u64, to as u64, flags | 4) })
    }

    #[inline(always)]
    fn protocol_be(self) -> u16 {
        // SAFETY: the context is valid while the program runs.
        unsafe { read_volatile(&raw const (*self.0).protocol) as u16 }
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).ifindex) }
    }
}

impl Skb {
    /// Adjusts the checksum of an IPv4 header by a difference.
    #[inline(always)]
    pub(crate) fn header_sum(self, offset: u32, diff: u64) -> Dropped<()> {
        // SAFETY: the helper checks the offset.
        check(unsafe { bpf_l3_csum_replace(self.0, offset, 0, diff, 0) })
    }

    /// Replaces a 16-bit word in the checksum of an IPv4 header.
    #[inline(always)]
    pub(crate) fn header_sum_16(self, offset: u32, from: u16, to: u16) -> Dropped<()> {
        // SAFETY: the helper checks the offset.
        check(unsafe { bpf_l3_csum_replace(self.0, offset, from as u64, to as u64, 2) })
    }

    /// Adjusts a transport checksum by a difference of data that it covers.
    #[inline(always)]
    pub(crate) fn data_sum(self, offset: u32, diff: u64, flags: u64) -> Dropped<()> {
        // SAFETY: the helper checks the offset.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, 0, diff, flags) })
    }

    /// Whether the checksum at `offset` is still to be filled in by the device, so that the field holds no more than
    /// the pseudo-header's. The kernel does not tell, but then it ignores replaced data. The field may be changed.
    #[inline(always)]
    pub(crate) fn checksum_is_partial(self, offset: u32) -> bool {
        let (mut before, mut after) = (0_u16, 0_u16);
        // SAFETY: the helper checks the offset.
        self.load(offset, &mut before)
            && unsafe { bpf_l4_csum_replace(self.0, offset, 0, 1, 2) == 0 }
            && self.load(offset, &mut after)
            && before == after
    }

    /// Notes that the packet is translated: the program where it leaves has nothing to do. The note stands in
    /// `tc_index`, which no queueing discipline of today's kernels reads.
    #[inline(always)]
    pub(crate) fn note_translated(self) {
        // SAFETY: the context is valid while the program runs; volatile keeps the access at its width.
        unsafe { write_volatile(&raw mut (*self.0).tc_index, TRANSLATED) }
    }

    /// Whether the note is there; it is taken away.
    #[inline(always)]
    pub(crate) fn take_note(self) -> bool {
        // SAFETY: as above.
        unsafe {
            let noted = read_volatile(&raw const (*self.0).tc_index) == TRANSLATED;
            if noted {
                write_volatile(&raw mut (*self.0).tc_index, 0);
            }
            noted
        }
    }

    /// Whether the packet was sent to this host: a device may also hand over what it overhears.
    #[inline(always)]
    pub(crate) fn is_for_us(self) -> bool {
        const PACKET_HOST: u32 = 0;
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).pkt_type) == PACKET_HOST }
    }
}

/// Flags of a UDP checksum: zero means "none" there.
pub(crate) const UDP_SUM: u64 = BPF_F_MARK_MANGLED_0 as u64;

#[inline(always)]
fn check(code: i64) -> Dropped<()> {
    if code == 0 { Ok(()) } else { Err(Counter::RewriteFailed) }
}

/// The difference of two equally long pieces of data, for the checksum helpers.
#[inline(always)]
pub(crate) fn diff<const N: usize>(from: &mut [u32; N], to: &mut [u32; N]) -> u64 {
    let size = size_of::<[u32; N]>() as u32;
    // SAFETY: the helper reads `size` bytes of each.
    unsafe { bpf_csum_diff(from.as_mut_ptr(), size, to.as_mut_ptr(), size, 0) as u64 & 0xffff_ffff }
}

/// What becomes of a packet, for the hooks that have a buffer of it: one that is dropped is counted.
#[inline(always)]
pub(crate) fn verdict(result: Dropped<i32>) -> i32 {
    match result {
        Ok(verdict) => verdict,
        Err(reason) => {
            count(reason);
            TC_ACT_SHOT
        }
    }
}
