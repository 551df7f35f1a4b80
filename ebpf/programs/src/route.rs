//! Sending a translated packet on its way. What goes to another node leaves from here: its source is an address of
//! this node, or its destination a client that the stack would answer by another way, and the stack refuses packets
//! from outside that claim to come from itself. What goes to a pod of this node is handed to it directly where the
//! pod's link runs the programs, which send the answers directly, too; otherwise both go through the stack. What pods send each other goes the same ways (`pods`).

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_redir_neigh};
use aya_ebpf::helpers::generated as helpers;
use seaway_ebpf_abi::packet::ETHERNET;
use seaway_ebpf_abi::{Addr, checksum};

use crate::frame::{Dropped, Frame};
use crate::parse::Packet;
use crate::skb::Skb;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_FIB_LOOKUP_SKIP_NEIGH`: the neighbour is resolved when the packet leaves.
pub(crate) const SKIP_NEIGH: u32 = 1 << 2;
const FIB_SUCCESS: i64 = 0;
const FIB_NO_NEIGH: i64 = 7;
const FIB_FRAG_NEEDED: i64 = 8;

/// Where a packet leaves.
pub(crate) enum Way {
    /// There is a route; `fib` holds it.
    Open,
    /// It is too large for it; this is the MTU.
    TooBig(u16),
    /// None that leads on from here: it is for this node itself, or a route that only the stack can go.
    Stack,
}

/// Looks up the way from `src` to `dst`, for the packet as it is, or for one of `size` bytes.
#[inline(always)]
pub(crate) fn route<F: Frame>(
    frame: F,
    fib: &mut bpf_fib_lookup,
    v4: bool,
    (proto, size): (u8, u16),
    src: &Addr,
    dst: &Addr,
) -> Way {
    fib.family = if v4 { AF_INET } else { AF_INET6 };
    fib.l4_protocol = proto;
    fib.sport = 0;
    fib.dport = 0;
    fib.__bindgen_anon_1.tot_len = size;
    fib.__bindgen_anon_2.flowinfo = 0;
    fib.ifindex = frame.ifindex();
    fib.__bindgen_anon_5.tbid = 0;
    if v4 {
        fib.__bindgen_anon_3.ipv4_src = src.v4_word();
        fib.__bindgen_anon_4.ipv4_dst = dst.v4_word();
    } else {
        fib.__bindgen_anon_3.ipv6_src = src.words;
        fib.__bindgen_anon_4.ipv6_dst = dst.words;
    }
    // SAFETY: the helper reads and writes one `bpf_fib_lookup`.
    let code = unsafe {
        helpers::bpf_fib_lookup(frame.context(), fib, size_of::<bpf_fib_lookup>() as i32, F::ROUTE_FLAGS)
    };
    match code {
        FIB_SUCCESS => Way::Open,
        FIB_NO_NEIGH if F::ROUTE_FLAGS & SKIP_NEIGH != 0 => Way::Open,
        // SAFETY: both members of the union are plain integers.
        FIB_FRAG_NEEDED => Way::TooBig(unsafe { fib.__bindgen_anon_1.mtu_result }),
        _ => Way::Stack,
    }
}

/// Whether a packet may go a hop further.
#[inline(always)]
pub(crate) fn may_hop(packet: &Packet) -> bool {
    packet.ttl > 1
}

/// Lowers the time to live of a packet that is otherwise rewritten already.
#[inline(always)]
pub(crate) fn hop(skb: Skb, packet: &Packet) -> Dropped<()> {
    let ttl = packet.ttl as u8;
    if !packet.is_v4() {
        return skb.store_covered(ETHERNET + 7, &ttl.wrapping_sub(1));
    }
    let old = u16::from_ne_bytes([ttl, 0]);
    let new = u16::from_ne_bytes([ttl.wrapping_sub(1), 0]);
    skb.header_sum_16(ETHERNET + 10, old, new)?;
    skb.store(ETHERNET + 8, &ttl.wrapping_sub(1))
}

/// Lowers the time to live of a packet of which nothing else changes. False: it ends here, or cannot be written.
#[inline(always)]
pub(crate) fn lower_hops(skb: Skb, v4: bool, hop_word: u32) -> bool {
    if !v4 {
        let hops = hop_word.to_ne_bytes()[3];
        return hops > 1 && skb.store_covered(ETHERNET + 7, &hops.wrapping_sub(1)).is_ok();
    }
    let [ttl, proto, c, d] = hop_word.to_ne_bytes();
    let covered = |ttl: u8| u32::from_ne_bytes([ttl, proto, 0, 0]) as u64;
    let new = ttl.wrapping_sub(1);
    let [c, d] = checksum::update(u16::from_ne_bytes([c, d]), covered(ttl), covered(new)).to_ne_bytes();
    ttl > 1 && skb.store(ETHERNET + 8, &u32::from_ne_bytes([new, proto, c, d])).is_ok()
}

/// Sends the packet, which is translated, out by the route in `fib`.
#[inline(always)]
pub(crate) fn send(skb: Skb, fib: &bpf_fib_lookup, room: &mut [u32; 32]) -> i32 {
    skb.note_translated();
    redirect(fib, room)
}

/// Sends the packet out by the route in `fib`; the programs at that device have their turn.
#[inline(always)]
pub(crate) fn redirect(fib: &bpf_fib_lookup, room: &mut [u32; 32]) -> i32 {
    // `struct bpf_redir_neigh`: a family, and an address of up to 16 bytes.
    room[0] = fib.family as u32;
    // SAFETY: all members of the union are plain integers, and the kernel has set all of it or none is looked at.
    let next = unsafe { fib.__bindgen_anon_4.ipv6_dst };
    room[1] = next[0];
    room[2] = next[1];
    room[3] = next[2];
    room[4] = next[3];
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the helper reads `size` bytes, which `room` has.
    unsafe { helpers::bpf_redirect_neigh(fib.ifindex, room.as_mut_ptr().cast(), size, 0) as i32 }
}

/// Hands the packet to the pod at the far end of the link in `fib`, past this node's stack.
#[inline(always)]
pub(crate) fn hand_over(fib: &bpf_fib_lookup) -> i32 {
    // SAFETY: the helper takes a device index.
    unsafe { helpers::bpf_redirect_peer(fib.ifindex, 0) as i32 }
}
