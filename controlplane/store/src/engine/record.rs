//! The bytes on disk. A log is a row of frames, one per group commit: magic, length, CRC, payload. One frame per batch
//! means that a torn write is always the last frame, and a bad frame with a good one after it is damage.
//!
//! All numbers are little-endian. A frame's payload is a row of records:
//! `revision u64, create_revision u64, kind u8, key_len u16, stamp_at u32 (MAX: none), value_len u32, key, value`.

use std::sync::Arc;

use bytes::Bytes;

use crate::Entry;

/// The first bytes of a frame.
pub(super) const MAGIC: [u8; 4] = *b"SwF1";
/// Magic, payload length, CRC.
pub(super) const HEADER_LEN: usize = 12;
const RECORD_HEAD_LEN: usize = 8 + 8 + 1 + 2 + 4 + 4;
/// The longest key.
pub(super) const KEY_LIMIT: usize = u16::MAX as usize;
/// The largest value.
pub(super) const VALUE_LIMIT: usize = 16 * 1024 * 1024;

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_END: u8 = 3;

/// One write as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// The key has this entry now.
    Put(Arc<Entry>),
    /// The key is gone. The last value is not kept: replay knows it.
    Delete {
        /// The key.
        key: Arc<str>,
        /// The revision of the deletion.
        revision: u64,
    },
    /// A snapshot ends here: how many entries it has, and at which revision.
    End {
        /// The entries before this record.
        count: u64,
        /// The revision of the snapshot.
        revision: u64,
    },
}

impl Record {
    pub(super) fn revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } | Self::End { revision, .. } => *revision,
        }
    }
}

/// Begins a frame in `buffer`; [`finish_frame`] completes it.
pub(super) fn begin_frame(buffer: &mut Vec<u8>) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&MAGIC);
    buffer.extend_from_slice(&[0; HEADER_LEN - MAGIC.len()]);
    start
}

/// Fills in length and checksum of the frame that began at `start`.
pub(super) fn finish_frame(buffer: &mut [u8], start: usize) {
    let payload_at = start + HEADER_LEN;
    let len = u32::try_from(buffer.len() - payload_at).unwrap_or(u32::MAX).to_le_bytes();
    let crc = checksum(len, &buffer[payload_at..]).to_le_bytes();
    buffer[start + 4..start + 8].copy_from_slice(&len);
    buffer[start + 8..start + 12].copy_from_slice(&crc);
}

fn checksum(len: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(payload);
    hasher.finalize()
}

/// Appends a record to the frame being built. Sizes were checked when the write was accepted.
pub(super) fn encode(buffer: &mut Vec<u8>, record: &Record) {
    let (kind, key, revision, create_revision, stamp_at, value): (_, &str, _, _, _, &[u8]) = match record {
        Record::Put(entry) => {
            (KIND_PUT, &entry.key, entry.mod_revision, entry.create_revision, entry.stamp_at, &entry.value)
        }
        Record::Delete { key, revision } => (KIND_DELETE, key, *revision, 0, None, &[]),
        // The count travels in the place of the create revision.
        Record::End { count, revision } => (KIND_END, "", *revision, *count, None, &[]),
    };
    buffer.reserve(RECORD_HEAD_LEN + key.len() + value.len());
    buffer.extend_from_slice(&revision.to_le_bytes());
    buffer.extend_from_slice(&create_revision.to_le_bytes());
    buffer.push(kind);
    buffer.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes());
    buffer.extend_from_slice(&stamp_at.unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(key.as_bytes());
    buffer.extend_from_slice(value);
}

/// What stands at the begin of `bytes`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A whole frame: its payload and its total length.
    Whole {
        /// The records.
        payload: &'a [u8],
        /// Header and payload.
        len: usize,
    },
    /// Nothing more.
    End,
    /// Not a whole frame.
    Bad(&'static str),
}

