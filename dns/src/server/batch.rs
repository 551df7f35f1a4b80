//! Packets in and out by the dozen: what has arrived is taken with one system call, and its answers leave with another.
//!
//! **Invariant:** nothing is allocated per packet. A packet lies where the kernel put it until it is answered, and its answer
//! is written where the kernel takes it from.

use std::io::{self, IoSlice, IoSliceMut};

use nix::libc::in6_pktinfo;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

use super::datagram::{Asked, Datagrams, Peer, peer_of};

/// Packets per system call. More of them win little: the call itself is a small part of a packet's cost by then.
pub(super) const BATCH: usize = 32;
/// Longer questions are no questions. An odd number of the processor's lines: packets that begin at the same place of their
/// pages would drive each other out of its cache.
const PACKET_BYTES_MAX: usize = 63 * 64;
/// A control message for the larger of both families.
const CONTROL_BYTES: usize = nix::sys::socket::cmsg_space::<in6_pktinfo>();

fn headers(control: bool) -> MultiHeaders<SockaddrStorage> {
    MultiHeaders::preallocate(BATCH, control.then(|| Vec::with_capacity(CONTROL_BYTES)))
}

/// Packets that have arrived.
#[derive(Debug)]
pub(super) struct Intake {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; PACKET_BYTES_MAX]]>,
    /// The length of each packet, and who sent it.
    arrived: Vec<(usize, Peer)>,
}

impl Intake {
    pub(super) fn new(socket: &Datagrams) -> Self {
        let buffers = vec![[0; PACKET_BYTES_MAX]; BATCH].into_boxed_slice();
        Self { headers: headers(socket.unspecified), buffers, arrived: Vec::with_capacity(BATCH) }
    }

    /// Waits for a packet, for a while, and takes it with those that have arrived behind it. How many they are.
    pub(super) fn wait(&mut self, socket: &Datagrams) -> io::Result<usize> {
        self.receive(socket, MsgFlags::MSG_WAITFORONE)
    }

    /// Takes the packets that are there. How many they are.
    pub(super) fn take(&mut self, socket: &Datagrams) -> io::Result<usize> {
        self.receive(socket, MsgFlags::MSG_DONTWAIT)
    }

    fn receive(&mut self, socket: &Datagrams, flags: MsgFlags) -> io::Result<usize> {
        self.arrived.clear();
        let mut buffers = self.buffers.iter_mut();
        let mut parts: [_; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(buffers.next().map_or(&mut [][..], |buffer| buffer))]);
        let messages = recvmmsg(socket.fd(), &mut self.headers, parts.iter_mut(), flags, None)?;
        let mut count = 0;
        for message in messages {
            count += 1;
            // A socket that is shut down hands out packets of nobody, without an octet.
            let peer = peer_of(&message, socket.unspecified).filter(|_| message.bytes > 0);
            let nobody = Peer { address: ([0, 0, 0, 0], 0).into(), asked: None };
            self.arrived.push(peer.map_or((0, nobody), |peer| (message.bytes, peer)));
        }
        if socket.unspecified && self.arrived.iter().any(|(_, peer)| peer.asked.is_none()) {
            // A header without its control message would leave no room for the next one.
            self.headers = headers(true);
        }
        Ok(count)
    }

    /// Those that have arrived; an empty one is none.
    pub(super) fn packets(&self) -> impl Iterator<Item = (&[u8], &Peer)> + Clone {
        let packets = self.buffers.iter().zip(&self.arrived);
        packets
            .filter(|(_, (length, _))| *length > 0)
            .map(|(buffer, (length, peer))| (&buffer[..*length], peer))
    }
}

/// Answers that are to leave.
#[derive(Debug)]
pub(super) struct Outgoing {
    headers: MultiHeaders<SockaddrStorage>,
    replies: [Vec<u8>; BATCH],
    to: Vec<Option<SockaddrStorage>>,
    from: Vec<Option<Asked>>,
}

impl Outgoing {
    pub(super) fn new(socket: &Datagrams) -> Self {
        Self {
            headers: headers(socket.unspecified),
            replies: std::array::from_fn(|_| Vec::new()),
            to: Vec::with_capacity(BATCH),
            from: Vec::with_capacity(BATCH),
        }
    }

    /// Where the next answer is to be written.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.replies[self.to.len() % BATCH]
    }

    /// What has been written goes to `peer`. Whether there is no room for another one.
    pub(super) fn push(&mut self, peer: &Peer) -> bool {
        self.to.push(Some(peer.address.into()));
        self.from.push(peer.asked);
        self.to.len() >= BATCH
    }

    /// Sends all. What the kernel does not take is lost, as it may be on the way: its client asks again.
    pub(super) fn send(&mut self, socket: &Datagrams) {
        let mut at = 0;
        while let Some(&from) = self.from.get(at) {
            let alike = self.from[at..].iter().take_while(|other| **other == from).count();
            match self.send_some(socket, at, at + alike, from) {
                Ok(sent) => at += sent.max(1),
                // The socket's buffer is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Nobody is there, or there is no way to go.
                Err(_) => at += 1,
            }
        }
        self.to.clear();
        self.from.clear();
    }

    fn send_some(
        &mut self,
        socket: &Datagrams,
        from: usize,
        to: usize,
        asked: Option<Asked>,
    ) -> io::Result<usize> {
        let parts: [_; BATCH] = std::array::from_fn(|at| [IoSlice::new(&self.replies[at])]);
        let (parts, to) = (&parts[from..to], &self.to[from..to]);
        let info = asked.map(Asked::info);
        let control: &[_] = &info.iter().map(super::datagram::Info::message).collect::<Vec<_>>();
        let sent = sendmmsg(socket.fd(), &mut self.headers, parts, to, control, MsgFlags::MSG_DONTWAIT)?;
        Ok(sent.count())
    }
}
