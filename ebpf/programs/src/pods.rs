//! Packets between pods of the cluster: they are no service's, so nothing in them is translated, and nobody on the way
//! has to look at them. They are handed over past this node's stack: to a pod of this node at the far end of its link,
//! to another node's by the device that the route names. All else is left to the stack, without harm.

use seaway_ebpf_abi::packet::{DESTINATION_OPTIONS, ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6};
use seaway_ebpf_abi::{Addr, CONFIG_HAND_OVER, Config, Counter, POD_LINK_TRANSLATES};

use crate::count::count;
use crate::frame::Frame;
use crate::maps::{Scratch, is_pod, pod_link};
use crate::route::{Way, hand_over, lower_hops, redirect, route};
use crate::skb::Skb;

/// The IP header of a packet as far as a router reads it.
struct Head {
    src: Addr,
    dst: Addr,
    /// The word with the time to live; in IPv4 with the checksum, too.
    hop_word: u32,
    proto: u8,
    v4: bool,
}

/// Reads a header. `None`: it has options, which may be for this node, or it is none.
#[inline(always)]
fn head(skb: Skb, words: &mut [u32; 32]) -> Option<Head> {
    match u16::from_be(skb.protocol_be()) {
        ETHERTYPE_V4 => {
            let header: &mut [u32; 5] = words.first_chunk_mut()?;
            let plain = skb.peek(ETHERNET, header) && header[0].to_ne_bytes()[0] == 0x45;
            let proto = header[2].to_ne_bytes()[1];
            let (src, dst) = (Addr::v4_be(header[3]), Addr::v4_be(header[4]));
            plain.then_some(Head { src, dst, hop_word: header[2], proto, v4: true })
        }
        ETHERTYPE_V6 => {
            let header: &mut [u32; 10] = words.first_chunk_mut()?;
            if !skb.peek(ETHERNET, header) {
                return None;
            }
            let proto = header[1].to_ne_bytes()[2];
            let src = Addr { words: [header[2], header[3], header[4], header[5]] };
            let dst = Addr { words: [header[6], header[7], header[8], header[9]] };
            let plain = proto != 0 && proto != DESTINATION_OPTIONS;
            plain.then_some(Head { src, dst, hop_word: header[1], proto, v4: false })
        }
        _ => None,
    }
}

/// Hands a packet over that goes from pod to pod. `None`: it does not, or only the stack can send it on. `own`: it comes
/// from a pod of this node.
#[inline(always)]
pub(crate) fn between(skb: Skb, scratch: &mut Scratch, config: &Config, own: bool) -> Option<i32> {
    if config.flags & CONFIG_HAND_OVER == 0 {
        return None;
    }
    let head = head(skb, &mut scratch.words)?;
    if !config.may_be_pod(&head.dst) || !config.may_be_pod(&head.src) {
        return None;
    }
    // The answer to a client outside has to find its way through the stack, and so has the question.
    if !own && !is_pod(&head.src) {
        return None;
    }
    let fib = &mut scratch.fib;
    let Way::Open = route(skb, fib, head.v4, (head.proto, 0), &head.src, &head.dst) else { return None };
    match pod_link(fib.ifindex) {
        // Answers to what was translated at its link have to pass there.
        Some(link) if link.flags & POD_LINK_TRANSLATES != 0 => return None,
        // Only to pods: all else that is sent out has to look as if it came from the node.
        None if !own || !is_pod(&head.dst) => return None,
        here => {
            if !lower_hops(skb, head.v4, head.hop_word) {
                return None;
            }
            count(Counter::HandedOver);
            Some(if here.is_some() { hand_over(fib) } else { redirect(fib, &mut scratch.words) })
        }
    }
}
