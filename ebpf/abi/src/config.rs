//! What the programs know about their node.

use crate::Addr;

/// The only element of the config map. All zero (as created) means: no source NAT, no bind protection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The address that remote IPv4 backends see as their client; unspecified: remote backends cannot be used.
    pub node_v4: Addr,
    /// The same for IPv6.
    pub node_v6: Addr,
    /// Cookie of the node's network namespace; 0: unknown, nothing is treated as the host's own.
    pub netns_cookie: u64,
    /// First port of source NAT, host byte order.
    pub snat_port_min: u16,
    /// Last port of source NAT, host byte order; 0: no source NAT.
    pub snat_port_max: u16,
    /// Additional flags of `bpf_l4_csum_replace` for IPv6 (`BPF_F_IPV6` where the kernel knows it).
    pub csum_flags_v6: u32,
}

const _: () = assert!(size_of::<Config>() == 48);
