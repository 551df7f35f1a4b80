//! Map elements in user terms: addresses as [`IpAddr`], ports in host order, times as [`Duration`].

use std::net::IpAddr;
use std::time::Duration;

use seaway_ebpf_abi as abi;

/// The transport protocols that the programs translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => abi::TCP,
            Self::Udp => abi::UDP,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            abi::TCP => Some(Self::Tcp),
            abi::UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Who sees a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Sockets of this node: its pods and its own processes (cgroup hooks).
    Internal,
    /// Packets that arrive on an uplink (tcx).
    External,
}

/// A frontend: what clients address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address: ClusterIP, node address, external or load balancer address.
    pub addr: IpAddr,
    /// The port; 0 for [`Frontend::any_port`].
    pub port: u16,
    /// The protocol; `None` for [`Frontend::any_port`].
    pub protocol: Option<Protocol>,
    /// Who sees it.
    pub scope: Scope,
}

impl Frontend {
    /// A frontend of one port.
    pub const fn new(addr: IpAddr, port: u16, protocol: Protocol, scope: Scope) -> Self {
        Self { addr, port, protocol: Some(protocol), scope }
    }

    /// All ports of an address that have no frontend of their own. With a service without backends it makes them
    /// refuse: write one per ClusterIP, [`Scope::Internal`], which holds for packets from outside, too.
    pub const fn any_port(addr: IpAddr, scope: Scope) -> Self {
        Self { addr, port: 0, protocol: None, scope }
    }

    /// The guard of a NodePort: no process in the node's own network namespace can bind the port while this stands
    /// in the map. One per family, protocol and port; its service needs [`ServiceEntry::node_port`] and nothing else.
    pub const fn node_port_guard(v4: bool, port: u16, protocol: Protocol) -> Self {
        let addr = if v4 {
            IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
        };
        Self { addr, port, protocol: Some(protocol), scope: Scope::External }
    }

    pub(crate) fn key(&self) -> abi::ServiceKey {
        abi::ServiceKey {
            addr: self.addr.into(),
            port_be: self.port.to_be(),
            proto: self.protocol.map_or(0, Protocol::number),
            scope: match self.scope {
                Scope::Internal => abi::SCOPE_INTERNAL,
                Scope::External => abi::SCOPE_EXTERNAL,
            },
            pad: 0,
        }
    }

    pub(crate) fn from_key(key: &abi::ServiceKey) -> Self {
        Self {
            addr: key.addr.into(),
            port: u16::from_be(key.port_be),
            protocol: Protocol::from_number(key.proto),
            scope: if key.scope == abi::SCOPE_INTERNAL { Scope::Internal } else { Scope::External },
        }
    }
}

/// What stands behind a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent switches of one map element")]
pub struct ServiceEntry {
    /// One number per service port, shared by all its frontends of both scopes. Affinity and source ranges go by it,
    /// and every backend of its slices carries it.
    pub id: u32,
    /// Where its slice begins in the backend array.
    pub base: u32,
    /// How many backends the slice has; with 0 connections are refused at once.
    pub count: u32,
    /// `sessionAffinity: ClientIP`; rounded up to seconds.
    pub affinity: Option<Duration>,
    /// Free for the writer: the programs do not look at it.
    pub generation: u32,
    /// Check sources against the service's [`SourceRange`]s ([`Scope::External`] only): those of load balancer
    /// addresses.
    pub source_ranges: bool,
    /// Without a backend, drop instead of reject: `externalTrafficPolicy: Local`, endpoints only elsewhere.
    pub drop_when_empty: bool,
    /// The frontend is a NodePort.
    pub node_port: bool,
    /// Only for sockets of the node's own network namespace: NodePorts at loopback addresses.
    pub host_only: bool,
    /// Direct server return ([`Scope::External`] only): a backend on another node sees the client and answers it
    /// directly. That node must have the frontend as well, with this set.
    pub dsr: bool,
    /// Every backend sees the node as its client ([`Scope::Internal`] only). Pods' sockets are then left alone, so
    /// their links have to run the programs.
    pub masquerade: bool,
    /// Where its Maglev table begins ([`crate::ServiceMaps::put_maglev`]).
    pub maglev_base: u32,
    /// How many slots that table has; 0: backends are chosen without one.
    pub maglev_size: u32,
}

