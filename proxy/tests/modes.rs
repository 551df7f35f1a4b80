//! What Kubernetes promises of Services, with packets, the same for every mode: as a client outside meets it, in both
//! families. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, HostPod, HostPort, Protocol, Service, ServiceKey, ServiceKind,
    Snapshot, TargetPod,
};
use seaway_proxy::Mode;
use support::kernel::Place;
use support::net::{Datagrams, eventually, talk};
use support::services::{
    LOCAL, NODE, REMOTE, Running, World, at, cluster, cluster_ip, node_port, service, vip,
};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Behind the node, by a route.
const EXTERNAL: [&str; 2] = ["198.51.100.20", "2001:db8:5::20"];

/// A proxy in a mode, and a client that has routes to everything that it serves.
struct Scene {
    world: World,
    running: Running,
    _place: Place,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let (place, world) = (Place::new(), World::new(mode));
        let nets = [("10.96.0.0/16", "fd00:10:96::/112"), ("198.51.100.0/24", "2001:db8:5::/64")];
        for (v4, v6) in nets {
            world.net.ip("client", &format!("route add {v4} via {}", NODE[0]));
            world.net.ip("client", &format!("-6 route add {v6} via {}", NODE[1]));
        }
        // What listens in user space needs addresses of the node's own.
        if mode == Mode::Userspace {
            for (v4, v6) in nets.into_iter().chain([("172.30.7.200/29", "fd00:7::c0/125")]) {
                world.net.ip("node", &format!("route add local {v4} dev lo"));
                world.net.ip("node", &format!("-6 route add local {v6} dev lo"));
            }
        }
        no_redirects(&world);
        reserve_ports(&world);
        let running = world.serve_at(&place.cgroup, &place.bpffs, cluster());
        Self { world, running, _place: place }
    }

    /// Tells the proxy of Service 6 instead, with these endpoints.
    fn tell(&self, endpoints: &[&str], change: impl FnOnce(&mut Service)) {
        let mut snapshot = cluster();
        service(&mut snapshot, 6, endpoints, change);
        self.world.tell(snapshot);
    }

    /// Who answers, for once.
    fn who(&self, protocol: Protocol, to: SocketAddr) -> Result<String, ErrorKind> {
        let answer = self.world.try_ask("client", protocol, to).map_err(|error| error.kind())?;
        Ok(answer.split(' ').next().unwrap().to_owned())
    }

    /// Waits until `name` answers.
    fn answered_by(&self, name: &str, protocol: Protocol, to: SocketAddr) {
        eventually(&format!("{name} answers {protocol} at {to}"), || match self.who(protocol, to) {
            Ok(who) if who == name => Ok(()),
            other => Err(other),
        });
    }

    fn refused(&self, protocol: Protocol, to: SocketAddr) {
        eventually(&format!("{protocol} to {to} is refused"), || match self.who(protocol, to) {
            Err(ErrorKind::ConnectionRefused) => Ok(()),
            other => Err(other),
        });
    }

    /// Waits until nobody answers, however that is told.
    fn nobody_at(&self, to: SocketAddr) {
        eventually(&format!("nobody at {to}"), || match self.who(Protocol::Tcp, to) {
            Err(_) => Ok(()),
            Ok(who) if who.is_empty() => Ok(()),
            Ok(who) => Err(who),
        });
    }

    fn udp(&self, to: SocketAddr) -> Datagrams {
        self.world.net.datagrams("client", to)
    }
}

/// Ports that no connection of the node's is to come from.
const RESERVED: std::ops::RangeInclusive<u16> = 2000..=2100;

/// The second range has no source NAT give ports above the NodePorts: then it has to go around the first one.
fn reserve_ports(world: &World) {
    world.net.within("node", || {
        let text = format!("{}-{},45000-45001", RESERVED.start(), RESERVED.end());
        std::fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", text).unwrap();
    });
}

