//! Sockets that a successor may share: SO_REUSEPORT on all of them, so that a new process listens before the old one has
//! let go, and so that several tasks share the load of one address.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

impl Bound {
    /// All of them.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.udp.iter().map(AsFd::as_fd).chain([self.tcp.as_fd()])
    }
}

/// Sockets that a former server has left open, with what waits in them.
#[derive(Debug, Default)]
pub(super) struct Left {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Left {
    /// What of `sockets` can be used as if it had been opened here.
    pub(super) fn of(sockets: Vec<OwnedFd>) -> Self {
        let mut left = Self::default();
        for socket in sockets {
            let taken = match sockopt::socket_type(&socket) {
                Ok(SocketType::DGRAM) => reset(socket.into()).map(|socket| left.udp.push(socket)),
                Ok(_) => {
                    let listener = TcpListener::from(socket);
                    listener.set_nonblocking(true).map(|()| left.tcp.push(listener))
                }
                Err(errno) => Err(errno.into()),
            };
            if let Err(error) = taken {
                warn!(%error, "a socket of the former server cannot be used");
            }
        }
        left
    }

    fn udp_at(&mut self, address: SocketAddr) -> Vec<UdpSocket> {
        self.udp.extract_if(.., |socket| socket.local_addr().ok() == Some(address)).collect()
    }

    fn tcp_at(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.tcp.iter().position(|socket| socket.local_addr().ok() == Some(address))?;
        Some(self.tcp.swap_remove(at))
    }
}

/// Undoes what its server may have been about when it died.
fn reset(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(false)?;
    // An error says that nothing was kept out.
    socket2::SockRef::from(&socket).detach_filter().ok();
    Ok(socket)
}

/// Binds `count` UDP sockets and a TCP listener, but for those that are `left`: these go on, all of them, since each may have
/// something waiting in it.
pub(super) fn bind(address: SocketAddr, count: usize, left: &mut Left) -> Result<Bound, DnsError> {
    let mut last = None;
    let tries = if address.port() == 0 { FREE_PORT_TRIES } else { 1 };
    for _ in 0..tries {
        match bind_once(address, count, left) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(DnsError::NoListenAddress))
}

fn bind_once(address: SocketAddr, count: usize, left: &mut Left) -> Result<Bound, DnsError> {
    let failed = |protocol| move |source| DnsError::Listen { protocol, address, source };
    let mut sockets = left.udp_at(address);
    let mut address = address;
    while sockets.len() < count {
        let socket = udp(address).map_err(failed("UDP"))?;
        address = socket.local_addr().map_err(failed("UDP"))?;
        sockets.push(socket);
    }
    let tcp = match left.tcp_at(address) {
        Some(listener) => listener,
        None => listen(address).map_err(failed("TCP"))?,
    };
    Ok(Bound { address, udp: sockets, tcp })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, SocketType::STREAM)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
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