impl ServiceEntry {
    pub(crate) fn value(&self) -> abi::Service {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let timeout = self.affinity.map_or(0, |t| t.as_secs() + u64::from(t.subsec_nanos() > 0));
        abi::Service {
            id: self.id,
            base: self.base,
            count: self.count,
            flags: flag(self.source_ranges, abi::SERVICE_SOURCE_RANGES)
                | flag(self.drop_when_empty, abi::SERVICE_DROP_WHEN_EMPTY)
                | flag(self.node_port, abi::SERVICE_NODE_PORT)
                | flag(self.host_only, abi::SERVICE_HOST_ONLY)
                | flag(self.dsr, abi::SERVICE_DSR)
                | flag(self.masquerade, abi::SERVICE_MASQUERADE),
            affinity_timeout_s: u32::try_from(timeout).unwrap_or(u32::MAX),
            generation: self.generation,
            maglev_base: self.maglev_base,
            maglev_size: self.maglev_size,
        }
    }

    pub(crate) fn from_value(value: &abi::Service) -> Self {
        let flag = |bit: u32| value.flags & bit != 0;
        Self {
            id: value.id,
            base: value.base,
            count: value.count,
            affinity: (value.affinity_timeout_s > 0)
                .then(|| Duration::from_secs(u64::from(value.affinity_timeout_s))),
            generation: value.generation,
            source_ranges: flag(abi::SERVICE_SOURCE_RANGES),
            drop_when_empty: flag(abi::SERVICE_DROP_WHEN_EMPTY),
            node_port: flag(abi::SERVICE_NODE_PORT),
            host_only: flag(abi::SERVICE_HOST_ONLY),
            dsr: flag(abi::SERVICE_DSR),
            masquerade: flag(abi::SERVICE_MASQUERADE),
            maglev_base: value.maglev_base,
            maglev_size: value.maglev_size,
        }
    }
}

/// A backend in a slice. The derived order is the order that a slice must have: address (as 16 bytes, IPv4 mapped),
/// then port. IPv4 and IPv6 never share a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendEntry {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
    /// The [`ServiceEntry::id`] of the slice's owner.
    pub service: u32,
    /// It runs on this node: external packets reach it with the client's address. Others see the node's.
    pub local: bool,
}

impl BackendEntry {
    pub(crate) fn value(&self) -> abi::Backend {
        abi::Backend {
            addr: self.addr.into(),
            port_be: self.port.to_be(),
            flags: if self.local { abi::BACKEND_LOCAL } else { 0 },
            service: self.service,
        }
    }

    pub(crate) fn from_value(value: &abi::Backend) -> Self {
        Self {
            addr: value.addr.into(),
            port: u16::from_be(value.port_be),
            service: value.service,
            local: value.flags & abi::BACKEND_LOCAL != 0,
        }
    }
}

/// A network that a service admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange {
    /// The service's [`ServiceEntry::id`].
    pub service: u32,
    /// The network's address.
    pub addr: IpAddr,
    /// The prefix length in the address's own family.
    pub prefix: u8,
}

impl SourceRange {
    pub(crate) fn key(&self) -> abi::SourceRangeKey {
        let mapped = if self.addr.is_ipv4() { 96 } else { 0 };
        abi::SourceRangeKey {
            prefix_len: 32 + mapped + u32::from(self.prefix),
            service: self.service,
            addr: self.addr.into(),
        }
    }

    pub(crate) fn from_key(key: &abi::SourceRangeKey) -> Self {
        let mapped = if key.addr.is_v4() { 96 } else { 0 };
        let prefix = key.prefix_len.saturating_sub(32 + mapped);
        Self { service: key.service, addr: key.addr.into(), prefix: u8::try_from(prefix).unwrap_or(u8::MAX) }
    }
}

/// What of a node a [`ClusterNet`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterNetKind {
    /// A subnet of its pods.
    Pods,
    /// An address of its own.
    Node,
}

/// A pod subnet or an address of a node: who is in none of them is outside of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterNet {
    /// The network's address.
    pub addr: IpAddr,
    /// The prefix length in the address's own family.
    pub prefix: u8,
    /// What it is.
    pub kind: ClusterNetKind,
}

