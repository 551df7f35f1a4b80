//! The few messages of nf_tables that the masquerade tables need, straight over netlink: the `nft` program may not
//! be there, and starting it costs more than all of this.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`; every integer on this wire is big-endian.

use std::io;
use std::ops::RangeInclusive;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use thiserror::Error;

const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
/// Elements in one message: its attribute is at most 64 KiB long.
const ELEMENTS_PER_MESSAGE: usize = 800;

/// `NFT_MSG_*`
mod message {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const NEW_SET_ELEMENT: u16 = 12;
}

/// Why a table could not be read or written.
#[derive(Debug, Error)]
pub enum NftError {
    /// The socket failed.
    #[error("nf_tables socket: cannot {action}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("nf_tables: cannot {action}: {errno}")]
    Refused {
        /// What was tried.
        action: String,
        /// The error number.
        errno: Errno,
    },
}

/// An attribute: its bytes with header and padding.
#[derive(Debug, Clone)]
pub(super) struct Attribute(Vec<u8>);

fn bytes(kind: u16, value: &[u8]) -> Attribute {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(value.len() + 8);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Attribute(out)
}

fn number(kind: u16, value: u32) -> Attribute {
    bytes(kind, &value.to_be_bytes())
}

fn string(kind: u16, value: &str) -> Attribute {
    let mut text = value.as_bytes().to_vec();
    text.push(0);
    bytes(kind, &text)
}

fn nested(kind: u16, attributes: &[Attribute]) -> Attribute {
    bytes(
        kind | NLA_F_NESTED,
        &attributes.iter().flat_map(|attribute| attribute.0.iter().copied()).collect::<Vec<_>>(),
    )
}

fn expression(name: &str, data: &[Attribute]) -> Attribute {
    nested(1, &[string(1, name), nested(2, data)])
}

/// Loads a part of the IP header into register 1.
pub(super) fn load_network_header(offset: u32, length: u32) -> Attribute {
    const REGISTER: u32 = 1;
    const NETWORK_HEADER: u32 = 1;
    expression(
        "payload",
        &[number(1, REGISTER), number(2, NETWORK_HEADER), number(3, offset), number(4, length)],
    )
}

/// Goes on only if register 1 is (or, inverted, is not) in a set.
pub(super) fn lookup((set, id): (&str, u32), inverted: bool) -> Attribute {
    expression("lookup", &[string(1, set), number(2, 1), number(4, id), number(5, u32::from(inverted))])
}

/// Gives the packet's connection the outgoing link's address and a random one of `ports`.
pub(super) fn masquerade_fully_random(ports: &RangeInclusive<u16>) -> [Attribute; 3] {
    const PROTO_SPECIFIED: u32 = 1 << 1;
    const PROTO_RANDOM_FULLY: u32 = 1 << 4;
    const FIRST: u32 = 2;
    const LAST: u32 = 3;
    let load = |register, port: &u16| {
        let constant = nested(2, &[bytes(1, &port.to_be_bytes())]);
        expression("immediate", &[number(1, register), constant])
    };
    let flags = PROTO_SPECIFIED | PROTO_RANDOM_FULLY;
    let masquerade = expression("masq", &[number(1, flags), number(2, FIRST), number(3, LAST)]);
    [load(FIRST, ports.start()), load(LAST, ports.end()), masquerade]
}

/// Messages that take effect together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    family: u8,
    messages: Vec<Vec<u8>>,
}

impl Batch {
    pub(super) fn new(family: u8) -> Self {
        Self { family, messages: Vec::new() }
    }

    pub(super) fn add_table(&mut self, name: &str, comment: &str) {
        let mut attributes = vec![string(1, name)];
        if !comment.is_empty() {
            // As the `nft` program writes comments: type 0, length, text with a final zero.
            let mut data = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
            data.extend_from_slice(comment.as_bytes());
            data.push(0);
            attributes.push(bytes(6, &data));
        }
        self.push(message::NEW_TABLE, NLM_F_CREATE, &attributes);
    }

    pub(super) fn delete_table(&mut self, name: &str) {
        self.push(message::DELETE_TABLE, 0, &[string(1, name)]);
    }

    pub(super) fn add_set(&mut self, table: &str, (name, id): (&str, u32), v4: bool) {
        const INTERVAL: u32 = 4;
        let (kind, length) = if v4 { (7, 4) } else { (8, 16) };
        let attributes = [
            string(1, table),
            string(2, name),
            number(3, INTERVAL),
            number(4, kind),
            number(5, length),
            number(10, id),
        ];
        self.push(message::NEW_SET, NLM_F_CREATE, &attributes);
    }

