//! Sets and maps: keys of one or several fields, intervals, values and verdicts.

use crate::expr::Verdict;
use crate::wire::{Attributes, Writer};

/// The type of a field, of those that the `nft` program knows by name: it shows them as a person would write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// An IPv4 address.
    Ipv4Addr,
    /// An IPv6 address.
    Ipv6Addr,
    /// A transport protocol.
    InetProto,
    /// A port.
    InetService,
    /// A number of 32 bits in the machine's byte order.
    Mark,
    /// The name of a link, filled up with zeros to 16 bytes.
    IfName,
}

impl DataType {
    /// Number and length.
    const fn parts(self) -> (u32, u32) {
        match self {
            Self::Ipv4Addr => (7, 4),
            Self::Ipv6Addr => (8, 16),
            Self::InetProto => (12, 1),
            Self::InetService => (13, 2),
            Self::Mark => (19, 4),
            Self::IfName => (41, 16),
        }
    }

    /// The fields of a concatenation each start at a register.
    const fn padded(self) -> u32 {
        self.parts().1.next_multiple_of(4)
    }

    /// Number and length of fields one after the other.
    fn concatenated(fields: &[Self]) -> (u32, u32) {
        const TYPE_BITS: u32 = 6;
        match fields {
            [single] => single.parts(),
            _ => fields.iter().fold((0, 0), |(number, length), field| {
                (number << TYPE_BITS | field.parts().0, length + field.padded())
            }),
        }
    }
}

/// What a map maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueType {
    /// A value of these fields.
    Fields(Vec<DataType>),
    /// A verdict.
    Verdict,
}

/// A set or map to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: String,
    /// The fields of its keys.
    pub key: Vec<DataType>,
    /// What its keys are mapped to. None: it is a set.
    pub value: Option<ValueType>,
    /// Its keys are intervals.
    pub interval: bool,
    /// Rules change it, and its elements go when their timeout is over.
    pub dynamic: bool,
    /// The most elements that rules may make it hold.
    pub size: Option<u32>,
}

impl SetSpec {
    /// A set with keys of these fields.
    pub fn set(name: &str, key: &[DataType]) -> Self {
        Self { name: name.into(), key: key.into(), value: None, interval: false, dynamic: false, size: None }
    }

    /// A map from these fields to those.
    pub fn map(name: &str, key: &[DataType], value: &[DataType]) -> Self {
        Self { value: Some(ValueType::Fields(value.into())), ..Self::set(name, key) }
    }

    /// A map from these fields to verdicts.
    pub fn verdict_map(name: &str, key: &[DataType]) -> Self {
        Self { value: Some(ValueType::Verdict), ..Self::set(name, key) }
    }

    fn flags(&self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        flag(self.interval, 0x4)
            | flag(self.value.is_some(), 0x8)
            | flag(self.dynamic, 0x10 | 0x20)
            | flag(self.interval && self.key.len() > 1, 0x80)
    }

    /// Everything but table and id.
    pub(crate) fn write(&self, writer: &mut Writer) {
        const VERDICT: u32 = 0xffff_ff00;
        let (number, length) = DataType::concatenated(&self.key);
        writer.string(2, &self.name);
        writer.number(3, self.flags());
        writer.number(4, number);
        writer.number(5, length);
        match &self.value {
            Some(ValueType::Fields(fields)) => {
                let (number, length) = DataType::concatenated(fields);
                writer.number(6, number);
                writer.number(7, length);
            }
            Some(ValueType::Verdict) => {
                writer.number(6, VERDICT);
                writer.number(7, 16);
            }
            None => {}
        }
        let concat = self.interval && self.key.len() > 1;
        if self.size.is_some() || concat {
            writer.nested(9, |writer| {
                if let Some(size) = self.size {
                    writer.number(1, size);
                }
                if concat {
                    writer.nested(2, |writer| {
                        for field in &self.key {
                            writer.nested(1, |writer| writer.number(1, field.parts().1));
                        }
                    });
                }
            });
        }
    }
}

/// What an element of a map holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// The bytes of its fields, each filled up to a multiple of four.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Element {
    /// The bytes of its key's fields, each filled up to a multiple of four.
    pub key: Vec<u8>,
    /// The last key of the interval that it stands for, in sets with keys of several fields.
    pub key_end: Option<Vec<u8>>,
    /// It is where an interval has ended, in sets with keys of one field.
    pub interval_end: bool,
    /// What a map maps it to.
    pub data: Option<Data>,
    /// Bytes that the kernel keeps for whoever wrote them: at most 256, as (type, length, value) one after the other.
    pub user_data: Vec<u8>,
}

impl Element {
    /// An element of a set.
    pub fn key(key: Vec<u8>) -> Self {
        Self { key, ..Self::default() }
    }

    /// An element of a map.
    pub fn entry(key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { key, data: Some(Data::Value(value)), ..Self::default() }
    }

    /// Writes the element; without its data where only its key counts.
    pub(crate) fn write(&self, writer: &mut Writer, whole: bool) {
        const INTERVAL_END: u32 = 1;
        let value =
            |writer: &mut Writer, kind, value: &[u8]| writer.nested(kind, |inner| inner.bytes(1, value));
        writer.nested(1, |writer| {
            value(writer, 1, &self.key);
            if let Some(end) = &self.key_end {
                value(writer, 10, end);
            }
            if self.interval_end {
                writer.number(3, INTERVAL_END);
            }
            if !whole {
                return;
            }
            match &self.data {
                Some(Data::Value(data)) => value(writer, 2, data),
                Some(Data::Verdict(verdict)) => writer.nested(2, |inner| verdict.write(inner)),
                None => {}
            }
            if !self.user_data.is_empty() {
                writer.bytes(6, &self.user_data);
            }
        });
    }

    pub(crate) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let value = |kind| Some(attributes.nested(kind)?.get(1)?.to_vec());
        let verdict = || {
            let verdict = attributes.nested(2)?.nested(2)?;
            let code = verdict.number(1)?.cast_signed();
            Verdict::read(code, verdict.string(2))
        };
        Some(Self {
            key: value(1)?,
            key_end: value(10),
            interval_end: attributes.number(3).is_some_and(|flags| flags & 1 != 0),
            data: value(2).map(Data::Value).or_else(|| verdict().map(Data::Verdict)),
            user_data: attributes.get(6).unwrap_or_default().to_vec(),
        })
    }
}
