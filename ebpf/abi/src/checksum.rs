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

/// The checksum field after the sum of the words that it covers grew by `difference` (in one's complement).
#[inline(always)]
pub const fn add(field: u16, difference: u64) -> u16 {
    !fold((!field) as u64 + difference)
}

/// Whether a transport checksum is none yet, but the sum of the pseudo-header: the sender has left the rest to its
/// device, and between virtual devices it stays so. One in 65,536 whole ones looks like that.
#[inline(always)]
pub const fn may_be_partial(field: u16, pseudo: u64) -> bool {
    field == fold(pseudo)
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
        fn a_difference_that_is_added_is_that_of_the_words(
            words in prop::collection::vec(any::<u32>(), 1..64), new in any::<u32>(),
        ) {
            let before = finish(sum(&words));
            let after = add(before, u64::from(!words[0]) + u64::from(new));
            prop_assert_eq!(canonical(after), canonical(update(before, words[0].into(), new.into())));
        }

        #[test]
        fn a_checksum_that_its_sender_left_to_a_device_is_known(words in prop::collection::vec(1..u32::MAX, 1..16)) {
            prop_assert!(may_be_partial(fold(sum(&words)), sum(&words)));
            let data = u64::from(0xabcd_u16);
            prop_assert!(!may_be_partial(finish(sum(&words) + data), sum(&words)) || fold(2 * sum(&words) + data) == 0xffff);
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
