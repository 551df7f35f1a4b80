//! The iptables data plane in the real kernel: the battery, and traffic end to end. Needs root and iptables.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "support/all.rs"]
mod support;
#[path = "battery/world.rs"]
mod world;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use laws::dataplane_battery;
use seaway_model::{Protocol, Snapshot};
use seaway_proxy::Mode;
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::dataplane::iptables::{self, Commands, Iptables};
use seaway_proxy::dataplane::{Applied, Dataplane, DataplaneError};
use seaway_proxy::plan::{Actual, Plan};
use support::net::{Net, eventually, talk};
use support::services::{CLIENT, LOCAL, NODE, World, at, cluster, cluster_ip, node_port, service, vip};

/// The tables of a network namespace of the test's own; all cases of a test share it, emptied in between.
#[derive(Clone)]
struct Inside {
    net: Arc<Net>,
    iptables: Arc<Mutex<Iptables<Commands>>>,
}

impl Inside {
    fn open() -> Self {
        let net = Net::new();
        let iptables = net.within("node", || Iptables::open().unwrap());
        Self { net: Arc::new(net), iptables: Arc::new(Mutex::new(iptables)) }
    }

    fn emptied(&self) -> Self {
        self.net.within("node", || iptables::remove_all().unwrap());
        assert_eq!(traces(&self.net), "");
        // A new process knows nothing.
        *self.iptables.lock().unwrap() = self.net.within("node", || Iptables::open().unwrap());
        self.clone()
    }
}

/// Everything in the tables that is ours.
fn traces(net: &Net) -> String {
    net.within("node", || {
        let mut all = String::new();
        for program in ["iptables-save", "ip6tables-save"] {
            let output = Command::new(program).output().unwrap();
            all.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        all.lines().filter(|line| line.contains("SEAWAY")).collect::<Vec<_>>().join("\n")
    })
}

impl Dataplane for Inside {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.net.within("node", || self.iptables.lock().unwrap().read())
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        self.net.within("node", || self.iptables.lock().unwrap().apply(plan))
    }
}

fn make() -> impl Fn() -> Inside {
    let inside = Inside::open();
    move || inside.emptied()
}

dataplane_battery!(iptables_in_the_kernel, 6, make());

#[test]
fn faulty_iptables_converges() {
    let inside = Inside::open();
    laws::it_converges(|| Faulty::new(inside.emptied(), 10, 5), 4);
}

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn traffic_follows_from_everywhere() {
    let world = World::new(Mode::Iptables);
    let running = world.serve(cluster());
    for v6 in [false, true] {
        let (node, client) = (NODE[usize::from(v6)], CLIENT[usize::from(v6)]);
        let pod = LOCAL[usize::from(v6)];
        for protocol in BOTH {
            let ask = |ns: &str, to: SocketAddr| world.ask(ns, protocol, to);
            // ClusterIPs from the node and from a pod, which keeps its address; and a pod that reaches itself.
            assert!(ask("node", cluster_ip(1, v6)).starts_with("local "));
            assert_eq!(ask("node", cluster_ip(2, v6)), format!("remote {node}"));
            assert_eq!(ask("pod", cluster_ip(2, v6)), format!("remote {pod}"));
            assert!(ask("pod", cluster_ip(1, v6)).starts_with("local "));
            // NodePorts and load balancer addresses: backends see this node.
            for to in [node_port(1, v6), vip(1, v6)] {
                assert_eq!(ask("client", to), format!("local {node}"));
                assert!(ask("node", to).starts_with("local "));
            }
            for to in [node_port(2, v6), vip(2, v6)] {
                assert_eq!(ask("client", to), format!("remote {node}"));
                assert_eq!(ask("pod", to), format!("remote {node}"));
            }
            // Policy Local: from outside the local endpoint only; from inside all.
            let mut inside = std::collections::BTreeSet::new();
            for _ in 0..16 {
                assert_eq!(ask("client", vip(4, v6)), format!("local {client}"));
                inside.insert(ask("node", vip(4, v6)).split(' ').next().unwrap().to_owned());
            }
            assert_eq!(inside.len(), 2, "{inside:?}");
        }
    }
    // At loopback, where the kernel allows it; the rest is refused by name.
    assert!(world.ask("node", Protocol::Tcp, at("127.0.0.1", 30_001)).starts_with("local "));
    assert!(world.ask("node", Protocol::Tcp, at("127.0.0.1", 30_002)).starts_with("remote "));
    assert!(world.ask("node", Protocol::Udp, at("127.0.0.1", 30_002)).starts_with("remote "));
    eventually("what goes to loopback addresses is counted", || {
        let counted = running.metric("kubeproxy_iptables_localhost_nodeports_accepted_packets_total");
        if counted >= 3.0 { Ok(()) } else { Err(counted) }
    });
    let error = running.status.status().last_error.unwrap();
    assert!(error.contains("::1") && error.contains("not supported by iptables"), "{error}");
    running.stop();
}

