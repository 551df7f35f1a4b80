//! Whose sockets are ended, as a table.

use std::sync::Arc;

use seaway_model::{EndpointPort, EndpointSet, Service, ServiceKey, ServicePort};

use super::*;
use crate::desired::{NodeView, desired};

const VIP: &str = "10.96.0.1";
const OTHER_VIP: &str = "10.96.0.2";

/// An endpoint with its conditions ready and serving.
type Row = (&'static str, bool, bool);

/// A Service's name and ClusterIP with its endpoints.
type ServiceRow<'a> = (&'a str, &'a str, &'a [Row]);

fn add(snapshot: &mut Snapshot, name: &str, vip: &str, endpoints: &[Row]) {
    let mut service = Service::new(ServiceKey::new("default", name));
    service.cluster_ips = vec![vip.parse().unwrap()];
    let protocols = [Protocol::Tcp, Protocol::Udp];
    service.ports = protocols
        .map(|protocol| ServicePort {
            name: protocol.as_str().into(),
            protocol,
            port: 80,
            node_port: None,
            app_protocol: None,
        })
        .into();
    let ports: Arc<[EndpointPort]> = protocols
        .map(|protocol| EndpointPort { name: protocol.as_str().into(), protocol, port: 8080 })
        .into();
    let endpoint = |(addr, ready, serving): &Row| Endpoint {
        ready: *ready,
        serving: *serving,
        terminating: !ready,
        ..Endpoint::new(addr.parse().unwrap(), Arc::clone(&ports))
    };
    let endpoints = endpoints.iter().map(endpoint).collect();
    snapshot.endpoints.insert(service.key.clone(), Arc::new(EndpointSet { endpoints }));
    snapshot.services.insert(service.key.clone(), Arc::new(service));
}

/// The protocols whose socket, connected through `vip` to 10.244.0.9, is ended.
fn ended(services: &[ServiceRow], vip: &str) -> Vec<&'static str> {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    for (name, vip, endpoints) in services {
        add(&mut snapshot, name, vip, endpoints);
    }
    let desired = desired(&snapshot, &NodeView::default());
    let sockets = [Protocol::Tcp, Protocol::Udp].map(|protocol| Translation {
        cookie: u64::from(protocol.number()),
        protocol,
        frontend: (vip.parse().unwrap(), 80),
        backend: ("10.244.0.9".parse().unwrap(), 8080),
    });
    orphans(&desired, &snapshot, sockets.into()).into_iter().map(|s| s.protocol.as_str()).collect()
}

#[test]
fn who_is_ended() {
    let other: Row = ("10.244.0.1", true, true);
    let cases: [(&str, &[ServiceRow], &[&str]); 9] = [
        ("it serves", &[("web", VIP, &[other, ("10.244.0.9", true, true)])], &[]),
        ("it drains", &[("web", VIP, &[other, ("10.244.0.9", false, true)])], &[]),
        ("it drains alone", &[("web", VIP, &[("10.244.0.9", false, true)])], &[]),
        ("it is there and does not serve", &[("web", VIP, &[other, ("10.244.0.9", false, false)])], &["UDP"]),
        ("it is gone", &[("web", VIP, &[other])], &["TCP", "UDP"]),
        ("the last one is gone", &[("web", VIP, &[])], &["TCP", "UDP"]),
        (
            "another Service lists it",
            &[("web", VIP, &[other]), ("b", OTHER_VIP, &[("10.244.0.9", true, true)])],
            &[],
        ),
        (
            "another Service lists it, and it does not serve",
            &[("web", VIP, &[other]), ("b", OTHER_VIP, &[("10.244.0.9", false, false)])],
            &["UDP"],
        ),
        ("its Service was deleted", &[("b", OTHER_VIP, &[other])], &[]),
    ];
    for (what, services, expected) in cases {
        assert_eq!(ended(services, VIP), expected, "{what}");
    }
}
