//! The one address type of all maps: 16 bytes, IPv4 in its mapped form.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `0x0000ffff` as it lies in memory in network order: the third word of a mapped IPv4 address.
const MAPPED_BE: u32 = 0xffff_u32.to_be();

/// An IPv4 (mapped) or IPv6 address as four words in network byte order. Aligned so that programs move it in two
/// steps (and the compiler does not call `memset` for half of it).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr {
    /// The 16 bytes, in words as a program reads them from a packet.
    pub words: [u32; 4],
}

impl Addr {
    /// No address: `::`.
    pub const NONE: Self = Self { words: [0; 4] };

    /// A mapped IPv4 address from the word that stands in a packet or in `user_ip4`.
    #[inline(always)]
    pub const fn v4_be(word: u32) -> Self {
        Self { words: [0, 0, MAPPED_BE, word] }
    }

    /// An address of the family that is given by `v4`.
    #[inline(always)]
    pub const fn unspecified(v4: bool) -> Self {
        if v4 { Self::v4_be(0) } else { Self::NONE }
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_BE
    }

    /// The IPv4 part, as it stands in a packet.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Equality without a call to `memcmp`, which BPF does not have.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.words[0] == other.words[0]
            && self.words[1] == other.words[1]
            && self.words[2] == other.words[2]
            && self.words[3] == other.words[3]
    }

    /// Lexicographic order of the 16 bytes.
    #[inline(always)]
    pub const fn less(&self, other: &Self) -> bool {
        let mut i = 0;
        while i < 4 {
            let (a, b) = (u32::from_be(self.words[i]), u32::from_be(other.words[i]));
            if a != b {
                return a < b;
            }
            i += 1;
        }
        false
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        let octets = match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Self { words }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            return Self::V4(Ipv4Addr::from_bits(u32::from_be(addr.words[3])));
        }
        let mut bits = 0_u128;
        for word in addr.words {
            bits = bits << 32 | u128::from(u32::from_be(word));
        }
        Self::V6(Ipv6Addr::from_bits(bits))
    }
}

const _: () = assert!(size_of::<Addr>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["0.0.0.0", "10.96.0.1", "255.255.255.255", "::", "::1", "fd00:10:96::a"] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(addr)), addr);
            assert_eq!(Addr::from(addr).is_v4(), addr.is_ipv4());
        }
    }

    #[test]
    fn order_is_that_of_the_bytes() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert!(addr("10.0.0.1").less(&addr("10.0.0.2")));
        assert!(addr("10.0.0.255").less(&addr("10.0.1.0")));
        assert!(!addr("10.0.0.1").less(&addr("10.0.0.1")));
        assert!(addr("255.0.0.0").less(&addr("fd00::1")));
    }
}
