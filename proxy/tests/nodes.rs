//! The proxy of one node, end to end, in namespaces: from the node and a pod through the socket hooks, from a client
//! outside through NodePort and load balancer addresses that the node answers for. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/net.rs"]
mod net;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kernel::Place;
use net::{Net, eventually, talk};
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Forwarding, HostPod, HostPort, IngressMode, LoadBalancerIngress,
    Node, NodeAddress, Protocol, Service, ServiceKey, ServiceKind, ServicePort, Snapshot, TargetPod,
    TrafficPolicy,
};
use seaway_proxy::{Metrics, Mode, ProxyConfig, StatusHandle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LOCAL: [&str; 2] = ["10.244.1.5", "fd00:10:244:1::5"];
const REMOTE: [&str; 2] = ["10.244.2.5", "fd00:10:244:2::5"];
const NODE_ADDRS: [&str; 2] = ["172.30.7.11", "fd00:7::11"];
const CLIENT_ADDRS: [&str; 2] = ["172.30.7.100", "fd00:7::100"];

/// A proxy that runs in the node's namespace.
struct Running {
    stop: CancellationToken,
    status: StatusHandle,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Running {
    fn start(net: &Net, place: &Place, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self::start_on("node", net, place, snapshots)
    }

    /// The proxy of the node `node`, in the namespace of that name.
    fn start_on(node: &str, net: &Net, place: &Place, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let mut config = ProxyConfig::new(node, &place.cgroup, &place.bpffs);
        config.mode = Mode::Ebpf;
        config.resync_interval = Duration::from_secs(1);
        config.pod_link_prefixes = vec!["swpod".into()];
        let (stop, status) = (CancellationToken::new(), config.status.clone());
        let (sender, ended) = std::sync::mpsc::channel();
        let shutdown = stop.clone();
        net.spawn_within(node, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let metrics = Metrics::new(&prometheus::Registry::new());
            runtime.block_on(seaway_proxy::run(config, snapshots, metrics, shutdown)).unwrap();
            sender.send(()).unwrap();
        });
        Self { stop, status, ended }
    }

    fn stop(self) {
        self.stop.cancel();
        self.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}

fn endpoint(addr: &str, node: &str) -> Endpoint {
    let ports = [Protocol::Tcp, Protocol::Udp];
    let ports = ports.map(|p| EndpointPort { name: name(p), protocol: p, port: 8080 });
    Endpoint { node: Some(node.into()), ..Endpoint::new(addr.parse().unwrap(), ports.into()) }
}

fn name(protocol: Protocol) -> Arc<str> {
    protocol.as_str().to_lowercase().into()
}

/// A Service of every kind of address in both families; `index` tells Services apart.
fn service(
    snapshot: &mut Snapshot,
    index: u16,
    policy: TrafficPolicy,
    endpoints: &[(&str, &str)],
) -> ServiceKey {
    let key = ServiceKey::new("default", &format!("web-{index}"));
    let mut service = Service::new(key.clone());
    service.kind = ServiceKind::LoadBalancer;
    service.external_policy = policy;
    let addr = |text: String| text.parse::<IpAddr>().unwrap();
    service.cluster_ips = vec![addr(format!("10.96.7.{index}")), addr(format!("fd00:10:96::{index:x}"))];
    let vips = [addr(format!("172.30.7.{}", 200 + index)), addr(format!("fd00:7::c{index:x}"))];
    service.load_balancer =
        vips.into_iter().map(|addr| LoadBalancerIngress { addr, mode: IngressMode::Vip }).collect();
    service.ports = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| ServicePort {
            name: name(protocol),
            protocol,
            port: 80,
            node_port: Some(30_000 + index),
            app_protocol: None,
        })
        .into();
    snapshot.services.insert(key.clone(), Arc::new(service));
    let endpoints = endpoints.iter().map(|(addr, node)| endpoint(addr, node)).collect();
    snapshot.endpoints.insert(key.clone(), Arc::new(EndpointSet { endpoints }));
    key
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    for (node, addrs) in [("node", NODE_ADDRS), ("other", ["172.30.7.12", "fd00:7::12"])] {
        let address = |text: &str| NodeAddress::internal(text.parse().unwrap());
        let node = Node { addresses: addrs.map(address).into(), ready: node == "node", ..Node::named(node) };
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
    let local = LOCAL.map(|addr| (addr, "node"));
    let remote = REMOTE.map(|addr| (addr, "other"));
    service(&mut snapshot, 1, TrafficPolicy::Cluster, &local);
    service(&mut snapshot, 2, TrafficPolicy::Cluster, &remote);
    service(&mut snapshot, 3, TrafficPolicy::Cluster, &[]);
    service(&mut snapshot, 4, TrafficPolicy::Local, &[local[0], local[1], remote[0], remote[1]]);
    snapshot
}

fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), port)
}

