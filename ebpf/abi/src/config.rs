//! What the programs know about their node.

use crate::Addr;

/// [`Config::flags`]: packets and bytes are counted per service and backend.
pub const CONFIG_STATS: u32 = 1;

/// [`Config::flags`]: another mode served until now: a TCP connection that is not begun before the programs' eyes is
/// its.
pub const CONFIG_TAKING_OVER: u32 = 1 << 1;

/// [`Config::flags`]: packets to and from pods go past this node's stack, thus past its firewall, too.
pub const CONFIG_HAND_OVER: u32 = 1 << 2;

/// Answers to refused packets per second and CPU, if [`Config::rejects_per_s`] is 0.
pub const REJECTS_PER_S: u32 = 10_000;

/// The only element of the config map. All zero (as created) means: no source NAT, no bind protection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The address that remote IPv4 backends see as their client; unspecified: remote backends cannot be used.
    pub node_v4: Addr,
    /// The same for IPv6.
    pub node_v6: Addr,
    /// The least network that holds all pod subnets of IPv4 ([`ClusterNetKey`]), and its mask: what is not in it is no
    /// pod's, without a look-up. All zero: unknown.
    pub pods_v4: Addr,
    /// See [`Config::pods_v4`]; the first 96 bits are set.
    pub pods_v4_mask: Addr,
    /// The same for IPv6.
    pub pods_v6: Addr,
    /// See [`Config::pods_v6`].
    pub pods_v6_mask: Addr,
    /// Cookie of the node's network namespace; 0: unknown, nothing is treated as the host's own.
    pub netns_cookie: u64,
    /// First port of source NAT, host byte order.
    pub snat_port_min: u16,
    /// Last port of source NAT, host byte order; 0: no source NAT.
    pub snat_port_max: u16,
    /// Additional flags of `bpf_l4_csum_replace` for IPv6 (`BPF_F_IPV6` where the kernel knows it).
    pub csum_flags_v6: u32,
    /// `CONFIG_*`.
    pub flags: u32,
    /// Answers to refused packets per second and CPU; 0: [`REJECTS_PER_S`].
    pub rejects_per_s: u32,
    /// The UDP port of the tunnel between nodes, network byte order; 0: there is none.
    pub tunnel_port_be: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub pad2: u32,
}

impl Config {
    /// Whether an address is the node's.
    #[inline(always)]
    pub const fn is_node(&self, addr: &Addr) -> bool {
        addr.same(&self.node_v4) || addr.same(&self.node_v6)
    }

    /// Whether an address may be a pod's.
    #[inline(always)]
    pub const fn may_be_pod(&self, addr: &Addr) -> bool {
        if addr.is_v4() {
            let mask = self.pods_v4_mask.words[3];
            return mask != 0 && addr.words[3] & mask == self.pods_v4.words[3];
        }
        let (net, mask) = (&self.pods_v6.words, &self.pods_v6_mask.words);
        mask[0] != 0
            && addr.words[0] & mask[0] == net[0]
            && addr.words[1] & mask[1] == net[1]
            && addr.words[2] & mask[2] == net[2]
            && addr.words[3] & mask[3] == net[3]
    }
}

/// A pod subnet or an address of a node. LPM: the prefix covers the address's bits (IPv4: 96 more than its own prefix).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterNetKey {
    /// Prefix length of the address in its 16-byte form.
    pub prefix_len: u32,
    /// The network's address, as [`Addr::words`] has it.
    pub words: [u32; 4],
}

/// What a [`ClusterNetKey`] stands for: a pod subnet of a node.
pub const CLUSTER_NET_PODS: u32 = 1;

/// What a [`ClusterNetKey`] stands for: an address of a node.
pub const CLUSTER_NET_NODE: u32 = 2;

/// A link whose host end runs the programs for pods, so that packets may go straight to its far end, and answers of
/// the pod straight out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLink {
    /// `POD_LINK_*`; the programs add to them.
    pub flags: u32,
}

/// [`PodLink::flags`]: something that this pod sent was translated at its link, so answers have to be.
pub const POD_LINK_TRANSLATES: u32 = 1;

const _: () = {
    assert!(size_of::<Config>() == 128);
    assert!(size_of::<PodLink>() == 4);
    assert!(size_of::<ClusterNetKey>() == 20);
};
