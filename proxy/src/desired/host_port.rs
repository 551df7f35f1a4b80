//! The frontends of a pod's host ports: what a `portmap` plugin would do with rules of its own.
//!
//! In the kernel they are NodePorts with one backend. Their owner is called `pod/NAME`, which no Service can be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use seaway_model::{Family, HostPod, HostPort, ServiceKey, TargetPod};

use super::{Claims, Entry, NodeView};
use crate::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Group, Owner, Scope};

const PREFIX: &str = "pod/";

/// Who the frontends of a pod belong to.
pub(super) fn owner_of(pod: &TargetPod) -> ServiceKey {
    ServiceKey { namespace: Arc::clone(&pod.namespace), name: format!("{PREFIX}{}", pod.name).into() }
}

/// The pod that an owner stands for; `None`: it is a Service.
pub(crate) fn pod_of(owner: &ServiceKey) -> Option<TargetPod> {
    let name = owner.name.strip_prefix(PREFIX)?;
    Some(TargetPod { namespace: Arc::clone(&owner.namespace), name: name.into() })
}

/// All frontends of `pod`.
pub(super) fn frontends(pod: &HostPod, view: &NodeView) -> Claims {
    let owner = owner_of(&pod.pod);
    let mut entries = Vec::new();
    for port in &pod.ports {
        for addr in addresses(port, view) {
            let family = Family::of(addr);
            let Some(pod_addr) = pod.addrs.iter().copied().find(|a| Family::of(*a) == family) else {
                continue;
            };
            let backend = Backend { addr: pod_addr, port: port.container_port, local: true };
            for scope in [Scope::Internal, Scope::External] {
                if scope == Scope::External && addr.is_loopback() {
                    continue;
                }
                let port_name: Arc<str> = port.host_port.to_string().into();
                let frontend = Frontend {
                    group: Group::of(&owner, &port_name, port.protocol, family),
                    kind: FrontendKind::NodePort,
                    backends: [backend].into(),
                    affinity: None,
                    source_ranges: Arc::default(),
                    preserve_source: scope == Scope::External,
                    elsewhere: false,
                    maglev: false,
                    dsr: false,
                    masquerade: false,
                };
                let key = FrontendKey { addr, port: port.host_port, protocol: port.protocol, scope };
                let owner = Owner { service: owner.clone(), port_name };
                entries.push((key, Arc::new(Entry { frontend: Arc::new(frontend), owner })));
            }
        }
    }
    Claims::of(entries)
}

/// Where a host port is offered.
fn addresses(port: &HostPort, view: &NodeView) -> Vec<IpAddr> {
    if let Some(only) = port.host_ip {
        return vec![only];
    }
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let loopback = loopback.into_iter().filter(|_| view.node_port_loopback);
    view.node_port_addresses.iter().copied().chain(loopback).collect()
}
