//! Changes that take effect together or not at all.

use crate::expr::Expr;
use crate::set::{Element, SetSpec};
use crate::wire::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Writer};
use crate::{Table, read};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(crate) const SUBSYSTEM: u16 = 10;
/// The attribute that holds a message's elements is at most 64 KiB long; the last element may be this long.
const ELEMENTS_BYTES: usize = u16::MAX as usize - 1024;

/// `NFT_MSG_*`
pub(crate) mod message {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DELETE_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const GET_CHAIN: u16 = 4;
    pub(crate) const DELETE_CHAIN: u16 = 5;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const NEW_SET_ELEMENT: u16 = 12;
    pub(crate) const GET_SET_ELEMENT: u16 = 13;
    pub(crate) const DELETE_SET_ELEMENT: u16 = 14;
    pub(crate) const GET_GENERATION: u16 = 16;
    pub(crate) const NEW_OBJECT: u16 = 18;
    pub(crate) const GET_OBJECT: u16 = 19;
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Every packet.
    Filter,
    /// The first packet of every connection.
    Nat,
}

/// Where packets enter a base chain. Numbers are `NF_INET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// Between two links.
    Forward = 2,
    /// From a process of this machine.
    Output = 3,
    /// Before leaving.
    Postrouting = 4,
}

/// A chain to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where packets enter it. None: only from other chains.
    pub base: Option<(ChainKind, Hook, i32)>,
}

/// Messages that take effect together or not at all, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    writer: Writer,
    /// Where the last message starts.
    last: usize,
    messages: u32,
    sets: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        let mut batch = Self { writer: Writer::default(), last: 0, messages: 0, sets: 0 };
        let start = batch.writer.begin_message(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYSTEM);
        batch.writer.end_message(start);
        batch
    }

    /// It changes nothing.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Creates a table, if it is not there, with a comment that `nft` shows.
    pub fn add_table(&mut self, table: Table<'_>, comment: &str) {
        self.message(message::NEW_TABLE, NLM_F_CREATE, table, |writer| {
            writer.string(1, table.name);
            if !comment.is_empty() {
                // As the `nft` program writes comments: type 0, length, text with a final zero.
                let mut data = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
                data.extend_from_slice(comment.as_bytes());
                data.push(0);
                writer.bytes(6, &data);
            }
        });
    }

    /// Deletes a table and all in it. It has to be there.
    pub fn delete_table(&mut self, table: Table<'_>) {
        self.message(message::DELETE_TABLE, 0, table, |writer| writer.string(1, table.name));
    }

    /// Creates a chain, if it is not there.
    pub fn add_chain(&mut self, table: Table<'_>, chain: Chain<'_>) {
        self.message(message::NEW_CHAIN, NLM_F_CREATE, table, |writer| {
            writer.string(1, table.name);
            writer.string(3, chain.name);
            if let Some((kind, hook, priority)) = chain.base {
                writer.nested(4, |writer| {
                    writer.number(1, hook as u32);
                    writer.number(2, priority.cast_unsigned());
                });
                writer.string(7, if kind == ChainKind::Nat { "nat" } else { "filter" });
            }
        });
    }

    /// Deletes a chain with its rules. Nothing may lead to it.
    pub fn delete_chain(&mut self, table: Table<'_>, name: &str) {
        self.message(message::DELETE_CHAIN, 0, table, |writer| {
            writer.string(1, table.name);
            writer.string(3, name);
        });
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: Table<'_>, chain: &str, expressions: &[Expr]) {
        self.message(message::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, table, |writer| {
            writer.string(1, table.name);
            writer.string(2, chain);
            writer.nested(4, |writer| {
                for expression in expressions {
                    expression.write(writer, table.family.number());
                }
            });
        });
    }

    /// Creates a set or map.
    pub fn add_set(&mut self, table: Table<'_>, spec: &SetSpec) {
        self.sets += 1;
        let id = self.sets;
        self.message(message::NEW_SET, NLM_F_CREATE, table, |writer| {
            writer.string(1, table.name);
            spec.write(writer);
            writer.number(10, id);
        });
    }

    /// Adds elements to a set or map. One that is there with another value is an error.
    pub fn add_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        self.elements(message::NEW_SET_ELEMENT, table, set, elements);
    }

    /// Deletes elements by their keys. They have to be there.
    pub fn delete_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        self.elements(message::DELETE_SET_ELEMENT, table, set, elements);
    }

    /// Creates a named counter.
    pub fn add_counter(&mut self, table: Table<'_>, name: &str) {
        self.message(message::NEW_OBJECT, NLM_F_CREATE, table, |writer| {
            writer.string(1, table.name);
            writer.string(2, name);
            writer.number(3, read::OBJECT_COUNTER);
            writer.nested(4, |writer| {
                writer.number64(1, 0);
                writer.number64(2, 0);
            });
        });
    }

    fn elements(&mut self, kind: u16, table: Table<'_>, set: &str, elements: &[Element]) {
        let adds = kind == message::NEW_SET_ELEMENT;
        let mut rest = elements.iter().peekable();
        while rest.peek().is_some() {
            self.message(kind, if adds { NLM_F_CREATE } else { 0 }, table, |writer| {
                writer.string(1, table.name);
                writer.string(2, set);
                let start = writer.begin_nested(3);
                while writer.bytes.len() - start < ELEMENTS_BYTES
                    && let Some(element) = rest.next()
                {
                    element.write(writer, adds);
                }
                writer.end_nested(start);
            });
        }
    }

    fn message(&mut self, kind: u16, flags: u16, table: Table<'_>, body: impl FnOnce(&mut Writer)) {
        let (kind, family) = (SUBSYSTEM << 8 | kind, table.family.number());
        self.last = self.writer.begin_message(kind, NLM_F_REQUEST | flags, family, 0);
        self.messages += 1;
        self.writer.bytes[self.last + 8..self.last + 12].copy_from_slice(&self.messages.to_ne_bytes());
        body(&mut self.writer);
        self.writer.end_message(self.last);
    }

    /// The whole with its frame and an acknowledgement asked for the last message, whose number is returned too.
    pub fn into_bytes(mut self) -> (Vec<u8>, u32) {
        if self.messages > 0 {
            let flags = &mut self.writer.bytes[self.last + 6..self.last + 8];
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
        let start = self.writer.begin_message(BATCH_END, NLM_F_REQUEST, 0, SUBSYSTEM);
        self.writer.end_message(start);
        (self.writer.bytes, self.messages)
    }
}

#[cfg(test)]
mod tests;
