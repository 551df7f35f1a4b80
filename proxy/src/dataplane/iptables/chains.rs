//! The chains that a frontend needs, as pure text.
//!
//! ```text
//! nat     PREROUTING ─► SEAWAY-PREROUTING ─┬─ from an uplink ─► SEAWAY-EXTERNAL ─► SEAWAY-E-… ─┐
//!         OUTPUT ──────────────────────────┴─ else ───────────► SEAWAY-INTERNAL ─► SEAWAY-I-… ─┤
//!                                                   buckets: the frontends of a /24, a /120, 64 NodePorts
//!                        SEAWAY-S-… chooses a backend ◄───────────────────────────────────────┘
//!                        └─► SEAWAY-B-… translates to it
//!         SEAWAY-MASQ marks what this node itself sends, SEAWAY-LOCALHOST what goes to its loopback addresses; the
//!         buckets mark what else has to come back through it
//!         POSTROUTING ─► SEAWAY-POSTROUTING gives marked packets an address of this node
//! filter  INPUT, FORWARD, OUTPUT ─► the same buckets, with what is refused or dropped
//! ```
//!
//! Chains of the last two kinds are named by a hash of what is in them: they never change, they come and go.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use seaway_model::{Family, Protocol};

use super::rule::Rule;
use crate::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Group, Scope, StableHash};

/// The mark of packets whose source is to be translated.
pub(super) const MARK: &str = "0x4000/0x4000";
/// The same, to take it away.
pub(super) const UNMARK: &str = "0x0/0x4000";
/// Counts what reaches NodePorts at loopback addresses, and marks it.
pub(super) const LOCALHOST: &str = "SEAWAY-LOCALHOST";
/// Drops what connection tracking cannot place.
pub(super) const FORWARD: &str = "SEAWAY-FORWARD";

/// Frontends whose rules stand in one chain, so that a packet and a change have to do with few of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Bucket {
    scope: Scope,
    net: IpNet,
    ports: Option<(Protocol, u16)>,
}

/// NodePorts stand at few addresses: they are told apart by ports, this many in a bucket.
const PORTS: u16 = 64;

impl Bucket {
    /// Where a frontend belongs.
    pub(super) fn of(key: &FrontendKey, kind: FrontendKind) -> Self {
        let narrow = IpNet::from(key.addr);
        if kind == FrontendKind::NodePort {
            return Self {
                scope: key.scope,
                net: narrow,
                ports: Some((key.protocol, key.port & !(PORTS - 1))),
            };
        }
        let wide = IpNet::new(key.addr, narrow.max_prefix_len() - 8).map_or(narrow, |net| net.trunc());
        Self { scope: key.scope, net: wide, ports: None }
    }

    /// Who asks.
    pub(super) fn scope(&self) -> Scope {
        self.scope
    }

    /// The bucket of the same addresses for who asks from this node.
    pub(super) fn inside(&self) -> Self {
        Self { scope: Scope::Internal, ..*self }
    }

    /// The chain's name, in both tables.
    pub(super) fn chain(&self) -> String {
        let mut hash = StableHash::default();
        hash.write(self.net.to_string().as_bytes());
        if let Some((protocol, port)) = self.ports {
            hash.write(&[protocol.number()]);
            hash.write(&port.to_be_bytes());
        }
        let scope = if self.scope == Scope::Internal { 'I' } else { 'E' };
        format!("SEAWAY-{scope}-{:016x}", hash.finish())
    }

    /// The rule that leads to it.
    pub(super) fn dispatch(&self) -> Rule {
        let rule = Rule::new().with("-d", self.net);
        let rule = match self.ports {
            Some((protocol, first)) => {
                let range = format!("{first}:{}", first + (PORTS - 1));
                rule.with("-p", name(protocol)).with("-m", name(protocol)).with("--dport", range)
            }
            None => rule,
        };
        rule.with("-j", self.chain())
    }
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// A chain that chooses one of the backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice<'a> {
    group: Group,
    protocol: Protocol,
    affinity: Option<Duration>,
    backends: &'a [Backend],
}

