//! The nftables data plane of one node, packet by packet, in namespaces: a client outside, the node, a pod on it and
//! one elsewhere. Needs root.

#![allow(clippy::needless_range_loop, reason = "a family indexes several tables at once")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "what the tests of other data planes need")]
#[path = "support/net.rs"]
mod net;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use net::{Net, eventually, talk};
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, IngressMode, LoadBalancerIngress, Protocol, Service, ServiceKey,
    ServicePort, Snapshot, TrafficPolicy,
};
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::nftables::Nftables;
use seaway_proxy::desired::{NodeView, desired};
use seaway_proxy::plan::{Device, Host, diff};
use seaway_proxy::stale::serving_udp;

const POD: [&str; 2] = ["10.244.1.5", "fd00:10:244:1::5"];
const REMOTE: [&str; 2] = ["10.244.2.5", "fd00:10:244:2::5"];
const NODE: [&str; 2] = ["172.30.7.11", "fd00:7::11"];
const CLIENT: [&str; 2] = ["172.30.7.100", "fd00:7::100"];

/// The network, and what the node serves in it.
struct World {
    net: Net,
    snapshot: Snapshot,
}

impl World {
    fn new() -> Self {
        let net = Net::new();
        for (ns, name, addrs) in [("pod", "local", POD), ("other", "remote", REMOTE)] {
            for addr in addrs {
                net.serve(ns, name, at(addr, 8080));
            }
        }
        for ns in ["client", "node"] {
            // To the addresses of Services: the client by way of the node, the node as if it had a default route.
            let via =
                if ns == "client" { ("via 172.30.7.11", "via fd00:7::11") } else { ("dev eth0", "dev eth0") };
            for (v4, v6) in [("10.96.0.0/16", "fd00:10:96::/112"), ("192.0.2.0/24", "2001:db8::/64")] {
                net.ip(ns, &format!("route add {v4} {}", via.0));
                net.ip(ns, &format!("-6 route add {v6} {}", via.1));
            }
        }
        for addr in REMOTE {
            eventually("the ways are open", || net.ask_tcp("pod", at(addr, 8080)));
        }
        Self { net, snapshot: Snapshot { synced: true, ..Snapshot::default() } }
    }

    /// Brings the node in line with the snapshot, as a new process would. Returns the number of steps.
    fn sync(&self) -> usize {
        let view = NodeView {
            name: "node".into(),
            zone: None,
            node_port_addresses: NODE.map(|addr| addr.parse().unwrap()).into(),
            ..NodeView::default()
        };
        let host = Host {
            node_v4: Some(NODE[0].parse().unwrap()),
            node_v6: Some(NODE[1].parse().unwrap()),
            uplinks: BTreeSet::from([Device { name: "eth0".into(), index: 2 }]),
            ..Host::default()
        };
        self.net.within("node", || {
            let mut dataplane = Nftables::open().unwrap();
            let plan = diff(&desired(&self.snapshot, &view), &host, &dataplane.read().unwrap());
            let applied = dataplane.apply(&plan).unwrap();
            assert!(applied.failed.is_empty(), "{:?}", applied.failed);
            dataplane.forget_udp(&serving_udp(&self.snapshot)).unwrap();
            plan.len()
        })
    }