/// What nobody serves the node sends on to its gateway in the same network: it would tell the client to go there itself,
/// and nothing else for a while.
fn no_redirects(world: &World) {
    for (ns, names) in [
        ("client", &["ipv4/conf/all/accept_redirects", "ipv6/conf/eth0/accept_redirects"][..]),
        ("client", &["ipv4/conf/eth0/accept_redirects", "ipv6/conf/all/accept_redirects"]),
        ("node", &["ipv4/conf/all/send_redirects", "ipv4/conf/eth0/send_redirects"]),
    ] {
        world.net.within(ns, || {
            for name in names {
                std::fs::write(format!("/proc/sys/net/{name}"), "0").unwrap();
            }
        });
    }
}

/// A client keeps its backend while others come and go, in the moment of the change as well; when its own goes, it gets
/// another and keeps that.
fn affinity_survives_changes_of_endpoints(scene: &Scene) {
    let sticky = |service: &mut Service| service.session_affinity = Some(Duration::from_secs(60));
    // Families are written one after the other in some modes: all have to have followed before the next step, or what
    // is left of the former one would be taken for a broken promise.
    let backends = || scene.running.status.status().backends;
    let none = backends();
    let applied = |what: &dyn Fn(usize) -> bool| {
        eventually(
            "the change is applied",
            || if what(backends()) { Ok(backends()) } else { Err(backends()) },
        )
    };
    scene.tell(&["local"], sticky);
    let one = applied(&|count| count != none);
    let both = one + (one - none);
    let alone = |name: &str| {
        scene.tell(&[name], sticky);
        for (protocol, v6) in every_path() {
            scene.answered_by(name, protocol, vip(6, v6));
        }
        applied(&|count| count == one);
    };
    for (protocol, v6) in every_path() {
        let to = vip(6, v6);
        let asked_while = |name: &str, when: &str, more: &mut dyn FnMut() -> bool| {
            let mut heard = Vec::new();
            while more() {
                heard.push(scene.who(protocol, to));
                let stays = heard.last().is_some_and(|who| who.as_deref() == Ok(name));
                assert!(stays, "{protocol} to {to} {when}, of {name}: {heard:?}");
            }
        };
        let joined_by_another = |name: &str, when: &str| {
            let deadline = Instant::now() + Duration::from_secs(30);
            scene.tell(&["local", "remote"], sticky);
            asked_while(name, when, &mut || {
                assert!(Instant::now() < deadline, "the change is not applied");
                backends() != both
            });
            let mut left = 12;
            asked_while(name, when, &mut || {
                left -= 1;
                left >= 0
            });
        };
        alone("local");
        joined_by_another("local", "when another has come");
        alone("remote");
        joined_by_another("remote", "when its former one has come back");
    }
}

/// Both protocols in both families.
fn every_path() -> impl Iterator<Item = (Protocol, bool)> {
    [false, true].into_iter().flat_map(|v6| BOTH.map(|protocol| (protocol, v6)))
}

/// A client that has been silent for longer than the timeout is anybody's again.
fn affinity_ends_with_its_timeout(scene: &Scene) {
    const TIMEOUT: Duration = Duration::from_secs(1);
    scene.tell(&["local", "remote"], |service| service.session_affinity = Some(TIMEOUT));
    let paths: Vec<(Protocol, SocketAddr)> = every_path().map(|(p, v6)| (p, vip(6, v6))).collect();
    let mut heard: Vec<BTreeSet<String>> = vec![BTreeSet::new(); paths.len()];
    eventually("both endpoints have answered everywhere", || {
        for ((protocol, to), heard) in paths.iter().zip(&mut heard) {
            heard.extend(scene.who(*protocol, *to).ok());
        }
        if heard.iter().all(|names| names.len() == 2) {
            return Ok(());
        }
        std::thread::sleep(TIMEOUT + Duration::from_millis(200));
        Err(heard.clone())
    });
}

