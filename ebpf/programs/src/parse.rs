//! From a packet to its flow: Ethernet, IPv4 or IPv6 with extension headers, TCP, UDP or ICMP; fragments find their
//! ports in a map.

use seaway_ebpf_abi::packet::{
    ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6, Extension, IpHeader, Position, extension, is_extension,
};
use seaway_ebpf_abi::{Addr, FlowTuple, FragmentKey, FragmentValue, ICMP, ICMPV6, TCP, UDP};

use crate::frame::Frame;
use crate::maps::FRAGMENTS;
use crate::skb::Skb;

/// Extension headers that are skipped; packets with more are not ours.
const EXTENSIONS: u32 = 6;

/// What the programs know of a packet.
#[repr(C)]
pub(crate) struct Packet {
    /// Its flow; ports are zero for ICMP.
    pub(crate) flow: FlowTuple,
    /// Where the transport header begins.
    pub(crate) l4: u32,
    /// Length of the IP packet.
    pub(crate) total_len: u32,
    /// Identification, of a fragment.
    pub(crate) ident: u32,
    /// [`Position`] as a number.
    pub(crate) position: u32,
    /// 1 for IPv4.
    pub(crate) v4: u32,
    /// Time to live, hop limit.
    pub(crate) ttl: u32,
    /// TCP flags; ICMP type.
    pub(crate) kind: u32,
    /// The word of the IP header that holds the time to live, and in IPv4 the checksum.
    pub(crate) hop_word: u32,
}

impl Packet {
    /// Whether this is IPv4.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.v4 != 0
    }

    /// Whether it has a transport header.
    #[inline(always)]
    pub(crate) fn has_ports(&self) -> bool {
        self.position != Position::Later as u32
    }

    /// Whether this is ICMP of its family.
    #[inline(always)]
    pub(crate) fn is_icmp(&self) -> bool {
        self.flow.proto == if self.is_v4() { ICMP as u32 } else { ICMPV6 as u32 }
    }

    /// What the fragments of its datagram have in common.
    #[inline(always)]
    pub(crate) fn fragment_key(&self) -> FragmentKey {
        FragmentKey { src: self.flow.src, dst: self.flow.dst, ident: self.ident, proto: self.flow.proto }
    }

    /// Notes the ports of a first fragment that is translated, for the others of its datagram.
    #[inline(always)]
    pub(crate) fn note_fragment(&self) {
        if self.position == Position::First as u32 {
            let ports =
                FragmentValue { src_port_be: self.flow.src_port_be, dst_port_be: self.flow.dst_port_be };
            // An LRU map takes every entry; without it the other fragments are lost and the datagram is sent again.
            let _ = FRAGMENTS.insert(&self.fragment_key(), &ports, 0);
        }
    }
}

/// Where a packet goes, and nothing else of it. `None`: it is not IP.
#[inline(always)]
pub(crate) fn destination(skb: Skb) -> Option<Addr> {
    match u16::from_be(skb.protocol_be()) {
        ETHERTYPE_V4 => {
            let mut word = [0_u32];
            skb.peek(ETHERNET + 16, &mut word).then(|| Addr::v4_be(word[0]))
        }
        ETHERTYPE_V6 => {
            let mut addr = Addr::NONE;
            skb.peek(ETHERNET + 24, &mut addr.words).then_some(addr)
        }
        _ => None,
    }
}

/// Reads a packet. False: it is none that a service could have.
#[inline(always)]
pub(crate) fn parse<F: Frame>(frame: F, packet: &mut Packet, words: &mut [u32; 32]) -> bool {
    packet.flow.proto = 0;
    let ip = match u16::from_be(frame.protocol_be()) {
        ETHERTYPE_V4 => ip_v4(frame, words),
        ETHERTYPE_V6 => ip_v6(frame, words),
        _ => None,
    };
    let Some((ip, v4, hop_word)) = ip else { return false };
    packet.v4 = v4 as u32;
    packet.hop_word = hop_word;
    packet.l4 = ETHERNET + ip.len;
    packet.total_len = ip.total_len;
    packet.ident = ip.ident;
    packet.position = ip.fragment as u32;
    packet.ttl = ip.ttl as u32;
    packet.kind = 0;
    packet.flow =
        FlowTuple { src: ip.src, dst: ip.dst, src_port_be: 0, dst_port_be: 0, proto: ip.proto as u32 };
    if !v4 && !skip_extensions(frame, packet) {
        return false;
    }
    transport(frame, packet)
}