    /// A Service of every kind of address, number `index`, with these endpoints of both families.
    fn service(&mut self, index: u8, endpoints: &[[&str; 2]], change: impl FnOnce(&mut Service)) {
        let key = ServiceKey::new("default", &format!("web-{index}"));
        let mut service = Service::new(key.clone());
        service.cluster_ips = addrs(cluster_ip(index));
        let vips = addrs(vip(index));
        service.load_balancer =
            vips.into_iter().map(|addr| LoadBalancerIngress { addr, mode: IngressMode::Vip }).collect();
        service.ports = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| ServicePort {
                name: protocol.as_str().into(),
                protocol,
                port: 80,
                node_port: Some(30_000 + u16::from(index)),
                app_protocol: None,
            })
            .into();
        change(&mut service);
        self.snapshot.services.insert(key.clone(), Arc::new(service));
        let endpoints = endpoints.iter().flatten().map(|addr| endpoint(addr)).collect();
        self.snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints }));
    }

    fn ask(&self, from: &str, protocol: Protocol, to: SocketAddr) -> std::io::Result<String> {
        match protocol {
            Protocol::Udp => self.net.ask_udp(from, to),
            _ => self.net.ask_tcp(from, to),
        }
    }

    /// All the different answers of many attempts: so many that a backend is missed once in a billion rows.
    fn answers(&self, from: &str, protocol: Protocol, to: SocketAddr) -> BTreeSet<String> {
        let ask = |_| self.ask(from, protocol, to).unwrap_or_else(|error| format!("{:?}", error.kind()));
        (0..32).map(ask).collect()
    }

    fn drops(&self, reason: &str) -> u64 {
        let drops = self.net.within("node", || Nftables::open().unwrap().drops());
        drops.iter().find(|drop| drop.reason == reason).map_or(0, |drop| drop.packets)
    }

    fn nft(&self, arguments: &str) -> String {
        self.net.within("node", || {
            let output = std::process::Command::new("nft").args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "nft {arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

fn endpoint(addr: &str) -> Endpoint {
    let node = if POD.contains(&addr) { "node" } else { "other" };
    let port = |protocol: Protocol| EndpointPort { name: protocol.as_str().into(), protocol, port: 8080 };
    let ports = [Protocol::Tcp, Protocol::Udp].map(port);
    Endpoint { node: Some(node.into()), ..Endpoint::new(addr.parse().unwrap(), ports.into()) }
}

fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), port)
}

