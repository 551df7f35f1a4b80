//! Netlink messages and attributes: written into one growing buffer, read without copying.
//!
//! Headers are in the machine's byte order; integers of netfilter are big-endian.

pub(crate) const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A buffer that messages are written to, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    /// Begins a message. What is written next is its body; [`Writer::end_message`] ends it.
    pub(crate) fn begin_message(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        start
    }

    pub(crate) fn end_message(&mut self, start: usize) {
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn number64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(value.len() + 5).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// An attribute of attributes: those that `inner` writes.
    pub(crate) fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.begin_nested(kind);
        inner(self);
        self.end_nested(start);
    }

    pub(crate) fn begin_nested(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        start
    }

    pub(crate) fn end_nested(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    /// The dump that it belongs to was disturbed.
    pub(crate) interrupted: bool,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The code of an error or (0) acknowledgement.
    pub(crate) fn error(&self) -> Option<i32> {
        let code = self.body.first_chunk::<4>().filter(|_| self.kind == NLMSG_ERROR)?;
        Some(i32::from_ne_bytes(*code))
    }

    /// The end of a dump, and the error that ended it, if one did.
    pub(crate) fn done(&self) -> Option<i32> {
        (self.kind == NLMSG_DONE)
            .then(|| self.body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code)))
    }

    /// Its attributes (behind `nfgenmsg`).
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(4..).unwrap_or_default())
    }
}

/// The messages of one datagram.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = rest.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            interrupted: u16::from_ne_bytes([header[6], header[7]]) & NLM_F_DUMP_INTR != 0,
            body,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes in a row: kind and value of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

#[allow(clippy::copy_iterator, reason = "it is a slice: every look-up starts at its beginning")]
impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK, value))
    }
}

impl<'a> Attributes<'a> {
    pub(crate) fn get(self, wanted: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    pub(crate) fn nested(self, wanted: u16) -> Option<Self> {
        self.get(wanted).map(Attributes)
    }

    pub(crate) fn number(self, wanted: u16) -> Option<u32> {
        self.get(wanted)?.first_chunk::<4>().map(|value| u32::from_be_bytes(*value))
    }

    pub(crate) fn number64(self, wanted: u16) -> Option<u64> {
        self.get(wanted)?.first_chunk::<8>().map(|value| u64::from_be_bytes(*value))
    }

    pub(crate) fn string(self, wanted: u16) -> Option<&'a str> {
        let value = self.get(wanted)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_again() {
        let mut writer = Writer::default();
        let start = writer.begin_message(0xa00, NLM_F_REQUEST, 2, 0);
        writer.string(1, "table");
        writer.nested(3, |inner| inner.number(1, 7));
        writer.number64(9, 1 << 40);
        writer.end_message(start);
        let message = messages(&writer.bytes).next().unwrap();
        assert_eq!((message.kind, message.error(), message.done()), (0xa00, None, None));
        let attributes = message.attributes();
        assert_eq!(attributes.string(1), Some("table"));
        assert_eq!(attributes.nested(3).and_then(|inner| inner.number(1)), Some(7));
        assert_eq!(attributes.number64(9), Some(1 << 40));
        assert_eq!(attributes.get(2), None);
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let mut writer = Writer::default();
        writer.number(6, 7);
        for length in 0..writer.bytes.len() {
            assert_eq!(Attributes(&writer.bytes[..length]).number(6), None, "{length}");
        }
        assert_eq!(messages(&[0xff; 20]).count(), 0);
    }
}
