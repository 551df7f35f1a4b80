//! What the programs know about masquerading: packets of this node's pods that leave the cluster get an address of the node
//! as their source, since nobody outside knows the way back to a pod.

use crate::Addr;

/// Of a network in the trie: its addresses are those of this node's pods.
pub const MASQUERADE_PODS: u32 = 1;
/// Of a network in the trie: who is there sees a pod's own address.
pub const MASQUERADE_KEPT: u32 = 1 << 1;

/// The addresses that packets get which leave by an uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasqueradeSource {
    /// IPv4; [`Addr::NONE`]: packets of this family keep theirs.
    pub v4: Addr,
    /// IPv6; likewise.
    pub v6: Addr,
}

const _: () = assert!(size_of::<MasqueradeSource>() == 32);