fn addrs(texts: [String; 2]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn cluster_ip(index: u8) -> [String; 2] {
    [format!("10.96.0.{index}"), format!("fd00:10:96::{index:x}")]
}

fn vip(index: u8) -> [String; 2] {
    [format!("192.0.2.{index}"), format!("2001:db8::{index:x}")]
}

/// Who asks, at which address of which Service, who answers and whom it sees. `node` and so on stand for addresses.
const TABLE: &str = "
    pod    cluster-ip 1 -> local node
    pod    cluster-ip 2 -> remote pod
    pod    node-port  2 -> remote node
    pod    vip        2 -> remote node
    pod    cluster-ip 4 -> local node
    pod    node-port  3 -> local node, remote pod
    pod    vip        3 -> local node, remote pod
    pod    vip        4 -> local node, remote node
    node   cluster-ip 1 -> local node
    node   cluster-ip 2 -> remote node
    node   node-port  1 -> local node
    node   node-port  2 -> remote node
    node   vip        2 -> remote node
    node   node-port  3 -> local node, remote node
    node   vip        3 -> local node, remote node
    client cluster-ip 1 -> local node
    client cluster-ip 2 -> remote node
    client cluster-ip 4 -> local node
    client node-port  1 -> local node
    client node-port  2 -> remote node
    client vip        1 -> local node
    client vip        2 -> remote node
    client node-port  3 -> local client
    client vip        3 -> local client
    client vip        4 -> local node, remote node
";

/// kube-proxy's TestInternalExternalMasquerade with packets: 1 has an endpoint here, 2 elsewhere, 3 both and external
/// policy Local, 4 both and internal policy Local. The pod that asks is the endpoint here: it reaches itself.
#[test]
fn the_masquerade_table_holds() {
    let mut world = World::new();
    world.service(1, &[POD], |_| {});
    world.service(2, &[REMOTE], |_| {});
    world.service(3, &[POD, REMOTE], |service| service.external_policy = TrafficPolicy::Local);
    world.service(4, &[POD, REMOTE], |service| service.internal_policy = TrafficPolicy::Local);
    world.sync();
    let mut wrong = Vec::new();
    for row in TABLE.lines().map(str::trim).filter(|row| !row.is_empty()) {
        let (question, answer) = row.split_once(" -> ").unwrap();
        let words: Vec<&str> = question.split_whitespace().collect();
        let index: u8 = words[2].parse().unwrap();
        for family in 0..2 {
            let (addr, port) = match words[1] {
                "cluster-ip" => (cluster_ip(index)[family].clone(), 80),
                "vip" => (vip(index)[family].clone(), 80),
                _ => (NODE[family].to_owned(), 30_000 + u16::from(index)),
            };
            let seen = |name: &str| match name {
                "pod" => POD[family],
                "client" => CLIENT[family],
                _ => NODE[family],
            };
            let wanted: BTreeSet<String> = answer
                .split(", ")
                .map(|part| part.split_once(' ').unwrap())
                .map(|(who, sees)| format!("{who} {}", seen(sees)))
                .collect();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answers = world.answers(words[0], protocol, at(&addr, port));
                if answers != wanted {
                    wrong.push(format!("{row}: {protocol} to {addr}: {answers:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_nobody_serves_is_refused_or_dropped_and_counted() {
    let mut world = World::new();
    world.service(1, &[], |_| {});
    world.service(2, &[REMOTE], |service| service.external_policy = TrafficPolicy::Local);
    world.service(3, &[POD], |service| service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()]);
    let ranges = ["172.30.7.0/26", "172.30.7.96/27", "fd00:7::/96"];
    world.service(4, &[POD], |service| {
        service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    });
    world.sync();
    for from in ["pod", "node", "client"] {
        for family in 0..2 {
            for (addr, port) in [
                (&*cluster_ip(1)[family], 80),
                (&*vip(1)[family], 80),
                (NODE[family], 30_001),
                (&*cluster_ip(2)[family], 81),
            ] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let answer = world.ask(from, protocol, at(addr, port)).unwrap_err().kind();
                    // A datagram of the node itself is refused as it is sent.
                    let wanted = match (from, protocol) {
                        ("node", Protocol::Udp) => ErrorKind::PermissionDenied,
                        _ => ErrorKind::ConnectionRefused,
                    };
                    assert_eq!(answer, wanted, "{protocol} {from} to {addr}:{port}");
                }
            }
        }
    }
    assert!(world.drops("no_backend") > 0);
    let silent = |to: SocketAddr| {
        let error = world.ask("client", Protocol::Tcp, to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}");
    };
    silent(at(&vip(2)[0], 80));
    assert!(world.drops("no_local_backend") > 0);
    silent(at(&vip(3)[0], 80));
    assert!(world.drops("source_range") > 0);
    // Ranges of one family say nothing about the other, nor about the NodePort, nor about clients on the node.
    assert!(world.ask("client", Protocol::Tcp, at(&vip(3)[1], 80)).is_ok());
    assert!(world.ask("client", Protocol::Tcp, at(NODE[0], 30_003)).is_ok());
    assert!(world.ask("node", Protocol::Tcp, at(&vip(3)[0], 80)).is_ok());
    for family in 0..2 {
        assert!(world.ask("client", Protocol::Tcp, at(&vip(4)[family], 80)).is_ok());
    }
}

/// A client keeps its backend while others come and go, and gets another when its own goes.
#[test]
fn affinity_survives_changes_of_endpoints() {
    let mut world = World::new();
    let sticky = |service: &mut Service| service.session_affinity = Some(Duration::from_secs(60));
    for family in 0..2 {
        for (from, to) in [("client", at(&vip(1)[family], 80)), ("node", at(&cluster_ip(1)[family], 80))] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                world.service(1, &[POD, REMOTE], sticky);
                world.sync();
                let first = world.answers(from, protocol, to);
                assert_eq!(first.len(), 1, "{from} {protocol} {to}: {first:?}");
                let is_local = first.iter().all(|answer| answer.starts_with("local"));
                let (own, other) = if is_local { (POD, REMOTE) } else { (REMOTE, POD) };
                world.service(1, &[own], sticky);
                world.sync();
                assert_eq!(world.answers(from, protocol, to), first);
                world.service(1, &[POD, REMOTE, ["10.244.1.77", "fd00:10:244:1::77"]], sticky);
                world.sync();
                assert_eq!(world.answers(from, protocol, to), first);
                world.service(1, &[other], sticky);
                world.sync();
                let moved = world.answers(from, protocol, to);
                assert!(moved.len() == 1 && moved != first, "{from} {protocol} {to}: {moved:?}");
                world.service(1, &[POD, REMOTE], sticky);
                world.sync();
                assert_eq!(world.answers(from, protocol, to), moved);
            }
        }
    }
}

fn udp(world: &World, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = world.net.within("client", || UdpSocket::bind(any).unwrap());
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    let mut buffer = [0; 512];
    socket.send(b"hi\n")?;
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap_or_default().to_owned())
}

