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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};
use thiserror::Error;

use crate::hash;
use crate::netlink::{
    Link, Mac, Neighbour, NeighbourKind, Netlink, NetlinkError, Route, RouteQuery, TokenBucket, Veth,
    VethPeer,
};
use crate::netns::sysctl::{self, SysctlError};
use crate::netns::{Namespace, NetnsError};

/// The next hop of every pod.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The next hop of every pod for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The Ethernet address of the node's end of every pair.
pub const HOST_MAC: Mac = Mac([0xee; 6]);
/// The group of all nodes' ends: they can be deleted in one go.
pub const LINK_GROUP: u32 = 0x5ea;
/// The group that nodes' ends are moved to when many go at once.
const DOOMED_GROUP: u32 = 0x5eb;
/// Who made the routes to this node's pods (`ip route show proto 87`).
pub const ROUTE_PROTOCOL: u8 = 87;
/// What the names of the nodes' ends begin with.
const LINK_PREFIX: &str = "sw";
/// The remark on a node's end begins with this; network, container and interface follow.
const ALIAS_PREFIX: &str = "seaway";
/// The longest remark that the kernel takes.
const MAX_ALIAS: usize = 255;
/// How long the kernel may take until a new link sends; it is a busy node where it is more than a millisecond.
const OPERATIONAL_WITHIN: Duration = Duration::from_secs(1);
const OPERATIONAL_POLL: Duration = Duration::from_micros(200);

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
    #[error("interface {ifname} vanished from network namespace {netns} while it was set up")]
    InterfaceGone {
        /// Its name.
        ifname: String,
        /// The pod's namespace.
        netns: String,
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

    /// Wires the attachment into `pod`. All or nothing: what was made is removed if a later step fails. What an ADD
    /// that was cut short has left on the node is replaced.
    pub fn wire(&self, pod: &Namespace, wiring: &Wiring) -> Result<Wired, WireError> {
        let mut inner = Netlink::open_in(pod)?;
        let netns = pod.path().display().to_string();
        let mut outer = Netlink::open()?;
        let host_link = self.host_link();
        let stale = outer.link(&host_link)?;
        if let Some(there) = inner.link(&self.ifname)?
            && !stale.as_ref().is_some_and(|stale| self.is_half_made(stale, &there))
        {
            return Err(WireError::InterfaceExists { ifname: self.ifname.clone(), netns });
        }
        if let Some(stale) = stale {
            delete_if_there(&mut outer, stale.index)?;
        }
        let mac = wiring.mac.unwrap_or_else(|| self.mac());
        let host = outer.create_veth(&Veth {
            name: &host_link,
            mac: Some(HOST_MAC),
            mtu: wiring.mtu,
            group: LINK_GROUP,
            peer: VethPeer { name: &self.ifname, mac: Some(mac), netns: Some(pod.as_fd()) },
        })?;
        let wired = Wired { host_link, mac, mtu: host.mtu };
        let done = self
            .wire_pod(pod, &mut inner, wiring)
            .and_then(|()| self.wire_host(&mut outer, &host, wiring))
            .and_then(|()| self.await_operation(&mut inner));
        match done {
            Ok(()) => Ok(wired),
            Err(error) => {
                // The error to report is the one that led here; DEL tries again.
                drop(delete_if_there(&mut outer, host.index));
                Err(error)
            }
        }
    }

    /// Whether an interface in the pod is what an ADD that was cut short has left.
    fn is_half_made(&self, host: &Link, there: &Link) -> bool {
        there.peer == Some(host.index) && host.alias.is_none() && self.alias().len() <= MAX_ALIAS
    }

    fn wire_pod(&self, pod: &Namespace, inner: &mut Netlink, wiring: &Wiring) -> Result<(), WireError> {
        let v6 = wiring.addresses.iter().any(IpAddr::is_ipv6);
        pod.run(|| set_link_sysctls(&self.ifname, &pod_sysctls(v6)))??;
        let gone = || WireError::InterfaceGone {
            ifname: self.ifname.clone(),
            netns: pod.path().display().to_string(),
        };
        let link = inner.link(&self.ifname)?.ok_or_else(gone)?;
        inner.set_up(link.index)?;
        if let Some(lo) = inner.link("lo")?.filter(|lo| !lo.up) {
            inner.set_up(lo.index)?;
        }
        for addr in &wiring.addresses {
            let gateway = gateway_of(*addr);
            inner.add_address(link.index, IpNet::from(*addr))?;
            let kind = NeighbourKind::Permanent;
            inner.set_neighbour(&Neighbour { link: link.index, addr: gateway, mac: Some(HOST_MAC), kind })?;
            inner.add_route(&default_route(*addr, link.index))?;
        }
        if let Some(bucket) = &wiring.bandwidth.egress {
            inner.set_token_bucket(link.index, &at_least_a_packet(bucket, link.mtu))?;
        }
        Ok(())
    }

    fn wire_host(&self, outer: &mut Netlink, host: &Link, wiring: &Wiring) -> Result<(), WireError> {
        let v6 = wiring.addresses.iter().any(IpAddr::is_ipv6);
        if v6 {
            outer.set_no_link_local(host.index)?;
        }
        set_link_sysctls(&host.name, &host_sysctls(v6))?;
        outer.set_up(host.index)?;
        if v6 {
            outer.add_address(host.index, Ipv6Net::new_assert(GATEWAY_V6, 64).into())?;
        }
        if wiring.addresses.iter().any(IpAddr::is_ipv4) {
            outer.add_silent_address(host.index, IpNet::from(IpAddr::from(GATEWAY_V4)))?;
        }
        for addr in &wiring.addresses {
            outer.replace_route(&host_route(*addr, host.index))?;
        }
        if let Some(bucket) = &wiring.bandwidth.ingress {
            outer.set_token_bucket(host.index, &at_least_a_packet(bucket, host.mtu))?;
        }
        let alias = self.alias();
        if alias.len() <= MAX_ALIAS {
            outer.set_alias(host.index, &alias)?;
        }
        Ok(())
    }

    /// Waits until the pod's end sends. It came up before the node's end, thus without a carrier; the kernel makes
    /// good for that a little later, and drops until then what the pod sends: its first connection, or its answer to
    /// the first probe, would wait for a second to be sent again.
    fn await_operation(&self, inner: &mut Netlink) -> Result<(), WireError> {
        let end = Instant::now() + OPERATIONAL_WITHIN;
        while Instant::now() < end && inner.link(&self.ifname)?.is_some_and(|link| !link.operational) {
            std::thread::sleep(OPERATIONAL_POLL);
        }
        Ok(())
    }

    /// The node's end is there.
    pub fn is_wired(&self) -> Result<bool, NetlinkError> {
        Ok(Netlink::open()?.link(&self.host_link())?.is_some())
    }

    /// Removes the wiring. `Ok(false)`: there was none. It needs no namespace of the pod: with the node's end the
    /// pod's end goes as well.
    pub fn unwire(&self) -> Result<bool, NetlinkError> {
        let mut outer = Netlink::open()?;
        match outer.link(&self.host_link())? {
            Some(link) => delete_if_there(&mut outer, link.index),
            None => Ok(false),
        }
    }

    /// Compares the wiring with what it should be.
    pub fn check(
        &self,
        pod: &Namespace,
        addresses: &[IpAddr],
        bandwidth: Bandwidth,
    ) -> Result<(), CheckError> {
        let (mut outer, mut inner) = (Netlink::open()?, Netlink::open_in(pod)?);
        let host = up(outer.link(&self.host_link())?, &self.host_link())?;
        let link = up(inner.link(&self.ifname)?, &self.ifname)?;
        if link.peer != Some(host.index) {
            return Err(differs(&self.ifname, "it is not the other end of the node's link"));
        }
        let held = inner.addresses(Some(link.index))?;
        let ways_in = outer.routes(RouteQuery { link: Some(host.index), ..RouteQuery::default() })?;
        let ways_out = inner.routes(RouteQuery { link: Some(link.index), ..RouteQuery::default() })?;
        for addr in addresses {
            let net = IpNet::from(*addr);
            if !held.iter().any(|address| address.net.addr() == *addr) {
                return Err(differs(&self.ifname, format!("it does not have the address {addr}")));
            }
            if !ways_in.iter().any(|route| route.destination == net) {
                return Err(differs(&host.name, format!("the node has no route to {addr} on it")));
            }
            let default = default_route(*addr, link.index);
            if !ways_out
                .iter()
                .any(|route| route.destination == default.destination && route.gateway == default.gateway)
            {
                return Err(differs(
                    &self.ifname,
                    format!("there is no default route through {}", gateway_of(*addr)),
                ));
            }
        }
        check_bucket(&mut outer, &host, bandwidth.ingress)?;
        check_bucket(&mut inner, &link, bandwidth.egress)
    }
}

