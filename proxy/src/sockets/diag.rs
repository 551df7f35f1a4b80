//! The two calls of SOCK_DIAG that are needed: list the connected sockets of a network namespace, and end one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// The family of a socket, as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const HEADER_LEN: usize = 16;
/// `struct inet_diag_sockid`: two ports, two addresses, link, cookie.
const ID_LEN: usize = 48;
/// In `struct inet_diag_msg` four bytes stand before the id: family, state, timer, retransmissions.
const MESSAGE_ID_AT: usize = 4;
/// ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING; for UDP the first is "connected".
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// And SYN_RECV: those that a listener is about to accept.
const STATES_WITH_PENDING: u32 = STATES | 1 << 3;
/// The kernel fills at most 32 KiB of a datagram of a dump.
const BUFFER_LEN: usize = 64 * 1024;

/// What identifies a socket to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketId {
    family: Family,
    id: [u8; ID_LEN],
}

impl SocketId {
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.id[at..at + N].try_into().unwrap_or([0; N])
    }

    /// `SO_COOKIE`.
    pub(super) fn cookie(&self) -> u64 {
        u64::from(u32::from_ne_bytes(self.field(40))) | u64::from(u32::from_ne_bytes(self.field(44))) << 32
    }

    /// Whom it is connected to.
    pub(super) fn remote(&self) -> (IpAddr, u16) {
        (self.addr(20), u16::from_be_bytes(self.field(2)))
    }

    /// Its own end.
    pub(super) fn local(&self) -> (IpAddr, u16) {
        (self.addr(4), u16::from_be_bytes(self.field(0)))
    }

    fn addr(&self, at: usize) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(self.field::<4>(at))),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.field::<16>(at))).to_canonical(),
        }
    }
}

/// A SOCK_DIAG socket. It sees the network namespace that the thread was in when it was opened.
pub(super) struct Diag {
    socket: Socket,
    sequence: u32,
}

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All sockets of a family and protocol that are connected to somewhere.
    pub(super) fn connected(&mut self, family: Family, protocol: u8) -> io::Result<Vec<SocketId>> {
        self.in_states(family, protocol, STATES)
    }

    /// As [`Diag::connected`], with those that are about to be.
    pub(super) fn connecting(&mut self, family: Family, protocol: u8) -> io::Result<Vec<SocketId>> {
        self.in_states(family, protocol, STATES_WITH_PENDING)
    }

    fn in_states(&mut self, family: Family, protocol: u8, states: u32) -> io::Result<Vec<SocketId>> {
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, protocol, states, &[0; ID_LEN])?;
        let mut found = Vec::new();
        self.receive(|payload| {
            if let Some(id) = payload.get(MESSAGE_ID_AT..MESSAGE_ID_AT + ID_LEN) {
                let id = id.try_into().unwrap_or([0; ID_LEN]);
                found.push(SocketId { family, id });
            }
        })?;
        Ok(found)
    }

    /// Ends a socket: its owner gets ECONNABORTED, and over TCP its peer a reset. Returns whether it was still there.
    pub(super) fn destroy(&mut self, family: Family, protocol: u8, socket: &SocketId) -> io::Result<bool> {
        const NOT_FOUND: i32 = 2;
        self.send(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, protocol, u32::MAX, &socket.id)?;
        match self.receive(|_| ()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        protocol: u8,
        states: u32,
        id: &[u8; ID_LEN],
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER_LEN + 8 + ID_LEN).unwrap_or(0);
        let mut message = Vec::with_capacity(HEADER_LEN + 8 + ID_LEN);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend([family.number(), protocol, 0, 0]);
        message.extend(states.to_ne_bytes());
        message.extend(id);
        self.socket.send(&message, 0).map(drop)
    }

    /// Reads answers to the last request up to their end.
    fn receive(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let length = self.socket.recv(&mut &mut buffer[..], 0)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, sequence, payload, next)) = split(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(payload),
                }
            }
        }
    }
}

/// The first message of a datagram (type, sequence, payload) and what follows it.
fn split(datagram: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(datagram.get(8..12)?.try_into().ok()?);
    let payload = datagram.get(HEADER_LEN..length)?;
    let next = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, sequence, payload, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_and_broken_ones_end_it() {
        let mut datagram = Vec::new();
        for (payload, kind) in [(&[1_u8, 2, 3][..], 20_u16), (&[4][..], NLMSG_DONE)] {
            datagram.extend(u32::try_from(HEADER_LEN + payload.len()).unwrap().to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0; 2]);
            datagram.extend(7_u32.to_ne_bytes());
            datagram.extend([0; 4]);
            datagram.extend(payload);
            datagram.resize(datagram.len().next_multiple_of(4), 0);
        }
        let (kind, sequence, payload, rest) = split(&datagram).unwrap();
        assert_eq!((kind, sequence, payload), (20, 7, &[1, 2, 3][..]));
        let (kind, _, payload, rest) = split(rest).unwrap();
        assert_eq!((kind, payload, rest), (NLMSG_DONE, &[4][..], &[][..]));
        assert_eq!(split(rest), None);
        assert_eq!(
            split(&[3, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
            None,
            "shorter than its header"
        );
        assert_eq!(split(&datagram[..18]), None, "cut off");
    }
}