impl ClusterNet {
    pub(crate) fn key(&self) -> abi::ClusterNetKey {
        Self::key_of(self.addr, self.prefix)
    }

    pub(crate) fn key_of(addr: IpAddr, prefix: u8) -> abi::ClusterNetKey {
        let mapped = if addr.is_ipv4() { 96 } else { 0 };
        abi::ClusterNetKey { prefix_len: mapped + u32::from(prefix), words: abi::Addr::from(addr).words }
    }

    pub(crate) fn net_of(key: &abi::ClusterNetKey) -> (IpAddr, u8) {
        let addr = abi::Addr { words: key.words };
        let mapped = if addr.is_v4() { 96 } else { 0 };
        (addr.into(), u8::try_from(key.prefix_len.saturating_sub(mapped)).unwrap_or(u8::MAX))
    }

    pub(crate) fn value(&self) -> u32 {
        match self.kind {
            ClusterNetKind::Pods => abi::CLUSTER_NET_PODS,
            ClusterNetKind::Node => abi::CLUSTER_NET_NODE,
        }
    }

    pub(crate) fn from_entry(key: &abi::ClusterNetKey, value: u32) -> Self {
        let kind = if value == abi::CLUSTER_NET_NODE { ClusterNetKind::Node } else { ClusterNetKind::Pods };
        let (addr, prefix) = Self::net_of(key);
        Self { addr, prefix, kind }
    }
}

/// One direction of a connection from or to the outside, as the programs remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The protocol.
    pub protocol: Protocol,
    /// Source and destination as packets arrive.
    pub from: ((IpAddr, u16), (IpAddr, u16)),
    /// Source and destination as they leave.
    pub to: ((IpAddr, u16), (IpAddr, u16)),
    /// This is the direction from backend to client: `from.0` is the backend. Otherwise `to.1` is.
    pub reply: bool,
    /// The backend is on another node and sees this node's address.
    pub snat: bool,
    /// It is one of a pod of this node to somebody outside of the cluster: no service's.
    pub masqueraded: bool,
    /// The backend has answered.
    pub seen_reply: bool,
    /// A FIN or RST was seen.
    pub closing: bool,
    /// The [`ServiceEntry::id`] that it was made for.
    pub service: u32,
    /// Time since the last packet.
    pub idle: Duration,
}

impl Connection {
    /// The backend's address and port.
    pub const fn backend(&self) -> (IpAddr, u16) {
        if self.reply { self.from.0 } else { self.to.1 }
    }

    /// A connection from `source` to `destination` that the programs pass by, since something else translates it.
    pub const fn untouched(protocol: Protocol, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let ends = (source, destination);
        Self {
            protocol,
            from: ends,
            to: ends,
            // On its way in, a reply that is no remote backend's is none of the programs' business.
            reply: true,
            snat: false,
            masqueraded: false,
            seen_reply: true,
            closing: false,
            service: 0,
            idle: Duration::ZERO,
        }
    }

    pub(crate) fn tuple(&self) -> abi::FlowTuple {
        self.tuple_of(&self.from)
    }

    fn tuple_of(&self, ends: &((IpAddr, u16), (IpAddr, u16))) -> abi::FlowTuple {
        abi::FlowTuple {
            src: ends.0.0.into(),
            dst: ends.1.0.into(),
            src_port_be: ends.0.1.to_be(),
            dst_port_be: ends.1.1.to_be(),
            proto: u32::from(self.protocol.number()),
        }
    }

    pub(crate) fn value(&self, now_s: u32) -> abi::FlowValue {
        let flag = |on: bool, bit: u16| if on { bit } else { 0 };
        let last_seen_s = now_s.saturating_sub(u32::try_from(self.idle.as_secs()).unwrap_or(u32::MAX));
        abi::FlowValue {
            to: self.tuple_of(&self.to),
            service: self.service,
            flags: flag(self.reply, abi::FLOW_REPLY)
                | flag(self.snat, abi::FLOW_SNAT)
                | flag(self.masqueraded, abi::FLOW_MASQUERADE)
                | flag(self.seen_reply, abi::FLOW_SEEN_REPLY)
                | flag(self.closing, abi::FLOW_CLOSING),
            pad: 0,
            last_seen_s,
            created_s: last_seen_s,
        }
    }

