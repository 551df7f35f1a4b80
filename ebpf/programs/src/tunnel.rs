//! What nodes send each other through their tunnel: the packets around those of pods are nobody's but the tunnel's, and
//! nothing is looked up for them.

use seaway_ebpf_abi::packet::{ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6};
use seaway_ebpf_abi::{Addr, Config, UDP};

use crate::frame::Frame;

/// Which end of a packet is this node's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    Source,
    Destination,
}

/// Whether a packet is one around another: for the tunnel's port, and this node's at that end.
#[inline(always)]
pub(crate) fn is_outer<F: Frame>(frame: F, config: &Config, own: Own, words: &mut [u32; 32]) -> bool {
    if config.tunnel_port_be == 0 {
        return false;
    }
    match u16::from_be(frame.protocol_be()) {
        ETHERTYPE_V4 => is_outer_v4(frame, config, own, words),
        ETHERTYPE_V6 => is_outer_v6(frame, config, own, words),
        _ => false,
    }
}

/// The destination port in the word that both ports stand in.
#[inline(always)]
fn port_be(word: u32) -> u16 {
    let [_, _, c, d] = word.to_ne_bytes();
    u16::from_ne_bytes([c, d])
}

#[inline(always)]
fn is_outer_v4<F: Frame>(frame: F, config: &Config, own: Own, words: &mut [u32; 32]) -> bool {
    const FRAGMENT: [u8; 2] = [0x3f, 0xff];
    let Some(header) = words.first_chunk_mut::<6>() else { return false };
    if !frame.peek(ETHERNET, header) {
        return false;
    }
    let [_, _, c, d] = header[1].to_ne_bytes();
    let whole = c & FRAGMENT[0] == 0 && d & FRAGMENT[1] == 0;
    let at = if own == Own::Source { header[3] } else { header[4] };
    header[0].to_ne_bytes()[0] == 0x45
        && whole
        && header[2].to_ne_bytes()[1] == UDP
        && port_be(header[5]) == config.tunnel_port_be
        && Addr::v4_be(at).same(&config.node_v4)
}

#[inline(always)]
fn is_outer_v6<F: Frame>(frame: F, config: &Config, own: Own, words: &mut [u32; 32]) -> bool {
    let Some(header) = words.first_chunk_mut::<11>() else { return false };
    if !frame.peek(ETHERNET, header) {
        return false;
    }
    let (src, dst) =
        ([header[2], header[3], header[4], header[5]], [header[6], header[7], header[8], header[9]]);
    let at = Addr { words: if own == Own::Source { src } else { dst } };
    header[1].to_ne_bytes()[2] == UDP
        && port_be(header[10]) == config.tunnel_port_be
        && at.same(&config.node_v6)
}
