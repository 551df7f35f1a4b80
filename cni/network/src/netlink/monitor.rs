//! Being told that something changed. What exactly changed is not said: a reconciler looks at the whole anyway.

#![allow(unsafe_code, reason = "registering a descriptor with tokio is unsafe to call")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use tokio::io::unix::AsyncFd;

use super::{NetlinkError, Result};

/// What to be told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MonitorGroups {
    /// Links that appear, change or go.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
    /// Neighbours and forwarding database entries.
    pub neighbours: bool,
}

/// `RTNLGRP_*` numbers of `linux/rtnetlink.h`.
mod group {
    pub(super) const LINK: u32 = 1;
    pub(super) const NEIGH: u32 = 3;
    pub(super) const IPV4_IFADDR: u32 = 5;
    pub(super) const IPV4_ROUTE: u32 = 7;
    pub(super) const IPV6_IFADDR: u32 = 9;
    pub(super) const IPV6_ROUTE: u32 = 11;
}

impl MonitorGroups {
    /// All of them.
    pub const ALL: Self = Self { links: true, addresses: true, routes: true, neighbours: true };

    fn numbers(self) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut add = |wanted: bool, groups: &[u32]| {
            if wanted {
                numbers.extend_from_slice(groups);
            }
        };
        add(self.links, &[group::LINK]);
        add(self.addresses, &[group::IPV4_IFADDR, group::IPV6_IFADDR]);
        add(self.routes, &[group::IPV4_ROUTE, group::IPV6_ROUTE]);
        add(self.neighbours, &[group::NEIGH]);
        numbers
    }
}

/// A socket that becomes readable when something changes in its namespace. It does not block: wait on its
/// descriptor, then [`Monitor::drain`] it.
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Opens a monitor in the calling thread's network namespace.
    pub fn open(groups: MonitorGroups) -> Result<Self> {
        let failed = |action| move |source| NetlinkError::Socket { action, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed("bind"))?;
        for number in groups.numbers() {
            socket.add_membership(number).map_err(failed("join a group"))?;
        }
        socket.set_non_blocking(true).map_err(failed("set non-blocking"))?;
        Ok(Self { socket, buffer: vec![0; 8 * 1024] })
    }

    /// The monitor, to be waited on within a tokio runtime.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the socket is ours alone, is never exchanged for another, and is closed when the monitor is dropped.
        unsafe { AsyncFd::register(self) }.map_err(io::Error::from)
    }

    /// Reads away all that has been told, and says whether there was anything. Notices that were lost because too
    /// many came count as something.
    pub fn drain(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            let mut slice = &mut self.buffer[..];
            match self.socket.recv(&mut slice, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(source) => return Err(NetlinkError::Socket { action: "receive", source }),
            }
        }
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("fd", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}
