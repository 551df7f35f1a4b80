//! A small synchronous rtnetlink socket with types of our own: links, addresses, routes, neighbours.
//!
//! The CNI plugin makes a dozen calls in a life of a few milliseconds, so there is no runtime here and no task: a
//! call is one `send` and one or more `recv`. A socket belongs to the network namespace in which it was opened
//! ([`Netlink::open_in`]), wherever the calling thread is later; nothing has to enter a namespace to work on it.
//!
//! Errors name the object that the request was about, the errno, and what the kernel said in its extended
//! acknowledgement.

mod address;
mod link;
#[cfg(feature = "node")]
mod monitor;
mod neighbour;
mod qdisc;
mod request;
mod route;

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla, NlasIterator, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use thiserror::Error;

pub use address::Address;
pub use link::{Bridge, Ipv6Settings, Link, Mac, Veth, VethPeer, Vxlan, VxlanInfo};
#[cfg(feature = "node")]
pub use monitor::{Monitor, MonitorGroups};
pub use neighbour::{FdbEntry, Neighbour, NeighbourKind};
pub use qdisc::TokenBucket;
pub use request::Request;
pub use route::{Route, RouteKind, RouteQuery};

use crate::netns::{Namespace, NetnsError};

/// Room for one datagram of a dump. The kernel fills at most 32 KiB of it.
const BUFFER_SIZE: usize = 64 * 1024;
/// How often a dump that the kernel reports as interrupted by a change is taken anew.
const DUMP_ATTEMPTS: usize = 8;
/// `NLMSGERR_ATTR_MSG`: the text of an extended acknowledgement.
const EXT_ACK_MESSAGE: u16 = 1;
/// The header of the refused request stands before the attributes of an extended acknowledgement.
const REQUEST_HEADER_LEN: usize = 16;

/// What can go wrong between us and the kernel.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink socket: cannot {action}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {action} {object}: {errno}{}{}", if message.is_empty() { "" } else { ": " }, message)]
    Refused {
        /// The verb, such as "create".
        action: &'static str,
        /// What it was about, such as `link eth0`.
        object: String,
        /// The error number.
        errno: Errno,
        /// What the kernel added in words; often empty.
        message: String,
    },
    /// The kernel's answer could not be read.
    #[error("cannot read the kernel's answer about {object}: {reason}")]
    Answer {
        /// What was asked about.
        object: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The namespace to open the socket in could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
}

impl NetlinkError {
    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// The object (or the link that it belongs to) was not there.
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::NODEV | Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL | Errno::NXIO)
        )
    }
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, NetlinkError>;

/// What to do when the object exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    /// Fail.
    Create,
    /// Put the new one in its place.
    Replace,
    /// Not a creation: change or delete.
    Change,
}

impl Write {
    const fn flags(self) -> u16 {
        match self {
            Self::Create => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Self::Change => 0,
        }
    }
}

