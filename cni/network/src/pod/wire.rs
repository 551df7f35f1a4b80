//! Wiring a pod with as few words to the kernel as it takes: every request waits for the one lock that all network
//! settings of the machine share, which a hundred pods that start at once fight for.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};

use super::unwire::delete_if_there;
use super::{
    Attachment, GATEWAY_V4, GATEWAY_V6, HOST_MAC, LINK_GROUP, MAX_ALIAS, WireError, Wired, Wiring,
    at_least_a_packet, default_route, further_default_route, gateway_of, host_route, is_retired,
};
use crate::netlink::{
    Ipv6Settings, Link, Mac, Neighbour, NeighbourKind, Netlink, NetlinkError, Request, Veth, VethPeer,
};
use crate::netns::Namespace;
use crate::netns::sysctl::{self, SysctlError};

/// The index of every namespace's loopback link.
const LOOPBACK: u32 = 1;
/// How long the kernel may take until a new link sends; it is a busy node where it is more than a millisecond.
const OPERATIONAL_WITHIN: Duration = Duration::from_secs(1);
const OPERATIONAL_POLL: Duration = Duration::from_micros(200);

impl Attachment {
    /// Wires the attachment into `pod`. All or nothing: what was made is removed if a later step fails. What an ADD
    /// that was cut short has left on the node is replaced.
    ///
    /// The node's end comes up first, when it has no carrier yet: the kernel gives it no addresses before it has been
    /// told to give it none. The pod's end follows and sends at once.
    pub fn wire(&self, pod: &Namespace, wiring: &Wiring) -> Result<Wired, WireError> {
        let mut outer = Netlink::open()?;
        let mac = wiring.mac.unwrap_or_else(|| self.mac());
        let host = self.create(&mut outer, pod, wiring, mac)?;
        let done = wire_host(&mut outer, &host, wiring)
            .and_then(|()| pod.run(|| self.wire_pod(&host, wiring, mac)).map_err(WireError::from)?)
            .and_then(|()| self.finish(&mut outer, &host));
        match done {
            Ok(()) => Ok(Wired { host_link: host.name, mac, mtu: host.mtu }),
            Err(error) => {
                // The error to report is the one that led here; DEL tries again.
                drop(delete_if_there(&mut outer, host.index));
                Err(error)
            }
        }
    }

