//! What DNS tells about one Service.

use std::borrow::Cow;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashSet;
use hickory_proto::rr::Name;
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Protocol, Service, ServiceKey, ServiceKind, ServicePort,
};
use smallvec::SmallVec;

use super::hostnames::{Hostnames, Places};
use super::lookup::{Part, Port};

/// A Service, prepared for questions: what most of them ask for lies together, and all else in one other place.
#[derive(Debug, Clone)]
pub(super) struct ServiceRecords {
    /// Most names of Services are no longer.
    pub(super) name: SmallVec<[u8; 24]>,
    pub(super) namespace: Arc<str>,
    kind: Kind,
    ports: SmallVec<[PortRecord; 1]>,
    rest: Arc<Rest>,
}

/// What questions about endpoints and names elsewhere need, and who changes the Service.
#[derive(Debug)]
struct Rest {
    key: ServiceKey,
    /// Shared with the snapshot, not copied.
    endpoints: Arc<EndpointSet>,
    publish_not_ready: bool,
    /// Which of the usable ones have which host name, if any has one.
    hostnames: Option<Box<Hostnames>>,
    /// Where an ExternalName Service leads. `None` where that is no name.
    external: Option<Name>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    ClusterIp {
        addrs: ClusterIps,
        /// It has no ready endpoint, and such Services are not to be told.
        hidden: bool,
    },
    /// Whether there is an endpoint to name.
    Headless {
        usable: bool,
    },
    External,
}

/// A Service has one address of a family at most.
#[derive(Debug, Clone, Copy)]
struct ClusterIps {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    /// The Service names the IPv6 one first.
    v6_first: bool,
}

impl ClusterIps {
    const NONE: Self = Self { v4: None, v6: None, v6_first: false };

    fn of(addrs: &[IpAddr]) -> Self {
        let v4 = addrs.iter().find_map(|addr| if let IpAddr::V4(v4) = addr { Some(*v4) } else { None });
        let v6 = addrs.iter().find_map(|addr| if let IpAddr::V6(v6) = addr { Some(*v6) } else { None });
        Self { v4, v6, v6_first: addrs.first().is_some_and(IpAddr::is_ipv6) }
    }

    fn iter(self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6) = (self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6));
        let ordered = if self.v6_first { [v6, v4] } else { [v4, v6] };
        ordered.into_iter().flatten()
    }
}

/// A port, with its name beside the rest, for the same reason.
#[derive(Debug, Clone)]
struct PortRecord {
    name: SmallVec<[u8; 15]>,
    protocol: Protocol,
    port: u16,
}

impl PortRecord {
    fn new(port: &ServicePort) -> Self {
        Self { name: port.name.as_bytes().into(), protocol: port.protocol, port: port.port }
    }
}

/// A target of SRV records: a name below the Service, and a port there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// The place of the first endpoint that has the name.
    pub(super) at: usize,
    pub(super) port: u16,
}

/// All targets that a question is about. A Service may have thousands, of which a packet takes some dozens: their names are
/// made for those only.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// Those of one name are together, by port.
    pub(super) list: Vec<Target>,
    /// How many addresses and ports they are.
    pub(super) places: usize,
}

impl Targets {
    /// Adds those of the name of the endpoint at `at`, which is at all of `endpoints`.
    fn add<'a>(&mut self, at: usize, endpoints: impl Iterator<Item = &'a Endpoint>, port: Option<&Port<'_>>) {
        let offers =
            endpoints.flat_map(|endpoint| numbers(endpoint, port).map(|number| (number, endpoint.addr)));
        let mut offers: SmallVec<[(u16, IpAddr); 4]> = offers.collect();
        offers.sort_unstable();
        offers.dedup();
        self.places += offers.len();
        offers.dedup_by_key(|(number, _)| *number);
        self.list.extend(offers.into_iter().map(|(port, _)| Target { at, port }));
    }
}

/// Names that an address leads to: the Service's own, or that of an endpoint without a host name (`None`), and host names.
type Aliases = SmallVec<[Option<Arc<str>>; 1]>;

