//! What the eBPF programs and the user side agree on: the layout of every map's key and value, map names and sizes,
//! counters and drop reasons, and the pure parts of the datapath that both sides run (and that the host tests).
//!
//! Nothing here knows aya or the kernel. Everything is fixed-width, explicitly padded and asserted in size: the
//! layout of a map *is* its version, and the version is in its name ([`maps`]).
//!
//! IPv4 and IPv6 share one layout and one code path: an [`Addr`] is always 16 bytes, IPv4 in its mapped form
//! (`::ffff:a.b.c.d`). That costs 12 bytes in the hash of an IPv4 key and saves a second copy of every map and every
//! program; it is also what an IPv6 socket that talks IPv4 shows to the `*6` hooks, so those need no special case.
//!
//! Ports are in network byte order (`*_be`) wherever packets or sockets are compared with them.
#![no_std]
#![allow(
    clippy::inline_always,
    reason = "a program's frame is 512 bytes over all calls: what can be inlined must be"
)]
#![allow(clippy::cast_possible_truncation, reason = "taking a sum or a hash apart is truncation")]
#![allow(clippy::cast_lossless, reason = "`From` is not const")]

#[cfg(test)]
extern crate std;

mod addr;
pub mod checksum;
mod config;
mod counter;
pub mod dsr;
mod flow;
pub mod maps;
mod masquerade;
pub mod packet;
pub mod select;
mod service;
mod stats;
mod xdp;

pub use addr::Addr;
pub use config::{
    CLUSTER_NET_NODE, CLUSTER_NET_PODS, CONFIG_HAND_OVER, CONFIG_STATS, CONFIG_TAKING_OVER, ClusterNetKey,
    Config, POD_LINK_TRANSLATES, PodLink, REJECTS_PER_S,
};
pub use counter::{COUNTERS, Counter, DropReason};
pub use flow::{
    AffinityKey, AffinityValue, CLIENT_ADDRESS, CLIENT_NETNS, FLOW_ANNOUNCED, FLOW_CLOSING, FLOW_DSR,
    FLOW_MASQUERADE, FLOW_POD, FLOW_REPLY, FLOW_SEEN_REPLY, FLOW_SNAT, FLOW_TRANSPARENT, FlowTuple,
    FlowValue, FragmentKey, FragmentValue, SOCKET_BACKEND, SOCKET_FRONTEND, SocketKey, SocketValue,
    client_netns, netns_client,
};
pub use masquerade::{MASQUERADE_KEPT, MASQUERADE_PODS, MasqueradeSource};
pub use service::{
    BACKEND_LOCAL, Backend, CHUNK_SLOTS, MaglevChunk, SCOPE_EXTERNAL, SCOPE_INTERNAL,
    SERVICE_DROP_WHEN_EMPTY, SERVICE_DSR, SERVICE_HOST_ONLY, SERVICE_MASQUERADE, SERVICE_NODE_PORT,
    SERVICE_SOURCE_RANGES, Service, ServiceKey, SourceRangeKey,
};
pub use stats::{Stats, StatsKey};
pub use xdp::{XDP_LINK_ACCEPTS, XDP_LINK_ANSWERS, XdpLink};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
