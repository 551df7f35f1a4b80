//! Links of pods that somebody limits: what comes from outside passes the limit on its way to the pod. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/all.rs"]
mod support;

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use seaway_model::Protocol;
use seaway_proxy::{Mode, ProxyConfig};
use support::kernel::Place;
use support::net::{eventually, talk};
use support::services::{Running, World, cluster, cluster_ip, node_port};

const REQUESTS: u64 = 5;
const BUCKET: &str = "tc qdisc add dev swpod root tbf rate 100mbit burst 100kb latency 25ms";
const NO_BUCKET: &str = "tc qdisc del dev swpod root";

/// A node that serves.
struct Bed {
    world: World,
    running: Running,
    _place: Place,
}

impl Bed {
    fn new() -> Self {
        let (world, place) = (World::new(Mode::Ebpf), Place::new());
        let mut config = ProxyConfig::new("node", &place.cgroup, &place.bpffs);
        config.pod_link_prefixes = vec!["swpod".into()];
        let running = world.serve_with(config, cluster());
        Self { world, running, _place: place }
    }

    /// Runs a program on the node, by words. Returns what it prints.
    fn run(&self, words: &str) -> String {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let output = self.world.net.within("node", || command.output().unwrap());
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// How many packets the token bucket of the pod's link has seen.
    fn passed_bucket(&self) -> u64 {
        let text = self.run("tc -s qdisc show dev swpod");
        let from = text.find("qdisc tbf ").unwrap();
        // " Sent 140 bytes 2 pkt (dropped 0, …"
        let sent = text[from..].lines().nth(1).unwrap();
        sent.split_whitespace().nth(3).unwrap().parse().unwrap()
    }

    /// Whether what is asked from outside is forwarded by the node's stack, as opposed to handed over to the pod.
    fn is_forwarded(&self, protocol: Protocol, v6: bool) -> bool {
        let before = self.world.net.forwarded();
        self.world.ask("client", protocol, node_port(1, v6));
        self.world.net.forwarded() > before
    }

    /// Waits until it is so, or not, for all that is asked.
    fn await_forwarding(&self, what: &str, wanted: bool) {
        each(|protocol, v6| {
            eventually(what, || {
                if self.is_forwarded(protocol, v6) == wanted { Ok(()) } else { Err((protocol, v6)) }
            });
        });
    }
}

fn each(mut case: impl FnMut(Protocol, bool)) {
    for v6 in [false, true] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            case(protocol, v6);
        }
    }
}

#[test]
fn what_comes_from_outside_passes_the_limit_of_a_pods_link() {
    let bed = Bed::new();
    bed.await_forwarding("the short way", false);

    // A token bucket, as the bandwidth capability asks for: there is no way past it.
    bed.run(BUCKET);
    bed.await_forwarding("the way by the bucket", true);
    each(|protocol, v6| {
        let before = bed.passed_bucket();
        for _ in 0..REQUESTS {
            bed.world.ask("client", protocol, node_port(1, v6));
        }
        assert!(bed.passed_bucket() >= before + REQUESTS, "{protocol} {v6}");
    });
    bed.run(NO_BUCKET);
    bed.await_forwarding("the short way again", false);

    // What filters are attached to, such as the bandwidth plugin's for what the pod sends.
    for kind in ["ingress", "clsact"] {
        bed.run(&format!("tc qdisc add dev swpod {kind}"));
        bed.await_forwarding(kind, true);
        bed.run(&format!("tc qdisc del dev swpod {kind}"));
        bed.await_forwarding("the short way again", false);
    }
    bed.running.stop();
}

/// The pod's own connections to Services are translated at its link, whatever comes and goes there.
#[test]
fn a_limit_that_comes_and_goes_costs_no_connection() {
    let bed = Bed::new();
    let to = cluster_ip(2, false);
    let mut open = bed.world.net.within("pod", || TcpStream::connect(to).unwrap());
    let mut talks = |when: &str| {
        open.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert!(talk(&mut open).unwrap().starts_with("remote "), "{when}");
    };
    bed.await_forwarding("the short way", false);
    talks("before");
    bed.run(BUCKET);
    bed.await_forwarding("the way by the bucket", true);
    talks("with a bucket");
    bed.run(NO_BUCKET);
    bed.await_forwarding("the short way again", false);
    talks("after");
    bed.running.stop();
}
