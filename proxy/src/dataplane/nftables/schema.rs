//! The tables of the nftables data plane: sets, maps, chains and rules. All of it is fixed but for the chains that
//! choose: one per number of backends that occurs, however many Services have so many.
//!
//! ```text
//! table ip seaway-proxy {                                     # and ip6
//!   map inside, outside { daddr . protocol . dport : target } # asked from this node, from outside
//!   map targets   { target : goto chain }
//!   map endpoints { daddr . protocol . dport . index : address . port }
//!   chain pick-4  { dnat to daddr . protocol . dport . (random number below 4) map @endpoints }
//! }
//! ```
//!
//! A connection costs three look-ups in hash tables and a random number, however many Services there are. The target
//! is a number and not itself a verdict, since the kernel walks every element of a verdict map when one of them
//! changes: `targets` has a few dozen, `inside` may have a hundred thousand.
//!
//! Numbers go from one look-up to the next by way of the packet's priority, which is cleared before the packet goes on:
//! what a map gave could be looked up straight from its register, but the `nft` program of Debian 12 aborts when it
//! lists such a rule, and with it everybody's listing of the whole ruleset.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use seaway_nft::{
    ADDR_LOCAL, Base, Batch, Chain, ChainKind, CtKey, DataType, DynsetOp, Expr, Family, Hook, MetaKey,
    Reject, SetSpec, Table, Verdict, reg32,
};

/// The name of the tables.
pub const TABLE: &str = "seaway-proxy";
/// The bit of the packet mark that asks for source NAT, between the first hook and the last.
pub const MARK: u32 = 0x2000;
/// Above are the indexes of the backends of outside frontends that differ from the inside ones.
pub(super) const OUTSIDE_OFFSET: u32 = 1 << 20;
/// The most clients whose backend is remembered, per family.
const AFFINITY_SIZE: u32 = 1 << 18;

/// The sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// Frontends asked from this node: address, protocol, port to target.
    Inside,
    /// Frontends asked from outside.
    Outside,
    /// Target to chain.
    Targets,
    /// Frontend and index to backend.
    Endpoints,
    /// Frontend and index to the number that a backend keeps, for frontends with session affinity.
    Numbers,
    /// Frontend and such a number to backend.
    Members,
    /// The same for outside frontends whose backends differ from the inside ones.
    MembersOutside,
    /// Client and frontend to such a number, written by rules.
    Affinity,
    /// Frontends that only some sources may enter.
    Guarded,
    /// Those sources.
    Ranges,
    /// Addresses of kind ClusterIP: their other ports are refused.
    ClusterIps,
    /// Pairs of the same address: a pod that reaches itself.
    Hairpin,
    /// Links that packets from outside arrive on.
    Uplinks,
    /// The address that source NAT gives.
    Node,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Inside,
        Self::Outside,
        Self::Targets,
        Self::Endpoints,
        Self::Numbers,
        Self::Members,
        Self::MembersOutside,
        Self::Affinity,
        Self::Guarded,
        Self::Ranges,
        Self::ClusterIps,
        Self::Hairpin,
        Self::Uplinks,
        Self::Node,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Targets => "targets",
            Self::Endpoints => "endpoints",
            Self::Numbers => "numbers",
            Self::Members => "members",
            Self::MembersOutside => "members-outside",
            Self::Affinity => "affinity",
            Self::Guarded => "guarded",
            Self::Ranges => "ranges",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::Uplinks => "uplinks",
            Self::Node => "node",
        }
    }

    fn spec(self, family: Family) -> SetSpec {
        use DataType::{IfName, InetProto, InetService, Mark};
        let addr = if family == Family::Ip { DataType::Ipv4Addr } else { DataType::Ipv6Addr };
        let frontend = [addr, InetProto, InetService];
        let name = self.name();
        match self {
            Self::Inside | Self::Outside => SetSpec::map(name, &frontend, &[Mark]),
            Self::Targets => SetSpec::verdict_map(name, &[Mark]),
            Self::Endpoints | Self::Members | Self::MembersOutside => {
                SetSpec::map(name, &[addr, InetProto, InetService, Mark], &[addr, InetService])
            }
            Self::Numbers => SetSpec::map(name, &[addr, InetProto, InetService, Mark], &[Mark]),
            Self::Affinity => SetSpec {
                dynamic: true,
                size: Some(AFFINITY_SIZE),
                ..SetSpec::map(name, &[addr, addr, InetProto, InetService], &[Mark])
            },
            Self::Guarded => SetSpec::set(name, &frontend),
            Self::Ranges => {
                SetSpec { interval: true, ..SetSpec::set(name, &[addr, InetProto, InetService, addr]) }
            }
            Self::ClusterIps => SetSpec::set(name, &[addr]),
            Self::Hairpin => SetSpec::set(name, &[addr, addr]),
            Self::Uplinks => SetSpec::set(name, &[IfName]),
            Self::Node => SetSpec::map(name, &[Mark], &[addr]),
        }
    }
}

