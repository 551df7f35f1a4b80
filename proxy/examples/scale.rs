//! What many Services cost the proxy: memory, the first sync, and one change after the other, in this kernel's eBPF maps.
//! Needs root.
//!
//! `cargo run --release -p seaway-proxy --example scale -- [SERVICES] [ENDPOINTS]`
#![allow(clippy::unwrap_used, reason = "an example")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Node, NodeAddress, Protocol, Service, ServiceKey, ServicePort,
    Snapshot,
};
use seaway_proxy::dataplane::ebpf::Ebpf;
use seaway_proxy::reconcile::Reconciler;
use seaway_proxy::{Metrics, ProxyConfig};

const NODE: &str = "node";
const CHANGES: usize = 1000;

/// Strings as the watch room shares them.
struct Names {
    namespace: Arc<str>,
    port: Arc<str>,
    nodes: Vec<Arc<str>>,
}

fn endpoints(names: &Names, service: usize, count: usize, generation: usize) -> EndpointSet {
    let ports: Arc<[EndpointPort]> =
        [EndpointPort { name: Arc::clone(&names.port), protocol: Protocol::Tcp, port: 8080 }].into();
    let endpoint = |index: usize| {
        let moved = if index == 0 { generation } else { 0 };
        let number = u32::try_from(service * count + index + moved).unwrap();
        Endpoint {
            node: Some(Arc::clone(&names.nodes[index % names.nodes.len()])),
            ..Endpoint::new(IpAddr::from((0x0a80_0000 + number).to_be_bytes()), Arc::clone(&ports))
        }
    };
    EndpointSet { endpoints: (0..count).map(endpoint).collect() }
}

fn key(names: &Names, index: usize) -> ServiceKey {
    ServiceKey { namespace: Arc::clone(&names.namespace), name: format!("service-{index}").into() }
}

fn cluster(names: &Names, services: usize, count: usize) -> Snapshot {
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    let addr = NodeAddress::internal(IpAddr::from([172, 30, 0, 11]));
    let node = Node { addresses: vec![addr], ..Node::named(NODE) };
    snapshot.nodes.insert(NODE.into(), Arc::new(node));
    for index in 0..services {
        let mut service = Service::new(key(names, index));
        service.cluster_ips = vec![IpAddr::from((0x0a60_0001 + u32::try_from(index).unwrap()).to_be_bytes())];
        service.ports = vec![ServicePort {
            name: Arc::clone(&names.port),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: None,
        }];
        let set = endpoints(names, index, count, 0);
        snapshot.endpoints.insert(service.key.clone(), Arc::new(set));
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    snapshot
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// A bpffs directory and a cgroup, gone at the end.
struct Place(PathBuf, PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        seaway_ebpf_loader::remove_all(&self.0).unwrap();
        std::fs::remove_dir(&self.1).unwrap();
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().unwrap());
    let (services, count) = (arguments.next().unwrap_or(30_000), arguments.next().unwrap_or(4));
    let name = format!("seaway-scale-{}", std::process::id());
    let cgroup = seaway_ebpf_loader::cgroup2_mount().unwrap().join(&name);
    std::fs::create_dir(&cgroup).unwrap();
    let place = Place(PathBuf::from("/sys/fs/bpf").join(name), cgroup);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&place, services, count));
}

async fn measure(place: &Place, services: usize, count: usize) {
    println!("{services} Services with {count} endpoints each");
    println!("memory at start           {:8.1} MB", resident_mb());
    let names = Names {
        namespace: "default".into(),
        port: "http".into(),
        nodes: (0..count)
            .map(|index| if index == 0 { NODE.into() } else { format!("n{index}").into() })
            .collect(),
    };
    let mut snapshot = cluster(&names, services, count);
    println!("with the snapshot         {:8.1} MB", resident_mb());
    let ebpf = Ebpf::open(&place.0, &place.1).unwrap();
    println!("with the programs         {:8.1} MB", resident_mb());
    let config = ProxyConfig::new(NODE, &place.1, &place.0);
    let metrics = Metrics::new(&prometheus::Registry::new());
    let mut reconciler = Reconciler::new(config, metrics, Box::new(ebpf));
    let started = Instant::now();
    assert!(reconciler.sync(&snapshot).await);
    println!("first sync                {:8.1} ms", started.elapsed().as_secs_f64() * 1e3);
    println!("with everything           {:8.1} MB", resident_mb());
    let mut times: Vec<Duration> = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let index = change * 7919 % services;
        let set = endpoints(&names, index, count, 1 << 20 | change);
        snapshot.endpoints.insert(key(&names, index), Arc::new(set));
        let started = Instant::now();
        assert!(reconciler.sync(&snapshot).await);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    for (what, at) in [("median", CHANGES / 2), ("p99", CHANGES * 99 / 100), ("slowest", CHANGES - 1)] {
        println!("one change, {what:<13} {:8.3} ms", times[at].as_secs_f64() * 1e3);
    }
    println!("after {CHANGES} changes        {:8.1} MB", resident_mb());
}