impl ServiceRecords {
    pub(super) fn new(service: &Service, endpoints: Arc<EndpointSet>, ignore_empty: bool) -> Self {
        let usable = |endpoint: &Endpoint| endpoint.ready || service.publish_not_ready;
        let hostnames = Hostnames::of(&endpoints.endpoints, usable);
        let mut external = None;
        let kind = match (&service.external_name, service.kind) {
            (target, ServiceKind::ExternalName) => {
                external = target.as_deref().and_then(absolute);
                Kind::External
            }
            _ if service.headless => Kind::Headless { usable: endpoints.endpoints.iter().any(usable) },
            _ => Kind::ClusterIp {
                addrs: ClusterIps::of(&service.cluster_ips),
                hidden: ignore_empty && !endpoints.endpoints.iter().any(usable),
            },
        };
        let (key, publish_not_ready) = (service.key.clone(), service.publish_not_ready);
        Self {
            name: key.name.as_bytes().into(),
            namespace: Arc::clone(&key.namespace),
            kind,
            ports: service.ports.iter().map(PortRecord::new).collect(),
            rest: Arc::new(Rest { key, endpoints, publish_not_ready, hostnames, external }),
        }
    }

    /// Reads something from each line of the processor's cache that the record lies in.
    pub(super) fn touch(&self) -> usize {
        self.name.len() + self.ports.len() + usize::from(self.exists())
    }

    pub(super) fn key(&self) -> &ServiceKey {
        &self.rest.key
    }

    /// A headless Service without an endpoint to name does not exist, by the specification; nor does an alias of what is no
    /// name.
    pub(super) fn exists(&self) -> bool {
        match self.kind {
            Kind::ClusterIp { hidden, .. } => !hidden,
            Kind::Headless { usable } => usable,
            Kind::External => self.rest.external.is_some(),
        }
    }

    /// Where an ExternalName Service leads.
    pub(super) fn external(&self) -> Option<&Name> {
        if let Kind::External = self.kind { self.rest.external.as_ref() } else { None }
    }

