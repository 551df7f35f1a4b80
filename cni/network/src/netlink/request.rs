//! Requests as values, so that several of them can go to the kernel in one datagram: it works them off in order, and a
//! system call each way does for all of them.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use super::{Netlink, NetlinkError, REQUEST_HEADER_LEN, Result, Write, read_u32, refused};

/// How much goes into one datagram. If all of it is refused, the answers have to fit into the socket.
const DATAGRAM: usize = 8 * 1024;

/// Something that the kernel is to do. Each kind of object has constructors for what can be done with it.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) message: RouteNetlinkMessage,
    pub(super) write: Write,
    /// The verb, for errors.
    pub(super) action: &'static str,
    /// What it is about, for errors.
    pub(super) object: String,
}

impl Request {
    pub(super) fn new(
        message: RouteNetlinkMessage,
        write: Write,
        action: &'static str,
        object: impl Into<String>,
    ) -> Self {
        Self { message, write, action, object: object.into() }
    }
}

impl Netlink {
    /// Has all of it done, in order, and returns the first refusal. What comes after a refused request is done all the
    /// same.
    pub fn execute_all(&mut self, requests: Vec<Request>) -> Result<()> {
        self.execute_each(requests)?.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }

    /// Has all of it done, in order, and returns what came of each.
    pub fn execute_each(&mut self, requests: Vec<Request>) -> Result<Vec<Result<()>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut waiting = Vec::new();
        let mut length = 0;
        let mut requests = requests.into_iter().peekable();
        while let Some(Request { message, write, action, object }) = requests.next() {
            // The kernel answers refusals unasked, in order: the last one's acknowledgement tells that it is through.
            let last = requests.peek().is_none() || length > DATAGRAM;
            let flags = NLM_F_REQUEST | write.flags() | if last { NLM_F_ACK } else { 0 };
            length = self.put(message, flags, length);
            waiting.push((action, object));
            if last {
                self.flush(length)?;
                outcomes.append(&mut self.outcomes(std::mem::take(&mut waiting))?);
                length = 0;
            }
        }
        Ok(outcomes)
    }

    /// What came of the requests that were sent last, up to the acknowledged one.
    fn outcomes(&mut self, requests: Vec<(&'static str, String)>) -> Result<Vec<Result<()>>> {
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        let first = self.sequence.wrapping_sub(count).wrapping_add(1);
        let mut outcomes: Vec<Result<()>> = requests.iter().map(|_| Ok(())).collect();
        loop {
            let received = self.receive_datagram()?;
            let mut rest = &self.buffer[..received];
            while rest.len() >= REQUEST_HEADER_LEN {
                let length = read_u32(rest) as usize;
                if length < REQUEST_HEADER_LEN || length > rest.len() {
                    let reason = format!("a message of {length} bytes in a rest of {}", rest.len());
                    return Err(NetlinkError::Answer { object: "several requests".to_owned(), reason });
                }
                let (packet, after) = (&rest[..length], &rest[length.next_multiple_of(4).min(rest.len())..]);
                rest = after;
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(packet) else {
                    continue;
                };
                let sequence = message.header.sequence_number;
                let place = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let (Some((action, object)), NetlinkPayload::Error(error)) =
                    (requests.get(place), message.payload)
                else {
                    continue;
                };
                if error.code.is_some() {
                    outcomes[place] = Err(refused(action, object, error.raw_code(), &error.header));
                }
                if sequence == self.sequence {
                    return Ok(outcomes);
                }
            }
        }
    }
}