    pub(crate) fn from_element(key: &abi::FlowTuple, value: &abi::FlowValue, now_s: u32) -> Option<Self> {
        let ends = |t: &abi::FlowTuple| {
            ((t.src.into(), u16::from_be(t.src_port_be)), (t.dst.into(), u16::from_be(t.dst_port_be)))
        };
        Some(Self {
            protocol: Protocol::from_number(u8::try_from(key.proto).ok()?)?,
            from: ends(key),
            to: ends(&value.to),
            reply: value.flags & abi::FLOW_REPLY != 0,
            snat: value.flags & abi::FLOW_SNAT != 0,
            masqueraded: value.flags & abi::FLOW_MASQUERADE != 0,
            seen_reply: value.flags & abi::FLOW_SEEN_REPLY != 0,
            closing: value.flags & abi::FLOW_CLOSING != 0,
            service: value.service,
            idle: Duration::from_secs(u64::from(now_s.saturating_sub(value.last_seen_s))),
        })
    }
}

/// A translation that a socket of this node uses: what the termination of sockets to vanished backends goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketFlow {
    /// The socket's cookie (`SO_COOKIE`, `sock_diag`).
    pub cookie: u64,
    /// The protocol.
    pub protocol: Protocol,
    /// What the application addressed.
    pub frontend: (IpAddr, u16),
    /// Where its packets go.
    pub backend: (IpAddr, u16),
    /// The [`ServiceEntry::id`] that it was made for.
    pub service: u32,
    /// This is the memory of an unconnected UDP socket's last choice, keyed by frontend. Otherwise it is the reverse
    /// translation, keyed by backend.
    pub sticky: bool,
    /// Time since the last new use.
    pub idle: Duration,
}

impl SocketFlow {
    pub(crate) fn key(&self) -> abi::SocketKey {
        let (kind, (addr, port)) = if self.sticky {
            (abi::SOCKET_FRONTEND, self.frontend)
        } else {
            (abi::SOCKET_BACKEND, self.backend)
        };
        abi::SocketKey {
            cookie: self.cookie,
            addr: addr.into(),
            port_be: port.to_be(),
            kind,
            proto: self.protocol.number(),
            pad: 0,
        }
    }

    pub(crate) fn from_element(key: &abi::SocketKey, value: &abi::SocketValue, now_s: u32) -> Option<Self> {
        let keyed = (key.addr.into(), u16::from_be(key.port_be));
        let other = (value.addr.into(), u16::from_be(value.port_be));
        let sticky = key.kind == abi::SOCKET_FRONTEND;
        let (frontend, backend) = if sticky { (keyed, other) } else { (other, keyed) };
        Some(Self {
            cookie: key.cookie,
            protocol: Protocol::from_number(key.proto)?,
            frontend,
            backend,
            service: value.service,
            sticky,
            idle: Duration::from_secs(u64::from(now_s.saturating_sub(value.last_used_s))),
        })
    }
}

/// Who a session affinity belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AffinityClient {
    /// A client outside of the node, by address.
    Address(IpAddr),
    /// A pod (or the node itself), by the cookie of its network namespace.
    Netns(u64),
}

/// A session affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity {
    /// The service's [`ServiceEntry::id`].
    pub service: u32,
    /// The client.
    pub client: AffinityClient,
    /// The backend that it goes to, while that stands in the service's slice.
    pub backend: (IpAddr, u16),
    /// Time since its last new connection.
    pub idle: Duration,
}

impl Affinity {
    pub(crate) fn key(&self) -> abi::AffinityKey {
        match self.client {
            AffinityClient::Address(addr) => {
                abi::AffinityKey { client: addr.into(), service: self.service, kind: abi::CLIENT_ADDRESS }
            }
            AffinityClient::Netns(cookie) => {
                let client = abi::netns_client(cookie);
                abi::AffinityKey { client, service: self.service, kind: abi::CLIENT_NETNS }
            }
        }
    }