/// A netlink socket of one network namespace.
///
/// ```no_run
/// use seaway_cni_network::netlink::{Bridge, Netlink};
/// # fn main() -> Result<(), seaway_cni_network::netlink::NetlinkError> {
/// let mut netlink = Netlink::open()?;
/// let bridge = netlink.create_bridge(&Bridge { name: "lan0", ..Bridge::default() })?;
/// netlink.add_address(bridge.index, "192.0.2.1/24".parse().unwrap())?;
/// netlink.set_up(bridge.index)?;
/// # Ok(())
/// # }
/// ```
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// What stands in the buffer changes something.
    changes: bool,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("fd", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let failed = |action| move |source| NetlinkError::Socket { action, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect to the kernel"))?;
        socket.set_cap_ack(true).map_err(failed("set NETLINK_CAP_ACK"))?;
        socket.set_ext_ack(true).map_err(failed("set NETLINK_EXT_ACK"))?;
        // Lets the kernel filter dumps (by link, protocol, table) instead of us.
        socket.set_netlink_get_strict_chk(true).map_err(failed("set NETLINK_GET_STRICT_CHK"))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_SIZE], changes: false })
    }

    /// Opens a socket in `namespace`. Only the opening takes place there; the socket may then be used anywhere.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)?
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn execute(&mut self, request: Request) -> Result<()> {
        let Request { message, write, action, object } = request;
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | write.flags())?;
        self.receive(action, &object, &mut |_| {}).map(|_| ())
    }

    /// As [`Self::execute`], and returns what the kernel says that it made. Older ones say nothing.
    fn execute_echoed(&mut self, request: Request) -> Result<Option<RouteNetlinkMessage>> {
        let Request { message, write, action, object } = request;
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO | write.flags())?;
        let mut echo = None;
        self.receive(action, &object, &mut |message| echo = Some(message))?;
        Ok(echo)
    }

    /// Sends a query for one object and returns the answer.
    fn query(
        &mut self,
        message: RouteNetlinkMessage,
        action: &'static str,
        object: &dyn std::fmt::Display,
    ) -> Result<RouteNetlinkMessage> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut answer = None;
        self.receive(action, object, &mut |message| answer = Some(message))?;
        answer.ok_or_else(|| NetlinkError::Answer {
            object: object.to_string(),
            reason: "it is empty".to_owned(),
        })
    }

    /// Sends a dump request and returns everything that came back, consistent: a dump that a change interrupted
    /// is taken anew.
    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        object: &dyn std::fmt::Display,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut answers = Vec::new();
            if self.receive("list", object, &mut |message| answers.push(message))? == Consistency::Whole {
                return Ok(answers);
            }
        }
        Err(NetlinkError::Answer {
            object: object.to_string(),
            reason: format!("it changed during each of {DUMP_ATTEMPTS} attempts to list it"),
        })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        let length = self.put(message, flags, 0);
        self.flush(length)
    }

    /// Writes a message into the buffer behind what stands there already. Returns where the next one begins.
    fn put(&mut self, message: RouteNetlinkMessage, flags: u16, at: usize) -> usize {
        self.changes |= !is_question(&message);
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let length = packet.buffer_len();
        let end = at + length.next_multiple_of(4);
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        // Attributes are padded to four bytes, and the padding is not written.
        self.buffer[at..end].fill(0);
        packet.serialize(&mut self.buffer[at..at + length]);
        end
    }

    /// Sends what stands in the buffer. Whatever is asked of the kernel comes through here: tests break the work off
    /// before each change.
    #[expect(clippy::disallowed_methods, reason = "this is the place for it")]
    fn flush(&mut self, length: usize) -> Result<()> {
        if std::mem::take(&mut self.changes) {
            crate::fault::step();
        }
        self.socket
            .send(&self.buffer[..length], 0)
            .map_err(|source| NetlinkError::Socket { action: "send", source })?;
        Ok(())
    }

    /// Reads answers to the last request until it is acknowledged or its dump is done.
    fn receive(
        &mut self,
        action: &'static str,
        object: &dyn std::fmt::Display,
        each: &mut dyn FnMut(RouteNetlinkMessage),
    ) -> Result<Consistency> {
        let mut consistency = Consistency::Whole;
        loop {
            let received = self.receive_datagram()?;
            let mut rest = &self.buffer[..received];
            while rest.len() >= REQUEST_HEADER_LEN {
                let length = read_u32(rest) as usize;
                if length < REQUEST_HEADER_LEN || length > rest.len() {
                    return Err(NetlinkError::Answer {
                        object: object.to_string(),
                        reason: format!("a message of {length} bytes in a rest of {}", rest.len()),
                    });
                }
                let (packet, after) = (&rest[..length], &rest[length.next_multiple_of(4).min(rest.len())..]);
                rest = after;
                // An object that this library cannot decode (an exotic link type) must not hide all others.
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(packet) else {
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Interrupted;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(consistency),
                    NetlinkPayload::Done(done) => {
                        return Err(refused(action, object, done.code, &[]));
                    }
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(consistency),
                    NetlinkPayload::Error(error) => {
                        return Err(refused(action, object, error.raw_code(), &error.header));
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive_datagram(&mut self) -> Result<usize> {
        loop {
            let mut slice = &mut self.buffer[..];
            match self.socket.recv(&mut slice, 0) {
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NetlinkError::Socket { action: "receive", source }),
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    Interrupted,
}

/// Whether a message changes nothing.
fn is_question(message: &RouteNetlinkMessage) -> bool {
    use RouteNetlinkMessage as Message;
    matches!(
        message,
        Message::GetLink(_)
            | Message::GetAddress(_)
            | Message::GetRoute(_)
            | Message::GetNeighbour(_)
            | Message::GetQueueDiscipline(_)
    )
}

fn read_u32(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn refused(
    action: &'static str,
    object: &dyn std::fmt::Display,
    code: i32,
    acknowledgement: &[u8],
) -> NetlinkError {
    NetlinkError::Refused {
        action,
        object: object.to_string(),
        errno: Errno::from_raw_os_error(code.abs()),
        message: extended_message(acknowledgement).unwrap_or_default(),
    }
}

/// The sentence in an extended acknowledgement, if there is one.
fn extended_message(acknowledgement: &[u8]) -> Option<String> {
    let attributes = acknowledgement.get(REQUEST_HEADER_LEN..)?;
    NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == EXT_ACK_MESSAGE).and_then(|nla| {
        let text = DefaultNla::parse(&nla).ok()?;
        let mut bytes = vec![0; text.value_len()];
        text.emit_value(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_end_matches('\0').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sentence_is_read_from_the_acknowledgement() {
        let mut bytes = vec![0; REQUEST_HEADER_LEN];
        bytes.extend_from_slice(&[12, 0, 1, 0]);
        bytes.extend_from_slice(b"bad MTU\0");
        assert_eq!(extended_message(&bytes).as_deref(), Some("bad MTU"));
        assert_eq!(extended_message(&bytes[..REQUEST_HEADER_LEN]), None);
        assert_eq!(extended_message(&[]), None);
    }

    #[test]
    fn a_refusal_names_object_errno_and_sentence() {
        let error = NetlinkError::Refused {
            action: "create",
            object: "link eth0".to_owned(),
            errno: Errno::EXIST,
            message: String::new(),
        };
        assert!(error.is_exists() && !error.is_missing());
        assert!(error.to_string().starts_with("cannot create link eth0: "), "{error}");
    }
}
