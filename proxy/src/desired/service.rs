//! The frontends of one Service on one node: which addresses, asked by whom, lead to which choice of endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use seaway_model::{Endpoint, Family, IngressMode, Service, ServicePort, TrafficPolicy};

use super::choice::{Choice, choose};
use super::{Entry, NodeView};
use crate::frontend::{Frontend, FrontendKey, FrontendKind, Group, Owner, Scope};

/// All frontends of `service`. Where one Service names an address twice, the first use counts: ClusterIP before
/// LoadBalancer before externalIPs before NodePort.
pub(super) fn frontends(
    service: &Service,
    endpoints: &[Endpoint],
    view: &NodeView,
) -> BTreeMap<FrontendKey, Arc<Entry>> {
    let mut entries = BTreeMap::new();
    for port in &service.ports {
        for family in Family::ALL {
            let addresses = addresses(service, port, family, view);
            if addresses.is_empty() {
                continue;
            }
            let shapes = Shapes::new(service, port, family, endpoints, view);
            for (addr, number, kind) in addresses {
                for (scope, frontend) in shapes.of(kind, addr) {
                    let key = FrontendKey { addr, port: number, protocol: port.protocol, scope };
                    let owner = Owner { service: service.key.clone(), port_name: Arc::clone(&port.name) };
                    entries
                        .entry(key)
                        .or_insert_with(|| Arc::new(Entry { frontend: Arc::clone(frontend), owner }));
                }
            }
        }
    }
    entries
}

/// Where `port` of `service` is offered in `family`.
fn addresses(
    service: &Service,
    port: &ServicePort,
    family: Family,
    view: &NodeView,
) -> Vec<(IpAddr, u16, FrontendKind)> {
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
    all.retain(|(addr, _, _)| Family::of(*addr) == family);
    all
}

/// The few different frontends that a Service port has; its addresses share them. In each pair the first is asked
/// from this node, the second from outside.
struct Shapes {
    cluster_ip: Arc<Frontend>,
    load_balancer: [Arc<Frontend>; 2],
    external_ip: [Arc<Frontend>; 2],
    node_port: [Arc<Frontend>; 2],
}

impl Shapes {
    fn new(
        service: &Service,
        port: &ServicePort,
        family: Family,
        endpoints: &[Endpoint],
        view: &NodeView,
    ) -> Self {
        let choice = choose(service, port, family, endpoints, view);
        let blank = Frontend {
            group: Group::of(&service.key, &port.name, port.protocol, family),
            kind: FrontendKind::ClusterIP,
            backends: Arc::from([]),
            affinity: service.session_affinity,
            source_ranges: Arc::from([]),
            preserve_source: false,
            elsewhere: false,
            maglev: view.chooses_by_maglev(service),
        };
        // At external addresses, clients on this node are never restricted to its own endpoints.
        let inside = by_policy(&blank, &choice, TrafficPolicy::Cluster);
        let outside = Frontend {
            preserve_source: service.external_policy == TrafficPolicy::Local,
            ..by_policy(&blank, &choice, service.external_policy)
        };
        let of = |kind, source_ranges| {
            let inside = Frontend { kind, ..inside.clone() };
            [Arc::new(inside), Arc::new(Frontend { kind, source_ranges, ..outside.clone() })]
        };
        Self {
            cluster_ip: Arc::new(by_policy(&blank, &choice, service.internal_policy)),
            load_balancer: of(FrontendKind::LoadBalancer, source_ranges(service, family)),
            external_ip: of(FrontendKind::ExternalIP, Arc::from([])),
            node_port: of(FrontendKind::NodePort, Arc::from([])),
        }
    }

    fn of(&self, kind: FrontendKind, addr: IpAddr) -> Vec<(Scope, &Arc<Frontend>)> {
        let (inside, outside) = match kind {
            FrontendKind::ClusterIP => (&self.cluster_ip, &self.cluster_ip),
            FrontendKind::LoadBalancer => (&self.load_balancer[0], &self.load_balancer[1]),
            FrontendKind::ExternalIP => (&self.external_ip[0], &self.external_ip[1]),
            FrontendKind::NodePort => (&self.node_port[0], &self.node_port[1]),
        };
        if addr.is_loopback() {
            return vec![(Scope::Internal, inside)];
        }
        vec![(Scope::Internal, inside), (Scope::External, outside)]
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
