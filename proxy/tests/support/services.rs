//! Services of every kind of address in both families, and a proxy that serves them in the network of `net`, in the
//! mode that a test asks for. Clients are plain processes: what they send is seen as packets only.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, IngressMode, LoadBalancerIngress, Node, NodeAddress, Protocol,
    Service, ServiceKey, ServiceKind, ServicePort, Snapshot, TrafficPolicy,
};
use seaway_proxy::desired::{NodeView, desired};
use seaway_proxy::plan::{Actual, Host, Plan, diff};
use seaway_proxy::{Metrics, Mode, ProxyConfig, StatusHandle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::net::{Net, eventually};

pub(crate) const LOCAL: [&str; 2] = ["10.244.1.5", "fd00:10:244:1::5"];
pub(crate) const REMOTE: [&str; 2] = ["10.244.2.5", "fd00:10:244:2::5"];
pub(crate) const NODE: [&str; 2] = ["172.30.7.11", "fd00:7::11"];
pub(crate) const CLIENT: [&str; 2] = ["172.30.7.100", "fd00:7::100"];

/// A proxy that runs in the node's namespace.
pub(crate) struct Running {
    stop: CancellationToken,
    pub(crate) status: StatusHandle,
    registry: Registry,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Running {
    pub(crate) fn stop(self) {
        self.stop.cancel();
        self.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    /// What its metric without labels shows.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let all = self.registry.gather();
        let family = all.iter().find(|family| family.name() == name).unwrap();
        family.get_metric()[0].get_gauge().get_value()
    }
}

/// The network, servers behind both endpoints, and what the proxies are told.
pub(crate) struct World {
    pub(crate) net: Net,
    pub(crate) sender: watch::Sender<Arc<Snapshot>>,
    mode: Mode,
}

impl World {
    pub(crate) fn new(mode: Mode) -> Self {
        let net = Net::new();
        // Packets to addresses that are translated on their way need a route all the same.
        net.ip("node", "route add default via 172.30.7.1");
        net.ip("node", "-6 route add default via fd00:7::1");
        for (ns, name, addrs) in [("pod", "local", LOCAL), ("other", "remote", REMOTE)] {
            for addr in addrs {
                net.serve(ns, name, at(addr, 8080));
            }
        }
        let (sender, _) = watch::channel(Arc::new(Snapshot::default()));
        Self { net, sender, mode }
    }

    /// A proxy that is told what all are told.
    pub(crate) fn start(&self) -> Running {
        self.start_with(ProxyConfig::new("node", "", ""))
    }

    /// As [`World::start`], with settings of one's own.
    pub(crate) fn start_with(&self, mut config: ProxyConfig) -> Running {
        config.mode = self.mode;
        config.resync_interval = Duration::from_secs(1);
        config.conntrack = None;
        let (stop, status) = (CancellationToken::new(), config.status.clone());
        let (sender, ended) = std::sync::mpsc::channel();
        let registry = Registry::new();
        let shown = registry.clone();
        let (shutdown, snapshots) = (stop.clone(), self.sender.subscribe());
        self.net.spawn_within("node", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let metrics = Metrics::new(&shown);
            runtime.block_on(seaway_proxy::run(config, snapshots, metrics, shutdown)).unwrap();
            sender.send(()).unwrap();
        });
        Running { stop, status, registry, ended }
    }

    /// Starts a proxy and tells it of `cluster`.
    pub(crate) fn serve(&self, cluster: Snapshot) -> Running {
        self.settled(self.start(), cluster)
    }

    /// As [`World::serve`], with a place for the programs of the eBPF mode.
    pub(crate) fn serve_at(&self, cgroup: &Path, bpffs: &Path, cluster: Snapshot) -> Running {
        self.serve_with(ProxyConfig::new("node", cgroup, bpffs), cluster)
    }

    /// As [`World::serve`], with settings of the test's own.
    pub(crate) fn serve_with(&self, config: ProxyConfig, cluster: Snapshot) -> Running {
        self.settled(self.start_with(config), cluster)
    }

    fn settled(&self, running: Running, cluster: Snapshot) -> Running {
        self.tell(cluster);
        eventually("the first sync", || {
            running.status.status().synced.then_some(()).ok_or(running.status.status().last_error)
        });
        running
    }

    pub(crate) fn tell(&self, cluster: Snapshot) {
        self.sender.send_replace(Arc::new(cluster));
    }

    pub(crate) fn try_ask(&self, ns: &str, protocol: Protocol, to: SocketAddr) -> std::io::Result<String> {
        match protocol {
            Protocol::Tcp => self.net.ask_tcp(ns, to),
            _ => self.net.ask_udp(ns, to),
        }
    }

    pub(crate) fn ask(&self, ns: &str, protocol: Protocol, to: SocketAddr) -> String {
        eventually(&format!("{protocol} from {ns} to {to}"), || self.try_ask(ns, protocol, to))
    }
}

fn endpoint(addr: &str, node: &str) -> Endpoint {
    let port = |p: Protocol| EndpointPort { name: p.as_str().to_lowercase().into(), protocol: p, port: 8080 };
    let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(port);
    Endpoint { node: Some(node.into()), ..Endpoint::new(addr.parse().unwrap(), ports.into()) }
}

/// The Service number `index` with these endpoints: `local`, `remote`.
pub(crate) fn service(
    snapshot: &mut Snapshot,
    index: u16,
    endpoints: &[&str],
    change: impl FnOnce(&mut Service),
) {
    let mut service = Service::new(ServiceKey::new("default", &format!("web-{index}")));
    service.kind = ServiceKind::LoadBalancer;
    service.cluster_ips = vec![cluster_ip(index, false).ip(), cluster_ip(index, true).ip()];
    let vips = [vip(index, false).ip(), vip(index, true).ip()];
    service.load_balancer = vips.map(|addr| LoadBalancerIngress { addr, mode: IngressMode::Vip }).into();
    service.ports = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| ServicePort {
            name: protocol.as_str().to_lowercase().into(),
            protocol,
            port: 80,
            node_port: Some(30_000 + index),
            app_protocol: None,
        })
        .into();
    change(&mut service);
    let of = |name: &&str| match *name {
        "local" => LOCAL.map(|addr| endpoint(addr, "node")),
        _ => REMOTE.map(|addr| endpoint(addr, "other")),
    };
    let endpoints = EndpointSet { endpoints: endpoints.iter().flat_map(of).collect() };
    snapshot.endpoints.insert(service.key.clone(), Arc::new(endpoints));
    snapshot.services.insert(service.key.clone(), Arc::new(service));
}