/// The port that an endpoint is asked from is no NodePort, none of the well-known and none that is reserved, whatever port the client has: what
/// answers would be taken for a request.
fn source_ports_keep_off_node_ports(scene: &Scene) {
    const PORT: u16 = 8099;
    for addr in REMOTE {
        let listener = scene.world.net.within("other", || TcpListener::bind(at(addr, PORT)).unwrap());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                let port = connection.peer_addr().unwrap().port();
                // What has not been read when it closes would be answered with a reset.
                let _read = BufReader::new(&connection).read_line(&mut String::new());
                let _written = connection.write_all(format!("{port}\n").as_bytes());
            }
        });
    }
    let mut snapshot = cluster();
    service(&mut snapshot, 6, &["remote"], |_| {});
    change_endpoints(&mut snapshot, |set| set.iter().map(|endpoint| at_port(endpoint, PORT)).collect());
    scene.world.tell(snapshot);
    for v6 in [false, true] {
        let any = if v6 { "::" } else { "0.0.0.0" };
        for own in [600, 2050, 30_006, 31_000, 32_767] {
            let port = eventually(&format!("an answer to port {own}, IPv6 {v6}"), || {
                let to = node_port(6, v6);
                let mut connection = scene.world.net.within("client", || connect(at(any, own), to))?;
                talk(&mut connection)?.parse::<u16>().map_err(std::io::Error::other)
            });
            let free = port >= 1024 && !(30_000..=32_767).contains(&port) && !RESERVED.contains(&port);
            assert!(free, "port {own} of the client became {port}");
        }
    }
}

/// A connection from `own`.
fn connect(own: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

fn at_port(endpoint: &Endpoint, port: u16) -> Endpoint {
    let ports = endpoint.ports.iter().map(|held| EndpointPort { port, ..held.clone() });
    Endpoint { ports: ports.collect(), ..endpoint.clone() }
}

/// UDP from one port follows the endpoints, is refused at once when the last is gone, and served again when one is there.
/// A flow beside it stays as it is.
fn udp_flows_follow_also_down_to_none(scene: &Scene) {
    for v6 in [false, true] {
        let (flow, steady) = (scene.udp(vip(6, v6)), scene.udp(node_port(1, v6)));
        steady.hears("the other flow", &Ok("local".into()));
        for endpoints in [&["local"][..], &["remote"], &[], &["local"], &[], &["remote"]] {
            scene.tell(endpoints, |_| {});
            let wanted = endpoints.first().map(|name| (*name).to_owned()).ok_or(ErrorKind::ConnectionRefused);
            flow.hears(&format!("{endpoints:?}"), &wanted);
        }
        assert_eq!(steady.ask(b"hi\n"), Ok("local".into()));
    }
}

/// A draining endpoint gets no new connections and keeps those that it has, until and after it has left the list.
fn draining_endpoints_keep_their_connections(scene: &Scene) {
    for v6 in [false, true] {
        let to = vip(6, v6);
        scene.tell(&["local"], |_| {});
        scene.answered_by("local", Protocol::Tcp, to);
        let mut open = scene.world.net.within("client", || TcpStream::connect(to).unwrap());
        open.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert!(talk(&mut open).unwrap().starts_with("local "));
        let mut snapshot = cluster();
        service(&mut snapshot, 6, &["local", "remote"], |_| {});
        let drain = |endpoint: &Endpoint| {
            let terminating = endpoint.node.as_deref() == Some("node");
            Endpoint { ready: !terminating, terminating, ..endpoint.clone() }
        };
        change_endpoints(&mut snapshot, |set| set.iter().map(drain).collect());
        scene.world.tell(snapshot);
        scene.answered_by("remote", Protocol::Tcp, to);
        assert!((0..8).all(|_| scene.who(Protocol::Tcp, to).as_deref() == Ok("remote")));
        assert!(talk(&mut open).unwrap().starts_with("local "), "while it drains");
        scene.tell(&["remote"], |_| {});
        scene.answered_by("remote", Protocol::Tcp, to);
        assert!(talk(&mut open).unwrap().starts_with("local "), "after it has left the list");
    }
}

fn change_endpoints(snapshot: &mut Snapshot, change: impl FnOnce(&[Endpoint]) -> Vec<Endpoint>) {
    let key = ServiceKey::new("default", "web-6");
    let endpoints = change(&snapshot.endpoints[&key].endpoints).into();
    snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints }));
}

