//! One process of the proxy follows another, under traffic: stopped, killed, exchanged while it runs, and in another
//! mode. Processes have to be real ones to be killed, so this program starts itself for them: it has a `main` of its
//! own instead of the test harness. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "handover/agent.rs"]
mod agent;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "handover/load.rs"]
mod load;
#[path = "support/net.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod net;
#[path = "support/services.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod services;

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use agent::Agent;
use kernel::Place;
use load::{Load, Path};
use net::{Net, eventually};
use seaway_proxy::Mode;
use services::{World, cluster_ip, node_port, vip};

const KERNEL: [Mode; 3] = [Mode::Ebpf, Mode::Nftables, Mode::Iptables];
const ALL: [Mode; 4] = [Mode::Ebpf, Mode::Nftables, Mode::Iptables, Mode::Userspace];

fn main() -> ExitCode {
    match std::env::var("SEAWAY_ROLE").as_deref() {
        Ok("agent") => agent::main(),
        Ok("load") => load::main(),
        _ => return tests(),
    }
    ExitCode::SUCCESS
}

type Test = (String, Box<dyn Fn()>);

/// Runs the tests that a word of the command line names, or all. A panic ends them all.
fn tests() -> ExitCode {
    let mut all: Vec<Test> = Vec::new();
    for mode in KERNEL {
        let name = format!("{}_restart_crash_and_upgrade_lose_nothing", mode.name());
        all.push((name, Box::new(move || restart_crash_and_upgrade_lose_nothing(mode))));
    }
    all.push(("userspace_what_a_crash_costs".into(), Box::new(userspace_what_a_crash_costs)));
    for from in ALL {
        for to in ALL.into_iter().filter(|to| *to != from) {
            let name = format!("{}_to_{}", from.name(), to.name());
            all.push((name, Box::new(move || another_mode_takes_over(from, to))));
        }
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen = all.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(w)));
    let mut count = 0;
    for (name, test) in chosen {
        let started = Instant::now();
        test();
        println!("test {name} ... ok ({:.1} s)", started.elapsed().as_secs_f32());
        count += 1;
    }
    println!("\ntest result: ok. {count} passed");
    ExitCode::SUCCESS
}

/// A network with a node, and where on it the socket programs attach.
struct Scene {
    world: World,
    place: Place,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let scene = Self { world: World::new(mode), place: Place::new() };
        // The proxy in user space serves addresses that are the node's own. To the others that makes no difference.
        for range in ["10.96.0.0/16", "172.30.7.200/29"] {
            scene.net().ip("node", &format!("route add local {range} dev lo"));
        }
        for range in ["fd00:10:96::/112", "fd00:7::c0/125"] {
            scene.net().ip("node", &format!("-6 route add local {range} dev lo"));
        }
        scene
    }

    fn net(&self) -> &Net {
        &self.world.net
    }

    fn agent(&self, mode: Mode) -> Agent {
        Agent::start(self.net(), &self.place, mode)
    }

    /// What clients outside, the node and a pod do all the time. All paths are open when it begins.
    fn load(&self, mode: Mode) -> Vec<Load> {
        let mut outside: Vec<SocketAddr> = Vec::new();
        let mut inside = Vec::new();
        for v6 in [false, true] {
            // The first Service's endpoint is here, the second's on the other node.
            outside.extend([node_port(1, v6), node_port(2, v6), vip(1, v6), vip(2, v6)]);
            inside.extend([cluster_ip(1, v6), cluster_ip(2, v6)]);
        }
        // Without a proxy of the node outside, the client knows no way to a pod's links: it asks by address.
        let paths = |ns, targets: &[SocketAddr]| Path { ns, targets: targets.to_vec() };
        let mut all = vec![paths("client", &outside), paths("pod", &inside)];
        // A process of the node reaches itself at addresses that are the node's own before anything translates.
        if mode != Mode::Userspace {
            all.push(paths("node", &inside));
        }
        all.iter().map(|path| Load::start(self.net(), &self.place, path)).collect()
    }
}

/// What must be over when all loads have ended: no new connection failed, none that was open was reset.
fn settle(loads: Vec<Load>, what: &str, open_ones_stay: bool) {
    settle_but(0, loads, what, open_ones_stay);
}

/// As [`settle`]; so many new connections may have failed on each path.
fn settle_but(lost_max: usize, loads: Vec<Load>, what: &str, open_ones_stay: bool) {
    for load in loads {
        let name = load.name.clone();
        let outcome = load.end();
        assert!(outcome.served > 20, "{what}, from {name}: only {} connections", outcome.served);
        assert!(
            outcome.failed.len() <= lost_max,
            "{what}, from {name}: {} of {}: {:?}",
            outcome.failed.len(),
            outcome.served,
            outcome.failed
        );
        if open_ones_stay {
            assert!(outcome.broken.is_empty(), "{what}, from {name}: open connections: {:?}", outcome.broken);
        }
    }
}

