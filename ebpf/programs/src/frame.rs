//! A packet as a hook sees it: what the datapath needs of one to read it, rewrite it and look up its way, whether the
//! kernel has made a buffer of it already (`skb`) or not yet (`xdp_buff`).

use core::ffi::c_void;

use seaway_ebpf_abi::Counter;

/// Why a packet is dropped.
pub(crate) type Dropped<T> = Result<T, Counter>;

/// A packet that a hook was called for.
pub(crate) trait Frame: Copy {
    /// Flags of `bpf_fib_lookup`.
    const ROUTE_FLAGS: u32;

    /// What the kernel's helpers know it by.
    fn context(self) -> *mut c_void;

    /// Fills `to` from the packet; false: it ends before.
    fn load<T>(self, offset: u32, to: &mut T) -> bool;

    /// Fills `to` from the packet, without a call where its beginning is in one piece; false: it ends before.
    fn peek<const N: usize>(self, offset: u32, to: &mut [u32; N]) -> bool;

    /// Writes to the packet.
    fn store<T>(self, offset: u32, from: &T) -> Dropped<()>;

    /// Writes to an IPv6 header, which has no checksum of its own: one over the whole packet is kept right.
    fn store_covered<T>(self, offset: u32, from: &T) -> Dropped<()>;

    /// Adjusts a transport checksum by a difference of addresses, which only its pseudo-header has.
    fn pseudo_sum(self, offset: u32, diff: u64, flags: u64) -> Dropped<()>;

    /// Replaces a word in a transport checksum that covers it.
    fn data_sum_32(self, offset: u32, from: u32, to: u32, flags: u64) -> Dropped<()>;

    /// EtherType, network byte order.
    fn protocol_be(self) -> u16;

    /// The device that the packet is at.
    fn ifindex(self) -> u32;
}