/// From every type to every other: what the type has not is served no more, what it has is.
fn types_change_in_every_direction(scene: &Scene) {
    let kinds = [
        Some(ServiceKind::ClusterIp),
        Some(ServiceKind::NodePort),
        Some(ServiceKind::LoadBalancer),
        Some(ServiceKind::ExternalName),
        None,
    ];
    let turn = |kind: Option<ServiceKind>| {
        let mut snapshot = cluster();
        service(&mut snapshot, 6, &["local"], |service| {
            let Some(kind) = kind else { return };
            service.kind = kind;
            if kind != ServiceKind::LoadBalancer {
                service.load_balancer = Vec::new();
            }
            if matches!(kind, ServiceKind::ClusterIp | ServiceKind::ExternalName) {
                service.ports.iter_mut().for_each(|port| port.node_port = None);
            }
            if kind == ServiceKind::ExternalName {
                service.cluster_ips = Vec::new();
            }
        });
        if kind.is_none() {
            snapshot.services.remove(&ServiceKey::new("default", "web-6"));
        }
        scene.world.tell(snapshot);
        let has = |kinds: &[ServiceKind]| kind.is_some_and(|kind| kinds.contains(&kind));
        for v6 in [false, true] {
            for (to, served) in [
                (cluster_ip(6, v6), !has(&[ServiceKind::ExternalName]) && kind.is_some()),
                (node_port(6, v6), has(&[ServiceKind::NodePort, ServiceKind::LoadBalancer])),
                (vip(6, v6), has(&[ServiceKind::LoadBalancer])),
            ] {
                if served {
                    for protocol in BOTH {
                        scene.answered_by("local", protocol, to);
                    }
                } else {
                    assert_ne!(quick(scene, to), Some("local".into()), "{kind:?} at {to}");
                }
            }
        }
    };
    // A walk around five types by each distance takes every step from one to another once.
    let mut at = 0;
    turn(kinds[at]);
    for distance in 1..kinds.len() {
        for _ in 0..kinds.len() {
            at = (at + distance) % kinds.len();
            turn(kinds[at]);
        }
    }
}

/// Who answers within a moment, once the proxy has had the time to follow.
fn quick(scene: &Scene, to: SocketAddr) -> Option<String> {
    eventually(&format!("nobody at {to}"), || match scene.udp(to).ask(b"hi\n") {
        Ok(who) => Err(who),
        Err(_) => Ok(None),
    })
}

/// The same name at another address: the former address is nobody's, the new one is served.
fn recreated_services_are_found_at_their_new_address(scene: &Scene) {
    for v6 in [false, true] {
        scene.tell(&["local"], |_| {});
        scene.answered_by("local", Protocol::Tcp, cluster_ip(6, v6));
        scene.tell(&["remote"], |service| {
            service.uid = "another".into();
            service.cluster_ips = vec![cluster_ip(7, false).ip(), cluster_ip(7, true).ip()];
        });
        for protocol in BOTH {
            scene.answered_by("remote", protocol, cluster_ip(7, v6));
        }
        scene.nobody_at(cluster_ip(6, v6));
    }
}

/// A Service without endpoints, and a port that a Service has not.
fn what_nobody_serves_is_refused(scene: &Scene) {
    scene.tell(&[], |service| {
        service.external_ips = EXTERNAL.map(|addr| addr.parse::<IpAddr>().unwrap()).into();
    });
    for v6 in [false, true] {
        for protocol in BOTH {
            let external = at(EXTERNAL[usize::from(v6)], 80);
            for to in [cluster_ip(6, v6), node_port(6, v6), vip(6, v6), external] {
                scene.refused(protocol, to);
            }
        }
    }
    for endpoints in [&[][..], &["local"]] {
        scene.tell(endpoints, |_| {});
        for (protocol, v6) in every_path() {
            if !endpoints.is_empty() {
                scene.answered_by("local", protocol, cluster_ip(6, v6));
            }
            scene.refused(protocol, SocketAddr::new(cluster_ip(6, v6).ip(), 81));
        }
    }
}