/// A client that goes on sending from one port follows at once; one whose endpoint serves is not touched.
#[test]
fn stale_udp_flows_are_forgotten_and_no_others() {
    let mut world = World::new();
    for family in 0..2 {
        let (to, steady) = (at(&vip(1)[family], 80), at(&vip(2)[family], 80));
        world.service(1, &[POD], |_| {});
        world.service(2, &[POD], |_| {});
        world.sync();
        let (flow, other) = (udp(&world, to), udp(&world, steady));
        assert_eq!((ask(&flow).unwrap().as_str(), ask(&other).unwrap().as_str()), ("local", "local"));
        let family = if to.is_ipv4() { seaway_nft::Family::Ip } else { seaway_nft::Family::Ip6 };
        let id = |world: &World| {
            let flows = world.net.within("node", || seaway_nft::conntrack::flows(Some(family), 17).unwrap());
            let found = flows.iter().find(|flow| flow.original.destination == steady);
            found.and_then(|flow| flow.id)
        };
        let before = id(&world);
        assert!(before.is_some());
        // The endpoint moves.
        world.service(1, &[REMOTE], |_| {});
        world.sync();
        assert_eq!(ask(&flow).unwrap(), "remote");
        // The last one goes: refused at once, not sent into nothing.
        world.service(1, &[], |_| {});
        world.sync();
        let refused = eventually("the flow is refused", || match ask(&flow) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(error.kind()),
            other => Err(other),
        });
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        // And comes back.
        world.service(1, &[POD], |_| {});
        world.sync();
        assert_eq!(eventually("an answer", || ask(&flow)), "local");
        // The Service goes, and with it the flow.
        world.snapshot.services.remove(&ServiceKey::new("default", "web-1"));
        world.snapshot.endpoints.remove(&ServiceKey::new("default", "web-1"));
        world.sync();
        assert!(ask(&flow).is_err());
        assert_eq!(id(&world), before, "a flow that has not changed is the same still");
        assert_eq!(ask(&other).unwrap(), "local");
    }
}

/// A client that began before the Service had an endpoint is not left behind.
#[test]
fn flows_that_began_before_the_service_are_translated() {
    let mut world = World::new();
    world.sync();
    let to = at(&vip(1)[0], 80);
    let flow = udp(&world, to);
    // The node forwards it into nothing, and remembers that it did.
    assert!(ask(&flow).is_err());
    world.service(1, &[POD], |_| {});
    world.sync();
    assert_eq!(eventually("an answer", || ask(&flow)), "local");
}

