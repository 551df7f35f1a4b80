//! Notices of the kernel that something changed, without what.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const LINKS: u32 = 0x1 | 0x8 | 0x10 | 0x100;
/// NFNLGRP_NFTABLES is the seventh group.
const RULES: u32 = 1 << 6;
/// Changes come in swarms.
const SETTLE: Duration = Duration::from_millis(5);

/// Tells when something changes in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// A netlink socket is a datagram socket like any other to whoever only receives.
    datagrams: tokio::net::UnixDatagram,
}

impl Monitor {
    /// Listens from now on for changes of links, their addresses and queueing disciplines.
    pub(crate) fn of_links() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE, LINKS)
    }

    /// Listens from now on for changes of nftables, whoever makes them.
    pub(crate) fn of_rules() -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER, RULES)
    }

    fn open(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        socket.set_non_blocking(true)?;
        let datagrams = UnixDatagram::from(socket.as_fd().try_clone_to_owned()?);
        Ok(Self { datagrams: tokio::net::UnixDatagram::from_std(datagrams)? })
    }

    /// Waits for the next change. What changed is not told: look.
    pub(crate) async fn changed(&self) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            if self.datagrams.readable().await.is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(SETTLE).await;
            let mut heard = false;
            loop {
                match self.datagrams.try_recv(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An overflow is an error, and a change.
                    Ok(_) | Err(_) => heard = true,
                }
            }
            if heard {
                return;
            }
        }
    }
}
