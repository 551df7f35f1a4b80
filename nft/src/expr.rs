//! Expressions: the instructions of nf_tables' machine, of which a rule is a list.
//!
//! There are sixteen registers of 32 bits; a value that is longer lies in several, one after the other. A rule may
//! read only what the same rule has written. Numbers are those of `linux/netfilter/nf_tables.h`.

use crate::wire::Writer;

/// The number of the `index`-th register of 32 bits (0 to 15).
pub const fn reg32(index: u32) -> u32 {
    8 + index
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It goes on, this chain is done with it.
    Accept,
    /// It ends here.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To another chain and back.
    Jump(String),
    /// To another chain for good.
    Goto(String),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// As the value of an attribute that holds data.
    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.nested(2, |writer| {
            writer.bytes(1, &self.code().to_be_bytes());
            if let Self::Jump(chain) | Self::Goto(chain) = self {
                writer.string(2, chain);
            }
        });
    }

    pub(crate) fn read(code: i32, chain: Option<&str>) -> Option<Self> {
        match (code, chain) {
            (0, _) => Some(Self::Drop),
            (1, _) => Some(Self::Accept),
            (-5, _) => Some(Self::Return),
            (-3, Some(chain)) => Some(Self::Jump(chain.to_owned())),
            (-4, Some(chain)) => Some(Self::Goto(chain.to_owned())),
            _ => None,
        }
    }
}

/// Where an offset into a packet counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The IP header.
    Network = 1,
    /// The header behind it.
    Transport = 2,
}

/// What is known about a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Its priority.
    Priority = 2,
    /// Its mark.
    Mark = 3,
    /// The name of the link that it came in on.
    IifName = 6,
    /// The transport protocol.
    L4Proto = 16,
}

/// What is known about a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// `ct state`, as a mask of bits.
    State = 0,
    /// `ct status`, as a mask of bits.
    Status = 2,
}

/// What a rule does to an element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds it, or renews the timeout of the one that is there (and leaves its data alone).
    Update = 1,
    /// Removes it, if it is there.
    Delete = 2,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP (or ICMPv6) destination unreachable with this code.
    Unreachable(u8),
    /// TCP reset.
    TcpReset,
}

/// A destination that is this machine's own (`RTN_LOCAL`).
pub const ADDR_LOCAL: u32 = 2;

/// One instruction. Registers are numbers as [`reg32`] gives them: `from` is read, `to` is written.
#[allow(missing_docs, reason = "the fields are the words of the sentence above each variant")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload { base: Base, offset: u32, length: u32, to: u32 },
    /// Loads what is known about the packet.
    Meta { key: MetaKey, to: u32 },
    /// Sets something of the packet.
    SetMeta { key: MetaKey, from: u32 },
    /// Loads what is known about the connection.
    Ct { key: CtKey, to: u32 },
    /// Loads what the routing table says of the destination's kind, such as [`ADDR_LOCAL`], in the machine's byte order.
    DestinationKind { to: u32 },
    /// Loads a constant.
    Load { value: Vec<u8>, to: u32 },
    /// `to = (from & mask) ^ xor`
    Bitwise { from: u32, to: u32, mask: Vec<u8>, xor: Vec<u8> },
    /// The rule goes on only if the register holds (or, inverted, does not hold) this.
    Compare { from: u32, value: Vec<u8>, inverted: bool },
    /// The rule goes on only if a set holds (or, inverted, does not hold) this key.
    Lookup { set: String, from: u32, inverted: bool },
    /// The rule goes on only if a map holds this key; loads the value.
    Map { set: String, from: u32, to: u32 },
    /// The rule ends with the verdict that a map holds for this key, if it holds one.
    VerdictMap { set: String, from: u32 },
    /// A random number from `offset` to below `offset + modulus`.
    Random { modulus: u32, offset: u32, to: u32 },
    /// Changes a set while packets pass. The rule ends if the set is full.
    Dynset { set: String, op: DynsetOp, key: u32, data: Option<u32>, timeout_ms: u64 },
    /// Counts into a named counter.
    Count { counter: String },
    /// Rewrites the destination.
    DestinationNat { addr: u32, port: u32 },
    /// Rewrites the source, with a random port between those in two registers.
    SourceNat { addr: u32, port_min: u32, port_max: u32 },
    /// As the former, to the address of the outgoing link.
    Masquerade { port_min: u32, port_max: u32 },
    /// Refuses the packet.
    Reject(Reject),
    /// Ends the rule.
    Verdict(Verdict),
}

const PROTO_RANDOM_FULLY: u32 = 1 << 4;
const PROTO_SPECIFIED: u32 = 1 << 1;
/// The "register" that verdicts are written to.
const REG_VERDICT: u32 = 0;