fn family(v6: bool, pair: [&str; 2]) -> &str {
    pair[usize::from(v6)]
}

struct World {
    net: Net,
    place: Place,
    sender: watch::Sender<Arc<Snapshot>>,
}

impl World {
    fn new() -> Self {
        let (net, place) = (Net::new(), Place::new());
        for (ns, name, addrs) in [("pod", "local", LOCAL), ("other", "remote", REMOTE)] {
            for addr in addrs {
                net.serve(ns, name, at(addr, 8080));
            }
        }
        let (sender, _) = watch::channel(Arc::new(Snapshot::default()));
        Self { net, place, sender }
    }

    fn start(&self) -> Running {
        let running = Running::start(&self.net, &self.place, self.sender.subscribe());
        self.sender.send_replace(Arc::new(cluster()));
        eventually("the first sync", || {
            running.status.status().synced.then_some(()).ok_or(running.status.status().last_error)
        });
        running
    }

    fn inside(&self, ns: &str, protocol: &str, to: SocketAddr) -> String {
        let ask = || self.net.ask_from_cgroup(ns, &self.place.cgroup, protocol, to);
        eventually(&format!("{protocol} from {ns} to {to}"), ask)
    }

    fn outside(&self, protocol: &str, to: SocketAddr) -> String {
        let ask = || match protocol {
            "tcp" => self.net.ask_tcp("client", to),
            _ => self.net.ask_udp("client", to),
        };
        eventually(&format!("{protocol} from outside to {to}"), ask)
    }
}

#[test]
fn traffic_follows_from_inside_and_outside() {
    let world = World::new();
    let running = world.start();
    for v6 in [false, true] {
        for protocol in ["tcp", "udp"] {
            let ip =
                |index: u16| if v6 { format!("fd00:10:96::{index:x}") } else { format!("10.96.7.{index}") };
            let vip = |index: u16| {
                if v6 { format!("fd00:7::c{index:x}") } else { format!("172.30.7.{}", 200 + index) }
            };
            let (node, client) = (family(v6, NODE_ADDRS), family(v6, CLIENT_ADDRS));
            // From the node and from a pod to ClusterIPs: local and remote backends.
            for ns in ["node", "pod"] {
                assert!(world.inside(ns, protocol, at(&ip(1), 80)).starts_with("local "));
            }
            assert!(world.inside("node", protocol, at(&ip(2), 80)).starts_with("remote "));
            // The node's own NodePort, at its address and at loopback.
            assert!(world.inside("node", protocol, at(node, 30_001)).starts_with("local "));
            assert!(
                world
                    .inside("node", protocol, at(if v6 { "::1" } else { "127.0.0.1" }, 30_001))
                    .starts_with("local ")
            );
            // From outside: a local backend sees the client, a remote one sees the node.
            assert_eq!(world.outside(protocol, at(node, 30_001)), format!("local {client}"));
            assert_eq!(world.outside(protocol, at(node, 30_002)), format!("remote {node}"));
            // Load balancer addresses, which stand on no interface: ARP and NDP are answered.
            assert_eq!(world.outside(protocol, at(&vip(1), 80)), format!("local {client}"));
            assert_eq!(world.outside(protocol, at(&vip(2), 80)), format!("remote {node}"));
            // Policy Local: from outside the local endpoint only, and it sees the client.
            for _ in 0..4 {
                assert_eq!(world.outside(protocol, at(&vip(4), 80)), format!("local {client}"));
            }
        }
    }
    let status = running.status.status();
    assert_eq!((status.mode.as_str(), status.services), ("ebpf", 4));
    assert_eq!(status.announced.len(), 8);
    assert_eq!(status.devices, ["eth0"]);
    running.stop();
}