    /// Adds intervals, both ends included, that are in order and apart from each other.
    pub(super) fn add_intervals(
        &mut self,
        table: &str,
        (name, id): (&str, u32),
        v4: bool,
        intervals: &[(u128, u128)],
    ) {
        const INTERVAL_END: u32 = 1;
        let key = |value: u128| -> Attribute {
            let all = value.to_be_bytes();
            nested(1, &[bytes(1, if v4 { &all[12..] } else { &all })])
        };
        let start = |value| nested(1, &[key(value)]);
        let end = |value| nested(1, &[key(value), number(3, INTERVAL_END)]);
        let greatest = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        let mut elements = Vec::new();
        if intervals.first().is_some_and(|(first, _)| *first > 0) {
            elements.push(end(0));
        }
        for (first, last) in intervals {
            elements.push(start(*first));
            if *last < greatest {
                elements.push(end(*last + 1));
            }
        }
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let attributes = [string(1, table), string(2, name), nested(3, chunk), number(4, id)];
            self.push(message::NEW_SET_ELEMENT, NLM_F_CREATE, &attributes);
        }
    }

    pub(super) fn add_nat_postrouting(&mut self, table: &str, name: &str) {
        const POSTROUTING: u32 = 4;
        const PRIORITY_SRCNAT: u32 = 100;
        let hook = nested(4, &[number(1, POSTROUTING), number(2, PRIORITY_SRCNAT)]);
        self.push(
            message::NEW_CHAIN,
            NLM_F_CREATE,
            &[string(1, table), string(3, name), hook, string(7, "nat")],
        );
    }

    pub(super) fn add_rule(&mut self, table: &str, chain: &str, expressions: &[Attribute]) {
        let attributes = [string(1, table), string(2, chain), nested(4, expressions)];
        self.push(message::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &attributes);
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: &[Attribute]) {
        self.messages.push(packet(SUBSYSTEM << 8 | kind, NLM_F_REQUEST | flags, self.family, 0, attributes));
    }

    /// The whole, numbered from 1, with an acknowledgement asked for the last message. Also the number of that.
    fn into_bytes(mut self) -> (Vec<u8>, u32) {
        if let Some(last) = self.messages.last_mut() {
            let flags = u16::from_ne_bytes([last[6], last[7]]) | NLM_F_ACK;
            last[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        let begin = packet(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYSTEM, &[]);
        let end = packet(BATCH_END, NLM_F_REQUEST, 0, SUBSYSTEM, &[]);
        let acknowledged = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let mut out = Vec::new();
        for (sequence, mut message) in [begin].into_iter().chain(self.messages).chain([end]).enumerate() {
            message[8..12].copy_from_slice(&u32::try_from(sequence).unwrap_or(u32::MAX).to_ne_bytes());
            out.extend(message);
        }
        (out, acknowledged)
    }
}

/// A message: netlink header, `nfgenmsg`, attributes.
fn packet(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[Attribute]) -> Vec<u8> {
    let mut out = vec![0; NLMSG_HEADER];
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend(attributes.iter().flat_map(|attribute| attribute.0.iter().copied()));
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_ne_bytes());
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out
}

/// A socket for one exchange.
pub(super) struct Transaction(Socket);