    pub(super) fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        if let Kind::ClusterIp { addrs, .. } = self.kind { addrs.iter() } else { ClusterIps::NONE.iter() }
    }

    pub(super) fn is_headless(&self) -> bool {
        matches!(self.kind, Kind::Headless { .. })
    }

    /// Addresses that lead to other names by the next records than by the former ones, in order, and some more. Of a
    /// large Service few endpoints change at a time: those that stay are passed over at a glance.
    pub(super) fn touched<'r>(former: Option<&'r Self>, next: Option<&'r Self>) -> Vec<IpAddr> {
        let all =
            |records: Option<&Self>| records.into_iter().flat_map(Self::cluster_ips).collect::<Vec<_>>();
        let mut touched = [all(former), all(next)].concat();
        let endpoints =
            |records: Option<&'r Self>| records.map_or(&[][..], |records| &records.rest.endpoints.endpoints);
        let (mut old, mut new) = (endpoints(former), endpoints(next));
        loop {
            let addr = match (old.first(), new.first()) {
                (Some(old), Some(new)) => old.addr.min(new.addr),
                (Some(only), None) | (None, Some(only)) => only.addr,
                (None, None) => break,
            };
            let ((old_here, old_rest), (new_here, new_rest)) = (split(old, addr), split(new, addr));
            let is_same = match (old_here, new_here, former, next) {
                ([old], [new], Some(former), Some(next)) => {
                    former.tells(old) == next.tells(new) && has_same_hostname(old, new)
                }
                _ => false,
            };
            if !is_same {
                touched.push(addr);
            }
            (old, new) = (old_rest, new_rest);
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// The names that `addr` leads to, in order, each once.
    pub(super) fn aliases(&self, addr: IpAddr) -> Aliases {
        let own = self.cluster_ips().filter(|ip| self.exists() && *ip == addr).map(|_| None);
        let endpoints = self.at(addr).filter(|(_, endpoint)| self.tells(endpoint));
        let mut all: Aliases =
            own.chain(endpoints.map(|(_, endpoint)| endpoint.hostname.as_ref().map(lower))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether an endpoint has a name.
    fn tells(&self, endpoint: &Endpoint) -> bool {
        self.is_usable(endpoint) && self.exists()
    }

    /// The endpoints at one address, with their places.
    fn at(&self, addr: IpAddr) -> impl Iterator<Item = (usize, &Endpoint)> {
        let endpoints = &self.rest.endpoints.endpoints;
        // Endpoints are ordered by address.
        let from = endpoints.partition_point(|endpoint| endpoint.addr < addr);
        endpoints.iter().enumerate().skip(from).take_while(move |(_, endpoint)| endpoint.addr == addr)
    }

    /// The addresses of the endpoints that `label` names.
    pub(super) fn endpoint(&self, label: &str) -> Vec<IpAddr> {
        let endpoints = self.named(label).into_iter().filter_map(|at| self.rest.endpoints.endpoints.get(at));
        let mut addrs: Vec<IpAddr> = endpoints.map(|endpoint| endpoint.addr).collect();
        addrs.dedup();
        addrs
    }

    /// The targets that `label` names.
    pub(super) fn targets_of(&self, label: &str) -> Targets {
        let (places, mut targets) = (self.named(label), Targets::default());
        if let Some(&first) = places.first() {
            targets.add(first, places.iter().map(|&at| &self.rest.endpoints.endpoints[at]), None);
        }
        targets
    }

    /// The places of the endpoints that `label` names: by host name, else by dashed address.
    fn named(&self, label: &str) -> Places {
        let hostnames = self.rest.hostnames.as_deref();
        let places =
            hostnames.map(|names| names.find(label, &self.rest.endpoints.endpoints)).unwrap_or_default();
        match parse_dashed(label) {
            Some(addr) if places.is_empty() => self.without_hostname(addr),
            _ => places,
        }
    }

    /// The places of the endpoints that are named by this address.
    fn without_hostname(&self, addr: IpAddr) -> Places {
        let nameless = |endpoint: &Endpoint| self.is_usable(endpoint) && endpoint.hostname.is_none();
        self.at(addr).filter(|(_, endpoint)| nameless(endpoint)).map(|(at, _)| at).collect()
    }

    pub(super) fn has_protocol(&self, protocol: Protocol) -> bool {
        self.ports.iter().any(|port| port.protocol == protocol && !port.name.is_empty())
    }

    /// The name of the port that `name` and `protocol` mean, if there is one.
    pub(super) fn port_name(&self, name: &str, protocol: Protocol) -> Option<&[u8]> {
        let named = |port: &&PortRecord| {
            port.protocol == protocol
                && !port.name.is_empty()
                && port.name.eq_ignore_ascii_case(name.as_bytes())
        };
        self.ports.iter().find(named).map(|port| &*port.name)
    }

    /// The addresses of one family of the endpoints, of all or of those in a topology zone.
    pub(super) fn endpoint_addresses(
        &self,
        v4: bool,
        within: Option<&Part>,
    ) -> impl Iterator<Item = IpAddr> + Clone {
        let addrs = self.usable_in(within).map(|(_, endpoint)| endpoint.addr);
        without_repeats(addrs.filter(move |addr| addr.is_ipv4() == v4))
    }

    /// The numbers of one port of a Service with a ClusterIP, or of all: each once, though it may serve several protocols.
    pub(super) fn cluster_ports(&self, port: Option<&Port<'_>>) -> SmallVec<[u16; 4]> {
        let wanted = self.ports.iter().filter(|held| is_meant(port, &held.name, held.protocol));
        let mut numbers: SmallVec<[u16; 4]> = wanted.map(|held| held.port).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The targets of one port, or of all, at all endpoints or at a part: by the address of the first that has the name.
    pub(super) fn targets(&self, port: Option<&Port<'_>>, within: Option<&Part>) -> Targets {
        let (mut targets, mut told) = (Targets::default(), HashSet::new());
        // Endpoints of one slice have the same ports.
        let mut alike: Option<(&Arc<[EndpointPort]>, std::ops::Range<usize>)> = None;
        for (at, endpoint) in self.usable_in(within) {
            if !self.is_alone(at) {
                // Who shares a name is told of with the first who has it: thousands may share one.
                if !told.contains(&at) {
                    let namesakes = self.namesakes(at, within);
                    targets.add(at, namesakes.iter().map(|&at| &self.rest.endpoints.endpoints[at]), port);
                    told.extend(namesakes);
                }
                continue;
            }
            let from = targets.list.len();
            match &alike {
                Some((ports, range)) if Arc::ptr_eq(ports, &endpoint.ports) => {
                    targets.list.extend_from_within(range.clone());
                    targets.places += range.len();
                    targets.list[from..].iter_mut().for_each(|target| target.at = at);
                }
                _ => targets.add(at, iter::once(endpoint), port),
            }
            alike = Some((&endpoint.ports, from..targets.list.len()));
        }
        targets
    }

    /// The name of a target below its Service, and the addresses that it has there.
    pub(super) fn told(
        &self,
        target: Target,
        (port, within): (Option<&Port<'_>>, Option<&Part>),
    ) -> Option<(Cow<'_, str>, SmallVec<[IpAddr; 2]>)> {
        let endpoint = self.rest.endpoints.endpoints.get(target.at)?;
        if self.is_alone(target.at) {
            return Some((label(endpoint), SmallVec::from_slice(&[endpoint.addr])));
        }
        let namesakes = self.namesakes(target.at, within).into_iter();
        let endpoints = namesakes.map(|at| &self.rest.endpoints.endpoints[at]);
        let there = endpoints.filter(|other| numbers(other, port).any(|number| number == target.port));
        let mut addrs: SmallVec<[IpAddr; 2]> = there.map(|other| other.addr).collect();
        addrs.dedup();
        Some((label(endpoint), addrs))
    }

    /// Whether no other endpoint has the name of the one at `at`.
    fn is_alone(&self, at: usize) -> bool {
        let endpoints = &self.rest.endpoints.endpoints;
        if endpoints[at].hostname.is_some() {
            return self.rest.hostnames.as_deref().is_none_or(|names| !names.are_shared());
        }
        let is_there = |other: Option<&Endpoint>| other.is_some_and(|other| other.addr == endpoints[at].addr);
        !is_there(endpoints.get(at + 1))
            && !is_there(at.checked_sub(1).and_then(|before| endpoints.get(before)))
    }

    /// The places of all endpoints within a part that have the name of the one at `at`, in order.
    fn namesakes(&self, at: usize, within: Option<&Part>) -> Places {
        let endpoints = &self.rest.endpoints.endpoints;
        let mut places = match (&endpoints[at].hostname, self.rest.hostnames.as_deref()) {
            (Some(name), Some(names)) => names.find(name, endpoints),
            _ => self.without_hostname(endpoints[at].addr),
        };
        places.retain(|at| within.is_none_or(|part| is_in(&endpoints[*at], part)));
        places
    }

    /// The usable endpoints, or those of them that are in a part, with their places.
    fn usable_in(&self, within: Option<&Part>) -> impl Iterator<Item = (usize, &Endpoint)> + Clone {
        let all = self.rest.endpoints.endpoints.iter().enumerate();
        let usable = all.filter(|(_, endpoint)| self.is_usable(endpoint));
        usable.filter(move |(_, endpoint)| within.is_none_or(|part| is_in(endpoint, part)))
    }

    /// The part that is meant: none where it is only preferred and nothing is in it.
    pub(super) fn meant<'p>(&self, part: &'p Part) -> Option<&'p Part> {
        Some(part).filter(|part| !part.prefer || self.usable_in(Some(part)).next().is_some())
    }

    fn is_usable(&self, endpoint: &Endpoint) -> bool {
        endpoint.ready || self.rest.publish_not_ready
    }
}

/// The endpoints at `addr`, where the first ones are, and the others.
fn split(endpoints: &[Endpoint], addr: IpAddr) -> (&[Endpoint], &[Endpoint]) {
    let count = endpoints.iter().take_while(|endpoint| endpoint.addr == addr).count();
    endpoints.split_at(count)
}

fn has_same_hostname(one: &Endpoint, other: &Endpoint) -> bool {
    match (&one.hostname, &other.hostname) {
        // One that has not changed is shared by both.
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        (None, None) => true,
        _ => false,
    }
}

fn is_in(endpoint: &Endpoint, part: &Part) -> bool {
    endpoint.zone.as_deref().is_some_and(|zone| zone.eq_ignore_ascii_case(&part.zone))
}

/// The numbers of those ports of an endpoint that are meant.
fn numbers(endpoint: &Endpoint, port: Option<&Port<'_>>) -> impl Iterator<Item = u16> {
    let meant = endpoint.ports.iter().filter(move |held| is_meant(port, held.name.as_bytes(), held.protocol));
    meant.map(|held| held.port)
}

/// Whether a question is about a port: about this one, or about all.
fn is_meant(asked: Option<&Port<'_>>, name: &[u8], protocol: Protocol) -> bool {
    asked.is_none_or(|asked| asked.protocol == protocol && asked.name == name)
}

/// The name of an endpoint below its Service.
fn label(endpoint: &Endpoint) -> Cow<'_, str> {
    match &endpoint.hostname {
        None => dashed(endpoint.addr).into(),
        Some(hostname) if is_lower(hostname) => Cow::Borrowed(hostname),
        Some(hostname) => hostname.to_ascii_lowercase().into(),
    }
}

/// `10.0.0.1` as `10-0-0-1`, `fd00::1` as `fd00--1`, and `fd00::` as `fd00--0`, since a label must not end in a dash.
pub(super) fn dashed(addr: IpAddr) -> String {
    let text = addr.to_string().replace(['.', ':'], "-");
    match (text.starts_with('-'), text.ends_with('-')) {
        (false, false) => text,
        (true, false) => format!("0{text}"),
        (false, true) => format!("{text}0"),
        (true, true) => format!("0{text}0"),
    }
}

/// The address that a label spells with dashes.
pub(super) fn parse_dashed(label: &str) -> Option<IpAddr> {
    if label.contains(['.', ':']) {
        return None;
    }
    if let Ok(addr) = label.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(addr.into());
    }
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// A target's name. An address is none: Kubernetes does not have ExternalName lead to one.
fn absolute(name: &str) -> Option<Name> {
    if name.trim_end_matches('.').parse::<IpAddr>().is_ok() {
        return None;
    }
    let mut name = Name::from_ascii(name).ok().filter(|name| name.num_labels() > 0)?;
    name.set_fqdn(true);
    Some(name)
}

fn lower(text: &Arc<str>) -> Arc<str> {
    if is_lower(text) { Arc::clone(text) } else { text.to_ascii_lowercase().into() }
}

fn is_lower(text: &str) -> bool {
    !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Drops an address that equals the one before it.
fn without_repeats<I: Iterator<Item = IpAddr> + Clone>(addrs: I) -> impl Iterator<Item = IpAddr> + Clone {
    let mut last = None;
    addrs.filter(move |addr| last.replace(*addr) != Some(*addr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dashed_names_are_labels() {
        let dashed = |addr: &str| dashed(addr.parse().unwrap());
        assert_eq!(dashed("10.0.0.1"), "10-0-0-1");
        assert_eq!(dashed("fd00::1"), "fd00--1");
        assert_eq!(dashed("fd00::"), "fd00--0");
        assert_eq!(dashed("::1"), "0--1");
        assert_eq!(parse_dashed("10-0-0"), None);
        assert_eq!(parse_dashed("web"), None);
        assert_eq!(parse_dashed(""), None);
    }

    proptest! {
        #[test]
        fn dashed_names_come_back(addr: IpAddr) {
            // Mapped and compatible addresses print with dots, which no pod has.
            prop_assume!(!addr.to_string().contains('.') || addr.is_ipv4());
            prop_assert_eq!(parse_dashed(&dashed(addr)), Some(addr));
        }
    }
}
