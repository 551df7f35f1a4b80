//! UDP with the address that was asked: at an unspecified address the kernel would choose the source of an answer by its
//! routes, and clients do not take an answer from somebody they have not asked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, sendmsg, setsockopt, sockopt,
};
use rustix::net::Shutdown;
use socket2::{SockFilter, SockRef};

/// A socket that nobody asks at is looked at so often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(1);

/// A socket, and whether its packets have to say where they arrived.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UdpSocket,
    pub(super) unspecified: bool,
    /// A flag of each socket's own: the server's token has a lock, for which all threads would wait with every batch.
    woken: AtomicBool,
}

/// Whom to answer, and from where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) asked: Option<Asked>,
}

/// The address of ours that a packet was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    V4(Ipv4Addr),
    /// With the interface, which a link-local address is nothing without.
    V6(Ipv6Addr, u32),
}

impl Datagrams {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let unspecified = address.ip().is_unspecified();
        if unspecified && address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else if unspecified {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        socket.set_read_timeout(Some(LOOK_UP_EVERY))?;
        Ok(Self { socket, unspecified, woken: AtomicBool::new(false) })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Wakes up who waits for packets. What has arrived can still be taken out.
    pub(super) fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        // A socket without a peer is "not connected", and those who wait for it are woken up all the same.
        rustix::net::shutdown(&self.socket, Shutdown::Read).ok();
    }

    /// Whether it has been woken up.
    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// Lets in what the filter lets in; without one, everything. A kernel that does not take it goes on as before.
    pub(super) fn filter(&self, filter: Option<&[SockFilter]>) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        filter.map_or_else(|| socket.detach_filter(), |filter| socket.attach_filter(filter))
    }

    /// Sends if that can be done at once.
    pub(super) fn send(&self, packet: &[u8], peer: &Peer) -> io::Result<()> {
        let Some(asked) = peer.asked else {
            let to = SockaddrStorage::from(peer.address);
            nix::sys::socket::sendto(self.fd(), packet, &to, MsgFlags::MSG_DONTWAIT)?;
            return Ok(());
        };
        let (to, info) = (SockaddrStorage::from(peer.address), asked.info());
        let parts = [io::IoSlice::new(packet)];
        sendmsg(self.fd(), &parts, &[info.message()], MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

/// Where a packet came from, and where it was sent to.
pub(super) fn peer_of(message: &RecvMsg<'_, '_, SockaddrStorage>, unspecified: bool) -> Option<Peer> {
    let address = message.address.as_ref().and_then(socket_addr)?;
    let asked = if unspecified {
        message.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Asked::V4(Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr))))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(Asked::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex))
            }
            _ => None,
        })
    } else {
        None
    };
    Some(Peer { address, asked })
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// [`Asked`] in the kernel's words.
pub(super) enum Info {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl Asked {
    pub(super) fn info(self) -> Info {
        match self {
            Self::V4(addr) => {
                let addr = in_addr { s_addr: addr.to_bits().to_be() };
                // The way back is the routes' affair.
                Info::V4(in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: addr, ipi_addr: addr })
            }
            Self::V6(addr, interface) => Info::V6(in6_pktinfo {
                ipi6_addr: in6_addr { s6_addr: addr.octets() },
                ipi6_ifindex: if addr.is_unicast_link_local() { interface } else { 0 },
            }),
        }
    }
}

impl Info {
    pub(super) fn message(&self) -> ControlMessage<'_> {
        match self {
            Self::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            Self::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }
    }
}
