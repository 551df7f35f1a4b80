//! What the kernel holds: tables, chains, elements, counters, one kind at a time.

use crate::batch::{SUBSYSTEM, message};
use crate::error::NftError;
use crate::set::Element;
use crate::wire::{Attributes, NLM_F_DUMP, NLM_F_REQUEST, Writer};
use crate::{Table, socket};

/// `NFT_OBJECT_COUNTER`
pub(crate) const OBJECT_COUNTER: u32 = 1;

/// A chain that is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// How many rules it has and how many rules and elements lead to it, together.
    pub uses: u32,
}

/// A named counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// How many packets it has seen.
    pub packets: u64,
    /// How many bytes they had together.
    pub bytes: u64,
}

fn request(kind: u16, flags: u16, family: u8, attributes: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    let start = writer.begin_message(SUBSYSTEM << 8 | kind, NLM_F_REQUEST | flags, family, 0);
    attributes(&mut writer);
    writer.end_message(start);
    writer.bytes
}

/// The comment of a table (empty if it has none), or none if there is no such table.
pub fn table_comment(table: Table<'_>) -> Result<Option<String>, NftError> {
    let request = request(message::GET_TABLE, 0, table.family.number(), |w| w.string(1, table.name));
    socket::get(&request, "read a table", |attributes| {
        let text = attributes.get(6).and_then(|data| data.get(2..)).unwrap_or_default();
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    })
}

/// The chains of a table.
pub fn chains(table: Table<'_>) -> Result<Vec<ChainInfo>, NftError> {
    let request = request(message::GET_CHAIN, NLM_F_DUMP, table.family.number(), |w| w.string(1, table.name));
    socket::dump(&request, "list chains", |message, found| {
        let attributes = message.attributes();
        if attributes.string(1) == Some(table.name)
            && let Some(name) = attributes.string(3)
        {
            found.push(ChainInfo { name: name.to_owned(), uses: attributes.number(6).unwrap_or(0) });
        }
    })
}

/// The elements of a set or map.
pub fn elements(table: Table<'_>, set: &str) -> Result<Vec<Element>, NftError> {
    let request = request(message::GET_SET_ELEMENT, NLM_F_DUMP, table.family.number(), |w| {
        w.string(1, table.name);
        w.string(2, set);
    });
    socket::dump(&request, "list the elements of a set", |message, found| {
        let list = message.attributes().nested(3).unwrap_or(Attributes(&[]));
        found.extend(list.filter_map(|(_, element)| Element::read(Attributes(element))));
    })
}

/// The named counters of a table.
pub fn counters(table: Table<'_>) -> Result<Vec<Counter>, NftError> {
    let request = request(message::GET_OBJECT, NLM_F_DUMP, table.family.number(), |w| {
        w.string(1, table.name);
        w.number(3, OBJECT_COUNTER);
    });
    socket::dump(&request, "list counters", |message, found| {
        let attributes = message.attributes();
        if attributes.string(1) == Some(table.name)
            && let (Some(name), Some(data)) = (attributes.string(2), attributes.nested(4))
        {
            let (bytes, packets) = (data.number64(1).unwrap_or(0), data.number64(2).unwrap_or(0));
            found.push(Counter { name: name.to_owned(), packets, bytes });
        }
    })
}

/// The number of the ruleset's generation: every batch that anybody commits in this network namespace adds one.
pub fn generation() -> Result<u32, NftError> {
    let request = request(message::GET_GENERATION, 0, 0, |_| {});
    let found = socket::get(&request, "read the generation", |attributes| attributes.number(1))?;
    Ok(found.unwrap_or(0))
}
