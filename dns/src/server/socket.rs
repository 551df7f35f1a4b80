//! Sockets that a successor may share: SO_REUSEPORT on all of them, so that a new process listens before the old one has
//! let go, and so that several tasks share the load of one address.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tracing::warn;

use crate::DnsError;

/// Questions that may wait while a task is busy.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const BACKLOG: i32 = 1024;
/// How often a free port is looked for that neither UDP nor TCP uses.
const FREE_PORT_TRIES: usize = 32;

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

/// Binds `count` UDP sockets and a TCP listener.
pub(super) fn bind(address: SocketAddr, count: usize) -> Result<Bound, DnsError> {
    let mut last = None;
    let tries = if address.port() == 0 { FREE_PORT_TRIES } else { 1 };
    for _ in 0..tries {
        match bind_once(address, count) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(DnsError::NoListenAddress))
}

fn bind_once(address: SocketAddr, count: usize) -> Result<Bound, DnsError> {
    let failed = |protocol| move |source| DnsError::Listen { protocol, address, source };
    let first = udp(address).map_err(failed("UDP"))?;
    let address = first.local_addr().map_err(failed("UDP"))?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(udp(address).map_err(failed("UDP"))?);
    }
    let tcp = open(address, SocketType::STREAM).map_err(failed("TCP"))?;
    rustix::net::listen(&tcp, BACKLOG).map_err(|errno| failed("TCP")(errno.into()))?;
    Ok(Bound { address, udp: sockets, tcp: tcp.into() })
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, SocketType::DGRAM)?;
    // Beyond the system's limit only with privilege; without it the limit has to do.
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)?;
    }
    Ok(socket.into())
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // A thread waits in a UDP socket; the runtime waits for TCP.
    let wait = if kind == SocketType::DGRAM { SocketFlags::empty() } else { SocketFlags::NONBLOCK };
    let flags = SocketFlags::CLOEXEC | wait;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    match rustix::net::bind(&socket, &address) {
        // An IPv6 address that the kernel still checks for duplicates, or one that is yet to come.
        Err(Errno::ADDRNOTAVAIL) => {
            warn!(%address, "the address is not on this machine, or not yet: listening all the same");
            if address.is_ipv4() {
                sockopt::set_ip_freebind(&socket, true)?;
            } else {
                sockopt::set_ipv6_freebind(&socket, true)?;
            }
            rustix::net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    Ok(socket)
}
