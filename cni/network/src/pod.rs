//! The wiring of one pod: a veth pair, an address of its own per family, and a gateway that is the same for every
//! pod.
//!
//! ```text
//!  pod:  eth0  10.244.1.5/32  fd00:10:244:1::5/128
//!        default via 169.254.1.1 onlink      neighbour 169.254.1.1 -> ee:ee:ee:ee:ee:ee permanent
//!        default via fe80::1                 neighbour fe80::1     -> ee:ee:ee:ee:ee:ee permanent
//!  ──────┼──────────────────────────────────────────────────────────────────────────────────────
//!  node: swXXXXXXXXXXX  ee:ee:ee:ee:ee:ee  169.254.1.1/32 scope host  fe80::1/64
//!        10.244.1.5/32 dev swXXXXXXXXXXX     fd00:10:244:1::5/128 dev swXXXXXXXXXXX
//! ```
//!
//! The node's end has the same Ethernet address for every pod, and the pod has it as a permanent neighbour: the
//! pod does not have to ask who its gateway is. The other way round the node asks when it has something to send: a
//! chained plugin may change the pod's Ethernet address after us, and an entry made here would send the first packets
//! nowhere for seconds. At such a change the kernel also forgets the pod's neighbours, permanent ones too: then the
//! pod asks as well, which is why the gateways' addresses stand on the node's end (and no `proxy_arp` is needed, which would
//! answer only where the node has a default route). The IPv4 one has scope host: as a source it is never chosen.
//!
//! A limit on the pod's bandwidth is a token bucket at the end that sends: the node's for what goes into the pod, the
//! pod's for what comes out of it.
//!
//! The remark on the node's end is written last, and so tells a finished wiring from one that was cut short, which a
//! repeated ADD replaces.
//!
//! Names follow from (network, container, interface), so that a repeated DEL finds what a cut-short ADD has left.
//!
//! Deleting a link takes tens of milliseconds, many at once hardly more than one. So DEL takes away what leads to the
//! pod and what the pod sends with (routes and addresses), and moves the link to a group of links that are done with
//! ([`retired`]): the agent deletes that group as soon as it sees it, a short-lived process if there is no agent, and
//! the end of the pod's namespace if that comes first.

mod check;
pub mod retired;
mod unwire;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

use crate::hash;
use crate::netlink::{Link, Mac, NetlinkError, Route, TokenBucket};
use crate::netns::NetnsError;
use crate::netns::sysctl::SysctlError;

pub use unwire::{unwire_all, wired_attachments};

/// The next hop of every pod.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The next hop of every pod for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The Ethernet address of the node's end of every pair.
pub const HOST_MAC: Mac = Mac([0xee; 6]);
/// The group of all nodes' ends: they can be deleted in one go.
pub const LINK_GROUP: u32 = 0x5ea;
/// The group that nodes' ends are moved to when they are done with.
pub const RETIRED_GROUP: u32 = 0x5eb;
/// Who made the routes to this node's pods (`ip route show proto 87`).
pub const ROUTE_PROTOCOL: u8 = 87;
/// What the names of the nodes' ends begin with.
const LINK_PREFIX: &str = "sw";
/// The remark on a node's end begins with this; network, container and interface follow.
const ALIAS_PREFIX: &str = "seaway";
/// The longest remark that the kernel takes.
const MAX_ALIAS: usize = 255;

/// One interface of one container in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container_id: String,
    /// The interface's name within the pod.
    pub ifname: String,
}

/// What an attachment is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The MTU of both ends; 1500 if none.
    pub mtu: Option<u32>,
    /// The pod's Ethernet address; one that follows from the attachment if none.
    pub mac: Option<Mac>,
    /// Limits on what the pod receives and sends.
    pub bandwidth: Bandwidth,
}

/// Limits on a pod's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// On what it receives.
    pub ingress: Option<TokenBucket>,
    /// On what it sends.
    pub egress: Option<TokenBucket>,
}

/// What an attachment has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wired {
    /// The name of the node's end.
    pub host_link: String,
    /// The pod's Ethernet address.
    pub mac: Mac,
    /// The MTU of both ends.
    pub mtu: u32,
}

