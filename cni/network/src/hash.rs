//! Names and Ethernet addresses that follow from what they stand for, so that a repeated call finds them again.

/// FNV-1a over parts, each followed by a separator that cannot be in a name. It has to be the same in every
/// version: names in the kernel outlive us.
pub(crate) fn fnv1a(parts: &[&[u8]]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0xff]));
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // FNV alone leaves the top bits of short inputs alike.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A locally administered unicast Ethernet address.
pub(crate) fn mac(hash: u64) -> [u8; 6] {
    let [mut first, second, third, fourth, fifth, sixth, ..] = hash.to_be_bytes();
    first = (first & 0b1111_1100) | 0b10;
    [first, second, third, fourth, fifth, sixth]
}

/// `prefix` and eleven characters of base 32: a link's name (at most 15 characters).
pub(crate) fn link_name(prefix: &str, hash: u64) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digits = (0..11).map(|digit| {
        let [low, ..] = (hash >> (digit * 5)).to_le_bytes();
        char::from(ALPHABET[usize::from(low & 31)])
    });
    prefix.chars().chain(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_change_between_versions() {
        let hash = fnv1a(&[b"seaway", b"4f1a", b"eth0"]);
        expect_test::expect!["swkhzorlnk7xb"].assert_eq(&link_name("sw", hash));
        assert_ne!(hash, fnv1a(&[b"seaway", b"4f1ae", b"th0"]));
        assert_eq!(mac(u64::MAX)[0] & 0b11, 0b10);
    }
}
