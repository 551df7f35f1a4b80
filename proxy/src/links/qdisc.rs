//! Queueing disciplines of this node's links: which links limit or filter what passes.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;
/// `struct tcmsg`
const QDISC_BYTES: usize = 20;
const TCA_KIND: u16 = 1;
/// What virtual links have unless somebody gives them something else, and what links have that are down.
const IDLE: [&[u8]; 2] = [b"noqueue", b"noop"];

/// The indices of the links that have something that limits or filters packets: a queueing discipline that is one, or
/// one that filters are attached to where packets come from the link.
pub(super) fn shaped() -> io::Result<BTreeSet<u32>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&request(), &SocketAddr::new(0, 0), 0)?;
    let mut found = BTreeSet::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, &mut found)? {
            return Ok(found);
        }
    }
}

/// Asks for all: `nlmsghdr`, and a `tcmsg` that names none.
fn request() -> Vec<u8> {
    let mut message = vec![0; HEADER_BYTES + QDISC_BYTES];
    let length = message.len();
    let mut buffer = NetlinkBuffer::new(&mut message);
    buffer.set_length(u32::try_from(length).unwrap_or(0));
    buffer.set_message_type(RTM_GETQDISC);
    buffer.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    message
}

/// Reads the messages of a datagram. Returns whether the list has ended.
fn read(mut datagram: &[u8], found: &mut BTreeSet<u32>) -> io::Result<bool> {
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        let (kind, body) = (message.message_type(), message.payload());
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return refused(body).map(|()| true),
            RTM_NEWQDISC => found.extend(shapes(body)),
            _ => {}
        }
        datagram = datagram.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// A kernel that knows no queueing disciplines has none.
fn refused(body: &[u8]) -> io::Result<()> {
    const EOPNOTSUPP: i32 = 95;
    match body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code).saturating_neg()) {
        0 | EOPNOTSUPP => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The index of the link that a discipline is at, if it does more than pass packets on. What cannot be read may.
fn shapes(body: &[u8]) -> Option<u32> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut attributes = NlasIterator::new(body.get(QDISC_BYTES..)?).flatten();
    let kind = attributes.find(|attribute| attribute.kind() == TCA_KIND);
    let idle = kind.is_some_and(|kind| {
        let name = kind.value();
        IDLE.contains(&name.strip_suffix(&[0]).unwrap_or(name))
    });
    (!idle).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message about a discipline of `kind` at a link.
    fn discipline(index: u8, kind: &str) -> Vec<u8> {
        let mut attribute = [kind.as_bytes(), &[0]].concat();
        let length = u8::try_from(attribute.len() + 4).unwrap();
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let total = u8::try_from(40 + attribute.len()).unwrap();
        let mut message = vec![total, 0, 0, 0, 36, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend([0, 0, 0, 0, index, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 2, 0, 0, 0]);
        message.extend([length, 0, 1, 0]);
        message.extend(attribute);
        message
    }

    #[test]
    fn links_with_more_than_a_passage_are_told() {
        let kinds = ["noqueue", "tbf", "noop", "ingress", "clsact", "fq_codel", "noqueue2"];
        let list: Vec<u8> = kinds.iter().zip(1..).flat_map(|(kind, index)| discipline(index, kind)).collect();
        let mut found = BTreeSet::new();
        assert!(!read(&list, &mut found).unwrap());
        assert_eq!(found, [2, 4, 5, 6, 7].into());
        let end = [&discipline(9, "tbf")[..], &[20, 0, 0, 0, 3, 0, 2, 0], &[0; 12]].concat();
        assert!(read(&end, &mut found).unwrap());
        assert_eq!(found.last(), Some(&9));
    }

    #[test]
    fn errors_are_told_and_a_kernel_without_has_none() {
        let error = |code: i32| {
            let mut message = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend((-code).to_ne_bytes());
            message.extend([0; 16]);
            read(&message, &mut BTreeSet::new()).map_err(|error| error.raw_os_error())
        };
        assert_eq!(error(95), Ok(true));
        assert_eq!(error(1), Err(Some(1)));
    }
}