    /// Makes the pair. That something is in its place is rare: it is looked for only then.
    fn create(
        &self,
        outer: &mut Netlink,
        pod: &Namespace,
        wiring: &Wiring,
        mac: Mac,
    ) -> Result<Link, WireError> {
        let name = self.host_link();
        let veth = Veth {
            name: &name,
            mac: Some(HOST_MAC),
            mtu: wiring.mtu,
            group: LINK_GROUP,
            peer: VethPeer { name: &self.ifname, mac: Some(mac), netns: Some(pod.as_fd()) },
        };
        match outer.create_veth(&veth) {
            Err(error) if error.is_exists() => {
                self.make_room(outer, pod)?;
                Ok(outer.create_veth(&veth)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Removes what an ADD that was cut short has left, or a DEL; what is in use stays, and is the error.
    fn make_room(&self, outer: &mut Netlink, pod: &Namespace) -> Result<(), WireError> {
        for stale in self.in_the_way(outer, pod)? {
            delete_if_there(outer, stale.index)?;
        }
        Ok(())
    }

    /// Fails as [`Self::wire`] would because the interface is there and in use. Changes nothing.
    pub fn ensure_free(&self, pod: &Namespace) -> Result<(), WireError> {
        self.in_the_way(&mut Netlink::open()?, pod).map(drop)
    }

    /// The node's ends that are in the way and may go: one of this name, and that of the pod's interface, which may be
    /// another container's in the same namespace. It is an error if the interface is in use.
    fn in_the_way(&self, outer: &mut Netlink, pod: &Namespace) -> Result<Vec<Link>, WireError> {
        let own = outer.link(&self.host_link())?;
        let mut inner = Netlink::open_in(pod)?;
        let Some(there) = inner.link(&self.ifname)? else { return Ok(own.into_iter().collect()) };
        let former = match there.peer {
            Some(index) => outer.link_by_index(index)?.filter(|host| is_end_of(host, &there)),
            None => None,
        };
        let half_made = |host: &Link| host.name == self.host_link() && self.is_half_made(host);
        let Some(former) = former.filter(|host| is_retired(host) || half_made(host)) else {
            // Whoever deletes what is done with may have come between the two looks.
            if inner.link_by_index(there.index)?.is_none() {
                return Ok(own.into_iter().collect());
            }
            let netns = pod.path().display().to_string();
            return Err(WireError::InterfaceExists { ifname: self.ifname.clone(), netns });
        };
        let own = own.filter(|own| own.index != former.index);
        Ok(own.into_iter().chain([former]).collect())
    }

    /// Whether an ADD ended before it wrote its remark, the last that it does.
    fn is_half_made(&self, host: &Link) -> bool {
        host.alias.is_none() && self.alias().len() <= MAX_ALIAS
    }

    /// Sets up the pod's end. The calling thread is in the pod's namespace.
    fn wire_pod(&self, host: &Link, wiring: &Wiring, mac: Mac) -> Result<(), WireError> {
        let mut inner = Netlink::open()?;
        let gone = || WireError::InterfaceGone { ifname: self.ifname.clone(), host_link: host.name.clone() };
        let link = match host.peer {
            // The name is looked up for IPv6 alone: its sysctls are files of that name.
            Some(index) if !wiring.has_v6() => index,
            _ => {
                let link = inner.link(&self.ifname)?.ok_or_else(gone)?;
                let settings = link.ipv6.filter(|_| wiring.has_v6());
                settings.map_or(Ok(()), |settings| set_pod_sysctls(&self.ifname, settings))?;
                link.index
            }
        };
        let up = if wiring.has_v6() { Request::set_up_without_link_local } else { Request::set_up };
        let mut requests = vec![up(link), Request::set_up(LOOPBACK)];
        if wiring.has_v6() {
            requests.push(Request::add_address(link, link_local(mac)));
        }
        for addr in &wiring.addresses {
            let (gateway, kind) = (gateway_of(*addr), NeighbourKind::Permanent);
            let neighbour = Neighbour { link, addr: gateway, mac: Some(HOST_MAC), kind };
            requests.push(Request::add_address(link, IpNet::from(*addr)));
            requests.push(Request::set_neighbour(&neighbour));
        }
        let bucket = wiring.bandwidth.egress.as_ref();
        requests.extend(
            bucket.map(|bucket| Request::set_token_bucket(link, &at_least_a_packet(bucket, host.mtu))),
        );
        let before = requests.len();
        requests.extend(wiring.addresses.iter().map(|addr| Request::add_route(&default_route(*addr, link))));
        let mut outcomes = inner.execute_each(requests)?;
        let ways_out = outcomes.split_off(before);
        outcomes.into_iter().collect::<Result<(), _>>()?;
        for (addr, outcome) in wiring.addresses.iter().zip(ways_out) {
            match outcome {
                Err(error) if error.is_exists() => {
                    inner.add_route(&further_default_route(*addr, link))?;
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Waits until the node's end sends, and writes the remark that says that all is done.
    fn finish(&self, outer: &mut Netlink, host: &Link) -> Result<(), WireError> {
        await_operation(outer, host.index)?;
        let alias = self.alias();
        if alias.len() <= MAX_ALIAS {
            outer.set_alias(host.index, &alias)?;
        }
        Ok(())
    }
}

impl Wiring {
    fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// Whether `host` is the other end of the pod's interface. Indices are of a namespace each: both have to say so.
fn is_end_of(host: &Link, there: &Link) -> bool {
    there.peer == Some(host.index) && host.peer == Some(there.index)
}

/// Sets up the node's end.
fn wire_host(outer: &mut Netlink, host: &Link, wiring: &Wiring) -> Result<(), WireError> {
    if let Some(settings) = host.ipv6.filter(|_| wiring.has_v6()) {
        set_host_sysctls(&host.name, settings)?;
    }
    let mut requests = vec![Request::set_up_forwarding(host.index, host.ipv6.is_some())];
    if wiring.has_v6() {
        requests.push(Request::add_address(host.index, Ipv6Net::new_assert(GATEWAY_V6, 64).into()));
    }
    if wiring.addresses.iter().any(IpAddr::is_ipv4) {
        requests.push(Request::add_silent_address(host.index, IpNet::from(IpAddr::from(GATEWAY_V4))));
    }
    let routes = wiring.addresses.iter().map(|addr| host_route(*addr, host.index));
    requests.extend(routes.map(|route| Request::replace_route(&route)));
    let bucket = wiring.bandwidth.ingress.as_ref();
    requests.extend(
        bucket.map(|bucket| Request::set_token_bucket(host.index, &at_least_a_packet(bucket, host.mtu))),
    );
    Ok(outer.execute_all(requests)?)
}

/// Waits until a link sends that came up before its other end, thus without a carrier. Newer kernels make good for that
/// when they are asked about the link, older ones a little later, and drop until then what is sent: the first packet to
/// the pod would wait for a second to be sent again.
fn await_operation(netlink: &mut Netlink, link: u32) -> Result<(), NetlinkError> {
    let end = Instant::now() + OPERATIONAL_WITHIN;
    while netlink.link_by_index(link)?.is_some_and(|link| !link.operational) && Instant::now() < end {
        std::thread::sleep(OPERATIONAL_POLL);
    }
    Ok(())
}

/// The link-local address that follows from an Ethernet address (modified EUI-64), set by hand since the kernel would
/// look for duplicates of its own.
fn link_local(mac: Mac) -> IpNet {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..11].copy_from_slice(&mac.0[..3]);
    octets[11..13].copy_from_slice(&[0xff, 0xfe]);
    octets[13..].copy_from_slice(&mac.0[3..]);
    octets[8] ^= 2;
    let addr = Ipv6Addr::from(octets);
    Ipv6Net::new_assert(addr, 64).into()
}

/// In the pod: IPv6 is on, and routers on the link (there is none) are not believed. There is nothing to look for
/// duplicates of: every address is set without.
fn set_pod_sysctls(link: &str, held: Ipv6Settings) -> Result<(), SysctlError> {
    let wanted = [("disable_ipv6", "0", held.disabled), ("accept_ra", "0", held.accept_ra != 0)];
    set_v6_sysctls(link, &wanted)
}

/// On the node: the same, and packets are passed on. A link that does so does not listen to routers unless told to.
fn set_host_sysctls(link: &str, held: Ipv6Settings) -> Result<(), SysctlError> {
    let listens = held.accept_ra == 2 || held.accept_ra == 1 && !held.forwarding;
    let wanted = [
        ("disable_ipv6", "0", held.disabled),
        ("accept_ra", "0", listens),
        ("forwarding", "1", !held.forwarding),
    ];
    set_v6_sysctls(link, &wanted)
}

/// Writes those that are not as they should be: each is a file to be opened.
fn set_v6_sysctls(link: &str, wanted: &[(&str, &str, bool)]) -> Result<(), SysctlError> {
    for (key, value, _) in wanted.iter().filter(|(.., differs)| *differs) {
        sysctl::write(&format!("net/ipv6/conf/{link}/{key}"), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_one_that_the_kernel_would_choose() {
        let net = link_local(Mac([0x02, 0x00, 0x5e, 0x10, 0x20, 0x30]));
        assert_eq!(net.to_string(), "fe80::5eff:fe10:2030/64");
    }
}
