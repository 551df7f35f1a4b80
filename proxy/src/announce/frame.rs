//! ARP and NDP as bytes: which address is asked for, and what to say. Anything that is not a well-formed question is
//! nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const BROADCAST: [u8; 6] = [0xff; 6];
/// Hardware Ethernet, protocol IPv4, lengths 6 and 4.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const IPV6_HEADER: usize = 40;
const NEXT_ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Solicitation and advertisement up to their options.
const ND_FIXED: usize = 24;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
/// Option 2, one unit of eight bytes: the target's link-layer address.
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Somebody asks who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The address that is asked for.
    pub target: IpAddr,
    /// Who asks; unspecified when somebody checks whether the address is taken.
    pub sender: IpAddr,
    /// From where.
    pub sender_mac: [u8; 6],
}

/// The question in a frame, if there is one.
pub fn parse(frame: &[u8]) -> Option<Request> {
    let sender_mac = array::<6>(frame, 6)?;
    let payload = frame.get(ETHERNET..)?;
    match array::<2>(frame, 12)? {
        TYPE_ARP => parse_arp(payload),
        TYPE_IPV6 => parse_solicitation(payload, sender_mac),
        _ => None,
    }
}

fn parse_arp(packet: &[u8]) -> Option<Request> {
    if array::<6>(packet, 0)? != ARP_HEAD || array::<2>(packet, 6)? != ARP_REQUEST {
        return None;
    }
    let sender_mac = array::<6>(packet, 8)?;
    let sender = Ipv4Addr::from(array::<4>(packet, 14)?);
    let target = Ipv4Addr::from(array::<4>(packet, 24)?);
    // Who asks for its own address announces it.
    (sender != target).then_some(Request { target: target.into(), sender: sender.into(), sender_mac })
}

fn parse_solicitation(packet: &[u8], sender_mac: [u8; 6]) -> Option<Request> {
    let payload_len = usize::from(u16::from_be_bytes(array::<2>(packet, 4)?));
    let [next, hop_limit] = array::<2>(packet, 6)?;
    let sender = Ipv6Addr::from(array::<16>(packet, 8)?);
    let destination = Ipv6Addr::from(array::<16>(packet, 24)?);
    let message = packet.get(IPV6_HEADER..IPV6_HEADER + payload_len)?;
    let [kind, code] = array::<2>(message, 0)?;
    let target = Ipv6Addr::from(array::<16>(message, 8)?);
    let sound = next == NEXT_ICMPV6
        && hop_limit == HOP_LIMIT
        && kind == SOLICITATION
        && code == 0
        && !target.is_multicast()
        && !sender.is_multicast()
        && checksum(sender, destination, message) == 0;
    sound.then_some(Request { target: target.into(), sender: sender.into(), sender_mac })
}

/// The answer to `request` from a node with `mac`.
pub fn reply(request: &Request, mac: [u8; 6]) -> Vec<u8> {
    match (request.target, request.sender) {
        (IpAddr::V4(target), IpAddr::V4(sender)) => {
            arp(ARP_REPLY, (mac, target), (request.sender_mac, sender), request.sender_mac)
        }
        (IpAddr::V6(target), IpAddr::V6(sender)) if !sender.is_unspecified() => {
            advertisement(target, mac, (request.sender_mac, sender), FLAG_SOLICITED | FLAG_OVERRIDE)
        }
        // Somebody checks whether the address is free: everybody shall hear that it is not.
        (target, _) => gratuitous(target, mac),
    }
}

/// Tells everybody, unasked, that `addr` is at `mac`.
pub fn gratuitous(addr: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => arp(ARP_REQUEST, (mac, v4), ([0; 6], v4), BROADCAST),
        IpAddr::V6(v6) => advertisement(v6, mac, (ALL_NODES_MAC, ALL_NODES), FLAG_OVERRIDE),
    }
}

fn arp(
    operation: [u8; 2],
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
    destination: [u8; 6],
) -> Vec<u8> {
    let mut frame = ethernet(destination, sender.0, TYPE_ARP);
    frame.extend(ARP_HEAD);
    frame.extend(operation);
    frame.extend(sender.0);
    frame.extend(sender.1.octets());
    frame.extend(target.0);
    frame.extend(target.1.octets());
    frame
}

