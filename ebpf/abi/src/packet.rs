//! Reading of IP headers from words as they lie in memory. Pure: the programs load the words, the host tests them.

use crate::Addr;

/// Length of an Ethernet header.
pub const ETHERNET: u32 = 14;
/// EtherType of IPv4, host byte order.
pub const ETHERTYPE_V4: u16 = 0x0800;
/// EtherType of IPv6, host byte order.
pub const ETHERTYPE_V6: u16 = 0x86dd;

/// IPv6 header number of destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

/// TCP flag bits as in byte 13 of the header.
pub const TCP_FIN: u8 = 0x01;
/// SYN.
pub const TCP_SYN: u8 = 0x02;
/// RST.
pub const TCP_RST: u8 = 0x04;
/// ACK.
pub const TCP_ACK: u8 = 0x10;

/// [`Position::of`] and [`IpHeader::fragment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Position {
    /// Not fragmented.
    Whole = 0,
    /// The first fragment: it has the ports.
    First = 1,
    /// A later fragment: it has none.
    Later = 2,
}

impl Position {
    /// From a fragment offset and the more-fragments bit.
    #[inline(always)]
    pub const fn of(offset: u16, more: bool) -> Self {
        if offset != 0 {
            Self::Later
        } else if more {
            Self::First
        } else {
            Self::Whole
        }
    }
}

/// What the programs need of an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Length of the header.
    pub len: u32,
    /// Length of header and payload.
    pub total_len: u32,
    /// The protocol, or (IPv6) the first extension header.
    pub proto: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// IPv4 fragmentation; IPv6 has it in an extension header.
    pub fragment: Position,
    /// IPv4 identification.
    pub ident: u32,
}

#[inline(always)]
const fn byte(word: u32, index: usize) -> u8 {
    word.to_ne_bytes()[index]
}

#[inline(always)]
const fn half(word: u32, index: usize) -> u16 {
    let bytes = word.to_ne_bytes();
    u16::from_be_bytes([bytes[index], bytes[index + 1]])
}

impl IpHeader {
    /// Reads an IPv4 header (without options). `None`: not IPv4.
    #[inline(always)]
    pub const fn v4(words: &[u32; 5]) -> Option<Self> {
        let first = byte(words[0], 0);
        if first >> 4 != 4 || first & 0x0f < 5 {
            return None;
        }
        let fragment = half(words[1], 2);
        Some(Self {
            src: Addr::v4_be(words[3]),
            dst: Addr::v4_be(words[4]),
            len: (first & 0x0f) as u32 * 4,
            total_len: half(words[0], 2) as u32,
            proto: byte(words[2], 1),
            ttl: byte(words[2], 0),
            fragment: Position::of(fragment & 0x1fff, fragment & 0x2000 != 0),
            ident: half(words[1], 0) as u32,
        })
    }

    /// Reads an IPv6 header. `None`: not IPv6.
    #[inline(always)]
    pub const fn v6(words: &[u32; 10]) -> Option<Self> {
        if byte(words[0], 0) >> 4 != 6 {
            return None;
        }
        Some(Self {
            src: Addr { words: [words[2], words[3], words[4], words[5]] },
            dst: Addr { words: [words[6], words[7], words[8], words[9]] },
            len: 40,
            total_len: 40 + half(words[1], 0) as u32,
            proto: byte(words[1], 2),
            ttl: byte(words[1], 3),
            fragment: Position::Whole,
            ident: 0,
        })
    }
}

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// None: the number is an upper-layer protocol.
    Upper,
    /// One to skip: next header and length in bytes.
    Skip(u8, u32),
    /// The fragment header: next header, position, identification.
    Fragment(u8, Position, u32),
}

/// Reads the first 8 bytes of what header number `proto` introduces.
#[inline(always)]
pub const fn extension(proto: u8, words: &[u32; 2]) -> Extension {
    match proto {
        0 | 43 | 60 => Extension::Skip(byte(words[0], 0), byte(words[0], 1) as u32 * 8 + 8),
        44 => {
            let offset = half(words[0], 2);
            Extension::Fragment(byte(words[0], 0), Position::of(offset >> 3, offset & 1 != 0), words[1])
        }
        _ => Extension::Upper,
    }
}

/// Whether header number `proto` is an extension header that [`extension`] reads.
#[inline(always)]
pub const fn is_extension(proto: u8) -> bool {
    matches!(proto, 0 | 43 | 44 | 60)
}

/// Whether an ICMP message quotes the packet that caused it.
#[inline(always)]
pub const fn is_icmp_error(v4: bool, kind: u8) -> bool {
    if v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
        core::array::from_fn(|i| u32::from_ne_bytes(bytes[i * 4..i * 4 + 4].try_into().unwrap()))
    }

    #[test]
    fn reads_ipv4() {
        let bytes = [0x46, 0, 0x01, 0x02, 0xab, 0xcd, 0x20, 0, 63, 17, 0, 0, 10, 0, 0, 1, 192, 168, 0, 9];
        let header = IpHeader::v4(&words(&bytes)).unwrap();
        assert_eq!(IpAddr::from(header.src), "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(IpAddr::from(header.dst), "192.168.0.9".parse::<IpAddr>().unwrap());
        assert_eq!((header.len, header.total_len, header.proto, header.ttl), (24, 258, 17, 63));
        assert_eq!((header.fragment, header.ident), (Position::First, 0xabcd));
        assert_eq!(IpHeader::v4(&[0; 5]), None);
    }

    #[test]
    fn reads_ipv6_and_its_extensions() {
        let mut bytes = [0_u8; 40];
        bytes[0] = 0x60;
        bytes[4..8].copy_from_slice(&[0, 100, 44, 64]);
        bytes[23] = 1;
        bytes[39] = 2;
        let header = IpHeader::v6(&words(&bytes)).unwrap();
        assert_eq!(IpAddr::from(header.src), "::1".parse::<IpAddr>().unwrap());
        assert_eq!((header.total_len, header.proto, header.ttl), (140, 44, 64));
        let fragment = words(&[17, 0, 0x05, 0xa8, 1, 2, 3, 4]);
        assert_eq!(extension(44, &fragment), Extension::Fragment(17, Position::Later, fragment[1]));
        assert_eq!(extension(60, &words(&[6, 1, 0, 0, 0, 0, 0, 0])), Extension::Skip(6, 16));
        assert_eq!(extension(6, &[0; 2]), Extension::Upper);
    }
}