/// Datagrams larger than the MTU arrive, by endpoints here and elsewhere; and errors of an endpoint reach the client,
/// where no process lies between them.
fn fragments_and_errors_belong_to_their_connection(scene: &Scene, mode: Mode) {
    for v6 in [false, true] {
        for (index, who) in [(1, "local"), (2, "remote")] {
            for to in [node_port(index, v6), vip(index, v6)] {
                let flow = scene.udp(to);
                eventually(&format!("4000 bytes to {to}"), || match flow.ask(&[b'x'; 4000]) {
                    Ok(answer) if answer == who => Ok(()),
                    other => Err(other),
                });
            }
        }
    }
    if mode == Mode::Userspace {
        return;
    }
    for name in ["local", "remote"] {
        let mut snapshot = cluster();
        service(&mut snapshot, 6, &[name], |_| {});
        // Nobody listens there.
        change_endpoints(&mut snapshot, |set| set.iter().map(|endpoint| at_port(endpoint, 9)).collect());
        scene.world.tell(snapshot);
        for v6 in [false, true] {
            for protocol in BOTH {
                scene.refused(protocol, node_port(6, v6));
            }
        }
    }
}

/// One port of the client towards two addresses of one endpoint: two connections.
fn one_client_port_reaches_one_endpoint_by_two_addresses(scene: &Scene) {
    scene.tell(&["local"], |_| {});
    for index in [2, 6] {
        for v6 in [false, true] {
            let any: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
            let connect = |own, to| scene.world.net.within("client", || connect(own, to).unwrap());
            scene.answered_by(if index == 2 { "remote" } else { "local" }, Protocol::Tcp, vip(index, v6));
            let mut first = connect(any, vip(index, v6));
            let local = SocketAddr::new(any.ip(), first.local_addr().unwrap().port());
            let mut second = connect(local, node_port(index, v6));
            for _ in 0..3 {
                let who = [talk(&mut first).unwrap(), talk(&mut second).unwrap()];
                let who: BTreeSet<&str> = who.iter().map(|said| said.split(' ').next().unwrap()).collect();
                assert_eq!(who.len(), 1, "{index} {v6}");
            }
        }
    }
}

/// External addresses, and a pod's host port at the node's addresses.
fn external_addresses_and_host_ports_are_served(scene: &Scene, mode: Mode) {
    let mut snapshot = cluster();
    service(&mut snapshot, 6, &["remote"], |service| {
        service.external_ips = EXTERNAL.map(|addr| addr.parse::<IpAddr>().unwrap()).into();
    });
    let pod = TargetPod { namespace: "default".into(), name: "web".into() };
    let port = |protocol| HostPort { protocol, host_port: 88, host_ip: None, container_port: 8080 };
    let held = HostPod {
        pod: pod.clone(),
        uid: "".into(),
        addrs: LOCAL.map(|addr| addr.parse().unwrap()).into(),
        ports: BOTH.map(port).into(),
    };
    snapshot.host_pods.insert(pod, Arc::new(held));
    scene.world.tell(snapshot);
    for v6 in [false, true] {
        for protocol in BOTH {
            scene.answered_by("remote", protocol, at(EXTERNAL[usize::from(v6)], 80));
            // Clients keep their address at a host port, which a process that lies between cannot give them.
            if mode != Mode::Userspace {
                scene.answered_by("local", protocol, at(NODE[usize::from(v6)], 88));
            }
        }
    }
}

fn promises_hold(mode: Mode) {
    let scene = Scene::new(mode);
    affinity_survives_changes_of_endpoints(&scene);
    affinity_ends_with_its_timeout(&scene);
    source_ports_keep_off_node_ports(&scene);
    udp_flows_follow_also_down_to_none(&scene);
    draining_endpoints_keep_their_connections(&scene);
    recreated_services_are_found_at_their_new_address(&scene);
    what_nobody_serves_is_refused(&scene);
    fragments_and_errors_belong_to_their_connection(&scene, mode);
    one_client_port_reaches_one_endpoint_by_two_addresses(&scene);
    external_addresses_and_host_ports_are_served(&scene, mode);
    types_change_in_every_direction(&scene);
    scene.running.stop();
}

#[test]
fn ebpf_keeps_its_promises() {
    promises_hold(Mode::Ebpf);
}

#[test]
fn nftables_keeps_its_promises() {
    promises_hold(Mode::Nftables);
}

#[test]
fn iptables_keeps_its_promises() {
    promises_hold(Mode::Iptables);
}

#[test]
fn userspace_keeps_its_promises() {
    promises_hold(Mode::Userspace);
}