fn check_bucket(netlink: &mut Netlink, link: &Link, wanted: Option<TokenBucket>) -> Result<(), CheckError> {
    let Some(wanted) = wanted else { return Ok(()) };
    match netlink.token_bucket_rate(link.index)? {
        Some(rate) if rate == wanted.rate_bytes => Ok(()),
        Some(rate) => {
            let difference = format!("its limit is {rate} bytes a second instead of {}", wanted.rate_bytes);
            Err(differs(&link.name, difference))
        }
        None => Err(differs(&link.name, "it has no bandwidth limit")),
    }
}

/// A bucket that a whole packet does not fit into lets none pass.
fn at_least_a_packet(bucket: &TokenBucket, mtu: u32) -> TokenBucket {
    const HEADERS: u32 = 64;
    TokenBucket { burst_bytes: bucket.burst_bytes.max(mtu.saturating_add(HEADERS)), ..*bucket }
}

/// Removes the wiring of many attachments, in a fraction of the time that it takes one by one. Goes on after an
/// error; returns those that are still there with the reason.
pub fn unwire_all(attachments: Vec<Attachment>) -> Vec<(Attachment, NetlinkError)> {
    let mut stuck = Vec::new();
    // If there is no socket, each one says why.
    let Ok(mut outer) = Netlink::open() else { return unwire_each(attachments) };
    let mut doomed = Vec::new();
    for attachment in attachments {
        let moved = match outer.link(&attachment.host_link()) {
            Ok(Some(link)) => outer.set_group(link.index, DOOMED_GROUP).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match moved {
            Ok(true) => doomed.push(attachment),
            Ok(false) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => stuck.push((attachment, error)),
        }
    }
    if !doomed.is_empty() && outer.delete_group(DOOMED_GROUP).is_err() {
        stuck.extend(unwire_each(doomed));
    }
    stuck
}

fn unwire_each(attachments: Vec<Attachment>) -> Vec<(Attachment, NetlinkError)> {
    let each = attachments.into_iter().filter_map(|attachment| {
        let error = attachment.unwire().err()?;
        Some((attachment, error))
    });
    each.collect()
}

/// The attachments of `network` that have wiring on this node.
pub fn wired_attachments(network: &str) -> Result<Vec<Attachment>, NetlinkError> {
    let links = Netlink::open()?.links()?;
    let attachments = links.iter().filter_map(|link| Attachment::from_alias(link.alias.as_deref()?));
    Ok(attachments.filter(|attachment| attachment.network == network).collect())
}

fn gateway_of(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

fn default_route(addr: IpAddr, link: u32) -> Route {
    Route { onlink: true, protocol: ROUTE_PROTOCOL, ..Route::default_via(gateway_of(addr)).on(link) }
}

fn host_route(addr: IpAddr, link: u32) -> Route {
    Route { protocol: ROUTE_PROTOCOL, ..Route::to(IpNet::from(addr)).on(link) }
}

fn delete_if_there(netlink: &mut Netlink, index: u32) -> Result<bool, NetlinkError> {
    match netlink.delete_link(index) {
        Ok(()) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

fn up(link: Option<Link>, name: &str) -> Result<Link, CheckError> {
    match link {
        Some(link) if link.up => Ok(link),
        Some(_) => Err(differs(name, "the link is down")),
        None => Err(differs(name, "there is no such link")),
    }
}

fn differs(name: &str, difference: impl Into<String>) -> CheckError {
    CheckError::Differs { object: format!("interface {name}"), difference: difference.into() }
}

/// `conf/<link>/KEY = VALUE`, per family.
type LinkSysctl = (&'static str, &'static str, &'static str);

/// In the pod: addresses are usable at once, and routers on the link (there is none) are not believed.
fn pod_sysctls(v6: bool) -> Vec<LinkSysctl> {
    if v6 {
        vec![("ipv6", "disable_ipv6", "0"), ("ipv6", "accept_dad", "0"), ("ipv6", "accept_ra", "0")]
    } else {
        Vec::new()
    }
}

/// On the node: packets are passed on, and a pod may answer on another way than it was asked.
fn host_sysctls(v6: bool) -> Vec<LinkSysctl> {
    let mut sysctls = vec![("ipv4", "forwarding", "1"), ("ipv4", "rp_filter", "2")];
    if v6 {
        sysctls.extend([
            ("ipv6", "disable_ipv6", "0"),
            ("ipv6", "accept_dad", "0"),
            ("ipv6", "accept_ra", "0"),
            ("ipv6", "forwarding", "1"),
        ]);
    }
    sysctls
}

fn set_link_sysctls(link: &str, sysctls: &[LinkSysctl]) -> Result<(), SysctlError> {
    for (family, key, value) in sysctls {
        sysctl::write(&format!("net/{family}/conf/{link}/{key}"), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