/// Endpoints that are gone, a new process, tables made anew: connections go on.
#[test]
fn open_connections_outlive_changes_and_restarts() {
    let mut world = World::new();
    world.service(1, &[POD], |_| {});
    world.service(2, &[REMOTE], |_| {});
    assert!(world.sync() > 0);
    for family in 0..2 {
        let to = at(&vip(1)[family], 80);
        let mut open = world.net.within("client", || TcpStream::connect(to).unwrap());
        open.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut check = || assert!(talk(&mut open).unwrap().starts_with("local "));
        check();
        assert_eq!(world.sync(), 0, "a successor has nothing to do");
        check();
        // Somebody meddles: all is as before after the next look, and nothing was interrupted.
        world.nft("flush chain ip seaway-proxy prerouting");
        world.nft("flush map ip6 seaway-proxy inside");
        check();
        assert!(world.sync() > 0);
        assert_eq!(world.sync(), 0);
        check();
        assert!(world.ask("client", Protocol::Tcp, to).unwrap().starts_with("local "));
        world.nft("delete table ip seaway-proxy");
        assert!(world.sync() > 0);
        check();
        world.service(1, &[REMOTE], |_| {});
        world.sync();
        check();
        assert!(world.ask("client", Protocol::Tcp, to).unwrap().starts_with("remote "));
        world.service(1, &[POD], |_| {});
        world.sync();
    }
}

/// One port of a client towards two addresses of one backend: two connections that differ in nothing behind the node.
#[test]
fn one_client_port_reaches_one_backend_by_two_addresses() {
    let mut world = World::new();
    world.service(1, &[REMOTE], |_| {});
    world.service(2, &[REMOTE], |_| {});
    world.service(3, &[POD], |service| service.external_policy = TrafficPolicy::Local);
    world.sync();
    for (from, index) in [("client", 1), ("pod", 1), ("client", 3)] {
        for family in 0..2 {
            let (first, second) = match from {
                "pod" => (at(&cluster_ip(1)[family], 80), at(&cluster_ip(2)[family], 80)),
                _ => (at(&vip(index)[family], 80), at(NODE[family], 30_000 + u16::from(index))),
            };
            let connect = |local: SocketAddr, to: SocketAddr| {
                world.net.within(from, || {
                    let domain = socket2::Domain::for_address(to);
                    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
                    socket.set_reuse_address(true).unwrap();
                    socket.bind(&local.into()).unwrap();
                    socket.connect_timeout(&to.into(), Duration::from_secs(2)).unwrap();
                    let stream = TcpStream::from(socket);
                    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    stream
                })
            };
            let any: SocketAddr = if family == 0 { "0.0.0.0:4711" } else { "[::]:4711" }.parse().unwrap();
            let mut first = connect(any, first);
            let mut other = connect(any, second);
            assert_eq!(first.local_addr().unwrap().port(), other.local_addr().unwrap().port());
            assert_eq!(talk(&mut first).unwrap(), talk(&mut other).unwrap(), "{from} {index} {family}");
        }
    }
}

/// The tables as a person sees them. Cleaning up removes them, and nothing else.
#[test]
fn the_tables_are_ours_and_readable() {
    let mut world = World::new();
    world.nft("add table ip other");
    world.service(1, &[POD, REMOTE], |service| {
        service.session_affinity = Some(Duration::from_secs(60));
        service.source_ranges = vec!["172.30.7.0/24".parse().unwrap()];
    });
    world.sync();
    assert!(world.ask("client", Protocol::Tcp, at(&vip(1)[0], 80)).is_ok());
    let listed = world.nft("list table ip seaway-proxy");
    for part in
        ["chain prerouting", "10.96.0.1 . tcp . 80", "172.30.7.0/24", "numgen random mod 2", "fully-random"]
    {
        assert!(listed.contains(part), "{part} is missing in\n{listed}");
    }
    let config = seaway_proxy::ProxyConfig::new("node", "", "/nonexistent/seaway");
    world.net.within("node", || seaway_proxy::cleanup(&config)).unwrap();
    assert_eq!(world.nft("list tables").trim(), "table ip other");
}
