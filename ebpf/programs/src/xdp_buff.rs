//! A packet that the kernel has made no buffer of yet: bytes where the device left them. Nothing keeps checksums right
//! here but we.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_load_bytes;
use seaway_ebpf_abi::{Counter, XdpLink, checksum};

use crate::frame::{Dropped, Frame};
use crate::skb::UDP_SUM;

/// Headers lie below this offset: the verifier wants a bound, and nobody writes further back.
const NEAR: u32 = 0xff;

/// A packet at the XDP hook.
#[derive(Clone, Copy)]
pub(crate) struct XdpBuff(pub(crate) *mut xdp_md);

impl XdpBuff {
    /// Where its first piece begins and ends.
    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            (
                read_volatile(&raw const (*self.0).data) as usize,
                read_volatile(&raw const (*self.0).data_end) as usize,
            )
        }
    }

    /// A place in its headers.
    #[inline(always)]
    fn at<T>(self, offset: u32) -> Option<*mut T> {
        let (start, end) = self.bounds();
        let place = start + (offset & NEAR) as usize;
        if place + size_of::<T>() <= end { Some(place as *mut T) } else { None }
    }

    /// Bytes in its first piece.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        let (start, end) = self.bounds();
        (end - start) as u32
    }

    /// A field of its headers; 0: it ends before.
    #[inline(always)]
    pub(crate) fn field(self, offset: u32) -> u16 {
        // SAFETY: `at` has checked the bounds. Words may lie anywhere.
        self.at(offset).map_or(0, |field| unsafe { read_volatile(field) })
    }

    /// Whether it was sent to this link: a device may also hand over what it overhears.
    #[inline(always)]
    pub(crate) fn is_for(self, link: &XdpLink) -> bool {
        // SAFETY: as above.
        let head = self.at(0).map_or(0, |head: *mut u32| unsafe { read_volatile(head) });
        head == link.mac_head && self.field(4) == link.mac_tail
    }

    #[inline(always)]
    fn change_sum(self, offset: u32, flags: u64, change: impl FnOnce(u16) -> u16) -> Dropped<()> {
        let Some(place) = self.at::<u16>(offset) else { return Err(Counter::RewriteFailed) };
        // SAFETY: as above.
        let field = unsafe { read_volatile(place) };
        let udp = flags & UDP_SUM != 0;
        if udp && field == 0 {
            // It has none.
            return Ok(());
        }
        let field = match change(field) {
            0 if udp => 0xffff,
            field => field,
        };
        // SAFETY: as above.
        unsafe { write_volatile(place, field) };
        Ok(())
    }
}

impl Frame for XdpBuff {
    /// The neighbour has to be known.
    const ROUTE_FLAGS: u32 = 0;

    #[inline(always)]
    fn context(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn load<T>(self, offset: u32, to: &mut T) -> bool {
        let to: *mut T = to;
        // SAFETY: the helper writes at most the size of T, and callers use integer types, which take any bytes.
        unsafe { bpf_xdp_load_bytes(self.0, offset, to.cast::<c_void>(), size_of::<T>() as u32) == 0 }
    }

    #[inline(always)]
    fn peek<const N: usize>(self, offset: u32, to: &mut [u32; N]) -> bool {
        let Some(from) = self.at::<[u32; N]>(offset) else { return self.load(offset, to) };
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: as above.
            *to = unsafe { read_volatile(from.cast::<u32>().add(i)) };
        }
        true
    }

    #[inline(always)]
    fn store<T>(self, offset: u32, from: &T) -> Dropped<()> {
        let Some(to) = self.at::<T>(offset) else { return Err(Counter::RewriteFailed) };
        let from: *const T = from;
        // SAFETY: `at` has checked the bounds; callers use integer types. By words, which the compiler would not dare.
        unsafe {
            if size_of::<T>() % 4 == 0 {
                for i in 0..size_of::<T>() / 4 {
                    write_volatile(to.cast::<u32>().add(i), from.cast::<u32>().add(i).read());
                }
            } else {
                for i in 0..size_of::<T>() {
                    write_volatile(to.cast::<u8>().add(i), from.cast::<u8>().add(i).read());
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn store_covered<T>(self, offset: u32, from: &T) -> Dropped<()> {
        self.store(offset, from)
    }

    #[inline(always)]
    fn pseudo_sum(self, offset: u32, diff: u64, flags: u64) -> Dropped<()> {
        self.change_sum(offset, flags, |field| checksum::add(field, diff))
    }

    #[inline(always)]
    fn data_sum_32(self, offset: u32, from: u32, to: u32, flags: u64) -> Dropped<()> {
        self.change_sum(offset, flags, |field| checksum::update(field, from as u64, to as u64))
    }

    #[inline(always)]
    fn protocol_be(self) -> u16 {
        self.field(12)
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { read_volatile(&raw const (*self.0).ingress_ifindex) }
    }
}
