//! UDP with the address that was asked: at an unspecified address the kernel would choose the source of an answer by its
//! routes, and clients do not take an answer from somebody they have not asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A socket, and whether its packets have to say where they arrived.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UdpSocket,
    unspecified: bool,
}

/// Whom to answer, and from where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    asked: Option<Asked>,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    V4(in_pktinfo),
    V6(in6_pktinfo),
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
        Ok(Self { socket, unspecified })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// A packet, if there is one.
    pub(super) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        if !self.unspecified {
            let (length, address) = self.socket.try_recv_from(buffer)?;
            return Ok((length, Peer { address, asked: None }));
        }
        self.socket.try_io(Interest::READABLE, || receive(&self.socket, buffer))
    }

    /// Sends if that can be done at once.
    pub(super) fn try_send(&self, packet: &[u8], peer: &Peer) -> io::Result<()> {
        match peer.asked {
            None => self.socket.try_send_to(packet, peer.address).map(drop),
            Some(asked) => {
                self.socket.try_io(Interest::WRITABLE, || send(&self.socket, packet, peer.address, asked))
            }
        }
    }

    pub(super) async fn send(&self, packet: &[u8], peer: &Peer) -> io::Result<()> {
        match peer.asked {
            None => self.socket.send_to(packet, peer.address).await.map(drop),
            Some(asked) => {
                let send = || send(&self.socket, packet, peer.address, asked);
                self.socket.async_io(Interest::WRITABLE, send).await
            }
        }
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    let mut control = nix::cmsg_space!(in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let asked = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked::V4(info)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::V6(info)),
        _ => None,
    });
    let address = received.address.as_ref().and_then(socket_addr);
    let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((received.bytes, Peer { address, asked }))
}

fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr, asked: Asked) -> io::Result<()> {
    let (v4, v6);
    let control = match asked {
        Asked::V4(info) => {
            // The way back is the routes' affair.
            v4 = in_pktinfo { ipi_ifindex: 0, ..info };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        Asked::V6(info) => {
            let link_local = info.ipi6_addr.s6_addr[..2] == [0xfe, 0x80];
            v6 = in6_pktinfo { ipi6_ifindex: if link_local { info.ipi6_ifindex } else { 0 }, ..info };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let to = SockaddrStorage::from(to);
    let parts = [IoSlice::new(packet)];
    sendmsg(socket.as_raw_fd(), &parts, &[control], MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