/// Reads the frame at the begin of `bytes`.
pub(super) fn frame(bytes: &[u8]) -> Frame<'_> {
    if bytes.is_empty() {
        return Frame::End;
    }
    let Some(header) = bytes.get(..HEADER_LEN) else { return Frame::Bad("incomplete frame header") };
    if header[..4] != MAGIC {
        return Frame::Bad("no frame begins here");
    }
    let len_bytes = [header[4], header[5], header[6], header[7]];
    let crc = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let len = HEADER_LEN + u32::from_le_bytes(len_bytes) as usize;
    let Some(payload) = bytes.get(HEADER_LEN..len) else { return Frame::Bad("incomplete frame") };
    if checksum(len_bytes, payload) != crc {
        return Frame::Bad("checksum does not match");
    }
    Frame::Whole { payload, len }
}

/// Whether a whole frame begins anywhere in `bytes`.
pub(super) fn any_frame_in(bytes: &[u8]) -> bool {
    bytes
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .any(|(at, _)| matches!(frame(&bytes[at..]), Frame::Whole { .. }))
}

/// The records of a payload; `None` when it is not a row of records.
pub(super) fn decode(mut payload: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let (record, rest) = decode_one(payload)?;
        records.push(record);
        payload = rest;
    }
    Some(records)
}

fn decode_one(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (revision, rest) = bytes.split_first_chunk::<8>()?;
    let (create_revision, rest) = rest.split_first_chunk::<8>()?;
    let (&[kind], rest) = rest.split_first_chunk::<1>()?;
    let (key_len, rest) = rest.split_first_chunk::<2>()?;
    let (stamp_at, rest) = rest.split_first_chunk::<4>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u16::from_le_bytes(*key_len).into())?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
    let key: Arc<str> = std::str::from_utf8(key).ok()?.into();
    let revision = u64::from_le_bytes(*revision);
    let stamp_at = Some(u32::from_le_bytes(*stamp_at)).filter(|at| *at != u32::MAX);
    let record = match kind {
        KIND_PUT => Record::Put(Arc::new(Entry {
            key,
            value: Bytes::copy_from_slice(value),
            stamp_at,
            create_revision: u64::from_le_bytes(*create_revision),
            mod_revision: revision,
        })),
        KIND_DELETE => Record::Delete { key, revision },
        KIND_END => Record::End { count: u64::from_le_bytes(*create_revision), revision },
        _ => return None,
    };
    Some((record, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            (".{0,40}", any::<Vec<u8>>(), proptest::option::of(0..9u32), any::<u64>(), any::<u64>())
                .prop_map(|(key, value, stamp_at, create_revision, mod_revision)| Record::Put(Arc::new(
                    Entry { key: key.into(), value: value.into(), stamp_at, create_revision, mod_revision }
                ))),
            (".{0,40}", any::<u64>())
                .prop_map(|(key, revision)| Record::Delete { key: key.into(), revision }),
        ]
    }

    fn framed(records: &[Record]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let start = begin_frame(&mut buffer);
        for record in records {
            encode(&mut buffer, record);
        }
        finish_frame(&mut buffer, start);
        buffer
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in proptest::collection::vec(record(), 0..8)) {
            let bytes = framed(&records);
            let Frame::Whole { payload, len } = frame(&bytes) else { panic!("no frame") };
            prop_assert_eq!(len, bytes.len());
            prop_assert_eq!(decode(payload).unwrap(), records);
        }

        #[test]
        fn a_cut_or_flipped_frame_is_bad(records in proptest::collection::vec(record(), 1..4), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let bytes = framed(&records);
            let cut = at.index(bytes.len() - 1) + 1;
            prop_assert!(matches!(frame(&bytes[..cut]), Frame::Bad(_)));
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            prop_assert!(matches!(frame(&flipped), Frame::Bad(_)));
        }

        #[test]
        fn noise_never_panics(bytes in any::<Vec<u8>>()) {
            frame(&bytes);
            decode(&bytes);
            any_frame_in(&bytes);
        }
    }
}