/// What a client outside and a pod say to each other goes from link to link, to the pod by `bpf_redirect_peer`.
#[test]
fn the_nodes_stack_forwards_nothing_between_clients_outside_and_pods() {
    let world = World::new();
    let running = world.start();
    let forwarded = || world.net.forwarded();
    let nft = |command: &str| {
        let output = world.net.within("node", || Command::new("nft").arg(command).output().unwrap());
        assert!(output.status.success(), "{command}: {output:?}");
    };
    for v6 in [false, true] {
        for protocol in ["tcp", "udp"] {
            let to = at(family(v6, NODE_ADDRS), 30_001);
            let await_forwarding = |what, wanted: bool| {
                eventually(what, || {
                    let before = forwarded();
                    let heard = world.outside(protocol, to);
                    if (forwarded() > before) == wanted { Ok(()) } else { Err(heard) }
                });
            };
            await_forwarding("the short way", false);
            let before = forwarded();
            for _ in 0..5 {
                world.outside(protocol, to);
            }
            assert_eq!(forwarded(), before, "{protocol} to {to}");
            nft("add table inet probe");
            nft("add chain inet probe forward { type filter hook forward priority 0; policy drop; }");
            nft("add rule inet probe forward accept");
            await_forwarding("the way by a firewall of the node", true);
            nft("delete table inet probe");
        }
    }
    running.stop();
}

/// Direct server return, by annotation, between the proxies of two nodes.
#[test]
fn backends_elsewhere_see_and_answer_clients_where_that_is_wanted() {
    let world = World::new();
    let running = world.start();
    let place = Place::new();
    let other = Running::start_on("other", &world.net, &place, world.sender.subscribe());
    eventually("the other's first sync", || {
        other.status.status().synced.then_some(()).ok_or(other.status.status().last_error)
    });
    let asked = |said: fn(bool) -> String| {
        for v6 in [false, true] {
            let vip = if v6 { "fd00:7::c2" } else { "172.30.7.202" };
            for to in [at(family(v6, NODE_ADDRS), 30_002), at(vip, 80)] {
                for protocol in ["tcp", "udp"] {
                    eventually(&format!("{protocol} to {to}"), || {
                        let heard = world.outside(protocol, to);
                        if heard == said(v6) { Ok(()) } else { Err(heard) }
                    });
                }
            }
        }
    };
    asked(|v6| format!("remote {}", family(v6, NODE_ADDRS)));
    let mut snapshot = cluster();
    let key = ServiceKey::new("default", "web-2");
    let mut direct = (*snapshot.services[&key]).clone();
    direct.forwarding = Some(Forwarding::Dsr);
    snapshot.services.insert(key, Arc::new(direct));
    world.sender.send_replace(Arc::new(snapshot));
    asked(|v6| format!("remote {}", family(v6, CLIENT_ADDRS)));
    other.stop();
    running.stop();
}

