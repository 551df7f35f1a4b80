//! The frontends of one Service on one node: which addresses, asked by whom, lead to which choice of endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use seaway_model::{Endpoint, Family, IngressMode, Service, ServicePort, TrafficPolicy};

use super::choice::{Choice, choose};
use super::{Entry, NodeView};
use crate::frontend::{Frontend, FrontendKey, FrontendKind, Owner, Scope};

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
                    let owner =
                        Owner { service: service.key.clone(), port_name: Arc::clone(&port.name), kind };
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

/// The few different frontends that a Service port has; its addresses share them.
struct Shapes {
    cluster_ip: Arc<Frontend>,
    /// At external addresses, asked from this node: never restricted to local endpoints.
    from_inside: Arc<Frontend>,
    from_outside: Arc<Frontend>,
    /// As `from_outside`, with the source ranges of a LoadBalancer.
    load_balancer: Arc<Frontend>,
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
        let affinity = service.session_affinity;
        let internal = by_policy(&choice, service.internal_policy);
        let cluster = by_policy(&choice, TrafficPolicy::Cluster);
        let external = by_policy(&choice, service.external_policy);
        let preserve_source = service.external_policy == TrafficPolicy::Local;
        let from_outside = Frontend { affinity, preserve_source, ..external };
        let ranges = source_ranges(service, family);
        Self {
            cluster_ip: Arc::new(Frontend { affinity, ..internal }),
            from_inside: Arc::new(Frontend { affinity, ..cluster }),
            load_balancer: Arc::new(Frontend { source_ranges: ranges, ..from_outside.clone() }),
            from_outside: Arc::new(from_outside),
        }
    }

    fn of(&self, kind: FrontendKind, addr: IpAddr) -> Vec<(Scope, &Arc<Frontend>)> {
        let (inside, outside) = match kind {
            FrontendKind::ClusterIP => (&self.cluster_ip, &self.cluster_ip),
            FrontendKind::LoadBalancer => (&self.from_inside, &self.load_balancer),
            FrontendKind::ExternalIP | FrontendKind::NodePort => (&self.from_inside, &self.from_outside),
        };
        if addr.is_loopback() {
            return vec![(Scope::Internal, inside)];
        }
        vec![(Scope::Internal, inside), (Scope::External, outside)]
    }
}

fn by_policy(choice: &Choice, policy: TrafficPolicy) -> Frontend {
    let backends = match policy {
        TrafficPolicy::Cluster => &choice.cluster,
        TrafficPolicy::Local => &choice.local,
    };
    Frontend {
        backends: Arc::clone(backends),
        affinity: None,
        source_ranges: Arc::from([]),
        preserve_source: false,
        elsewhere: backends.is_empty() && choice.any,
    }
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
