//! Packets for tests: built with right checksums, and read back with every checksum recomputed in full.

use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// The Internet checksum of bytes, from its definition.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The pseudo-header of a checksum.
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap().to_be_bytes();
    [octets(src), octets(dst), len.to_vec(), vec![0, 0, 0, proto]].concat()
}

/// A TCP segment: ports, flags, sequence numbers, data. The checksum is filled in by [`ip`].
pub fn tcp(src: u16, dst: u16, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    bytes
}

/// A UDP datagram.
pub fn udp(src: u16, dst: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len() + 8).unwrap();
    let mut bytes = [src.to_be_bytes(), dst.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    bytes.extend(data);
    bytes
}

/// An ICMP error of the family of `v4`: type, code, rest of header, quoted bytes.
pub fn icmp(kind: u8, code: u8, rest: u32, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest.to_be_bytes());
    bytes.extend(quoted);
    bytes
}

/// Where the checksum of a transport header lies.
fn field(proto: u8) -> Option<usize> {
    match proto {
        TCP => Some(16),
        UDP => Some(6),
        1 | 58 => Some(2),
        _ => None,
    }
}

/// Fills in a transport checksum.
pub fn finish(src: IpAddr, dst: IpAddr, proto: u8, mut payload: Vec<u8>) -> Vec<u8> {
    if let Some(at) = field(proto) {
        payload[at..at + 2].fill(0);
        let pseudo = if proto == 1 { Vec::new() } else { pseudo(src, dst, proto, payload.len()) };
        let sum = checksum(&[&pseudo, &payload]);
        let sum = if sum == 0 && proto == UDP { 0xffff } else { sum };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    payload
}

/// An IP header before a payload that is taken as it is. IPv4: `fragment` is the flags and offset field.
pub fn ip_raw(src: IpAddr, dst: IpAddr, proto: u8, ttl: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if src.is_ipv4() {
        let len = u16::try_from(payload.len() + 20).unwrap().to_be_bytes();
        bytes.extend([0x45, 0, len[0], len[1], 0x12, 0x34]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([ttl, proto, 0, 0]);
        bytes.extend(octets(src));
        bytes.extend(octets(dst));
        let sum = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend([proto, ttl]);
        bytes.extend(octets(src));
        bytes.extend(octets(dst));
    }
    bytes.extend(payload);
    bytes
}

/// An IP packet with all checksums.
pub fn ip(src: &str, dst: &str, proto: u8, payload: Vec<u8>) -> Vec<u8> {
    let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
    ip_raw(src, dst, proto, 64, 0x4000, &finish(src, dst, proto, payload))
}

/// A frame around an IP packet.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    bytes.extend(packet);
    bytes
}

/// A packet read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub proto: u8,
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: Vec<u8>,
}

impl Read {
    /// Source and destination as text.
    pub fn ends(&self) -> String {
        format!("{} {} > {} {}", self.src, self.src_port, self.dst, self.dst_port)
    }
}

/// Reads the IP packet in a frame without looking at the transport checksum.
pub fn read_headers(frame: &[u8]) -> Read {
    read_ip(&frame[14..])
}

/// Reads an IP packet; `bytes` may end early, as one that is quoted does.
pub fn read_ip(bytes: &[u8]) -> Read {
    let (src, dst, ttl, proto, payload): (IpAddr, IpAddr, _, _, _) = if bytes[0] >> 4 == 4 {
        assert_eq!(checksum(&[&bytes[..20]]), 0, "IPv4 header checksum");
        let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
        let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]])).min(bytes.len());
        (addr(12), addr(16), bytes[8], bytes[9], bytes[20..len].to_vec())
    } else {
        let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
        let len = (usize::from(u16::from_be_bytes([bytes[4], bytes[5]])) + 40).min(bytes.len());
        (addr(8), addr(24), bytes[7], bytes[6], bytes[40..len].to_vec())
    };
    let port = |at: usize| {
        if proto == TCP || proto == UDP { u16::from_be_bytes([payload[at], payload[at + 1]]) } else { 0 }
    };
    let (src_port, dst_port) = (port(0), port(2));
    Read { src, dst, ttl, proto, src_port, dst_port, payload }
}

/// Reads the IP packet in a frame and asserts every checksum in it.
pub fn read(frame: &[u8]) -> Read {
    let packet = read_headers(frame);
    assert_sum(&packet);
    packet
}

/// Asserts the transport checksum.
pub fn assert_sum(packet: &Read) {
    let at = field(packet.proto).unwrap();
    if packet.proto == UDP && packet.payload[at..at + 2] == [0, 0] {
        assert!(packet.src.is_ipv4(), "UDP over IPv6 needs a checksum");
        return;
    }
    let pseudo = if packet.proto == 1 {
        Vec::new()
    } else {
        pseudo(packet.src, packet.dst, packet.proto, packet.payload.len())
    };
    assert_eq!(checksum(&[&pseudo, &packet.payload]), 0, "transport checksum of {packet:?}");
}
