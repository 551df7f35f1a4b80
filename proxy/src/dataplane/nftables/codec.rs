//! Frontends and backends as elements of sets, and back.
//!
//! What packets need is in keys and values. What only a successor needs in order to adopt what is there (to which
//! Service port a frontend belongs, which backend is local) is in the bytes that the kernel keeps for us.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use seaway_model::Protocol;
use seaway_nft::{Data, Element, Family};

use crate::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Group, Scope, StableHash};

/// An address that clients use, whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl Address {
    pub(super) fn of(key: &FrontendKey) -> Self {
        Self { addr: key.addr, port: key.port, protocol: key.protocol }
    }

    pub(super) fn key(self, scope: Scope) -> FrontendKey {
        FrontendKey { addr: self.addr, port: self.port, protocol: self.protocol, scope }
    }

    pub(super) fn family(self) -> Family {
        family(self.addr)
    }

    /// As the first fields of a key.
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = addr_bytes(self.addr);
        bytes.extend([self.protocol.number(), 0, 0, 0]);
        bytes.extend(self.port.to_be_bytes());
        bytes.extend([0, 0]);
        bytes
    }

    /// Reads the first fields of a key. Also what follows them.
    pub(super) fn read(family: Family, key: &[u8]) -> Option<(Self, &[u8])> {
        let (addr, rest) = read_addr(family, key)?;
        let (fields, rest) = rest.split_first_chunk::<8>()?;
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = all.into_iter().find(|protocol| protocol.number() == fields[0])?;
        Some((Self { addr, port: u16::from_be_bytes([fields[4], fields[5]]), protocol }, rest))
    }
}

pub(super) fn family(addr: IpAddr) -> Family {
    if addr.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

pub(super) fn addr_bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().into(),
        IpAddr::V6(addr) => addr.octets().into(),
    }
}

pub(super) fn read_addr(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::Ip => bytes.split_first_chunk::<4>().map(|(addr, rest)| (IpAddr::from(*addr), rest)),
        Family::Ip6 => bytes.split_first_chunk::<16>().map(|(addr, rest)| (IpAddr::from(*addr), rest)),
    }
}

/// Address and port of a backend, as a value or as the last fields of a key.
pub(super) fn backend_bytes(backend: &Backend) -> Vec<u8> {
    let mut bytes = addr_bytes(backend.addr);
    bytes.extend(backend.port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// Types of what we leave with elements. `nft` passes over types that it does not know.
const FRONTEND: u8 = 0xe0;
const LOCAL: u8 = 0xe1;
const INDEX: u8 = 0xe2;

fn user_data(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut data = vec![kind, u8::try_from(bytes.len()).unwrap_or(u8::MAX)];
    data.extend_from_slice(bytes);
    data
}

fn read_user_data(element: &Element, kind: u8) -> Option<&[u8]> {
    let (header, rest) = element.user_data.split_first_chunk::<2>()?;
    (header[0] == kind && usize::from(header[1]) == rest.len()).then_some(rest)
}

/// An entry of `endpoints`.
pub(super) fn endpoint(address: Address, index: u32, backend: &Backend) -> Element {
    let mut key = address.bytes();
    key.extend(index.to_ne_bytes());
    let mut element = Element::entry(key, backend_bytes(backend));
    if backend.local {
        element.user_data = user_data(LOCAL, &[1]);
    }
    element
}

/// Numbers of backends, each the same for as long as the backend is one: hashes, of which the rare equal ones count up.
/// None is 0.
pub(super) fn numbers(pool: &[Backend]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..pool.len()).collect();
    order.sort_unstable_by_key(|index| pool[*index]);
    let (mut taken, mut numbers) = (BTreeSet::from([0]), vec![0; pool.len()]);
    for index in order {
        let mut hash = StableHash::default();
        hash.write(&backend_bytes(&pool[index]));
        let [a, b, c, d, ..] = hash.finish().to_be_bytes();
        let mut number = u32::from_be_bytes([a, b, c, d]);
        while !taken.insert(number) {
            number = number.wrapping_add(1);
        }
        numbers[index] = number;
    }
    numbers
}

/// An entry of `numbers`.
pub(super) fn number(address: Address, index: u32, number: u32) -> Element {
    Element::entry([address.bytes(), index.to_ne_bytes().into()].concat(), number.to_ne_bytes().into())
}

/// An entry of `members`.
pub(super) fn member(address: Address, number: u32, backend: &Backend) -> Element {
    Element::entry([address.bytes(), number.to_ne_bytes().into()].concat(), backend_bytes(backend))
}

/// Address, index and backend of an entry of `endpoints`.
pub(super) fn read_endpoint(family: Family, element: &Element) -> Option<(Address, u32, Backend)> {
    let (address, index) = Address::read(family, &element.key)?;
    let index = u32::from_ne_bytes(*index.first_chunk::<4>()?);
    let Some(Data::Value(value)) = &element.data else { return None };
    let (addr, port) = read_addr(family, value)?;
    let port = u16::from_be_bytes(*port.first_chunk::<2>()?);
    let local = read_user_data(element, LOCAL).is_some();
    Some((address, index, Backend { addr, port, local }))
}

/// A frontend without its backends and source ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) group: Group,
    pub(super) kind: FrontendKind,
    pub(super) affinity: Option<Duration>,
    pub(super) preserve_source: bool,
    pub(super) elsewhere: bool,
    pub(super) masquerade: bool,
    /// How many backends it has.
    pub(super) count: u32,
    /// They stand apart from those of the other scope.
    pub(super) apart: bool,
}

