//! Whether an attachment is still wired as it should be.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Attachment, Bandwidth, CheckError, default_route, gateway_of};
use crate::netlink::{Link, Netlink, RouteQuery, TokenBucket};
use crate::netns::Namespace;

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