impl<'a> Choice<'a> {
    /// The choice that a frontend needs. `None`: it has no backends.
    pub(super) fn of(protocol: Protocol, frontend: &'a Frontend) -> Option<Self> {
        let Frontend { group, affinity, backends, .. } = frontend;
        (!backends.is_empty()).then_some(Self { group: *group, protocol, affinity: *affinity, backends })
    }

    /// The chain's name.
    pub(super) fn chain(&self) -> String {
        let mut hash = self.hash();
        for backend in self.backends {
            write_backend(&mut hash, backend);
        }
        hash.write(&self.affinity.map_or(u64::MAX, |timeout| timeout.as_secs()).to_be_bytes());
        format!("SEAWAY-S-{:016x}", hash.finish())
    }

    fn hash(&self) -> StableHash {
        let mut hash = StableHash::default();
        hash.write(&self.group.bits().to_be_bytes());
        hash.write(&[self.protocol.number(), u8::from(self.affinity.is_some())]);
        hash
    }

    /// What is in it. A client that was served lately goes where it was served.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if let Some(timeout) = self.affinity {
            for backend in self.backends {
                let chain = self.backend_chain(backend);
                let recent = Rule::new().with("-m", "recent").flag("--rcheck");
                let recent = recent.with("--seconds", timeout.as_secs().max(1)).flag("--reap");
                rules.push(recent.with("--name", &chain).flag("--rsource").with("-j", &chain));
            }
        }
        for (index, backend) in self.backends.iter().enumerate() {
            let mut rule = Rule::new().comment(&comment_of_backend(backend));
            let left = self.backends.len() - index;
            if left > 1 {
                let probability = 1.0 / f64::from(u32::try_from(left).unwrap_or(u32::MAX));
                rule = rule.with("-m", "statistic").with("--mode", "random");
                rule = rule.with("--probability", format_args!("{probability:.11}"));
            }
            rules.push(rule.with("-j", self.backend_chain(backend)));
        }
        rules
    }

    /// The chains of its backends and what is in them.
    pub(super) fn backends(&self) -> impl Iterator<Item = (String, Vec<Rule>)> {
        self.backends.iter().map(|backend| (self.backend_chain(backend), self.backend_rules(backend)))
    }

    /// Their names only.
    pub(super) fn backend_chains(&self) -> impl Iterator<Item = String> {
        self.backends.iter().map(|backend| self.backend_chain(backend))
    }

    fn backend_chain(&self, backend: &Backend) -> String {
        let mut hash = self.hash();
        write_backend(&mut hash, backend);
        format!("SEAWAY-B-{:016x}", hash.finish())
    }

    fn backend_rules(&self, backend: &Backend) -> Vec<Rule> {
        // A backend that reaches itself must not see its own address, or it would answer itself directly.
        let hairpin =
            Rule::new().with("-s", IpNet::from(backend.addr)).with("-j", "MARK").with("--set-xmark", MARK);
        let mut rules = vec![hairpin];
        let mut rule = Rule::new().with("-p", name(self.protocol));
        if self.affinity.is_some() {
            let list = self.backend_chain(backend);
            rule = rule.with("-m", "recent").flag("--set").with("--name", list).flag("--rsource");
        }
        let to = SocketAddr::new(backend.addr, backend.port);
        rules.push(rule.with("-j", "DNAT").with("--to-destination", to));
        rules
    }
}

fn write_backend(hash: &mut StableHash, backend: &Backend) {
    match backend.addr {
        IpAddr::V4(v4) => hash.write(&v4.octets()),
        IpAddr::V6(v6) => hash.write(&v6.octets()),
    }
    hash.write(&backend.port.to_be_bytes());
    hash.write(&[u8::from(backend.local)]);
}

fn comment_of_backend(backend: &Backend) -> String {
    let place = if backend.local { "local" } else { "remote" };
    format!("sw1 backend {} {place}", SocketAddr::new(backend.addr, backend.port))
}