const KINDS: [FrontendKind; 4] =
    [FrontendKind::ClusterIP, FrontendKind::LoadBalancer, FrontendKind::ExternalIP, FrontendKind::NodePort];

/// The number of a kind. None: this data plane does not know it.
pub(super) fn kind_number(kind: FrontendKind) -> Option<u8> {
    KINDS.iter().position(|known| *known == kind).and_then(|at| u8::try_from(at).ok())
}

/// What is left with the entry of a frontend.
pub(super) fn head(frontend: &Frontend, apart: bool) -> Vec<u8> {
    let flags = u8::from(frontend.preserve_source)
        | u8::from(frontend.elsewhere) << 1
        | u8::from(frontend.affinity.is_some()) << 2
        | u8::from(apart) << 3
        | u8::from(frontend.masquerade) << 4;
    let mut bytes = vec![kind_number(frontend.kind).unwrap_or(u8::MAX), flags];
    bytes.extend(frontend.group.bits().to_be_bytes());
    bytes.extend(frontend.affinity.map_or(0, |timeout| timeout.as_secs()).to_be_bytes());
    bytes.extend(u32::try_from(frontend.backends.len()).unwrap_or(u32::MAX).to_be_bytes());
    user_data(FRONTEND, &bytes)
}

/// Reads what [`head`] left.
pub(super) fn read_head(element: &Element) -> Option<Head> {
    let bytes: &[u8; 22] = read_user_data(element, FRONTEND)?.try_into().ok()?;
    let number64 = |at: usize| bytes[at..].first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
    let flag = |bit: u8| bytes[1] >> bit & 1 == 1;
    let seconds = number64(10)?;
    Some(Head {
        kind: *KINDS.get(usize::from(bytes[0]))?,
        group: Group::from_bits(number64(2)?),
        affinity: flag(2).then(|| Duration::from_secs(seconds)),
        preserve_source: flag(0),
        elsewhere: flag(1),
        apart: flag(3),
        masquerade: flag(4),
        count: u32::from_be_bytes(*bytes[18..].first_chunk::<4>()?),
    })
}

/// An entry of `ranges`.
pub(super) fn range(address: Address, range: &IpNet) -> Element {
    let bound = |addr: IpAddr| [address.bytes(), addr_bytes(addr)].concat();
    Element { key_end: Some(bound(range.broadcast())), ..Element::key(bound(range.network())) }
}

/// Address and sources of an entry of `ranges`.
pub(super) fn read_range(family: Family, element: &Element) -> Option<(Address, IpNet)> {
    let (address, first) = Address::read(family, &element.key)?;
    let end = element.key_end.as_ref().unwrap_or(&element.key);
    let (_, last) = Address::read(family, end)?;
    let range = match (read_addr(family, first)?.0, read_addr(family, last)?.0) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let bits = (first.to_bits() ^ last.to_bits()).leading_zeros();
            IpNet::V4(Ipv4Net::new(first, u8::try_from(bits).ok()?).ok()?)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let bits = (first.to_bits() ^ last.to_bits()).leading_zeros();
            IpNet::V6(Ipv6Net::new(first, u8::try_from(bits).ok()?).ok()?)
        }
        _ => return None,
    };
    Some((address, range))
}

/// An element of `uplinks`.
pub(super) fn uplink(name: &str, index: u32) -> Element {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    Element { user_data: user_data(INDEX, &index.to_be_bytes()), ..Element::key(key) }
}

/// Name and index of an element of `uplinks`.
pub(super) fn read_uplink(element: &Element) -> Option<(&str, u32)> {
    let index = u32::from_be_bytes(*read_user_data(element, INDEX)?.first_chunk::<4>()?);
    let name = std::str::from_utf8(&element.key).ok()?.trim_end_matches('\0');
    Some((name, index))
}

/// The entry of `node`, where the address is known.
pub(super) fn node(addr: Option<IpAddr>) -> Option<Element> {
    Some(Element::entry(super::schema::MARK.to_ne_bytes().into(), addr_bytes(addr?)))
}

pub(super) fn read_node_v4(element: &Element) -> Option<Ipv4Addr> {
    let Some(Data::Value(value)) = &element.data else { return None };
    value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes))
}

pub(super) fn read_node_v6(element: &Element) -> Option<Ipv6Addr> {
    let Some(Data::Value(value)) = &element.data else { return None };
    value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes))
}