/// A while of load; the agents of the test change endpoints all the time.
fn go_on(loads: &mut [Load]) {
    for load in loads {
        load.go_on(25);
    }
}

fn restart_crash_and_upgrade_lose_nothing(mode: Mode) {
    let scene = Scene::new(mode);
    let mut agent = scene.agent(mode);
    let mut loads = scene.load(mode);
    go_on(&mut loads);
    // A restart: what the former one left serves until the next one has taken over, and after.
    agent.stop();
    go_on(&mut loads);
    agent = scene.agent(mode);
    go_on(&mut loads);
    // Crashes, at any moment: also while the next one is on its way.
    for after_ms in [0, 20, 60, 150] {
        agent.kill();
        go_on(&mut loads);
        agent = Agent::begin(scene.net(), &scene.place, mode);
        std::thread::sleep(Duration::from_millis(after_ms));
    }
    agent.kill();
    agent = scene.agent(mode);
    go_on(&mut loads);
    // An upgrade as a DaemonSet with maxSurge does it: both run for a while.
    let next = scene.agent(mode);
    go_on(&mut loads);
    agent.stop();
    go_on(&mut loads);
    settle(loads, mode.name(), true);
    next.stop();
    clean_up(&scene);
}

/// Connections of the userspace mode live in the process. What can hold: an exchange loses no new connection; after a
/// crash clients are refused at once rather than left waiting, and served again as soon as the next process listens.
fn userspace_what_a_crash_costs() {
    let scene = Scene::new(Mode::Userspace);
    let agent = scene.agent(Mode::Userspace);
    let mut loads = scene.load(Mode::Userspace);
    go_on(&mut loads);
    let next = scene.agent(Mode::Userspace);
    agent.stop();
    go_on(&mut loads);
    settle(loads, "userspace: an exchange", false);
    next.kill();
    let started = Instant::now();
    let refused = scene.net().ask_tcp("client", node_port(1, false)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < Duration::from_secs(1), "at once");
    let agent = scene.agent(Mode::Userspace);
    // By whichever endpoint the Service has at the moment.
    assert_ne!(scene.net().ask_tcp("client", node_port(1, false)).unwrap(), "");
    agent.stop();
}

/// The next mode serves before the traces of the former one go, and nobody notices.
fn another_mode_takes_over(from: Mode, to: Mode) {
    let scene = Scene::new(from);
    let former = scene.agent(from);
    let both_here = from == Mode::Userspace || to == Mode::Userspace;
    let mut loads = scene.load(if both_here { Mode::Userspace } else { from });
    go_on(&mut loads);
    assert_eq!(traces(&scene), trace_of(from), "before");
    // What serves in user space serves while it runs: its successor comes first.
    let next = if from == Mode::Userspace {
        let next = scene.agent(to);
        go_on(&mut loads);
        former.stop();
        next
    } else {
        former.kill();
        go_on(&mut loads);
        scene.agent(to)
    };
    go_on(&mut loads);
    let gone = || {
        eventually("the traces of the former mode go", || {
            let left = traces(&scene);
            if left == trace_of(to) { Ok(()) } else { Err(left) }
        });
    };
    // What translates open connections stays until they have ended, unless the next mode translates them as well.
    if from == Mode::Userspace
        || [from, to].iter().all(|mode| [Mode::Nftables, Mode::Iptables].contains(mode))
    {
        gone();
    }
    go_on(&mut loads);
    // Connections that are open when the eBPF programs take over are left to the former mode. One that is being opened at
    // that very moment is on no list: its second packet may look to the programs like a first one.
    let taken_over = to == Mode::Ebpf && from != Mode::Userspace;
    let what = format!("{} to {}", from.name(), to.name());
    settle_but(2 * usize::from(taken_over), loads, &what, from != Mode::Userspace);
    gone();
    next.stop();
    clean_up(&scene);
}

fn trace_of(mode: Mode) -> Vec<&'static str> {
    if mode == Mode::Userspace { Vec::new() } else { vec![mode.name()] }
}

/// The modes that have left something in the kernel.
fn traces(scene: &Scene) -> Vec<&'static str> {
    let printed = |program: &str, arguments: &[&str]| {
        scene.net().within("node", || {
            let output = Command::new(program).args(arguments).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    };
    let found = [
        scene.place.bpffs.exists(),
        printed("nft", &["list", "tables"]).contains("seaway-proxy"),
        ["iptables-save", "ip6tables-save"].iter().any(|program| printed(program, &[]).contains("SEAWAY")),
    ];
    let names = KERNEL.iter().map(|mode| mode.name());
    names.zip(found).filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

fn clean_up(scene: &Scene) {
    let config = seaway_proxy::ProxyConfig::new("node", &scene.place.cgroup, &scene.place.bpffs);
    scene.net().within("node", || seaway_proxy::cleanup(&config).unwrap());
    assert_eq!(traces(scene), Vec::<&str>::new());
}
