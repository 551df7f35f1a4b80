//! Addresses on links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, Request, Result, Write};

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub link: u32,
    /// The address and the length of its subnet's prefix.
    pub net: IpNet,
    /// Duplicate address detection is not over (IPv6): it cannot be used yet.
    pub tentative: bool,
    /// Duplicate address detection found the address elsewhere (IPv6): it cannot be used.
    pub duplicate: bool,
}

impl Netlink {
    /// The addresses of one link, or of all.
    pub fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>> {
        let mut message = AddressMessage::default();
        message.header.index = link.unwrap_or(0);
        let answers = self.dump(RouteNetlinkMessage::GetAddress(message), &"addresses")?;
        let all = answers.into_iter().filter_map(Address::from_answer);
        // Kernels that do not filter send all.
        Ok(all.filter(|address| link.is_none_or(|index| address.link == index)).collect())
    }

    /// Gives a link an address, usable at once: there is no duplicate address detection. The address may be there
    /// already.
    pub fn add_address(&mut self, link: u32, net: IpNet) -> Result<()> {
        self.execute(Request::add_address(link, net))
    }

    /// Makes this machine answer for an address on a link without ever choosing it as the source of what it sends
    /// (scope host).
    pub fn add_silent_address(&mut self, link: u32, net: IpNet) -> Result<()> {
        self.execute(Request::add_silent_address(link, net))
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, link: u32, net: IpNet) -> Result<()> {
        self.execute(Request::delete_address(link, net))
    }
}

impl Request {
    /// See [`Netlink::add_address`].
    pub fn add_address(link: u32, net: IpNet) -> Self {
        let message = RouteNetlinkMessage::NewAddress(address_message(link, net));
        Self::new(message, Write::Replace, "add", object(link, net))
    }

    /// See [`Netlink::add_silent_address`].
    pub fn add_silent_address(link: u32, net: IpNet) -> Self {
        let mut message = address_message(link, net);
        message.header.scope = AddressScope::Host;
        Self::new(RouteNetlinkMessage::NewAddress(message), Write::Replace, "add", object(link, net))
    }

    /// See [`Netlink::delete_address`].
    pub fn delete_address(link: u32, net: IpNet) -> Self {
        let mut message = address_message(link, net);
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
        Self::new(RouteNetlinkMessage::DelAddress(message), Write::Change, "delete", object(link, net))
    }
}

fn object(link: u32, net: IpNet) -> String {
    format!("address {net} on link {link}")
}

fn address_message(link: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

/// The address family's number in netlink headers.
pub(super) fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Address {
    fn from_answer(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
        let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(addr) => local = Some(addr),
                AddressAttribute::Address(addr) => address = Some(addr),
                AddressAttribute::Flags(set) => flags = set,
                _ => {}
            }
        }
        // On point-to-point links `Address` is the peer's.
        let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
        Some(Self {
            link: message.header.index,
            net,
            tentative: flags.contains(AddressFlags::Tentative),
            duplicate: flags.contains(AddressFlags::Dadfailed),
        })
    }
}
