//! The Internet checksum (RFC 1071, RFC 1624) where no helper of the kernel computes it: in the packet that an ICMP
//! error quotes, and in packets that a program makes itself.
//!
//! Words are 32 bits as they lie in memory; sums are in the same order, so no byte swapping happens on either kind
//! of machine.

/// Folds a sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of words, not folded.
#[inline(always)]
pub const fn sum(words: &[u32]) -> u64 {
    let mut total = 0_u64;
    let mut i = 0;
    while i < words.len() {
        total += words[i] as u64;
        i += 1;
    }
    total
}

/// The checksum field for data whose words sum to `total` while the field is zero.
#[inline(always)]
pub const fn finish(total: u64) -> u16 {
    !fold(total)
}

/// The checksum field after words that summed to `from` were replaced by words that sum to `to` (RFC 1624, eqn. 3).
#[inline(always)]
pub const fn update(field: u16, from: u64, to: u64) -> u16 {
    let total = (!field) as u64 + (!fold(from)) as u64 + fold(to) as u64;
    !fold(total)
}

/// The part of the pseudo-header that is not an address, for a segment of `len` bytes.
#[inline(always)]
pub const fn pseudo(proto: u8, len: u16) -> u64 {
    (proto as u16).to_be() as u64 + len.to_be() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, byte by byte.
    fn reference(bytes: &[u8]) -> u16 {
        let mut total = 0_u64;
        for pair in bytes.chunks(2) {
            total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    fn bytes(words: &[u32]) -> std::vec::Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Zero has two representations in one's complement.
    fn canonical(field: u16) -> u16 {
        if field == 0xffff { 0 } else { field }
    }

    proptest! {
        #[test]
        fn full_matches_the_definition(words in prop::collection::vec(any::<u32>(), 0..64)) {
            prop_assert_eq!(u16::from_be(finish(sum(&words))), reference(&bytes(&words)));
        }

        #[test]
        fn incremental_equals_full(
            mut words in prop::collection::vec(any::<u32>(), 2..64),
            new in any::<[u32; 2]>(),
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(words.len() - 1);
            let before = finish(sum(&words));
            let old = [words[at], words[at + 1]];
            words[at] = new[0];
            words[at + 1] = new[1];
            let updated = update(before, sum(&old), sum(&new));
            prop_assert_eq!(canonical(updated), canonical(finish(sum(&words))));
        }

        #[test]
        fn a_packet_with_its_checksum_sums_to_all_ones(mut words in prop::collection::vec(any::<u32>(), 1..64)) {
            words[0] &= 0xffff_0000_u32.to_be();
            words[0] |= u32::from(finish(sum(&words)).to_be()).to_be();
            prop_assert_eq!(fold(sum(&words)), 0xffff);
        }
    }
}
