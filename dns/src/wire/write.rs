//! Writes messages into a buffer that is used again and again: names are compressed against what stands in the packet
//! already, so that nothing has to be remembered beside it.
//!
//! **Invariant:** a record is written whole or not at all.

use hickory_proto::ProtoError;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder, NameEncoding};

/// Places of names that are remembered: those of the question, and of the first records.
const NAMES_MAX: usize = 24;
/// A pointer has 14 bits.
const POINTER_MAX: usize = 0x3fff;
const POINTER: u8 = 0xc0;

/// Why something is not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// There is no room for it.
    Full,
    /// It cannot be written at all.
    Unwritable(ProtoError),
}

/// Whether a name may be told in the letters of an earlier one: `Example.COM` for `example.com`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Letters {
    Any,
    Same,
}

/// Writes into a packet.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    packet: &'a mut Vec<u8>,
    limit: usize,
    /// Where names begin, and ends of names, each with the number of its labels: others need not be compared.
    names: [(u16, u8); NAMES_MAX],
    names_count: usize,
}

impl<'a> Writer<'a> {
    /// Goes on at the end of `packet`, up to `limit` octets.
    pub(super) fn new(packet: &'a mut Vec<u8>, limit: usize) -> Self {
        Self { packet, limit, names: [(0, 0); NAMES_MAX], names_count: 0 }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.packet.len() + bytes.len() > self.limit {
            return Err(WriteError::Full);
        }
        self.packet.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn u16(&mut self, value: u16) -> Result<(), WriteError> {
        self.bytes(&value.to_be_bytes())
    }

    /// A question's name, as it was asked.
    pub(super) fn question_name(&mut self, name: &Name) -> Result<(), WriteError> {
        self.name(name, Letters::Same)
    }

    /// As many records as there is room for; how many, and whether some are left over.
    pub(super) fn records<'r>(
        &mut self,
        records: impl IntoIterator<Item = &'r Record>,
    ) -> Result<(u16, bool), WriteError> {
        let mut count = 0;
        for record in records {
            match self.record(record) {
                Ok(()) => count += 1,
                Err(WriteError::Full) => return Ok((count, true)),
                Err(error) => return Err(error),
            }
        }
        Ok((count, false))
    }

    fn record(&mut self, record: &Record) -> Result<(), WriteError> {
        let (start, names_count) = (self.packet.len(), self.names_count);
        let written = self.record_parts(record);
        if written.is_err() {
            self.packet.truncate(start);
            self.names_count = names_count;
        }
        written
    }

    fn record_parts(&mut self, record: &Record) -> Result<(), WriteError> {
        self.name(&record.name, Letters::Any)?;
        let mut fixed = [0; 10];
        fixed[..2].copy_from_slice(&u16::from(record.record_type()).to_be_bytes());
        fixed[2..4].copy_from_slice(&u16::from(record.dns_class).to_be_bytes());
        fixed[4..8].copy_from_slice(&record.ttl.to_be_bytes());
        self.bytes(&fixed)?;
        let start = self.packet.len();
        self.data(&record.data)?;
        // No packet is longer.
        let length = u16::try_from(self.packet.len() - start).map_err(|_| WriteError::Full)?;
        self.packet[start - 2..start].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn data(&mut self, data: &RData) -> Result<(), WriteError> {
        match data {
            RData::A(addr) => self.bytes(&addr.0.octets()),
            RData::AAAA(addr) => self.bytes(&addr.0.octets()),
            RData::CNAME(target) => self.name(&target.0, Letters::Same),
            RData::NS(target) => self.name(&target.0, Letters::Same),
            RData::PTR(target) => self.name(&target.0, Letters::Same),
            RData::SRV(srv) => {
                self.u16(srv.priority)?;
                self.u16(srv.weight)?;
                self.u16(srv.port)?;
                self.whole_name(&srv.target)
            }
            RData::SOA(soa) => {
                self.name(&soa.mname, Letters::Same)?;
                self.name(&soa.rname, Letters::Same)?;
                self.bytes(&soa.serial.to_be_bytes())?;
                for timer in [soa.refresh, soa.retry, soa.expire] {
                    self.bytes(&timer.to_be_bytes())?;
                }
                self.bytes(&soa.minimum.to_be_bytes())
            }
            other => self.other_data(other),
        }
    }

    /// Types that are rare here. Names in them are not compressed (RFC 3597).
    fn other_data(&mut self, data: &RData) -> Result<(), WriteError> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_name_encoding(NameEncoding::Uncompressed);
        data.emit(&mut encoder).map_err(WriteError::Unwritable)?;
        self.bytes(&bytes)
    }

