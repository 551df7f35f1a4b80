//! The frontends of one Service on one node: which addresses, asked by whom, lead to which choice of endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use seaway_model::{Endpoint, Family, IngressMode, Service, ServicePort, TrafficPolicy};

use super::choice::{Choice, choose};
use super::{Claims, Entry, NodeView};
use crate::frontend::{Frontend, FrontendKey, FrontendKind, Group, Owner, Scope};

/// All frontends of `service`. Where one Service names an address twice, the first use counts: ClusterIP before
/// LoadBalancer before externalIPs before NodePort.
pub(super) fn frontends(service: &Service, endpoints: &[Endpoint], view: &NodeView) -> Claims {
    let mut entries = Vec::new();
    for port in &service.ports {
        let offered = addresses(service, port, view);
        for family in Family::ALL {
            let addresses = || offered.iter().filter(|(addr, _, _)| Family::of(*addr) == family);
            if addresses().next().is_none() {
                continue;
            }
            let choice = choose(service, port, family, endpoints, view);
            let (maglev, dsr) = (view.chooses_by_maglev(service), view.returns_directly(service));
            let node_port_dsr = dsr && view.hears_of_node_ports(family);
            let masquerade = view.masquerade_all;
            let offer = Offer { service, port, family, choice, maglev, dsr, node_port_dsr, masquerade };
            let mut shape = None;
            for &(addr, number, kind) in addresses() {
                // Addresses of a kind stand together, and share what the kernel is told.
                let shape = match &shape {
                    Some((of, held)) if *of == kind => held,
                    _ => &shape.insert((kind, Shape::new(&offer, kind))).1,
                };
                for (scope, entry) in shape.at(addr) {
                    let key = FrontendKey { addr, port: number, protocol: port.protocol, scope };
                    entries.push((key, Arc::clone(entry)));
                }
            }
        }
    }
    Claims::of(entries)
}

/// Where `port` of `service` is offered.
fn addresses(service: &Service, port: &ServicePort, view: &NodeView) -> Vec<(IpAddr, u16, FrontendKind)> {
    let at = |kind| move |addr: IpAddr| (addr, port.port, kind);
    let vips = service.load_balancer.iter().filter(|ingress| ingress.mode == IngressMode::Vip);
    let mut all: Vec<(IpAddr, u16, FrontendKind)> = Vec::new();
    all.extend(service.cluster_ips.iter().copied().map(at(FrontendKind::ClusterIP)));
    all.extend(vips.map(|ingress| ingress.addr).map(at(FrontendKind::LoadBalancer)));
    all.extend(service.external_ips.iter().copied().map(at(FrontendKind::ExternalIP)));
    if let Some(node_port) = port.node_port {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let loopback = loopback.into_iter().filter(|_| view.node_port_loopback);
        let own = view.node_port_addresses.iter().copied();
        all.extend(own.chain(loopback).map(|addr| (addr, node_port, FrontendKind::NodePort)));
    }
    all
}

/// A Service port in one family, with the endpoints that serve it.
struct Offer<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    choice: Choice,
    maglev: bool,
    /// Of packets from outside.
    dsr: bool,
    /// Of those to a NodePort.
    node_port_dsr: bool,
    /// Of packets to ClusterIPs.
    masquerade: bool,
}

/// What a Service port is at addresses of one kind in one family: asked from this node, and from outside.
struct Shape {
    inside: Arc<Entry>,
    outside: Arc<Entry>,
}

impl Shape {
    fn new(offer: &Offer<'_>, kind: FrontendKind) -> Self {
        let Offer { service, port, family, choice, maglev, dsr, node_port_dsr, masquerade } = offer;
        let blank = Frontend {
            group: Group::of(&service.key, &port.name, port.protocol, *family),
            kind,
            backends: Arc::default(),
            affinity: service.session_affinity,
            source_ranges: Arc::default(),
            preserve_source: false,
            elsewhere: false,
            maglev: *maglev,
            dsr: false,
            masquerade: *masquerade && kind == FrontendKind::ClusterIP,
        };
        let entry = |frontend| {
            let owner = Owner { service: service.key.clone(), port_name: Arc::clone(&port.name) };
            Arc::new(Entry { frontend: Arc::new(frontend), owner })
        };
        if kind == FrontendKind::ClusterIP {
            let inside = entry(by_policy(&blank, choice, service.internal_policy));
            return Self { outside: Arc::clone(&inside), inside };
        }
        // At external addresses, clients on this node are never restricted to its own endpoints.
        let inside = by_policy(&blank, choice, TrafficPolicy::Cluster);
        let outside = Frontend {
            preserve_source: service.external_policy == TrafficPolicy::Local,
            dsr: if kind == FrontendKind::NodePort { *node_port_dsr } else { *dsr },
            source_ranges: match kind {
                FrontendKind::LoadBalancer => source_ranges(service, *family),
                _ => Arc::default(),
            },
            ..by_policy(&blank, choice, service.external_policy)
        };
        if inside == outside {
            let inside = entry(inside);
            return Self { outside: Arc::clone(&inside), inside };
        }
        Self { inside: entry(inside), outside: entry(outside) }
    }

    fn at(&self, addr: IpAddr) -> impl Iterator<Item = (Scope, &Arc<Entry>)> {
        // Nothing comes from outside to a loopback address.
        let outside = (!addr.is_loopback()).then_some((Scope::External, &self.outside));
        [(Scope::Internal, &self.inside)].into_iter().chain(outside)
    }
}

fn by_policy(blank: &Frontend, choice: &Choice, policy: TrafficPolicy) -> Frontend {
    let backends = match policy {
        TrafficPolicy::Cluster => &choice.cluster,
        TrafficPolicy::Local => &choice.local,
    };
    Frontend { backends: Arc::clone(backends), elsewhere: backends.is_empty() && choice.any, ..blank.clone() }
}

/// The ranges of the family. As in kube-proxy, ranges of one family say nothing about the other, and a range that
/// holds every address lets everyone in.
fn source_ranges(service: &Service, family: Family) -> Arc<[IpNet]> {
    let of_family = service.source_ranges.iter().filter(|range| Family::of(range.addr()) == family);
    let mut ranges: Vec<IpNet> = of_family.map(IpNet::trunc).collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        ranges.clear();
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges.into()
}