/// A sandbox with a stack of its own, a virtual machine, a raw socket: nothing of them passes the socket programs.
#[test]
fn pods_that_no_socket_program_serves_reach_services_through_their_links() {
    let world = World::new();
    let running = world.start();
    for (v6, ip, vip) in [(false, "10.96.7.", "172.30.7.20"), (true, "fd00:10:96::", "fd00:7::c")] {
        let ask = |protocol: &str, to: SocketAddr| match protocol {
            "tcp" => world.net.ask_tcp("pod", to),
            _ => world.net.ask_udp("pod", to),
        };
        let pod = family(v6, LOCAL);
        let node = family(v6, NODE_ADDRS);
        for protocol in ["tcp", "udp"] {
            // A pod elsewhere sees the pod; one that is given itself sees the node.
            for to in [at(&format!("{ip}2"), 80), at(&format!("{vip}2"), 80), at(node, 30_002)] {
                let said = eventually(&format!("{protocol} to {to}"), || ask(protocol, to));
                assert_eq!(said, format!("remote {pod}"), "{protocol} to {to}");
            }
            let said = eventually("itself", || ask(protocol, at(&format!("{ip}1"), 80)));
            assert_eq!(said, format!("local {node}"), "{protocol}");
            // Without endpoints, and at a port that the Service has not, it is refused at once.
            for to in [at(&format!("{ip}3"), 80), at(&format!("{ip}1"), 81)] {
                let refused = ask(protocol, to).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{protocol} to {to}");
            }
        }
    }
    running.stop();
}

#[test]
fn clients_keep_their_backend_and_strangers_stay_out() {
    let world = World::new();
    let running = world.start();
    let change = |index: u16, change: &dyn Fn(&mut Service)| {
        let mut snapshot = cluster();
        let both = [(LOCAL[0], "node"), (REMOTE[0], "other")];
        let key = service(&mut snapshot, index, TrafficPolicy::Cluster, &both);
        let mut changed = (*snapshot.services[&key]).clone();
        change(&mut changed);
        snapshot.services.insert(key, Arc::new(changed));
        world.sender.send_replace(Arc::new(snapshot));
        let wanted = cluster().services.len() + 1;
        eventually("the change", || {
            (running.status.status().services == wanted).then_some(()).ok_or("not yet")
        });
    };
    // One client, one backend, whether it asks from inside or outside.
    change(5, &|service| service.session_affinity = Some(Duration::from_secs(60)));
    for protocol in ["tcp", "udp"] {
        let first = world.outside(protocol, at("172.30.7.205", 80));
        for _ in 0..8 {
            assert_eq!(world.outside(protocol, at("172.30.7.205", 80)), first);
        }
        let first = world.inside("node", protocol, at("10.96.7.5", 80));
        for _ in 0..8 {
            assert_eq!(world.inside("node", protocol, at("10.96.7.5", 80)), first);
        }
    }
    // Source ranges close the load balancer address, not the node port, and open again.
    let ranges = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    change(6, &|service| service.source_ranges = vec![ranges("203.0.113.0/24")]);
    eventually("a stranger is dropped", || match world.net.ask_tcp("client", at("172.30.7.206", 80)) {
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(()),
        other => Err(other),
    });
    world.outside("tcp", at(NODE_ADDRS[0], 30_006));
    eventually("the drop is counted", || {
        let drops = running.status.status().drops;
        if drops.iter().any(|drop| drop.reason == "source_range") { Ok(()) } else { Err(drops) }
    });
    change(6, &|service| service.source_ranges = vec![ranges("203.0.113.0/24"), ranges("172.30.7.0/24")]);
    world.outside("tcp", at("172.30.7.206", 80));
    running.stop();
}