    pub(crate) fn from_element(key: &abi::AffinityKey, value: &abi::AffinityValue, now_s: u32) -> Self {
        let client = if key.kind == abi::CLIENT_NETNS {
            AffinityClient::Netns(abi::client_netns(&key.client))
        } else {
            AffinityClient::Address(key.client.into())
        };
        Self {
            service: key.service,
            client,
            backend: (value.addr.into(), u16::from_be(value.port_be)),
            idle: Duration::from_secs(u64::from(now_s.saturating_sub(value.last_used_s))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr() -> impl Strategy<Value = IpAddr> {
        // A mapped IPv6 address is IPv4 by another name: it does not come back as it went.
        let v6 = any::<u128>().prop_map(std::net::Ipv6Addr::from_bits);
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(std::net::Ipv4Addr::from_bits(bits))),
            v6.prop_filter("mapped", |a| a.to_ipv4_mapped().is_none()).prop_map(IpAddr::V6),
        ]
    }

    fn frontend() -> impl Strategy<Value = Frontend> {
        (addr(), any::<u16>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(addr, port, tcp, inner, all)| {
                let scope = if inner { Scope::Internal } else { Scope::External };
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                if all { Frontend::any_port(addr, scope) } else { Frontend::new(addr, port, protocol, scope) }
            },
        )
    }

    proptest! {
        #[test]
        fn frontends_round_trip(frontend in frontend()) {
            prop_assert_eq!(Frontend::from_key(&frontend.key()), frontend);
        }

        #[test]
        fn services_round_trip(numbers in any::<[u32; 5]>(), flags in any::<[bool; 6]>(), maglev in any::<[u32; 2]>()) {
            let entry = ServiceEntry {
                id: numbers[0],
                base: numbers[1],
                count: numbers[2],
                affinity: (numbers[3] > 0).then(|| Duration::from_secs(u64::from(numbers[3]))),
                generation: numbers[4],
                source_ranges: flags[0],
                drop_when_empty: flags[1],
                node_port: flags[2],
                host_only: flags[3],
                dsr: flags[4],
                masquerade: flags[5],
                maglev_base: maglev[0],
                maglev_size: maglev[1],
            };
            prop_assert_eq!(ServiceEntry::from_value(&entry.value()), entry);
        }

        #[test]
        fn backends_round_trip(addr in addr(), port in any::<u16>(), service in any::<u32>(), local in any::<bool>()) {
            let entry = BackendEntry { addr, port, service, local };
            prop_assert_eq!(BackendEntry::from_value(&entry.value()), entry);
        }

        #[test]
        fn backends_of_a_family_are_ordered_as_the_programs_order_them(a in addr(), b in addr()) {
            prop_assume!(a.is_ipv4() == b.is_ipv4());
            prop_assert_eq!(a < b, abi::Addr::from(a).less(&abi::Addr::from(b)));
        }

        #[test]
        fn what_is_in_the_cluster_round_trips(addr in addr(), prefix in 0..=32_u8, node in any::<bool>()) {
            let kind = if node { ClusterNetKind::Node } else { ClusterNetKind::Pods };
            let net = ClusterNet { addr, prefix, kind };
            prop_assert_eq!(ClusterNet::from_entry(&net.key(), net.value()), net);
        }

        #[test]
        fn source_ranges_round_trip(service in any::<u32>(), addr in addr(), prefix in 0..=32_u8) {
            let range = SourceRange { service, addr, prefix };
            prop_assert_eq!(SourceRange::from_key(&range.key()), range);
        }

        #[test]
        fn affinities_round_trip(service in any::<u32>(), addr in addr(), cookie in any::<u64>(), by_netns in any::<bool>()) {
            let client = if by_netns { AffinityClient::Netns(cookie) } else { AffinityClient::Address(addr) };
            let affinity = Affinity { service, client, backend: (addr, 80), idle: Duration::ZERO };
            let value = abi::AffinityValue { addr: addr.into(), port_be: 80_u16.to_be(), pad: 0, last_used_s: 7 };
            prop_assert_eq!(Affinity::from_element(&affinity.key(), &value, 7), affinity);
        }
    }

    #[test]
    fn a_fraction_of_an_affinity_timeout_counts_as_a_second() {
        let entry = ServiceEntry { affinity: Some(Duration::from_millis(1)), ..ServiceEntry::default() };
        assert_eq!(entry.value().affinity_timeout_s, 1);
    }
}