fn advertisement(target: Ipv6Addr, mac: [u8; 6], destination: ([u8; 6], Ipv6Addr), flags: u8) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    debug_assert_eq!(message.len(), ND_FIXED);
    message.extend(TARGET_LINK_LAYER);
    message.extend(mac);
    let sum = checksum(target, destination.1, &message).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    let mut frame = ethernet(destination.0, mac, TYPE_IPV6);
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    frame.extend([0x60, 0, 0, 0, length[0], length[1], NEXT_ICMPV6, HOP_LIMIT]);
    frame.extend(target.octets());
    frame.extend(destination.1.octets());
    frame.extend(message);
    frame
}

fn ethernet(destination: [u8; 6], source: [u8; 6], kind: [u8; 2]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(destination);
    frame.extend(source);
    frame.extend(kind);
    frame
}

/// The ICMPv6 checksum; over a message that carries its own, 0.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = source.octets().into_iter().chain(destination.octets());
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = pseudo.chain(length).chain([0, 0, 0, NEXT_ICMPV6]).chain(message.iter().copied());
    let mut sum = 0_u32;
    while let Some(high) = bytes.next() {
        sum += u32::from(u16::from_be_bytes([high, bytes.next().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn solicitation(sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = advertisement(target, THEIRS, (MINE, ALL_NODES), 0);
        frame.splice(22..38, sender.octets());
        frame[54] = SOLICITATION;
        frame[56..58].fill(0);
        let sum = checksum(sender, ALL_NODES, &frame[54..]).to_be_bytes();
        frame[56..58].copy_from_slice(&sum);
        frame
    }

    #[test]
    fn an_arp_request_is_answered_to_who_asked() {
        let (client, vip) = ("192.0.2.100".parse().unwrap(), "192.0.2.7".parse().unwrap());
        let request = parse(&arp(ARP_REQUEST, (THEIRS, client), ([0; 6], vip), BROADCAST)).unwrap();
        assert_eq!(request.target, IpAddr::V4(vip));
        assert_eq!(reply(&request, MINE), arp(ARP_REPLY, (MINE, vip), (THEIRS, client), THEIRS));
    }

    #[test]
    fn announcements_and_answers_are_not_questions() {
        let vip: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(parse(&gratuitous(vip, THEIRS)), None);
        assert_eq!(parse(&gratuitous("fd00::7".parse().unwrap(), THEIRS)), None);
    }

    #[test]
    fn a_solicitation_is_answered_with_a_sound_advertisement() {
        let (client, vip): (Ipv6Addr, Ipv6Addr) = ("fe80::2".parse().unwrap(), "fd00::7".parse().unwrap());
        let request = parse(&solicitation(client, vip)).unwrap();
        assert_eq!(request.target, IpAddr::V6(vip));
        let answer = reply(&request, MINE);
        assert_eq!(checksum(vip, client, &answer[54..]), 0);
        assert_eq!(&answer[..6], THEIRS);
        assert_eq!(answer[58], FLAG_SOLICITED | FLAG_OVERRIDE);
        let probe = parse(&solicitation(Ipv6Addr::UNSPECIFIED, vip)).unwrap();
        assert_eq!(reply(&probe, MINE), gratuitous(vip.into(), MINE));
    }

    #[test]
    fn a_solicitation_from_beyond_a_router_or_with_a_bad_checksum_is_nothing() {
        let good = solicitation("fe80::2".parse().unwrap(), "fd00::7".parse().unwrap());
        let mut routed = good.clone();
        routed[21] = 64;
        assert_eq!(parse(&routed), None);
        let mut broken = good.clone();
        broken[56] ^= 1;
        assert_eq!(parse(&broken), None);
        assert_eq!(parse(&good[..good.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_in_nothing_breaks(frame in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Some(request) = parse(&frame) {
                reply(&request, MINE);
            }
        }

        #[test]
        fn whatever_is_changed_in_a_question_nothing_breaks(at in 0..86_usize, value in any::<u8>(), len in 0..90_usize) {
            let mut frame = solicitation("fe80::2".parse().unwrap(), "fd00::7".parse().unwrap());
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
            frame.truncate(len);
            parse(&frame);
        }
    }
}
