//! The userspace data plane with real sockets: the battery, and traffic end to end. Needs root for the namespaces; the
//! data plane itself needs no privilege.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "support/all.rs"]
mod support;
#[path = "battery/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laws::dataplane_battery;
use seaway_model::Protocol;
use seaway_proxy::Mode;
use seaway_proxy::dataplane::userspace::{Limits, Network, Userspace};
use seaway_proxy::dataplane::{Applied, Dataplane, DataplaneError};
use seaway_proxy::plan::{Actual, Plan};
use support::net::{Net, eventually, talk};
use support::services::{World, at, cluster, cluster_ip, node_port, service, vip, whole_plan};

/// Addresses that are local to the node by a route.
fn make_local(net: &Net, v4: &[&str], v6: &[&str]) {
    for range in v4 {
        net.ip("node", &format!("route add local {range} dev lo"));
    }
    for range in v6 {
        net.ip("node", &format!("-6 route add local {range} dev lo"));
    }
}

/// Sockets in a network namespace.
struct Inside {
    net: Arc<Net>,
    userspace: Arc<Mutex<Option<Userspace<Network>>>>,
}

impl Dataplane for Inside {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.userspace.lock().unwrap().as_mut().unwrap().read()
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        self.net.within("node", || self.userspace.lock().unwrap().as_mut().unwrap().apply(plan))
    }
}

fn make() -> impl Fn() -> Inside {
    let net = Arc::new(Net::new());
    make_local(
        &net,
        &["10.96.0.0/16", "192.0.2.0/24", "172.30.0.0/24"],
        &["fd00:10:96::/112", "2001:db8::/64", "fd00:10:30::/64"],
    );
    move || {
        let userspace = net.within("node", || Userspace::open(Limits::default()).unwrap());
        Inside { net: Arc::clone(&net), userspace: Arc::new(Mutex::new(Some(userspace))) }
    }
}

dataplane_battery!(userspace_sockets, 16, make());

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn world() -> World {
    let world = World::new(Mode::Userspace);
    make_local(&world.net, &["10.96.0.0/16"], &["fd00:10:96::/112"]);
    for index in 1..8 {
        make_local(&world.net, &[&format!("172.30.7.{}", 200 + index)], &[&format!("fd00:7::c{index:x}")]);
    }
    world
}

#[test]
fn traffic_follows_from_everywhere() {
    let world = world();
    let running = world.serve(cluster());
    for v6 in [false, true] {
        let loopback = if v6 { "::1" } else { "127.0.0.1" };
        for protocol in BOTH {
            for ns in ["node", "pod", "client"] {
                for (index, who) in [(1, "local "), (2, "remote ")] {
                    for to in [node_port(index, v6), vip(index, v6)] {
                        assert!(world.ask(ns, protocol, to).starts_with(who), "{protocol} from {ns} to {to}");
                    }
                }
            }
            for ns in ["node", "pod"] {
                assert!(world.ask(ns, protocol, cluster_ip(1, v6)).starts_with("local "));
                assert!(world.ask(ns, protocol, cluster_ip(2, v6)).starts_with("remote "));
            }
            assert!(world.ask("node", protocol, at(loopback, 30_001)).starts_with("local "));
            // From inside all endpoints serve; from outside policy Local is refused by name, and by a reset.
            let seen = |_| world.ask("node", protocol, vip(4, v6)).split(' ').next().unwrap().to_owned();
            assert_eq!((0..24).map(seen).collect::<BTreeSet<_>>().len(), 2);
        }
        let outside = world.try_ask("client", Protocol::Tcp, vip(4, v6));
        assert!(outside.as_ref().map_or(true, String::is_empty), "{outside:?} {:?}", running.status.status());
        for (ns, to) in
            [("node", cluster_ip(3, v6)), ("pod", cluster_ip(3, v6)), ("client", node_port(3, v6))]
        {
            for protocol in BOTH {
                let refused = world.try_ask(ns, protocol, to).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{protocol} from {ns} to {to}");
            }
        }
    }
    let error = running.status.status().last_error.unwrap();
    assert!(error.contains("not supported by userspace"), "{error}");
    running.stop();
}