#[test]
fn what_nobody_serves_is_refused_at_once_and_strangers_stay_out() {
    let world = World::new(Mode::Iptables);
    let mut snapshot = cluster();
    let ranges = |texts: [&str; 2]| texts.iter().map(|text| text.parse().unwrap()).collect();
    service(&mut snapshot, 6, &["local"], |s| s.source_ranges = ranges(["203.0.113.0/24", "2001:db8::/32"]));
    service(&mut snapshot, 7, &["local"], |s| s.source_ranges = ranges(["172.30.7.0/24", "fd00:7::/64"]));
    let running = world.serve(snapshot);
    for v6 in [false, true] {
        let undefined = SocketAddr::new(cluster_ip(1, v6).ip(), 81);
        for (ns, to) in [
            ("node", cluster_ip(3, v6)),
            ("pod", cluster_ip(3, v6)),
            ("node", undefined),
            ("pod", undefined),
            ("client", node_port(3, v6)),
            ("client", vip(3, v6)),
        ] {
            for protocol in BOTH {
                let started = Instant::now();
                let refused = world.try_ask(ns, protocol, to).unwrap_err().kind();
                // A datagram that its own node rejects never leaves: the sender is told so.
                let own = ns == "node" && protocol == Protocol::Udp && refused == ErrorKind::PermissionDenied;
                assert!(own || refused == ErrorKind::ConnectionRefused, "{protocol} {ns} {to}: {refused:?}");
                assert!(started.elapsed() < Duration::from_secs(1), "{protocol} from {ns} to {to}");
            }
        }
        // Others have an endpoint: this node keeps silent.
        for to in [node_port(5, v6), vip(6, v6)] {
            let silent = world.try_ask("client", Protocol::Tcp, to).unwrap_err();
            assert_eq!(silent.kind(), ErrorKind::TimedOut, "{to}");
        }
        for to in [node_port(6, v6), vip(7, v6)] {
            assert!(world.ask("client", Protocol::Tcp, to).starts_with("local "));
        }
        assert!(world.ask("node", Protocol::Tcp, vip(6, v6)).starts_with("local "), "nodes are no strangers");
    }
    running.stop();
}

#[test]
fn clients_keep_their_backend() {
    let world = World::new(Mode::Iptables);
    let mut snapshot = cluster();
    service(&mut snapshot, 6, &["local", "remote"], |s| s.session_affinity = Some(Duration::from_secs(60)));
    let running = world.serve(snapshot.clone());
    let both = |ns: &str, to: SocketAddr, protocol| {
        world.ask(ns, protocol, to).split(' ').next().unwrap().to_owned()
    };
    for v6 in [false, true] {
        for protocol in BOTH {
            let first = both("client", vip(6, v6), protocol);
            for _ in 0..8 {
                assert_eq!(both("client", vip(6, v6), protocol), first);
                assert_eq!(both("client", node_port(6, v6), protocol), first, "one client, one backend");
            }
        }
    }
    // Without affinity both get their share, and with it again one.
    service(&mut snapshot, 6, &["local", "remote"], |_| {});
    world.tell(snapshot);
    eventually("both backends", || {
        let seen: std::collections::BTreeSet<String> =
            (0..32).map(|_| both("client", vip(6, false), Protocol::Tcp)).collect();
        if seen.len() == 2 { Ok(()) } else { Err(seen) }
    });
    running.stop();
}

#[test]
fn changes_are_followed_and_a_restart_breaks_nothing() {
    let world = World::new(Mode::Iptables);
    let running = world.serve(cluster());
    let to = vip(1, false);
    assert!(world.ask("client", Protocol::Tcp, to).starts_with("local "));
    let mut open = world.net.within("client", || TcpStream::connect(to).unwrap());
    assert!(talk(&mut open).unwrap().starts_with("local "));
    running.stop();
    let held = traces(&world.net);
    assert!(talk(&mut open).unwrap().starts_with("local "));
    assert!(world.net.ask_tcp("client", to).unwrap().starts_with("local "));
    let running = world.serve(cluster());
    assert_eq!(traces(&world.net), held, "a successor adopts what it finds");
    assert!(talk(&mut open).unwrap().starts_with("local "));

    // A rule of ours that someone deletes comes back; what someone adds goes.
    world.net.within("node", || {
        for arguments in ["-t nat -F SEAWAY-INTERNAL", "-t nat -N SEAWAY-S-0", "-t nat -D PREROUTING 1"] {
            let output = Command::new("iptables").args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "{arguments}: {output:?}");
        }
    });
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    eventually("repair", || (sorted(&traces(&world.net)) == sorted(&held)).then_some(()).ok_or("not yet"));

    let udp = world.net.datagrams("client", to);
    udp.hears("a first UDP answer", &Ok("local".into()));
    let mut moved = cluster();
    service(&mut moved, 1, &["remote"], |_| {});
    world.tell(moved);
    eventually("new connections follow", || {
        let answer = world.net.ask_tcp("client", to).unwrap();
        if answer.starts_with("remote ") { Ok(()) } else { Err(answer) }
    });
    udp.hears("the UDP flow follows", &Ok("remote".into()));
    assert!(talk(&mut open).unwrap().starts_with("local "), "an open connection stays");

    world.tell(Snapshot { synced: true, ..Snapshot::default() });
    eventually("nothing is served", || {
        let status = running.status.status();
        if status.frontends == 0 { Ok(()) } else { Err(status.last_error) }
    });
    running.stop();
    world.net.within("node", || iptables::remove_all().unwrap());
    assert_eq!(traces(&world.net), "");
}
