//! The links of this node and their addresses, as the kernel lists them.

mod qdisc;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, SockaddrLike as _};

use crate::plan::Device;

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: Arc<str>,
    /// Its index.
    pub index: u32,
    /// Its MAC address, where it has one.
    pub mac: Option<[u8; 6]>,
    /// Its addresses.
    pub addrs: BTreeSet<IpAddr>,
    /// It has a queueing discipline that limits or filters packets.
    pub shaped: bool,
}

impl Link {
    /// The link as plans name it.
    pub fn device(&self) -> Device {
        Device { name: Arc::clone(&self.name), index: self.index }
    }
}

/// All links of the calling thread's network namespace, by name.
pub fn list() -> io::Result<Vec<Link>> {
    let mut links: BTreeMap<String, Link> = BTreeMap::new();
    for entry in getifaddrs().map_err(io::Error::from)? {
        let link = links
            .entry(entry.interface_name.clone())
            .or_insert_with(|| Link { name: entry.interface_name.as_str().into(), ..Link::default() });
        let Some(address) = entry.address else { continue };
        if let Some(ethernet) = address.as_link_addr() {
            link.index = u32::try_from(ethernet.ifindex()).unwrap_or(0);
            link.mac = ethernet.addr().filter(|mac| *mac != [0; 6]);
        } else if let Some(v4) = address.as_sockaddr_in() {
            link.addrs.insert(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            link.addrs.insert(IpAddr::V6(v6.ip()));
        }
    }
    let shaped = qdisc::shaped()?;
    let with_shape = |link: Link| Link { shaped: shaped.contains(&link.index), ..link };
    Ok(links.into_values().map(with_shape).collect())
}

/// Whether packets to `addr` end in this network namespace: the kernel's routes say so, also where no link has the
/// address.
pub fn is_local(addr: IpAddr) -> io::Result<bool> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&route_request(addr), &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // A route: its header lies behind that of the message, its type is the eighth byte. An error: there is no route.
    let is_route = answer.get(4..6) == Some(&RTM_NEWROUTE.to_ne_bytes());
    Ok(is_route && answer.get(HEADER_BYTES + 7) == Some(&RTN_LOCAL))
}

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const RTA_DST: u16 = 1;
const RTN_LOCAL: u8 = 2;
const HEADER_BYTES: usize = 16;

/// Asks for the route to `addr`: `nlmsghdr`, `rtmsg`, and one attribute.
fn route_request(addr: IpAddr) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let (family, bytes) = match addr {
        IpAddr::V4(addr) => (AF_INET, addr.octets().to_vec()),
        IpAddr::V6(addr) => (AF_INET6, addr.octets().to_vec()),
    };
    let bits = u8::try_from(bytes.len() * 8).unwrap_or(0);
    let attribute_bytes = u16::try_from(4 + bytes.len()).unwrap_or(0);
    let length = u32::from(attribute_bytes) + 28;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_GETROUTE.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, bits]);
    message.extend([0; 10]);
    message.extend(attribute_bytes.to_ne_bytes());
    message.extend(RTA_DST.to_ne_bytes());
    message.extend(bytes);
    message
}

/// The packet-socket address of a link: what a raw socket is bound to.
pub(crate) fn packet_address(name: &str) -> io::Result<LinkAddr> {
    let entries = getifaddrs().map_err(io::Error::from)?;
    entries
        .filter(|entry| entry.interface_name == name)
        .filter_map(|entry| entry.address)
        .filter(|address| address.family() == Some(nix::sys::socket::AddressFamily::Packet))
        .find_map(|address| address.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
}