#[test]
fn what_is_not_local_is_refused_by_name_and_the_rest_is_served() {
    let world = World::new(Mode::Userspace);
    let running = world.serve(cluster());
    let error = running.status.status().last_error.unwrap();
    assert!(error.contains("not local to this network namespace"), "{error}");
    assert!(world.ask("client", Protocol::Tcp, node_port(1, false)).starts_with("local "));
    // The address appears: it is served.
    make_local(&world.net, &["10.96.0.0/16"], &[]);
    assert!(world.ask("node", Protocol::Tcp, cluster_ip(1, false)).starts_with("local "));
    running.stop();
}

#[test]
fn connections_outlive_their_backend_and_udp_moves() {
    let world = world();
    let running = world.serve(cluster());
    let to = node_port(1, false);
    world.ask("client", Protocol::Tcp, to);
    let mut open = world.net.within("client", || TcpStream::connect(to).unwrap());
    assert!(talk(&mut open).unwrap().starts_with("local "));
    let udp = world.net.datagrams("client", to);
    udp.hears("a first UDP answer", &Ok("local".into()));
    let mut moved = cluster();
    service(&mut moved, 1, &["remote"], |_| {});
    world.tell(moved.clone());
    eventually("new connections follow", || {
        let answer = world.net.ask_tcp("client", to).unwrap();
        if answer.starts_with("remote ") { Ok(()) } else { Err(answer) }
    });
    udp.hears("the UDP flow follows", &Ok("remote".into()));
    assert!(talk(&mut open).unwrap().starts_with("local "));
    // None is left: refused at once, and the open connection still stays.
    service(&mut moved, 1, &[], |_| {});
    world.tell(moved);
    eventually("refused", || match world.net.ask_tcp("client", to) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(other),
    });
    assert!(talk(&mut open).unwrap().starts_with("local "));
    running.stop();
}

#[test]
fn affinity_ranges_and_a_backend_that_refuses() {
    let world = world();
    let mut snapshot = cluster();
    let ranges = |text: &str| vec![text.parse().unwrap()];
    service(&mut snapshot, 6, &["local", "remote"], |s| s.session_affinity = Some(Duration::from_secs(60)));
    service(&mut snapshot, 7, &["local"], |s| s.source_ranges = ranges("203.0.113.0/24"));
    let running = world.serve(snapshot.clone());
    let who =
        |to: SocketAddr, protocol| world.ask("client", protocol, to).split(' ').next().unwrap().to_owned();
    for protocol in BOTH {
        let first = who(vip(6, false), protocol);
        for _ in 0..8 {
            assert_eq!(who(vip(6, false), protocol), first);
            assert_eq!(who(node_port(6, false), protocol), first);
        }
    }
    let stranger = world.try_ask("client", Protocol::Tcp, vip(7, false));
    assert!(stranger.as_ref().map_or(true, String::is_empty), "{stranger:?}");
    assert!(world.ask("client", Protocol::Tcp, node_port(7, false)).starts_with("local "));
    assert!(world.ask("node", Protocol::Tcp, vip(7, false)).starts_with("local "));
    eventually("the refusal is counted", || {
        let drops = running.status.status().drops;
        if drops.iter().any(|drop| drop.reason == "source_range") { Ok(()) } else { Err(drops) }
    });
    // One of two backends refuses connections: clients do not notice.
    let dead = |set: &Arc<seaway_model::EndpointSet>| {
        let mut set = (**set).clone();
        let mut extra = set.endpoints[0].clone();
        extra.addr = "172.30.7.12".parse().unwrap();
        set.endpoints = set.endpoints.iter().cloned().chain([extra]).collect();
        Arc::new(set)
    };
    let key = seaway_model::ServiceKey::new("default", "web-1");
    let endpoints = dead(&snapshot.endpoints[&key]);
    snapshot.endpoints.insert(key, endpoints);
    world.tell(snapshot);
    eventually("two backends", || {
        let status = running.status.status();
        if status.backends > 0 { Ok(()) } else { Err(status.backends) }
    });
    for _ in 0..16 {
        assert!(world.net.ask_tcp("client", node_port(1, false)).unwrap().starts_with("local "));
    }
    running.stop();
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<String>>);

