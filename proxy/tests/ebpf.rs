//! The battery over the eBPF data plane in the real kernel. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/kernel.rs"]
mod kernel;
#[path = "battery/laws.rs"]
mod laws;
#[path = "battery/world.rs"]
mod world;

use std::sync::{Arc, Mutex};

use kernel::Place;
use laws::dataplane_battery;
use seaway_proxy::dataplane::ebpf::{Ebpf, Loaded};
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::dataplane::{Applied, Dataplane, DataplaneError};
use seaway_proxy::desired::{Desired, NodeView, desired};
use seaway_proxy::plan::{Actual, ClusterNets, Host, Plan, diff};

/// Loading takes the verifier a while: one data plane serves all cases of a test, and is emptied in between.
#[derive(Clone)]
struct Shared {
    ebpf: Arc<Mutex<Ebpf<Loaded>>>,
    place: Arc<Place>,
}

impl Shared {
    fn open() -> Self {
        let place = Arc::new(Place::new());
        let ebpf = Ebpf::open(&place.bpffs, &place.cgroup).unwrap();
        Self { ebpf: Arc::new(Mutex::new(ebpf)), place }
    }

    /// As a new node would find it.
    fn emptied(&self) -> Self {
        let mut ebpf = self.ebpf.lock().unwrap();
        let mut empty = Desired::default();
        empty.complete = true;
        let plan = diff(&empty, &Host::default(), &ebpf.read().unwrap());
        ebpf.apply(&plan).unwrap();
        assert_eq!(ebpf.read().unwrap(), Actual::default());
        self.clone()
    }
}

impl Dataplane for Shared {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.ebpf.lock().unwrap().read()
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        self.ebpf.lock().unwrap().apply(plan)
    }
}

fn make() -> impl Fn() -> Shared {
    let shared = Shared::open();
    move || shared.emptied()
}

dataplane_battery!(ebpf, 16, make());

#[test]
fn faulty_ebpf_converges() {
    let shared = Shared::open();
    laws::it_converges(|| Faulty::new(shared.emptied(), 10, 5), 8);
}

/// A successor finds everything in the pinned maps and has nothing to do; cleaning up leaves no pin.
#[test]
fn a_successor_adopts_what_is_pinned() {
    let first = Shared::open();
    let mut service = seaway_model::Service::new(seaway_model::ServiceKey::new("default", "web"));
    service.cluster_ips = vec!["10.96.0.1".parse().unwrap(), "fd00:10:96::1".parse().unwrap()];
    service.ports = vec![seaway_model::ServicePort {
        name: "http".into(),
        protocol: seaway_model::Protocol::Tcp,
        port: 80,
        node_port: Some(30_080),
        app_protocol: None,
    }];
    let mut snapshot = seaway_model::Snapshot { synced: true, ..seaway_model::Snapshot::default() };
    snapshot.services.insert(service.key.clone(), Arc::new(service));
    let view = NodeView {
        name: world::NODE.into(),
        node_port_addresses: vec!["172.30.0.11".parse().unwrap()],
        node_port_loopback: true,
        ..NodeView::default()
    };
    let wanted = desired(&snapshot, &view);
    let pods = ["10.244.1.0/24", "10.244.7.0/24", "fd00:10:244:1::/64"].map(|net| net.parse().unwrap());
    let nodes = ["172.30.0.11", "172.30.0.12", "fd00:10:30::b"].map(|addr| addr.parse().unwrap());
    let cluster = ClusterNets { pods: pods.into(), nodes: nodes.into() };
    let host = Host { cluster: Arc::new(cluster), ..Host::default() };
    let mut dataplane = first.clone();
    let plan = diff(&wanted, &host, &dataplane.read().unwrap());
    assert!(dataplane.apply(&plan).unwrap().failed.is_empty());
    let mut successor = Ebpf::open(&first.place.bpffs, &first.place.cgroup).unwrap();
    let plan = diff(&wanted, &host, &successor.read().unwrap());
    assert!(plan.is_empty(), "{plan:?}");
    // A node has gone.
    let cluster = ClusterNets { pods: [pods[0]].into(), nodes: [nodes[0]].into() };
    let host = Host { cluster: Arc::new(cluster), ..host };
    let plan = diff(&wanted, &host, &successor.read().unwrap());
    successor.apply(&plan).unwrap();
    assert_eq!(successor.read().unwrap().host, host);
    let config = seaway_proxy::ProxyConfig::new(world::NODE, &first.place.cgroup, &first.place.bpffs);
    seaway_proxy::cleanup(&config).unwrap();
    assert!(!first.place.bpffs.exists());
    seaway_proxy::cleanup(&config).unwrap();
}