/// Two nodes answer for one address, one after the other: neighbours are told.
#[test]
fn an_address_moves_when_its_node_is_not_ready() {
    let world = World::new();
    world.net.forward("other");
    let second = Place::new();
    let with_ready = |ready: &str| {
        let mut snapshot = cluster();
        for name in ["node", "other"] {
            let mut node = (*snapshot.nodes[name]).clone();
            node.ready = name == ready;
            snapshot.nodes.insert(name.into(), Arc::new(node));
        }
        world.sender.send_replace(Arc::new(snapshot));
    };
    with_ready("node");
    let runnings = [
        Running::start(&world.net, &world.place, world.sender.subscribe()),
        Running::start_on("other", &world.net, &second, world.sender.subscribe()),
    ];
    let announced = |which: usize| runnings[which].status.status().announced.len();
    eventually("the first node has all", || {
        ((announced(0), announced(1)) == (8, 0)).then_some(()).ok_or("not yet")
    });
    // Behind these the remote pod runs, which is local to the other node: it sees the client once that one answers.
    let vips = ["172.30.7.202", "fd00:7::c2"];
    for (vip, node) in vips.iter().zip(NODE_ADDRS) {
        assert_eq!(world.outside("tcp", at(vip, 80)), format!("remote {node}"));
    }
    with_ready("other");
    for (vip, client) in vips.iter().zip(CLIENT_ADDRS) {
        eventually("the address moves", || match world.net.ask_tcp("client", at(vip, 80)) {
            Ok(answer) if answer == format!("remote {client}") => Ok(()),
            other => Err(other),
        });
    }
    assert_eq!((announced(0), announced(1)), (0, 8));
    for running in runnings {
        running.stop();
    }
}

#[test]
fn what_nobody_serves_is_refused_at_once() {
    let world = World::new();
    let running = world.start();
    for addr in ["10.96.7.3", "fd00:10:96::3"] {
        for (what, port) in [("without endpoints", 80), ("undefined port", 81)] {
            let started = std::time::Instant::now();
            let refused = world.net.ask_from_cgroup("node", &world.place.cgroup, "tcp", at(addr, port));
            assert!(refused.is_err(), "{what} {addr}: {refused:?}");
            assert!(started.elapsed() < Duration::from_secs(2), "{what} {addr}");
        }
    }
    for addr in NODE_ADDRS {
        let refused = world.net.ask_tcp("client", at(addr, 30_003)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{addr}");
    }
    running.stop();
}

/// A pod's host port answers at the node's addresses, to outsiders, to the node and at loopback.
#[test]
fn host_ports_lead_to_the_pod() {
    let world = World::new();
    let running = world.start();
    let mut snapshot = cluster();
    let pod = TargetPod { namespace: "default".into(), name: "web".into() };
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| HostPort {
        protocol,
        host_port: 88,
        host_ip: None,
        container_port: 8080,
    });
    let held = HostPod {
        pod: pod.clone(),
        uid: "".into(),
        addrs: LOCAL.map(|a| a.parse().unwrap()).into(),
        ports: ports.into(),
    };
    snapshot.host_pods.insert(pod, Arc::new(held));
    world.sender.send_replace(Arc::new(snapshot));
    for (v6, loopback) in [(false, "127.0.0.1"), (true, "::1")] {
        let (node, client) = (family(v6, NODE_ADDRS), family(v6, CLIENT_ADDRS));
        for protocol in ["tcp", "udp"] {
            assert_eq!(world.outside(protocol, at(node, 88)), format!("local {client}"));
            assert!(world.inside("node", protocol, at(node, 88)).starts_with("local "));
            assert!(world.inside("node", protocol, at(loopback, 88)).starts_with("local "));
            assert!(world.inside("pod", protocol, at(node, 88)).starts_with("local "), "to itself");
        }
    }
    running.stop();
}

