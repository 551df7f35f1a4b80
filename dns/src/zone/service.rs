//! What DNS tells about one Service.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use seaway_model::{Endpoint, EndpointSet, Protocol, Service, ServiceKey, ServiceKind, ServicePort};
use smallvec::SmallVec;

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
    /// Places in `endpoints` of those that have a host name, by that name.
    hosts: BTreeMap<Arc<str>, Vec<usize>>,
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

/// A port of an endpoint, for SRV records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// The endpoint's name below the Service.
    pub(super) label: Cow<'a, str>,
    pub(super) port: u16,
    pub(super) addr: IpAddr,
}

impl ServiceRecords {
    pub(super) fn new(service: &Service, endpoints: Arc<EndpointSet>, ignore_empty: bool) -> Self {
        let usable = |endpoint: &Endpoint| endpoint.ready || service.publish_not_ready;
        let mut hosts: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (at, endpoint) in endpoints.endpoints.iter().enumerate() {
            if let Some(hostname) = endpoint.hostname.as_ref().filter(|_| usable(endpoint)) {
                hosts.entry(lower(hostname)).or_default().push(at);
            }
        }
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
            rest: Arc::new(Rest { key, endpoints, publish_not_ready, hosts, external }),
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

    /// The addresses that the Service's own name stands for.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        // Who asks for a ClusterIP does not touch the endpoints.
        let endpoints = self.is_headless().then(|| self.usable()).into_iter().flatten();
        self.cluster_ips().chain(without_repeats(endpoints.map(|endpoint| endpoint.addr)))
    }

    pub(super) fn is_headless(&self) -> bool {
        matches!(self.kind, Kind::Headless { .. })
    }

    /// Addresses to find the Service by, with the host names of endpoints: in order, each once.
    pub(super) fn reverse(&self) -> Vec<(IpAddr, Option<Arc<str>>)> {
        if !self.exists() {
            return Vec::new();
        }
        let endpoints = self.usable().map(|e| (e.addr, e.hostname.as_ref().map(lower)));
        let mut all: Vec<_> = self.cluster_ips().map(|addr| (addr, None)).chain(endpoints).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The addresses of the endpoints that `label` names.
    pub(super) fn endpoint(&self, label: &str) -> Vec<IpAddr> {
        without_repeats(self.named(label).iter().map(|endpoint| endpoint.addr)).collect()
    }

    /// Where the endpoints are that `label` names: by port, then address.
    pub(super) fn places_of(&self, label: &str) -> Vec<Place<'_>> {
        placed(self.named(label).into_iter(), None)
    }

    /// The endpoints that `label` names: by host name, else by dashed address.
    fn named(&self, label: &str) -> SmallVec<[&Endpoint; 2]> {
        let endpoints = &self.rest.endpoints.endpoints;
        if let Some(places) = self.rest.hosts.get(label) {
            return places.iter().filter_map(|&at| endpoints.get(at)).collect();
        }
        let Some(addr) = parse_dashed(label) else { return SmallVec::new() };
        // Endpoints are ordered by address.
        let from = endpoints.partition_point(|endpoint| endpoint.addr < addr);
        let there = endpoints[from..].iter().take_while(|endpoint| endpoint.addr == addr);
        there.filter(|endpoint| self.is_usable(endpoint) && endpoint.hostname.is_none()).collect()
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

    /// The addresses of the endpoints in a topology zone.
    pub(super) fn addresses_in(&self, part: &Part) -> impl Iterator<Item = IpAddr> {
        without_repeats(self.usable_in(Some(part)).map(|endpoint| endpoint.addr))
    }

    /// The numbers of one port of a Service with a ClusterIP, or of all: each once, though it may serve several protocols.
    pub(super) fn cluster_ports(&self, port: Option<&Port<'_>>) -> SmallVec<[u16; 4]> {
        let wanted = self.ports.iter().filter(|held| is_meant(port, &held.name, held.protocol));
        let mut numbers: SmallVec<[u16; 4]> = wanted.map(|held| held.port).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Where one port is, or all are, at all endpoints or at a part: by label, then port, then address.
    pub(super) fn places(&self, port: Option<&Port<'_>>, within: Option<&Part>) -> Vec<Place<'_>> {
        placed(self.usable_in(within), port)
    }

    fn usable(&self) -> impl Iterator<Item = &Endpoint> {
        self.rest.endpoints.endpoints.iter().filter(|endpoint| self.is_usable(endpoint))
    }

    fn usable_in(&self, part: Option<&Part>) -> impl Iterator<Item = &Endpoint> {
        let is_in = |endpoint: &Endpoint, part: &Part| {
            endpoint.zone.as_deref().is_some_and(|zone| zone.eq_ignore_ascii_case(&part.zone))
        };
        // Without a part, or with one that is empty and only preferred, all of them.
        let part = part.filter(|part| !part.prefer || self.usable().any(|endpoint| is_in(endpoint, part)));
        self.usable().filter(move |endpoint| part.is_none_or(|part| is_in(endpoint, part)))
    }

    fn is_usable(&self, endpoint: &Endpoint) -> bool {
        endpoint.ready || self.rest.publish_not_ready
    }
}

/// Where one port is, or all are, at endpoints that are ordered by address: by label, then port, then address.
fn placed<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, port: Option<&Port<'_>>) -> Vec<Place<'a>> {
    let mut places = Vec::new();
    for endpoint in endpoints {
        for offer in &*endpoint.ports {
            if is_meant(port, offer.name.as_bytes(), offer.protocol) {
                places.push(Place { label: label(endpoint), port: offer.port, addr: endpoint.addr });
            }
        }
    }
    // A stable sort leaves those of one label and port in the order of addresses.
    places.sort_by(|a, b| (&a.label, a.port).cmp(&(&b.label, b.port)));
    places.dedup();
    places
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
fn without_repeats(addrs: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpAddr> {
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
