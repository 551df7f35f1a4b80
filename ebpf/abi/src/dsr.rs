//! Direct server return: how the node that a client reaches tells the node of the backend under which address and
//! port the client asked. An IPv4 option, or an IPv6 destination option, that others pass over; on the first segment
//! of a TCP connection, and on every UDP datagram that has room for it.

use crate::Addr;

/// Bytes that a header grows by.
#[inline(always)]
pub const fn length(v4: bool) -> u32 {
    if v4 { LENGTH_V4 } else { LENGTH_V6 }
}

/// Packets up to this length pass everywhere: the least MTU of IPv6.
pub const FITS: u32 = 1280;

/// Bytes of the IPv4 option.
pub const LENGTH_V4: u32 = 8;
/// Bytes of the IPv6 extension header.
pub const LENGTH_V6: u32 = 24;

/// Option number 26, to be copied to fragments: not assigned, and what Cilium uses for the same.
const OPTION_V4: [u8; 2] = [0x9a, LENGTH_V4 as u8];
/// Options that are not understood are skipped; its own length.
const OPTION_V6: [u8; 2] = [0x1b, 20];
/// Length of the extension header beyond 8 bytes, in units of 8.
const UNITS_V6: u8 = (LENGTH_V6 / 8 - 1) as u8;

/// The IPv4 option.
#[inline(always)]
pub const fn option_v4(frontend: &Addr, port_be: u16) -> [u32; 2] {
    let [a, b] = port_be.to_ne_bytes();
    [u32::from_ne_bytes([OPTION_V4[0], OPTION_V4[1], a, b]), frontend.v4_word()]
}

/// The IPv6 destination options header, in front of upper-layer protocol `next`.
#[inline(always)]
pub const fn option_v6(next: u8, frontend: &Addr, port_be: u16) -> [u32; 6] {
    let head = u32::from_ne_bytes([next, UNITS_V6, OPTION_V6[0], OPTION_V6[1]]);
    let [a, b] = port_be.to_ne_bytes();
    // Two bytes of padding, which the option's length covers.
    let tail = u32::from_ne_bytes([a, b, 0, 0]);
    let words = &frontend.words;
    [head, words[0], words[1], words[2], words[3], tail]
}

/// Reads what follows an IPv4 header without other options.
#[inline(always)]
pub const fn read_v4(words: &[u32; 2]) -> Option<(Addr, u16)> {
    let [kind, len, a, b] = words[0].to_ne_bytes();
    if kind != OPTION_V4[0] || len != OPTION_V4[1] {
        return None;
    }
    Some((Addr::v4_be(words[1]), u16::from_ne_bytes([a, b])))
}

/// Reads a destination options header: the protocol that follows, address and port.
#[inline(always)]
pub const fn read_v6(words: &[u32; 6]) -> Option<(u8, Addr, u16)> {
    let [next, units, kind, len] = words[0].to_ne_bytes();
    if units != UNITS_V6 || kind != OPTION_V6[0] || len != OPTION_V6[1] {
        return None;
    }
    let [a, b, _, _] = words[5].to_ne_bytes();
    Some((next, Addr { words: [words[1], words[2], words[3], words[4]] }, u16::from_ne_bytes([a, b])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn what_is_written_is_read() {
        let port_be = 30_080_u16.to_be();
        let v4 = Addr::from("172.30.0.200".parse::<IpAddr>().unwrap());
        let words = option_v4(&v4, port_be);
        assert_eq!(words[0].to_ne_bytes()[..2], [0x9a, 8]);
        assert_eq!(read_v4(&words), Some((v4, port_be)));
        let v6 = Addr::from("fd00:10:30::c8".parse::<IpAddr>().unwrap());
        let words = option_v6(6, &v6, port_be);
        assert_eq!(size_of_val(&words), LENGTH_V6 as usize);
        assert_eq!(words[0].to_ne_bytes(), [6, 2, 0x1b, 20]);
        assert_eq!(read_v6(&words), Some((6, v6, port_be)));
    }

    #[test]
    fn other_options_are_not_read() {
        // A record route option; a destination options header of padding only.
        assert_eq!(read_v4(&[u32::from_ne_bytes([7, 7, 4, 0]), 0]), None);
        assert_eq!(read_v6(&[u32::from_ne_bytes([6, 0, 1, 4]), 0, 0, 0, 0, 0]), None);
    }
}
