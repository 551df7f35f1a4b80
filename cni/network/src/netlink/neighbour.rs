//! Neighbours (which Ethernet address an IP address has on a link) and forwarding database entries (behind which
//! host an Ethernet address is, of a VXLAN device).

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::{Mac, Netlink, Request, Result, Write};

/// How long a neighbour entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourKind {
    /// For ever; it is never asked for.
    Permanent,
    /// It is used at once and verified soon after; if it does not answer, it is looked for anew.
    Stale,
    /// The link answers for the address on behalf of somebody else.
    Proxy,
    /// Anything that the kernel learned by itself.
    Learned,
}

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub link: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its Ethernet address. Proxy entries have none, nor do failed ones.
    pub mac: Option<Mac>,
    /// How long it holds.
    pub kind: NeighbourKind,
}

/// Frames to `mac` leave a VXLAN device towards the host `remote`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The VXLAN device.
    pub link: u32,
    /// The Ethernet address.
    pub mac: Mac,
    /// The host.
    pub remote: IpAddr,
}

impl Netlink {
    /// The neighbours of one link, or of all, of both families. Proxy entries are not listed.
    pub fn neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>> {
        let mut message = NeighbourMessage::default();
        message.attributes.extend(link.map(NeighbourAttribute::IfIndex));
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message), &"neighbours")?;
        let all = answers.into_iter().filter_map(Neighbour::from_answer);
        Ok(all.filter(|neighbour| link.is_none_or(|index| neighbour.link == index)).collect())
    }

    /// Sets a neighbour, in place of the former one if there is one.
    pub fn set_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        self.execute(Request::set_neighbour(neighbour))
    }

    /// Deletes a neighbour.
    pub fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        self.execute(Request::delete_neighbour(neighbour))
    }

    /// The permanent forwarding database entries of a VXLAN device.
    pub fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = link;
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message), &"forwarding database")?;
        let all = answers.into_iter().filter_map(FdbEntry::from_answer);
        Ok(all.filter(|entry| entry.link == link).collect())
    }

    /// Sets where an Ethernet address is, in place of the former entry of that address if there is one.
    pub fn set_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        self.execute(Request::set_fdb(entry))
    }

    /// Deletes a forwarding database entry.
    pub fn delete_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        self.execute(Request::delete_fdb(entry))
    }
}

impl Request {
    /// See [`Netlink::set_neighbour`].
    pub fn set_neighbour(neighbour: &Neighbour) -> Self {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour.to_message());
        Self::new(message, Write::Replace, "set", neighbour.to_string())
    }

    /// See [`Netlink::delete_neighbour`].
    pub fn delete_neighbour(neighbour: &Neighbour) -> Self {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour.to_message());
        Self::new(message, Write::Change, "delete", neighbour.to_string())
    }

    /// See [`Netlink::set_fdb`].
    pub fn set_fdb(entry: &FdbEntry) -> Self {
        let message = RouteNetlinkMessage::NewNeighbour(entry.to_message());
        Self::new(message, Write::Replace, "set", entry.to_string())
    }

    /// See [`Netlink::delete_fdb`].
    pub fn delete_fdb(entry: &FdbEntry) -> Self {
        let message = RouteNetlinkMessage::DelNeighbour(entry.to_message());
        Self::new(message, Write::Change, "delete", entry.to_string())
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour {} on link {}", self.addr, self.link)
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forwarding entry {} to {} on link {}", self.mac, self.remote, self.link)
    }
}

impl Neighbour {
    fn to_message(self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.addr);
        message.header.ifindex = self.link;
        match self.kind {
            NeighbourKind::Permanent => message.header.state = NeighbourState::Permanent,
            NeighbourKind::Stale | NeighbourKind::Learned => message.header.state = NeighbourState::Stale,
            NeighbourKind::Proxy => message.header.flags = NeighbourFlags::Proxy,
        }
        message.attributes.push(NeighbourAttribute::Destination(destination(self.addr)));
        message.attributes.extend(self.mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
        message
    }

    fn from_answer(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else { return None };
        let (mut addr, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(found) => addr = ip_addr(&found),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
                _ => {}
            }
        }
        let kind = match (message.header.state, message.header.flags) {
            (_, flags) if flags.contains(NeighbourFlags::Proxy) => NeighbourKind::Proxy,
            (NeighbourState::Permanent, _) => NeighbourKind::Permanent,
            (NeighbourState::Stale, _) => NeighbourKind::Stale,
            _ => NeighbourKind::Learned,
        };
        Some(Self { link: message.header.ifindex, addr: addr?, mac, kind })
    }
}

impl FdbEntry {
    fn to_message(self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.link;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(destination(self.remote)));
        message
    }

    fn from_answer(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else { return None };
        if message.header.family != AddressFamily::Bridge || message.header.state != NeighbourState::Permanent
        {
            return None;
        }
        let (mut remote, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(found) => remote = any_addr(&found),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(Self { link: message.header.ifindex, mac: mac?, remote: remote? })
    }
}

fn destination(addr: IpAddr) -> NeighbourAddress {
    match addr {
        IpAddr::V4(addr) => NeighbourAddress::Inet(addr),
        IpAddr::V6(addr) => NeighbourAddress::Inet6(addr),
    }
}

fn ip_addr(addr: &NeighbourAddress) -> Option<IpAddr> {
    match addr {
        NeighbourAddress::Inet(addr) => Some((*addr).into()),
        NeighbourAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

/// In forwarding database answers the header's family says "bridge": the length tells the address's.
fn any_addr(addr: &NeighbourAddress) -> Option<IpAddr> {
    let NeighbourAddress::Other(bytes) = addr else { return ip_addr(addr) };
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        _ => None,
    }
}