/// The backend that a comment names.
pub(super) fn backend_of_comment(text: &str) -> Option<Backend> {
    let (addr, place) = text.strip_prefix("sw1 backend ")?.split_once(' ')?;
    let addr: SocketAddr = addr.parse().ok()?;
    let local = match place {
        "local" => true,
        "remote" => false,
        _ => return None,
    };
    Some(Backend { addr: addr.ip(), port: addr.port(), local })
}

/// What a rule says about the frontend that it stands for, beside what it matches.
fn comment_of(key: &FrontendKey, frontend: &Frontend) -> String {
    let kind = match frontend.kind {
        FrontendKind::ClusterIP => "ClusterIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIP => "ExternalIP",
        FrontendKind::NodePort => "NodePort",
    };
    let scope = if key.scope == Scope::Internal { "internal" } else { "external" };
    let mut text = format!("sw1 {kind} {scope} {:x}", frontend.group.bits());
    if let Some(timeout) = frontend.affinity {
        text.push_str(" affinity=");
        text.push_str(&timeout.as_secs().to_string());
    }
    if frontend.preserve_source {
        text.push_str(" keep-source");
    }
    if frontend.elsewhere {
        text.push_str(" elsewhere");
    }
    if frontend.masquerade {
        text.push_str(" masquerade");
    }
    text
}

/// The frontend that a rule stands for, without its backends; ranges come a rule each.
pub(super) fn frontend_of(rule: &Rule) -> Option<(FrontendKey, Frontend)> {
    let mut words = rule.value("--comment")?.strip_prefix("sw1 ")?.split(' ');
    let kind = match words.next()? {
        "ClusterIP" => FrontendKind::ClusterIP,
        "LoadBalancer" => FrontendKind::LoadBalancer,
        "ExternalIP" => FrontendKind::ExternalIP,
        "NodePort" => FrontendKind::NodePort,
        _ => return None,
    };
    let scope = match words.next()? {
        "internal" => Scope::Internal,
        "external" => Scope::External,
        _ => return None,
    };
    let group = Group::from_bits(u64::from_str_radix(words.next()?, 16).ok()?);
    let (mut affinity, mut preserve_source, mut elsewhere, mut masquerade) = (None, false, false, false);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("affinity", seconds) => affinity = Some(Duration::from_secs(seconds.parse().ok()?)),
            ("keep-source", "") => preserve_source = true,
            ("elsewhere", "") => elsewhere = true,
            ("masquerade", "") => masquerade = true,
            _ => return None,
        }
    }
    let destination = rule.value("-d")?;
    let addr = destination.parse::<IpNet>().map(|net| net.addr()).or_else(|_| destination.parse()).ok()?;
    let protocol = match rule.value("-p")? {
        "tcp" | "6" => Protocol::Tcp,
        "udp" | "17" => Protocol::Udp,
        "sctp" | "132" => Protocol::Sctp,
        _ => return None,
    };
    let key = FrontendKey { addr, port: rule.value("--dport")?.parse().ok()?, protocol, scope };
    let source_ranges = rule.value("-s").and_then(|range| range.parse().ok()).into_iter().collect();
    let backends = [].into();
    let (maglev, dsr) = (false, false);
    Some((
        key,
        Frontend {
            group,
            kind,
            backends,
            affinity,
            source_ranges,
            preserve_source,
            elsewhere,
            maglev,
            dsr,
            masquerade,
        },
    ))
}

fn to(key: &FrontendKey) -> Rule {
    Rule::new().with("-d", IpNet::from(key.addr)).with("-p", name(key.protocol))
}

fn port(rule: Rule, key: &FrontendKey) -> Rule {
    rule.with("-m", name(key.protocol)).with("--dport", key.port)
}

