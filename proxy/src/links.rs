//! The links of this node and their addresses, as the kernel lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

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
    Ok(links.into_values().collect())
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