impl Transaction {
    pub(super) fn open() -> Result<Self, NftError> {
        let failed = |action| move |source| NftError::Socket { action, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect to the kernel"))?;
        socket.set_cap_ack(true).map_err(failed("set NETLINK_CAP_ACK"))?;
        Ok(Self(socket))
    }

    /// Sends a batch and waits until it has taken effect.
    pub(super) fn commit(&mut self, batch: Batch, action: &str) -> Result<(), NftError> {
        crate::fault::step();
        let (bytes, acknowledged) = batch.into_bytes();
        self.make_room(bytes.len())?;
        self.0.send(&bytes, 0).map_err(|source| NftError::Socket { action: "send", source })?;
        loop {
            for (sequence, errno, _) in messages(&self.receive()?) {
                match errno {
                    Some(0) if sequence == acknowledged => return Ok(()),
                    Some(0) | None => {}
                    Some(code) => return Err(refused(action, code)),
                }
            }
        }
    }

    /// Asks for one object. None: there is no such object.
    fn get(&mut self, request: &[u8], action: &str) -> Result<Option<Vec<u8>>, NftError> {
        self.0.send(request, 0).map_err(|source| NftError::Socket { action: "send", source })?;
        let answer = self.receive()?;
        match messages(&answer).into_iter().next() {
            Some((_, Some(code), _)) if -code == libc::ENOENT => Ok(None),
            Some((_, Some(code), _)) => Err(refused(action, code)),
            Some((_, None, body)) => Ok(Some(body.to_vec())),
            None => Ok(None),
        }
    }

    fn receive(&mut self) -> Result<Vec<u8>, NftError> {
        let mut buffer = vec![0; 64 * 1024];
        let mut slice = &mut buffer[..];
        let length =
            self.0.recv(&mut slice, 0).map_err(|source| NftError::Socket { action: "receive", source })?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// A batch is one datagram: the send buffer has to hold it.
    fn make_room(&self, length: usize) -> Result<(), NftError> {
        const USUAL: usize = 100 * 1024;
        if length < USUAL {
            return Ok(());
        }
        rustix::net::sockopt::set_socket_send_buffer_size_force(&self.0, length * 2)
            .map_err(|error| NftError::Socket { action: "enlarge the send buffer", source: error.into() })
    }
}

fn refused(action: &str, code: i32) -> NftError {
    NftError::Refused { action: action.to_owned(), errno: Errno::from_raw_os_error(code.abs()) }
}

/// Number, error code (if it is an error or acknowledgement) and body of each message.
fn messages(mut rest: &[u8]) -> Vec<(u32, Option<i32>, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = rest.first_chunk::<NLMSG_HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = rest.get(NLMSG_HEADER..length) else { break };
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let is_error = u16::from_ne_bytes([header[4], header[5]]) == NLMSG_ERROR;
        let code = body.first_chunk::<4>().filter(|_| is_error).map(|code| i32::from_ne_bytes(*code));
        all.push((sequence, code, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// The value of the attribute of a kind in a message's body (after `nfgenmsg`).
fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(4..)?;
    while let Some(header) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & !NLA_F_NESTED == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// The comment of a table (empty if it has none), or none if there is no such table.
pub(super) fn table_comment(family: u8, table: &str) -> Result<Option<String>, NftError> {
    let request = packet(SUBSYSTEM << 8 | message::GET_TABLE, NLM_F_REQUEST, family, 0, &[string(1, table)]);
    let answer = Transaction::open()?.get(&request, "read a table")?;
    Ok(answer.map(|body| {
        let text = attribute(&body, 6).and_then(|data| data.get(2..)).unwrap_or_default();
        String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
    }))
}

/// The number of rules in a chain, or none if there is no such chain.
pub(super) fn rules_in_chain(family: u8, table: &str, chain: &str) -> Result<Option<u32>, NftError> {
    let attributes = [string(1, table), string(3, chain)];
    let request = packet(SUBSYSTEM << 8 | message::GET_CHAIN, NLM_F_REQUEST, family, 0, &attributes);
    let answer = Transaction::open()?.get(&request, "read a chain")?;
    let used =
        answer.as_deref().and_then(|body| attribute(body, 6)).and_then(|value| value.first_chunk::<4>());
    Ok(used.map(|value| u32::from_be_bytes(*value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_framed_numbered_and_acknowledged_at_its_end() {
        let mut batch = Batch::new(2);
        batch.add_table("t", "");
        batch.delete_table("t");
        let (bytes, acknowledged) = batch.into_bytes();
        assert_eq!(acknowledged, 2);
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        while rest.len() >= NLMSG_HEADER {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let half = |at: usize| u16::from_ne_bytes(rest[at..at + 2].try_into().unwrap());
            seen.push((half(4), half(6) & NLM_F_ACK != 0, rest[8]));
            rest = &rest[length..];
        }
        assert_eq!(seen, [(0x10, false, 0), (0xa00, false, 1), (0xa02, true, 2), (0x11, false, 3)]);
    }

    #[test]
    fn attributes_are_found_again() {
        let body: Vec<u8> = [vec![0; 4], string(1, "table").0, number(6, 7).0].concat();
        assert_eq!(attribute(&body, 6), Some(&[0, 0, 0, 7][..]));
        assert_eq!(attribute(&body, 1), Some(&b"table\0"[..]));
        assert_eq!(attribute(&body, 2), None);
        assert_eq!(attribute(&body[..7], 6), None);
    }
}