/// One rule per source that may enter, with who it stands for.
fn admitted(key: &FrontendKey, frontend: &Frontend) -> Vec<Rule> {
    let comment = comment_of(key, frontend);
    let all = [None];
    let some: Vec<Option<&IpNet>> = frontend.source_ranges.iter().map(Some).collect();
    let sources = if some.is_empty() { &all[..] } else { &some[..] };
    let rule = |source: Option<&IpNet>| {
        let rule = match source {
            Some(net) => {
                Rule::new().with("-s", net).with("-d", IpNet::from(key.addr)).with("-p", name(key.protocol))
            }
            None => to(key),
        };
        port(rule.comment(&comment), key)
    };
    sources.iter().copied().map(rule).collect()
}

/// Whose source is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Masquerade {
    Everyone,
    Node,
    Nobody,
}

/// kube-proxy's rules: pods of this node keep their address towards ClusterIPs, and where the external policy is Local
/// (`local_policy`), whose clients outside keep theirs.
fn masquerade(key: &FrontendKey, frontend: &Frontend, local_policy: bool) -> Masquerade {
    let is_cluster_ip = frontend.kind == FrontendKind::ClusterIP;
    match key.scope {
        // Nobody else can answer to a loopback address.
        _ if key.addr.is_loopback() => Masquerade::Everyone,
        Scope::Internal if frontend.masquerade => Masquerade::Everyone,
        Scope::Internal if is_cluster_ip || local_policy => Masquerade::Node,
        Scope::External if frontend.preserve_source => Masquerade::Nobody,
        Scope::Internal | Scope::External => Masquerade::Everyone,
    }
}

/// A frontend's rules in its bucket of `nat`.
pub(super) fn translated(key: &FrontendKey, frontend: &Frontend, local_policy: bool) -> Vec<Rule> {
    let Some(choice) = Choice::of(key.protocol, frontend) else { return Vec::new() };
    let chain = choice.chain();
    let mut rules = Vec::new();
    match masquerade(key, frontend, local_policy) {
        Masquerade::Everyone if key.addr.is_loopback() => {
            rules.push(port(to(key), key).with("-j", LOCALHOST));
        }
        Masquerade::Everyone => {
            rules.push(port(to(key), key).with("-j", "MARK").with("--set-xmark", MARK));
        }
        Masquerade::Node => rules.push(port(to(key), key).with("-j", "SEAWAY-MASQ")),
        Masquerade::Nobody => {}
    }
    rules.extend(admitted(key, frontend).into_iter().map(|rule| rule.with("-j", &chain)));
    rules
}

/// A frontend's rules in its bucket of `filter`: what reaches them was not translated.
pub(super) fn refused(key: &FrontendKey, frontend: &Frontend) -> Vec<Rule> {
    let mut rules = Vec::new();
    if frontend.backends.is_empty() {
        // Who is told nothing should try another node: that is of use to load balancers, not to processes and pods here.
        let silent = frontend.elsewhere && key.scope == Scope::External;
        let refuse = |rule: Rule| {
            if silent { rule.with("-j", "DROP") } else { reject(rule, key.protocol, Family::of(key.addr)) }
        };
        rules.extend(admitted(key, frontend).into_iter().map(refuse));
    }
    if !frontend.source_ranges.is_empty() {
        rules.push(port(to(key).comment("sw1 source range"), key).with("-j", "DROP"));
    }
    rules
}

/// Ports of a ClusterIP that no Service defines.
pub(super) fn undefined(addr: IpAddr) -> Vec<Rule> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let rule = |protocol| {
        let rule = Rule::new().with("-d", IpNet::from(addr)).with("-p", name(protocol));
        reject(rule.comment("sw1 undefined port"), protocol, Family::of(addr))
    };
    protocols.map(rule).into()
}

fn reject(rule: Rule, protocol: Protocol, family: Family) -> Rule {
    let with = match (protocol, family) {
        (Protocol::Tcp, _) => "tcp-reset",
        (_, Family::V4) => "icmp-port-unreachable",
        (_, Family::V6) => "icmp6-port-unreachable",
    };
    rule.with("-j", "REJECT").with("--reject-with", with)
}