/// What becomes of packets to a frontend. It says all that a chain has to know: equal targets share a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// They are refused.
    Reject,
    /// They are dropped: whoever sent them here should try another node.
    Elsewhere,
    /// They go to one of the backends.
    Pick {
        /// How many there are.
        count: u32,
        /// They are those of outside frontends, which differ.
        outside: bool,
        /// The source is rewritten.
        masquerade: bool,
        /// A client keeps its backend for so many seconds.
        affinity_s: Option<u32>,
    },
}

impl Target {
    /// The number that the maps know it by, in the machine's byte order.
    pub(super) fn code(self) -> Vec<u8> {
        let flag = |on: bool, bit: u32| u32::from(on) << bit;
        let code = match self {
            Self::Reject => 0,
            Self::Elsewhere => 1 << 30,
            Self::Pick { count, outside, masquerade, affinity_s: None } => {
                count | flag(outside, 24) | flag(masquerade, 25)
            }
            Self::Pick { count, outside, masquerade, affinity_s: Some(seconds) } => {
                1 << 31 | flag(outside, 29) | flag(masquerade, 28) | seconds << 11 | count
            }
        };
        code.to_ne_bytes().into()
    }

    /// The name of its chain.
    pub(super) fn chain(self) -> String {
        match self {
            Self::Reject => REJECT.to_owned(),
            Self::Elsewhere => "elsewhere".to_owned(),
            Self::Pick { count, outside, masquerade, affinity_s } => {
                let outside = if outside { "-outside" } else { "" };
                let masquerade = if masquerade { "-masquerade" } else { "" };
                let affinity = affinity_s.map(|s| format!("-affinity-{s}s")).unwrap_or_default();
                format!("pick-{count}{outside}{masquerade}{affinity}")
            }
        }
    }

    /// It has a chain of its own, made with the first frontend that needs it.
    pub(super) fn is_dynamic(self) -> bool {
        matches!(self, Self::Pick { .. })
    }

    /// The rules of its chain.
    pub(super) fn rules(self, family: Family) -> Vec<Vec<Expr>> {
        let layout = Registers::of(family);
        let Self::Pick { count, outside, masquerade, affinity_s } = self else { return Vec::new() };
        let mut rules = Vec::new();
        if masquerade {
            rules.push(set_mark(true));
        }
        let offset = if outside { OUTSIDE_OFFSET } else { 0 };
        match affinity_s {
            Some(seconds) => rules.extend(layout.keep_backend(seconds, count, offset)),
            None => rules.push(
                [
                    layout.frontend(),
                    layout.random(count, offset, Set::Endpoints),
                    clear_priority(),
                    vec![layout.to_backend(layout.rest)],
                ]
                .concat(),
            ),
        }
        rules
    }
}

/// The longest timeout of session affinity (Kubernetes allows a day), and the most backends that go with it.
pub(super) const AFFINITY_MAX_S: u32 = (1 << 17) - 1;
pub(super) const AFFINITY_MAX_BACKENDS: usize = (1 << 11) - 1;

const REJECT: &str = "reject";
const EXTERNAL: &str = "external";

/// The names of the counters, of which those of dropped packets are read. A packet that is refused is dropped too.
pub(super) const COUNTERS: [&str; 5] =
    ["no_backend", "no_local_backend", "source_range", "invalid", "affinity_full"];
/// Counts what is no drop.
pub(super) const NO_DROP: &str = "affinity_full";

/// Where a rule keeps what it has read: client, frontend and backend lie so that each key is one run of registers.
#[derive(Clone, Copy)]
struct Registers {
    family: Family,
    /// The client's address, the beginning of an affinity key.
    client: u32,
    /// Address, protocol and port of the frontend.
    frontend: u32,
    protocol: u32,
    port: u32,
    /// What follows the frontend in a key, and what a map gives.
    rest: u32,
}

impl Registers {
    fn of(family: Family) -> Self {
        let words = if family == Family::Ip { 1 } else { 4 };
        Self {
            family,
            client: reg32(0),
            frontend: reg32(words),
            protocol: reg32(2 * words),
            port: reg32(2 * words + 1),
            rest: reg32(2 * words + 2),
        }
    }