/// Sockets of the node and of its pods whose endpoint is gone are ended; draining ones and others are not.
#[test]
fn sockets_to_an_endpoint_that_is_gone_are_ended() {
    let world = World::new();
    let running = world.start();
    let places =
        [("node", "10.96.7.2"), ("node", "fd00:10:96::2"), ("pod", "10.96.7.1"), ("pod", "fd00:10:96::1")];
    let mut clients = Vec::new();
    for (ns, addr) in places {
        for protocol in ["tcp", "udp"] {
            // The pod's own address is reached from the node as well: both indexes are asked from there.
            let client = world.net.stay(ns, &world.place.cgroup, protocol, at(addr, 80));
            clients.push((format!("{protocol} from {ns} to {addr}"), addr.ends_with('2'), client));
        }
    }
    for (what, remote, client) in &mut clients {
        assert!(client.ask().starts_with(if *remote { "remote " } else { "local " }), "{what}");
    }

    // All drain: connections go on.
    let with = |change: &dyn Fn(&mut EndpointSet)| {
        let mut snapshot = cluster();
        for index in [1, 2] {
            let key = ServiceKey::new("default", &format!("web-{index}"));
            let mut set = (*snapshot.endpoints[&key]).clone();
            change(&mut set);
            snapshot.endpoints.insert(key, Arc::new(set));
        }
        // The fourth Service lists the same pods: without it they are listed nowhere.
        snapshot.endpoints.remove(&ServiceKey::new("default", "web-4"));
        world.sender.send_replace(Arc::new(snapshot));
    };
    with(&|set| {
        let draining = |endpoint: &Endpoint| Endpoint { ready: false, terminating: true, ..endpoint.clone() };
        set.endpoints = set.endpoints.iter().map(draining).collect();
    });
    for (what, remote, client) in &mut clients {
        assert!(client.ask().starts_with(if *remote { "remote " } else { "local " }), "{what}");
    }

    // All go: every socket is ended, long before anybody would give up waiting.
    let started = std::time::Instant::now();
    with(&|set| set.endpoints = [].into());
    for (what, _, client) in &mut clients {
        assert_eq!(client.line(), "ended 1", "{what}");
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    running.stop();
}

#[test]
fn changes_are_followed_and_a_restart_breaks_nothing() {
    let world = World::new();
    let running = world.start();
    let vip = at("172.30.7.201", 80);
    assert!(world.outside("tcp", vip).starts_with("local "));
    let mut open = world.net.within("client", || TcpStream::connect(vip).unwrap());
    assert!(talk(&mut open).unwrap().starts_with("local "));

    // Stopped: what is in the kernel goes on, for open connections and for new ones.
    running.stop();
    assert!(talk(&mut open).unwrap().starts_with("local "));
    assert!(world.net.ask_tcp("client", vip).unwrap().starts_with("local "));
    assert!(world.inside("node", "tcp", at("10.96.7.1", 80)).starts_with("local "));

    // Started again, before the lists are read: nothing is taken away.
    world.sender.send_replace(Arc::new(Snapshot::default()));
    let running = Running::start(&world.net, &world.place, world.sender.subscribe());
    eventually("the data plane is open", || {
        (!running.status.status().mode.is_empty()).then_some(()).ok_or("not yet")
    });
    assert!(world.net.ask_tcp("client", vip).unwrap().starts_with("local "));
    assert!(talk(&mut open).unwrap().starts_with("local "));

    // A client that asks over UDP from one port all the time.
    let udp = world.net.datagrams("client", vip);
    udp.hears("a first UDP answer", &Ok("local".into()));

    // The endpoints move to the other node: new connections follow, the open one stays, and so does not UDP.
    let mut moved = cluster();
    service(&mut moved, 1, TrafficPolicy::Cluster, &REMOTE.map(|addr| (addr, "other")));
    world.sender.send_replace(Arc::new(moved));
    eventually("new connections follow", || {
        let answer = world.net.ask_tcp("client", vip).unwrap();
        if answer.starts_with("remote ") { Ok(()) } else { Err(answer) }
    });
    udp.hears("the UDP flow follows", &Ok("remote".into()));
    assert!(talk(&mut open).unwrap().starts_with("local "));

    // All goes: the addresses are nobody's any more.
    world.sender.send_replace(Arc::new(Snapshot { synced: true, ..Snapshot::default() }));
    eventually("nothing is left", || {
        let status = running.status.status();
        if status.frontends == 0 && status.announced.is_empty() { Ok(()) } else { Err(status.last_error) }
    });
    running.stop();
    let config = ProxyConfig::new("node", &world.place.cgroup, &world.place.bpffs);
    seaway_proxy::cleanup(&config).unwrap();
    assert!(!world.place.bpffs.exists());
}
