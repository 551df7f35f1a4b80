//! The peers' rules: what kube-proxy's two rule modes would hold for the synthetic cluster, written in their shape
//! from what is documented about them. A peer is loaded once per size; only its packets are measured.

pub mod iptables;
pub mod nftables;

/// The mark of packets that are to be masqueraded.
const MASQUERADE_MARK: &str = "0x4000";

/// A short name of a Service port or an endpoint, as kube-proxy's hashes are.
fn hashed(parts: &[&str]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (0..12).map(|digit| char::from(DIGITS[(hash >> (5 * digit)) as usize % 32])).collect()
}