    fn source(self, to: u32) -> Expr {
        let (offset, length) = if self.family == Family::Ip { (12, 4) } else { (8, 16) };
        Expr::Payload { base: Base::Network, offset, length, to }
    }

    fn destination(self, to: u32) -> Expr {
        let (offset, length) = if self.family == Family::Ip { (16, 4) } else { (24, 16) };
        Expr::Payload { base: Base::Network, offset, length, to }
    }

    fn frontend(self) -> Vec<Expr> {
        vec![
            self.destination(self.frontend),
            Expr::Meta { key: MetaKey::L4Proto, to: self.protocol },
            Expr::Payload { base: Base::Transport, offset: 2, length: 2, to: self.port },
        ]
    }

    /// Something about a backend by chance.
    fn random(self, modulus: u32, offset: u32, of: Set) -> Vec<Expr> {
        vec![
            Expr::Random { modulus, offset, to: self.rest },
            Expr::Map { set: of.name().into(), from: self.frontend, to: self.rest },
        ]
    }

    /// Rewrites the destination to the backend that lies at `from`.
    fn to_backend(self, from: u32) -> Expr {
        let words = if self.family == Family::Ip { 1 } else { 4 };
        Expr::DestinationNat { addr: from, port: from + words }
    }

    /// The backend that the client had, if it is still one; else another, which is remembered.
    fn keep_backend(self, seconds: u32, count: u32, offset: u32) -> Rules {
        let members = if offset > 0 { Set::MembersOutside } else { Set::Members };
        let backend = self.rest + 1;
        let change = |op, timeout_ms| Expr::Dynset {
            set: Set::Affinity.name().to_owned(),
            op,
            key: self.client,
            data: Some(self.rest),
            timeout_ms,
        };
        let remember = change(DynsetOp::Update, u64::from(seconds) * 1000);
        let client = || [vec![self.source(self.client)], self.frontend()].concat();
        let to_priority = |from| Expr::SetMeta { key: MetaKey::Priority, from };
        let known = Expr::Map { set: Set::Affinity.name().into(), from: self.client, to: self.rest };
        // The backend of the number that the priority holds: the rule ends here if it is none any more.
        let member = || {
            let number = Expr::Meta { key: MetaKey::Priority, to: self.rest };
            let find = Expr::Map { set: members.name().into(), from: self.frontend, to: backend };
            [client(), vec![number, find]].concat()
        };
        let go = || [clear_priority(), vec![self.to_backend(backend)]].concat();
        // An update leaves the data alone: what is remembered of a backend that is gone has to go first.
        let anew = vec![change(DynsetOp::Delete, 0), remember.clone()];
        vec![
            clear_priority(),
            [client(), vec![known, to_priority(self.rest)]].concat(),
            [member(), vec![remember], go()].concat(),
            [self.frontend(), self.random(count, offset, Set::Numbers), vec![to_priority(self.rest)]]
                .concat(),
            [member(), anew, go()].concat(),
            [member(), vec![count_in("affinity_full")], go()].concat(),
        ]
    }

    /// What becomes of a packet to a frontend.
    fn dispatch(self, frontends: Set) -> Vec<Expr> {
        let (key, rest) = (MetaKey::Priority, self.rest);
        let target = Expr::Map { set: frontends.name().into(), from: self.frontend, to: rest };
        let follow = Expr::VerdictMap { set: Set::Targets.name().into(), from: rest };
        [
            self.frontend(),
            vec![target, Expr::SetMeta { key, from: rest }, Expr::Meta { key, to: rest }, follow],
        ]
        .concat()
    }