impl seaway_proxy::Reporter for Heard {
    fn warn(&self, notice: seaway_proxy::Notice) {
        self.0.lock().unwrap().push(format!("{} {}: {}", notice.name, notice.reason, notice.message));
    }
}

/// Where a process of the node listens already, that one address is not served, its Service is told, and it is served
/// once the process has gone.
#[test]
fn an_address_that_is_taken_keeps_nothing_else_from_being_served() {
    let world = world();
    let taken = world.net.within("node", || std::net::TcpListener::bind(node_port(1, false)).unwrap());
    let heard = Arc::new(Heard::default());
    let mut config = seaway_proxy::ProxyConfig::new("node", "", "");
    config.reporter = Some(Arc::<Heard>::clone(&heard));
    let running = world.start_with(config);
    world.tell(cluster());
    for to in [node_port(2, false), vip(1, false), node_port(1, true)] {
        world.ask("client", Protocol::Tcp, to);
    }
    eventually("the Service is told", || {
        let said = heard.0.lock().unwrap().clone();
        let told = |line: &String| {
            line.starts_with("web-1 AddressConflict: 172.30.7.11:30001/TCP")
                && line.contains("another process of the node listens there")
        };
        if said.iter().any(told) { Ok(()) } else { Err(said) }
    });
    drop(taken);
    eventually("it is served", || {
        let answer = world.net.ask_tcp("client", node_port(1, false)).map_err(|error| error.to_string())?;
        if answer.starts_with("local ") { Ok(()) } else { Err(answer) }
    });
    running.stop();
}

/// A successor listens before the former one lets go: whoever connects meanwhile is served.
#[test]
fn a_hand_over_loses_no_new_connection() {
    let world = world();
    let former = world.serve(cluster());
    let to = node_port(1, false);
    world.ask("client", Protocol::Tcp, to);
    let (done, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, failures) = (Arc::clone(&done), Arc::clone(&failures));
            let (sender, ended) = std::sync::mpsc::channel();
            world.net.spawn_within("client", move || {
                let mut count = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    if let Err(error) = once(to) {
                        failures.lock().unwrap().push(error.to_string());
                    }
                    count += 1;
                }
                sender.send(count).unwrap();
            });
            ended
        })
        .collect();
    let mut running = former;
    for _ in 0..3 {
        let successor = world.start();
        eventually("the successor serves", || {
            successor.status.status().synced.then_some(()).ok_or(successor.status.status().last_error)
        });
        std::mem::replace(&mut running, successor).stop();
    }
    done.store(true, Ordering::Relaxed);
    let served: u32 = clients.iter().map(|ended| ended.recv_timeout(Duration::from_secs(10)).unwrap()).sum();
    let failures = failures.lock().unwrap();
    assert!(served > 20, "{served}");
    assert!(failures.is_empty(), "{} of {served} failed: {:?}", failures.len(), failures.first());
    running.stop();
}

fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    connection.write_all(b"hi\n")?;
    let mut byte = [0];
    connection.read_exact(&mut byte)
}

/// Connections beyond the limit are turned away; those that are there go on, and room comes back.
#[test]
fn the_number_of_connections_is_bounded() {
    let net = Net::new();
    net.serve("pod", "local", at("10.244.1.5", 8080));
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let mut userspace = net.within("node", || Userspace::open(limits).unwrap());
    net.within("node", || userspace.apply(&whole_plan()).unwrap());
    let to = node_port(1, false);
    let connect = || net.within("client", || TcpStream::connect(to).unwrap());
    let (mut first, mut second) = (connect(), connect());
    assert!(talk(&mut first).unwrap().starts_with("local "));
    assert!(talk(&mut second).unwrap().starts_with("local "));
    assert!(talk(&mut connect()).map_or(true, |said| said.is_empty()));
    assert!(userspace.drops().iter().any(|drop| drop.reason == "userspace_full"));
    drop(first);
    eventually("room comes back", || {
        let said = talk(&mut connect()).unwrap_or_default();
        if said.starts_with("local ") { Ok(()) } else { Err(said) }
    });
    assert!(talk(&mut second).unwrap().starts_with("local "));
    drop(second);
    let started = Instant::now();
    while userspace.network().busy() > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "tasks are left");
        std::thread::yield_now();
    }
}
