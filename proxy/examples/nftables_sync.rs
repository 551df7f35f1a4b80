//! How long the nftables data plane takes for a whole cluster and for one change, in a network namespace of its own:
//! `cargo run --release -p seaway-proxy --example nftables_sync -- 30000 4`. Needs root.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends here")]

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Protocol, Service, ServiceKey, ServicePort, Snapshot,
};
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::nftables::Nftables;
use seaway_proxy::desired::{Computation, NodeView};
use seaway_proxy::plan::{Host, diff, diff_of};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>().unwrap());
    let services = arguments.next().unwrap_or(30_000);
    let endpoints = arguments.next().unwrap_or(4);
    let name = format!("swbench{}", std::process::id());
    assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
    let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    measure(services, endpoints);
    assert!(Command::new("ip").args(["netns", "del", &name]).status().unwrap().success());
}

fn measure(services: u32, endpoints: u32) {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    for index in 0..services {
        let (service, set) = make(index, endpoints, 0);
        snapshot.endpoints.insert(service.key.clone(), Arc::new(set));
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    let view = NodeView { name: "node".into(), ..NodeView::default() };
    let mut computation = Computation::default();
    let mut dataplane = Nftables::open().unwrap();
    let started = Instant::now();
    computation.update(&snapshot, &view);
    let mut actual = dataplane.read().unwrap();
    let plan = diff(computation.desired(), &Host::default(), &actual);
    let decided = started.elapsed();
    assert!(dataplane.apply(&plan).unwrap().failed.is_empty());
    println!(
        "cold sync of {services} x {endpoints}: {:?} (deciding {decided:?}), {} frontends",
        started.elapsed(),
        plan.len()
    );
    actual = actual.after(&plan);

    for (what, by) in [("another address", 0), ("one endpoint more", 1)] {
        let mut times: Vec<Duration> = Vec::new();
        for round in 1..=100 {
            let (service, set) = make(round * services / 101, endpoints + by, round);
            snapshot.endpoints.insert(service.key, Arc::new(set));
            let started = Instant::now();
            let changed = computation.update(&snapshot, &view);
            let plan = diff_of(&changed, computation.desired(), &Host::default(), &actual);
            assert!(dataplane.apply(&plan).unwrap().failed.is_empty());
            times.push(started.elapsed());
            actual = actual.after(&plan);
        }
        times.sort();
        println!("one change ({what}): median {:?}, p99 {:?}", times[50], times[98]);
    }

    let started = Instant::now();
    assert_eq!(dataplane.read().unwrap(), actual);
    println!("looking again, nothing changed: {:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(Nftables::open().unwrap().read().unwrap(), actual);
    println!("adopting as a new process: {:?}", started.elapsed());
}

fn make(index: u32, endpoints: u32, round: u32) -> (Service, EndpointSet) {
    let mut service = Service::new(ServiceKey::new("default", &format!("web-{index}")));
    service.cluster_ips = vec![Ipv4Addr::from(0x0a60_0000 + index).into()];
    service.ports = vec![ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        app_protocol: None,
    }];
    let ports: Arc<[EndpointPort]> =
        [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into();
    let endpoint = |number: u32| {
        // In later rounds the first one has moved.
        let moved = if number == 0 { round << 20 } else { 0 };
        let addr = Ipv4Addr::from(0x0b00_0000 + index * 8 + number + moved);
        Endpoint { node: Some("other".into()), ..Endpoint::new(addr.into(), Arc::clone(&ports)) }
    };
    let endpoints = (0..endpoints).map(endpoint).collect();
    (service, EndpointSet { endpoints })
}