    /// What is left for an address of kind ClusterIP is a port that its Service does not have.
    fn refuse_rest(self) -> Vec<Expr> {
        vec![
            self.destination(self.frontend),
            Expr::Lookup { set: Set::ClusterIps.name().into(), from: self.frontend, inverted: false },
            goto(REJECT),
        ]
    }
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

fn count_in(counter: &str) -> Expr {
    Expr::Count { counter: counter.to_owned() }
}

/// Ends the use of the packet's priority. What the socket had asked for is lost for the first packet of a connection.
fn clear_priority() -> Vec<Expr> {
    let zero = Expr::Load { value: vec![0; 4], to: reg32(0) };
    vec![zero, Expr::SetMeta { key: MetaKey::Priority, from: reg32(0) }]
}

/// Sets or clears our bit of the packet mark.
fn set_mark(on: bool) -> Vec<Expr> {
    let reg = reg32(0);
    let xor = if on { MARK } else { 0 };
    vec![
        Expr::Meta { key: MetaKey::Mark, to: reg },
        Expr::Bitwise {
            from: reg,
            to: reg,
            mask: (!MARK).to_ne_bytes().into(),
            xor: xor.to_ne_bytes().into(),
        },
        Expr::SetMeta { key: MetaKey::Mark, from: reg },
    ]
}

/// Loads our bit of the packet mark.
fn load_mark(to: u32) -> Vec<Expr> {
    vec![
        Expr::Meta { key: MetaKey::Mark, to },
        Expr::Bitwise { from: to, to, mask: MARK.to_ne_bytes().into(), xor: vec![0; 4] },
    ]
}

/// Goes on only if one of these bits of a connection's state or status is set.
fn connection(key: CtKey, bits: u32) -> Vec<Expr> {
    let reg = reg32(15);
    vec![
        Expr::Ct { key, to: reg },
        Expr::Bitwise { from: reg, to: reg, mask: bits.to_ne_bytes().into(), xor: vec![0; 4] },
        Expr::Compare { from: reg, value: vec![0; 4], inverted: true },
    ]
}

type Rules = Vec<Vec<Expr>>;

/// The chains that are always there, with their rules. What a rule leads to comes before it.
fn fixed_chains(family: Family, snat_ports: &RangeInclusive<u16>) -> Vec<(Chain<'static>, Rules)> {
    const DSTNAT: i32 = -100;
    const SRCNAT: i32 = 100;
    let regs = Registers::of(family);
    let chain = |name, base| Chain { name, base };
    let from_uplink = vec![
        Expr::Meta { key: MetaKey::IifName, to: reg32(0) },
        Expr::Lookup { set: Set::Uplinks.name().into(), from: reg32(0), inverted: false },
        goto(EXTERNAL),
    ];
    vec![
        (chain(REJECT, None), reject(family)),
        (chain("elsewhere", None), vec![vec![count_in("no_local_backend"), Expr::Verdict(Verdict::Drop)]]),
        (chain(EXTERNAL, None), vec![source_ranges(regs), regs.dispatch(Set::Outside), regs.refuse_rest()]),
        (
            chain("prerouting", Some((ChainKind::Nat, Hook::Prerouting, DSTNAT))),
            vec![leave_open_ones(), from_uplink, regs.dispatch(Set::Inside), regs.refuse_rest()],
        ),
        // What the node itself sends to a Service always gets the node's address.
        (
            chain("output", Some((ChainKind::Nat, Hook::Output, DSTNAT))),
            vec![
                leave_open_ones(),
                set_mark(true),
                regs.dispatch(Set::Inside),
                set_mark(false),
                regs.refuse_rest(),
            ],
        ),
        (
            chain("postrouting", Some((ChainKind::Nat, Hook::Postrouting, SRCNAT))),
            source_nat(regs, snat_ports),
        ),
        (chain("forward", Some((ChainKind::Filter, Hook::Forward, 0))), drop_invalid()),
    ]
}

const TCP: u8 = 6;

/// A connection that is not known and does not begin now, towards this node: one of its processes has it, such as a
/// worker of the userspace mode, since before there were these tables. Translated it would be reset.
fn leave_open_ones() -> Vec<Expr> {
    const SYN: u8 = 2;
    let reg = reg32(0);
    let is = |value: Vec<u8>| Expr::Compare { from: reg, value, inverted: false };
    vec![
        Expr::Meta { key: MetaKey::L4Proto, to: reg },
        is(vec![TCP]),
        Expr::Payload { base: Base::Transport, offset: 13, length: 1, to: reg },
        Expr::Bitwise { from: reg, to: reg, mask: vec![SYN], xor: vec![0] },
        is(vec![0]),
        Expr::DestinationKind { to: reg },
        is(ADDR_LOCAL.to_ne_bytes().into()),
        Expr::Verdict(Verdict::Accept),
    ]
}

fn reject(family: Family) -> Rules {
    let port_unreachable = if family == Family::Ip { 3 } else { 4 };
    vec![
        vec![count_in("no_backend")],
        vec![
            Expr::Meta { key: MetaKey::L4Proto, to: reg32(0) },
            Expr::Compare { from: reg32(0), value: vec![TCP], inverted: false },
            Expr::Reject(Reject::TcpReset),
        ],
        vec![Expr::Reject(Reject::Unreachable(port_unreachable))],
    ]
}

fn source_ranges(regs: Registers) -> Vec<Expr> {
    let lookup = |set: Set, inverted| Expr::Lookup { set: set.name().into(), from: regs.frontend, inverted };
    let mut rule = regs.frontend();
    rule.push(lookup(Set::Guarded, false));
    rule.push(regs.source(regs.rest));
    rule.push(lookup(Set::Ranges, true));
    rule.extend([count_in("source_range"), Expr::Verdict(Verdict::Drop)]);
    rule
}

fn source_nat(regs: Registers, ports: &RangeInclusive<u16>) -> Rules {
    const STATUS_DNAT: u32 = 1 << 5;
    let (hairpin, addr, port_min, port_max) = (reg32(0), reg32(0), reg32(4), reg32(5));
    let mark = reg32(6);
    let pair = vec![
        regs.source(hairpin),
        regs.destination(regs.frontend),
        Expr::Lookup { set: Set::Hairpin.name().into(), from: hairpin, inverted: false },
    ];
    let range = || {
        let load = |port: &u16, to| Expr::Load { value: port.to_be_bytes().into(), to };
        [load(ports.start(), port_min), load(ports.end(), port_max)]
    };
    let node = Expr::Map { set: Set::Node.name().into(), from: mark, to: addr };
    let to_node = [vec![node], range().into(), vec![Expr::SourceNat { addr, port_min, port_max }]].concat();
    let marked = Expr::Compare { from: mark, value: MARK.to_ne_bytes().into(), inverted: false };
    vec![
        [connection(CtKey::Status, STATUS_DNAT), pair, set_mark(true)].concat(),
        [load_mark(mark), to_node].concat(),
        // As long as the node's own address is not known.
        [load_mark(mark), vec![marked], range().into(), vec![Expr::Masquerade { port_min, port_max }]]
            .concat(),
    ]
}

/// A packet that no connection knows must not leave with a backend's address in it: the client would reset its
/// connection to the frontend.
fn drop_invalid() -> Rules {
    const INVALID: u32 = 1;
    let rule = vec![count_in("invalid"), Expr::Verdict(Verdict::Drop)];
    vec![[connection(CtKey::State, INVALID), rule].concat()]
}

/// Creates the tables of both families, in the place of those that are there.
pub(super) fn create(batch: &mut Batch, snat_ports: &RangeInclusive<u16>) {
    let comment = comment(snat_ports);
    for table in Family::ALL.map(table) {
        // Deleting what is not there would fail.
        batch.add_table(table, "");
        batch.delete_table(table);
        batch.add_table(table, &comment);
        fill(batch, table, snat_ports);
    }
}

fn fill(batch: &mut Batch, table: Table<'_>, snat_ports: &RangeInclusive<u16>) {
    for counter in COUNTERS {
        batch.add_counter(table, counter);
    }
    for set in Set::ALL {
        batch.add_set(table, &set.spec(table.family));
    }
    for (chain, rules) in fixed_chains(table.family, snat_ports) {
        batch.add_chain(table, chain);
        for rule in rules {
            batch.add_rule(table, chain.name, &rule);
        }
    }
}

/// The table of a family.
pub(super) const fn table(family: Family) -> Table<'static> {
    Table { family, name: TABLE }
}