impl Expr {
    /// As an element of a rule's list.
    pub(crate) fn write(&self, writer: &mut Writer, family: u8) {
        writer.nested(1, |writer| {
            writer.string(1, self.name());
            writer.nested(2, |writer| self.write_data(writer, family));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::DestinationKind { .. } => "fib",
            Self::Load { .. } | Self::Verdict(_) => "immediate",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } | Self::Map { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Dynset { .. } => "dynset",
            Self::Count { .. } => "objref",
            Self::DestinationNat { .. } | Self::SourceNat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Reject(_) => "reject",
        }
    }

    fn write_data(&self, writer: &mut Writer, family: u8) {
        let mut numbers = |values: &[(u16, u32)]| {
            for (kind, value) in values {
                writer.number(*kind, *value);
            }
        };
        match self {
            Self::Payload { base, offset, length, to } => {
                numbers(&[(1, *to), (2, *base as u32), (3, *offset), (4, *length)]);
            }
            Self::Meta { key, to } => numbers(&[(1, *to), (2, *key as u32)]),
            Self::SetMeta { key, from } => numbers(&[(2, *key as u32), (3, *from)]),
            Self::Ct { key, to } => numbers(&[(1, *to), (2, *key as u32)]),
            Self::Random { modulus, offset, to } => {
                const RANDOM: u32 = 1;
                numbers(&[(1, *to), (2, *modulus), (3, RANDOM), (4, *offset)]);
            }
            Self::DestinationKind { to } => {
                const ADDRTYPE: u32 = 3;
                const OF_DESTINATION: u32 = 1 << 1;
                numbers(&[(1, *to), (2, ADDRTYPE), (3, OF_DESTINATION)]);
            }
            Self::Masquerade { port_min, port_max } => {
                numbers(&[(1, PROTO_SPECIFIED | PROTO_RANDOM_FULLY), (2, *port_min), (3, *port_max)]);
            }
            Self::DestinationNat { addr, port } => {
                numbers(&[(1, 1), (2, family.into()), (3, *addr), (5, *port), (7, PROTO_SPECIFIED)]);
            }
            Self::SourceNat { addr, port_min, port_max } => {
                let flags = PROTO_SPECIFIED | PROTO_RANDOM_FULLY;
                numbers(&[
                    (1, 0),
                    (2, family.into()),
                    (3, *addr),
                    (5, *port_min),
                    (6, *port_max),
                    (7, flags),
                ]);
            }
            Self::Load { .. } | Self::Bitwise { .. } | Self::Compare { .. } | Self::Verdict(_) => {
                self.write_constant(writer);
            }
            Self::Lookup { .. } | Self::Map { .. } | Self::VerdictMap { .. } | Self::Dynset { .. } => {
                self.write_set_access(writer);
            }
            Self::Count { counter } => {
                writer.number(1, crate::read::OBJECT_COUNTER);
                writer.string(2, counter);
            }
            Self::Reject(Reject::Unreachable(code)) => {
                writer.number(1, 0);
                writer.bytes(2, &[*code]);
            }
            Self::Reject(Reject::TcpReset) => writer.number(1, 1),
        }
    }

    fn write_constant(&self, writer: &mut Writer) {
        let value =
            |writer: &mut Writer, kind, value: &[u8]| writer.nested(kind, |inner| inner.bytes(1, value));
        match self {
            Self::Load { value: constant, to } => {
                writer.number(1, *to);
                value(writer, 2, constant);
            }
            Self::Bitwise { from, to, mask, xor } => {
                writer.number(1, *from);
                writer.number(2, *to);
                writer.number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                value(writer, 4, mask);
                value(writer, 5, xor);
            }
            Self::Compare { from, value: constant, inverted } => {
                writer.number(1, *from);
                writer.number(2, u32::from(*inverted));
                value(writer, 3, constant);
            }
            Self::Verdict(verdict) => {
                writer.number(1, REG_VERDICT);
                writer.nested(2, |inner| verdict.write(inner));
            }
            _ => {}
        }
    }

    fn write_set_access(&self, writer: &mut Writer) {
        match self {
            Self::Lookup { set, from, inverted } => {
                writer.string(1, set);
                writer.number(2, *from);
                writer.number(5, u32::from(*inverted));
            }
            Self::Map { set, from, to } => {
                writer.string(1, set);
                writer.number(2, *from);
                writer.number(3, *to);
            }
            Self::VerdictMap { set, from } => {
                writer.string(1, set);
                writer.number(2, *from);
                writer.number(3, REG_VERDICT);
            }
            Self::Dynset { set, op, key, data, timeout_ms } => {
                writer.string(1, set);
                writer.number(3, *op as u32);
                writer.number(4, *key);
                if let Some(data) = data {
                    writer.number(5, *data);
                }
                if *timeout_ms > 0 {
                    writer.number64(6, *timeout_ms);
                }
            }
            _ => {}
        }
    }
}