/// Why a pod could not be wired.
#[derive(Debug, Error)]
pub enum WireError {
    /// The interface is there already.
    #[error("interface {ifname} exists in network namespace {netns}")]
    InterfaceExists {
        /// Its name.
        ifname: String,
        /// The pod's namespace.
        netns: String,
    },
    /// The interface vanished while it was being set up.
    #[error("interface {ifname} vanished from the pod while it was set up, its other end being {host_link}")]
    InterfaceGone {
        /// Its name.
        ifname: String,
        /// The node's end.
        host_link: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A sysctl could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The pod's namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
}

/// How an attachment differs from what it should be.
#[derive(Debug, Error)]
pub enum CheckError {
    /// Something is missing or different.
    #[error("{object}: {difference}")]
    Differs {
        /// The object.
        object: String,
        /// In which way.
        difference: String,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Attachment {
    /// An attachment from its parts.
    pub fn new(network: &str, container_id: &str, ifname: &str) -> Self {
        Self { network: network.to_owned(), container_id: container_id.to_owned(), ifname: ifname.to_owned() }
    }

    /// The name of the node's end.
    pub fn host_link(&self) -> String {
        hash::link_name(LINK_PREFIX, self.hash())
    }

    fn hash(&self) -> u64 {
        hash::fnv1a(&[self.network.as_bytes(), self.container_id.as_bytes(), self.ifname.as_bytes()])
    }

    fn mac(&self) -> Mac {
        Mac(hash::mac(self.hash()))
    }

    /// The remark on the node's end: who it belongs to.
    fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}:{}:{}:{}", self.network, self.container_id, self.ifname)
    }

    pub(crate) fn from_alias(alias: &str) -> Option<Self> {
        let mut parts = alias.split(':');
        let (Some(ALIAS_PREFIX), Some(network), Some(container_id), Some(ifname), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        Some(Self::new(network, container_id, ifname))
    }
}

fn gateway_of(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

fn default_route(addr: IpAddr, link: u32) -> Route {
    Route { onlink: true, protocol: ROUTE_PROTOCOL, ..Route::default_via(gateway_of(addr)).on(link) }
}

/// That of a further interface of one pod: it stands behind the others', each by a metric of its own, and takes over when
/// they are gone.
fn further_default_route(addr: IpAddr, link: u32) -> Route {
    /// The kernel's for IPv6, where none is said; for IPv4 that is 0.
    const USUAL: u32 = 1024;
    Route { metric: Some(USUAL.saturating_add(link)), ..default_route(addr, link) }
}

fn host_route(addr: IpAddr, link: u32) -> Route {
    Route { protocol: ROUTE_PROTOCOL, ..Route::to(IpNet::from(addr)).on(link) }
}

/// A bucket that a whole packet does not fit into lets none pass. The MTU may grow later, when the way underneath gets
/// another one: no further than that of large frames.
fn at_least_a_packet(bucket: &TokenBucket, mtu: u32) -> TokenBucket {
    const HEADERS: u32 = 64;
    const LARGE_FRAME: u32 = 9216;
    let packet = mtu.max(LARGE_FRAME).saturating_add(HEADERS);
    TokenBucket { burst_bytes: bucket.burst_bytes.max(packet), ..*bucket }
}

fn is_retired(link: &Link) -> bool {
    link.group == RETIRED_GROUP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_takes_a_whole_packet_also_when_packets_have_grown() {
        let burst = |burst_bytes, mtu| {
            at_least_a_packet(&TokenBucket { rate_bytes: 1, burst_bytes }, mtu).burst_bytes
        };
        assert_eq!([burst(1, 1450), burst(1, 9000), burst(1, 65_000)], [9280, 9280, 65_064]);
        assert_eq!(burst(1_000_000, 1450), 1_000_000);
        assert_eq!(burst(1, u32::MAX), u32::MAX);
    }

    #[test]
    fn names_follow_from_the_attachment() {
        let attachment = Attachment::new("seaway", "4f1a", "eth0");
        assert_eq!(attachment.host_link().len(), 13);
        assert_eq!(Attachment::from_alias(&attachment.alias()), Some(attachment.clone()));
        assert_ne!(attachment.host_link(), Attachment::new("other", "4f1a", "eth0").host_link());
        assert_eq!(Attachment::from_alias("my uplink"), None);
        assert_eq!(Attachment::from_alias("seaway:a:b"), None);
    }
}
