//! Connections that the kernel tracks: listed, and forgotten one by one.

use std::net::{IpAddr, SocketAddr};

use crate::error::NftError;
use crate::wire::{Attributes, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Writer};
use crate::{Family, socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// `CTA_*`
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOCOL_INFO: u16 = 4;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: u8,
    /// The zone; 0 unless somebody chose another.
    pub zone: u16,
    /// As the one who began it sees it.
    pub original: Tuple,
    /// As answers come back: the source is where its packets really end.
    pub reply: Tuple,
    /// What tells it from a later one between the same two.
    pub id: Option<u32>,
    /// The state of a TCP connection (`TCP_CONNTRACK_*`).
    pub tcp_state: Option<u8>,
}

impl Flow {
    /// It leads elsewhere than where it was sent.
    pub fn is_translated(&self) -> bool {
        self.reply.source != self.original.destination
    }

    /// A TCP connection that has not ended.
    pub fn is_open(&self) -> bool {
        const SYN_SENT: u8 = 1;
        const LAST_ACK: u8 = 6;
        self.tcp_state.is_some_and(|state| (SYN_SENT..=LAST_ACK).contains(&state))
    }
}

/// All connections with a transport protocol, of a family or of both. The kernel goes through its whole table, which
/// takes milliseconds even where nothing stands in it.
pub fn flows(family: Option<Family>, protocol: u8) -> Result<Vec<Flow>, NftError> {
    socket::dump(&list_request(family), "list connections", |message, found| {
        found.extend(Flow::read(message.attributes()).filter(|flow| flow.protocol == protocol));
    })
}

/// How many connections of a family are as `wanted` says, whatever their protocol.
pub fn count(family: Family, wanted: impl Fn(&Flow) -> bool) -> Result<usize, NftError> {
    let found = socket::dump(&list_request(Some(family)), "list connections", |message, found| {
        found.extend(Flow::read(message.attributes()).filter(&wanted).map(|_| ()));
    })?;
    Ok(found.len())
}

fn list_request(family: Option<Family>) -> Vec<u8> {
    const EVERY_FAMILY: u8 = 0;
    let mut writer = Writer::default();
    let kind = SUBSYSTEM << 8 | GET;
    let family = family.map_or(EVERY_FAMILY, Family::number);
    let start = writer.begin_message(kind, NLM_F_REQUEST | NLM_F_DUMP, family, 0);
    writer.end_message(start);
    writer.bytes
}

/// Forgets a connection: its next packet begins a new one. False: it was gone already.
pub fn forget(flow: &Flow) -> Result<bool, NftError> {
    match socket::ask(&flow.delete_request(), "forget a connection") {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Flow {
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        let (original, protocol) = read_tuple(attributes.nested(TUPLE_ORIG)?)?;
        let (reply, _) = read_tuple(attributes.nested(TUPLE_REPLY)?)?;
        let zone = attributes.get(ZONE).and_then(|zone| zone.first_chunk::<2>());
        let zone = zone.map_or(0, |zone| u16::from_be_bytes(*zone));
        let tcp = attributes.nested(PROTOCOL_INFO).and_then(|info| info.nested(1));
        let tcp_state = tcp.and_then(|tcp| tcp.get(1)?.first().copied());
        Some(Self { protocol, zone, original, reply, id: attributes.number(ID), tcp_state })
    }

    fn delete_request(&self) -> Vec<u8> {
        let family = if self.original.source.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let mut writer = Writer::default();
        let kind = SUBSYSTEM << 8 | DELETE;
        let start = writer.begin_message(kind, NLM_F_REQUEST | NLM_F_ACK, family.number(), 0);
        writer.nested(TUPLE_ORIG, |writer| write_tuple(writer, &self.original, self.protocol));
        if let Some(id) = self.id {
            writer.number(ID, id);
        }
        if self.zone != 0 {
            writer.bytes(ZONE, &self.zone.to_be_bytes());
        }
        writer.end_message(start);
        writer.bytes
    }
}

fn read_tuple(tuple: Attributes<'_>) -> Option<(Tuple, u8)> {
    let (ip, transport) = (tuple.nested(1)?, tuple.nested(2)?);
    let addr = |v4: u16, v6: u16| -> Option<IpAddr> {
        let short = ip.get(v4).and_then(|bytes| bytes.first_chunk::<4>()).map(|bytes| IpAddr::from(*bytes));
        short.or_else(|| ip.get(v6)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)))
    };
    let port = |kind| {
        let bytes = transport.get(kind).and_then(|bytes| bytes.first_chunk::<2>());
        bytes.map_or(0, |bytes| u16::from_be_bytes(*bytes))
    };
    let source = SocketAddr::new(addr(1, 3)?, port(2));
    let destination = SocketAddr::new(addr(2, 4)?, port(3));
    Some((Tuple { source, destination }, *transport.get(1)?.first()?))
}

fn write_tuple(writer: &mut Writer, tuple: &Tuple, protocol: u8) {
    writer.nested(1, |writer| {
        for (addr, v4, v6) in [(tuple.source.ip(), 1, 3), (tuple.destination.ip(), 2, 4)] {
            match addr {
                IpAddr::V4(addr) => writer.bytes(v4, &addr.octets()),
                IpAddr::V6(addr) => writer.bytes(v6, &addr.octets()),
            }
        }
    });
    writer.nested(2, |writer| {
        writer.bytes(1, &[protocol]);
        writer.bytes(2, &tuple.source.port().to_be_bytes());
        writer.bytes(3, &tuple.destination.port().to_be_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::messages;

    #[test]
    fn a_flow_is_deleted_by_what_it_was_read_from() {
        for (source, destination) in
            [("192.0.2.7:4000", "10.96.0.10:53"), ("[2001:db8::7]:4000", "[fd00::a]:53")]
        {
            let tuple = Tuple { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
            let mut writer = Writer::default();
            for kind in [TUPLE_ORIG, TUPLE_REPLY] {
                writer.nested(kind, |writer| write_tuple(writer, &tuple, 17));
            }
            writer.number(ID, 9);
            writer.bytes(ZONE, &[0, 3]);
            let flow = Flow::read(Attributes(&writer.bytes)).unwrap();
            assert_eq!(
                flow,
                Flow { protocol: 17, zone: 3, original: tuple, reply: tuple, id: Some(9), tcp_state: None }
            );
            let request = flow.delete_request();
            let attributes = messages(&request).next().unwrap().attributes();
            assert_eq!(read_tuple(attributes.nested(TUPLE_ORIG).unwrap()), Some((tuple, 17)));
            assert_eq!((attributes.number(ID), attributes.get(ZONE)), (Some(9), Some(&[0, 3][..])));
            assert_eq!(attributes.get(TUPLE_REPLY), None);
        }
    }
}
