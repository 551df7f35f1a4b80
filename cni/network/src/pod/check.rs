//! Whether an attachment is still wired as it should be: both ends, what leads in and out, and what the kernel does with
//! packets at the node's end. What plugins after us may change (the pod's Ethernet address, a smaller MTU there) may
//! differ; the MTU as such is the agent's, which follows the way underneath.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Attachment, Bandwidth, CheckError, HOST_MAC, default_route, gateway_of};
use crate::netlink::{Link, Netlink, RouteKind, RouteQuery, TokenBucket};
use crate::netns::{Namespace, sysctl};

/// `RT_TABLE_MAIN`
const TABLE_MAIN: u32 = 254;

impl Attachment {
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
        check_ends(&host, &link)?;
        let held = inner.addresses(Some(link.index))?;
        let gateways = outer.addresses(Some(host.index))?;
        let main = |link| RouteQuery { link: Some(link), table: Some(TABLE_MAIN), ..RouteQuery::default() };
        let ways_in = outer.routes(main(host.index))?;
        let ways_out = inner.routes(main(link.index))?;
        for addr in addresses {
            check_family(*addr, &host, &link)?;
            let gateway = gateway_of(*addr);
            if !gateways.iter().any(|address| address.net.addr() == gateway) {
                return Err(differs(&host.name, format!("it does not have the gateway's address {gateway}")));
            }
            let net = IpNet::from(*addr);
            if !held.iter().any(|address| address.net.addr() == *addr) {
                return Err(differs(&self.ifname, format!("it does not have the address {addr}")));
            }
            if !ways_in.iter().any(|route| route.destination == net && route.kind == RouteKind::Unicast) {
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

/// The pair as such.
fn check_ends(host: &Link, link: &Link) -> Result<(), CheckError> {
    if host.mac != Some(HOST_MAC) {
        // The pod has it as a permanent neighbour.
        let held = host.mac.map(|mac| mac.to_string()).unwrap_or_default();
        return Err(differs(&host.name, format!("its Ethernet address is {held} instead of {HOST_MAC}")));
    }
    if link.mtu > host.mtu {
        let difference =
            format!("its MTU {} is larger than {}, that of the node's end {}", link.mtu, host.mtu, host.name);
        return Err(differs(&link.name, difference));
    }
    Ok(())
}

/// What the kernel does with packets of an address's family.
fn check_family(addr: IpAddr, host: &Link, link: &Link) -> Result<(), CheckError> {
    let stops = if addr.is_ipv4() {
        // A kernel that cannot be asked is not said to be broken.
        sysctl::read(&format!("net/ipv4/conf/{}/forwarding", host.name)).is_ok_and(|held| held == "0")
    } else {
        for end in [host, link] {
            if end.ipv6.is_some_and(|settings| settings.disabled) {
                return Err(differs(&end.name, "IPv6 is disabled on it"));
            }
        }
        host.ipv6.is_some_and(|settings| !settings.forwarding)
    };
    let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
    if stops {
        Err(differs(&host.name, format!("{family} packets from it are not passed on")))
    } else {
        Ok(())
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