#[inline(always)]
fn ip_v4<F: Frame>(frame: F, words: &mut [u32; 32]) -> Option<(IpHeader, bool, u32)> {
    let header: &mut [u32; 5] = words.first_chunk_mut()?;
    if !frame.peek(ETHERNET, header) {
        return None;
    }
    Some((IpHeader::v4(header)?, true, header[2]))
}

#[inline(always)]
fn ip_v6<F: Frame>(frame: F, words: &mut [u32; 32]) -> Option<(IpHeader, bool, u32)> {
    let header: &mut [u32; 10] = words.first_chunk_mut()?;
    if !frame.peek(ETHERNET, header) {
        return None;
    }
    Some((IpHeader::v6(header)?, false, header[1]))
}

#[inline(always)]
fn skip_extensions<F: Frame>(frame: F, packet: &mut Packet) -> bool {
    for _ in 0..EXTENSIONS {
        if !is_extension(packet.flow.proto as u8) {
            return true;
        }
        let mut words = [0_u32; 2];
        if !frame.load(packet.l4, &mut words) {
            return false;
        }
        match extension(packet.flow.proto as u8, &words) {
            Extension::Upper => return true,
            Extension::Skip(next, len) => {
                packet.flow.proto = next as u32;
                packet.l4 += len;
            }
            Extension::Fragment(next, position, ident) => {
                packet.flow.proto = next as u32;
                packet.l4 += 8;
                packet.ident = ident;
                packet.position = position as u32;
                if position as u32 == Position::Later as u32 {
                    return true;
                }
            }
        }
    }
    false
}

#[inline(always)]
fn transport<F: Frame>(frame: F, packet: &mut Packet) -> bool {
    if packet.flow.proto != TCP as u32 && packet.flow.proto != UDP as u32 {
        let mut kind = 0_u8;
        let icmp =
            packet.is_icmp() && packet.position == Position::Whole as u32 && frame.load(packet.l4, &mut kind);
        packet.kind = kind as u32;
        return icmp;
    }
    if !packet.has_ports() {
        let Some(ports) = FRAGMENTS.get_ptr(&packet.fragment_key()) else { return false };
        // SAFETY: an LRU element may be reused while it is read: the fragment then belongs to no datagram, as it would
        // without the element.
        let ports = unsafe { *ports };
        packet.flow.src_port_be = ports.src_port_be;
        packet.flow.dst_port_be = ports.dst_port_be;
        return true;
    }
    let tcp = packet.flow.proto == TCP as u32;
    // Up to the byte with TCP's flags; a word is the least of UDP's header that there is.
    let mut tcp_words = [0_u32; 4];
    let (read, ports) = if tcp {
        (transport_words(frame, packet, &mut tcp_words), tcp_words[0])
    } else {
        let mut word = [0_u32];
        (transport_words(frame, packet, &mut word), word[0])
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    packet.flow.src_port_be = u16::from_ne_bytes([a, b]);
    packet.flow.dst_port_be = u16::from_ne_bytes([c, d]);
    packet.kind = tcp_words[3].to_ne_bytes()[1] as u32;
    read
}

/// The first words of the transport header.
#[inline(always)]
fn transport_words<F: Frame, const N: usize>(frame: F, packet: &Packet, words: &mut [u32; N]) -> bool {
    // Constant places first: what stands there is read without a call.
    if packet.l4 == ETHERNET + 20 {
        frame.peek(ETHERNET + 20, words)
    } else if packet.l4 == ETHERNET + 40 {
        frame.peek(ETHERNET + 40, words)
    } else {
        frame.load(packet.l4, words)
    }
}