/// Two nodes; Service 1 is local, 2 remote, 3 nowhere, 4 both with policy Local outside, 5 remote with that policy.
pub(crate) fn cluster() -> Snapshot {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    for (node, addrs) in [("node", NODE), ("other", ["172.30.7.12", "fd00:7::12"])] {
        let address = |text: &str| NodeAddress::internal(text.parse().unwrap());
        let node = Node { addresses: addrs.map(address).into(), ready: node == "node", ..Node::named(node) };
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    service(&mut snapshot, 1, &["local"], |_| {});
    service(&mut snapshot, 2, &["remote"], |_| {});
    service(&mut snapshot, 3, &[], |_| {});
    service(&mut snapshot, 4, &["local", "remote"], |s| s.external_policy = TrafficPolicy::Local);
    service(&mut snapshot, 5, &["remote"], |s| s.external_policy = TrafficPolicy::Local);
    snapshot
}

/// All of `cluster`, for a data plane that holds nothing.
pub(crate) fn whole_plan() -> Plan {
    let node_port_addresses = NODE.map(|addr| addr.parse().unwrap()).into();
    let view = NodeView { name: "node".into(), node_port_addresses, ..NodeView::default() };
    diff(&desired(&cluster(), &view), &Host::default(), &Actual::default())
}

pub(crate) fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse::<IpAddr>().unwrap(), port)
}

pub(crate) fn node_port(index: u16, v6: bool) -> SocketAddr {
    at(NODE[usize::from(v6)], 30_000 + index)
}

pub(crate) fn cluster_ip(index: u16, v6: bool) -> SocketAddr {
    at(&if v6 { format!("fd00:10:96::{index:x}") } else { format!("10.96.7.{index}") }, 80)
}

pub(crate) fn vip(index: u16, v6: bool) -> SocketAddr {
    at(&if v6 { format!("fd00:7::c{index:x}") } else { format!("172.30.7.{}", 200 + index) }, 80)
}
