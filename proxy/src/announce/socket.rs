//! Raw sockets on one link: one that hears ARP requests, one that hears neighbour solicitations.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

use crate::links::packet_address;
use crate::plan::Device;

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
/// Longer than any question.
const FRAME_MAX: usize = 2048;

/// A packet socket under the runtime's eyes. `recv` and `send` are the same for every kind of socket, and tokio offers
/// them on this type.
type Frames = UdpSocket;

/// The sockets of one link.
#[derive(Debug)]
pub(super) struct PacketSocket {
    device: Device,
    arp: Frames,
    ndp: Frames,
    /// Holds the memberships of the solicited-node groups; nothing is sent or received here.
    groups: Socket,
    joined: BTreeSet<Ipv6Addr>,
}

impl PacketSocket {
    /// Opens the sockets of `device`.
    pub(super) fn open(device: &Device) -> io::Result<Self> {
        let arp = bound(device, ETH_P_ARP, &arp_requests())?;
        let ndp = bound(device, ETH_P_IPV6, &solicitations())?;
        let groups = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        Ok(Self { device: device.clone(), arp, ndp, groups, joined: BTreeSet::new() })
    }

    /// Is a member of the solicited-node groups of exactly these addresses, so that the network brings the questions.
    pub(super) fn join(&mut self, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        let wanted: BTreeSet<Ipv6Addr> = addresses
            .iter()
            .filter_map(|addr| match addr {
                IpAddr::V6(v6) => Some(solicited_node(*v6)),
                IpAddr::V4(_) => None,
            })
            .collect();
        for group in wanted.difference(&self.joined) {
            self.groups.join_multicast_v6(group, self.device.index)?;
        }
        for group in self.joined.difference(&wanted) {
            self.groups.leave_multicast_v6(group, self.device.index)?;
        }
        self.joined = wanted;
        Ok(())
    }

    /// The next frame that may be a question.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        tokio::select! {
            frame = receive(&self.arp) => frame,
            frame = receive(&self.ndp) => frame,
        }
    }

    /// Sends a frame.
    pub(super) async fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = self.arp.send(frame).await?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

async fn receive(socket: &Frames) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; FRAME_MAX];
    let length = socket.recv(&mut frame).await?;
    frame.truncate(length);
    Ok(frame)
}

fn bound(device: &Device, protocol: u16, filter: &[SockFilter]) -> io::Result<Frames> {
    let number = i32::from(protocol.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(number)))?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(filter)?;
    let address = packet_address(&device.name)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
    // Until it was bound it heard every link.
    let mut other = [0; FRAME_MAX];
    while (&socket).read(&mut other).is_ok() {}
    UdpSocket::from_std(OwnedFd::from(socket).into())
}

/// The group that questions about `addr` are sent to.
fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

// Classic BPF, so that the kernel wakes nobody for other packets.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn arp_requests() -> Vec<SockFilter> {
    vec![
        SockFilter::new(LOAD_HALF, 0, 0, 20), // The operation.
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 1),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn solicitations() -> Vec<SockFilter> {
    vec![
        SockFilter::new(LOAD_BYTE, 0, 0, 20), // The next header.
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 54), // The ICMPv6 type.
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 135),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solicited_node_groups() {
        let addr: Ipv6Addr = "fd00:10:30::c0ab:cdef".parse().unwrap();
        assert_eq!(solicited_node(addr).to_string(), "ff02::1:ffab:cdef");
    }
}