/// What stands in the comment of a table: a hash of all that was put into it when it was made. A table with another one
/// was made by another version, or for other ports.
pub(super) fn comment(snat_ports: &RangeInclusive<u16>) -> String {
    let mut hash = crate::frontend::StableHash::default();
    for table in Family::ALL.map(table) {
        let mut batch = Batch::new();
        fill(&mut batch, table, snat_ports);
        for target in [Some(30), None].map(example) {
            target.rules(table.family).iter().for_each(|rule| batch.add_rule(table, "example", rule));
        }
        hash.write(&batch.into_bytes().0);
    }
    format!("seaway {:016x}", hash.finish())
}

fn example(affinity_s: Option<u32>) -> Target {
    Target::Pick { count: 1, outside: true, masquerade: true, affinity_s }
}

/// The chains that should be there while `targets` are in use, and how many rules each has and how much leads to it,
/// together.
pub(super) fn expected_chains(
    family: Family,
    snat_ports: &RangeInclusive<u16>,
    targets: impl Iterator<Item = Target>,
) -> BTreeMap<String, u32> {
    let length = |rules: &Rules| u32::try_from(rules.len()).unwrap_or(u32::MAX);
    let mut uses: BTreeMap<String, u32> = BTreeMap::new();
    for (chain, rules) in fixed_chains(family, snat_ports) {
        *uses.entry(chain.name.to_owned()).or_default() += length(&rules);
        for expr in rules.iter().flatten() {
            if let Expr::Verdict(Verdict::Goto(to)) = expr {
                *uses.entry(to.clone()).or_default() += 1;
            }
        }
    }
    for target in targets {
        *uses.entry(target.chain()).or_default() += 1 + length(&target.rules(family));
    }
    uses
}
