//! nf_tables and connection tracking of the kernel, straight over netlink.
//!
//! The `nft` program may not be there, starting it costs more than most changes, and old ones crash on what newer ones
//! wrote. This crate says what its users need and no more: tables, chains, sets and maps, rules as lists of
//! [`Expr`], and [`Batch`]es of changes that take effect together or not at all. Encoding is pure and tested by bytes;
//! [`commit`] and the functions that read are the only I/O, each on a socket of its own.
//!
//! **Invariant:** nothing here lists a whole ruleset. What is read is named: a table, the chains of a table, the
//! elements of a set. Of others' tables only the chains are told that packets enter ([`base_chains`], and
//! [`legacy_chains`] of the former iptables).

mod base;
mod batch;
pub mod conntrack;
mod error;
mod expr;
mod legacy;
mod read;
mod set;
mod socket;
mod wire;

pub use base::{BaseChain, BaseFamily, Point, base_chains};
pub use batch::{Batch, Chain, ChainKind, Hook};
pub use error::NftError;
pub use expr::{ADDR_LOCAL, Base, CtKey, DynsetOp, Expr, MetaKey, Reject, Verdict, reg32};
pub use legacy::legacy_chains;
pub use read::{ChainInfo, Counter, chains, counters, elements, generation, table_comment};
pub use set::{Data, DataType, Element, SetSpec, ValueType};
pub use socket::commit;

/// The address family that a table is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    /// `NFPROTO_*`
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A table by family and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}