    /// A name without a pointer, as RFC 2782 wants it, to which later ones may point.
    fn whole_name(&mut self, name: &Name) -> Result<(), WriteError> {
        self.remember(name.iter().len());
        for label in name {
            self.label(label)?;
        }
        self.bytes(&[0])
    }

    fn name(&mut self, name: &Name, letters: Letters) -> Result<(), WriteError> {
        let labels = name.iter().len();
        for (depth, label) in name.iter().enumerate() {
            if let Some(at) = self.find(name, labels, depth, letters) {
                let [high, low] = at.to_be_bytes();
                return self.bytes(&[POINTER | high, low]);
            }
            self.remember(labels - depth);
            self.label(label)?;
        }
        self.bytes(&[0])
    }

    fn label(&mut self, label: &[u8]) -> Result<(), WriteError> {
        // A label has 63 octets at most.
        self.bytes(&[u8::try_from(label.len()).map_err(|_| WriteError::Full)?])?;
        self.bytes(label)
    }

    /// A name, or the end of one, begins here.
    fn remember(&mut self, labels: usize) {
        let at = u16::try_from(self.packet.len()).ok().filter(|at| usize::from(*at) <= POINTER_MAX);
        if let (Some(place), Some(at)) = (self.names.get_mut(self.names_count), at) {
            // A name has 127 labels at most.
            *place = (at, u8::try_from(labels).unwrap_or(u8::MAX));
            self.names_count += 1;
        }
    }

    /// Where the labels of `name` from `depth` on stand already.
    fn find(&self, name: &Name, labels: usize, depth: usize, letters: Letters) -> Option<u16> {
        let places = self.names[..self.names_count].iter();
        let mut alike = places.filter(|(_, count)| usize::from(*count) == labels - depth);
        let found = alike.find(|(at, _)| self.stands_at((*at).into(), name.iter().skip(depth), letters))?;
        Some(found.0)
    }

    fn stands_at<'n>(&self, mut at: usize, labels: impl Iterator<Item = &'n [u8]>, letters: Letters) -> bool {
        for label in labels {
            let Some(there) = self.label_at(&mut at) else { return false };
            let same = match letters {
                Letters::Same => there == label,
                Letters::Any => there.eq_ignore_ascii_case(label),
            };
            if !same {
                return false;
            }
        }
        self.label_at(&mut at).is_some_and(<[u8]>::is_empty)
    }

    /// The label at a place, which then is that of the next one. An empty one is the end.
    fn label_at(&self, at: &mut usize) -> Option<&[u8]> {
        while let [high, low, ..] = *self.packet.get(*at..)?
            && high & POINTER == POINTER
        {
            // Pointers lead to what was written before them.
            *at = usize::from(u16::from_be_bytes([high & !POINTER, low]));
        }
        let length = usize::from(*self.packet.get(*at)?);
        let label = self.packet.get(*at + 1..*at + 1 + length)?;
        *at += 1 + length;
        Some(label)
    }
}

/// The OPT record, without options.
pub(super) fn opt(payload: u16, code_high: u8, dnssec_ok: bool) -> [u8; 11] {
    let [kind_high, kind_low] = u16::from(RecordType::OPT).to_be_bytes();
    let [payload_high, payload_low] = payload.to_be_bytes();
    let flags = if dnssec_ok { 0x80 } else { 0 };
    // Root, type, payload, the code's upper bits, version, flags, length.
    [0, kind_high, kind_low, payload_high, payload_low, code_high, 0, flags, 0, 0, 0]
}
