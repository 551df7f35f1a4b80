//! One process of the proxy follows another, under traffic: stopped, killed, exchanged while it runs, and in another
//! mode. Processes have to be real ones to be killed, so this program starts itself for them: it has a `main` of its
//! own instead of the test harness. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "handover/agent.rs"]
mod agent;
#[path = "handover/load.rs"]
mod load;
#[path = "support/all.rs"]
mod support;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use agent::{Agent, Options};
use load::{Load, Path};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seaway_proxy::Mode;
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::userspace::{self, Limits, Presence, Userspace};
use socket2::{Domain, SockRef, Socket, Type};
use support::kernel::Place;
use support::net::{Datagrams, Net, eventually, talk};
use support::services::{LOCAL, World, at, cluster_ip, node_port, vip, whole_plan};

const ALL: [Mode; 4] = [Mode::Ebpf, Mode::Nftables, Mode::Iptables, Mode::Userspace];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, directory, version] = &arguments[..]
        && word == "--worker"
    {
        userspace::serve_as_worker(FilePath::new(directory), version).unwrap();
        return ExitCode::SUCCESS;
    }
    match std::env::var("SEAWAY_ROLE").as_deref() {
        Ok("agent") => agent::main(),
        Ok("load") => load::main(),
        _ => return tests(),
    }
    ExitCode::SUCCESS
}

type Test = (String, Box<dyn Fn()>);

const USERSPACE: [(&str, fn()); 4] = [
    ("userspace_without_files_clients_are_turned_away", userspace_without_files_clients_are_turned_away),
    ("userspace_a_worker_that_dies_is_replaced", userspace_a_worker_that_dies_is_replaced),
    (
        "userspace_clients_keep_their_backend_over_an_upgrade",
        userspace_clients_keep_their_backend_over_an_upgrade,
    ),
    ("userspace_a_worker_has_no_privilege_and_ends_with_cleanup", userspace_a_worker_has_no_privilege),
];

/// Runs the tests that a word of the command line names, or all. A panic ends them all.
fn tests() -> ExitCode {
    let mut all: Vec<Test> = Vec::new();
    for mode in ALL {
        let name = format!("{}_restart_crash_and_upgrade_lose_nothing", mode.name());
        all.push((name, Box::new(move || restart_crash_and_upgrade_lose_nothing(mode))));
    }
    for (name, test) in USERSPACE {
        all.push((name.into(), Box::new(test)));
    }
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
    workers: Workers,
    world: World,
    place: Place,
}

/// Where workers are found; they end when it is dropped.
struct Workers(PathBuf);

impl Workers {
    fn all(&self) -> Vec<Presence> {
        userspace::workers(&self.0).unwrap()
    }

    /// The one that serves.
    fn one(&self) -> Presence {
        let serving: Vec<Presence> = self.all().into_iter().filter(|worker| worker.serving).collect();
        assert_eq!(serving.len(), 1, "{serving:?}");
        serving[0].clone()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        userspace::end_workers(&self.0).unwrap();
    }
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let place = Place::new();
        let scene = Self { workers: Workers(agent::workers(&place)), world: World::new(mode), place };
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

    fn agent(&self, options: impl Into<Options>) -> Agent {
        Agent::start(self.net(), &self.place, options)
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
fn settle(loads: Vec<Load>, what: &str) {
    for load in loads {
        let name = load.name.clone();
        let outcome = load.end();
        assert!(outcome.served > 20, "{what}, from {name}: only {} connections", outcome.served);
        assert!(
            outcome.failed.is_empty(),
            "{what}, from {name}: {} of {}: {:?}",
            outcome.failed.len(),
            outcome.served,
            outcome.failed
        );
        assert!(outcome.broken.is_empty(), "{what}, from {name}: open connections: {:?}", outcome.broken);
    }
}

/// A while of load; the agents of the test change endpoints all the time.
fn go_on(loads: &mut [Load]) {
    for load in loads {
        load.go_on(60);
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
    let next = scene.agent(Options { version: "2", ..mode.into() });
    go_on(&mut loads);
    agent.stop();
    go_on(&mut loads);
    settle(loads, mode.name());
    next.stop();
    clean_up(&scene);
}

/// What its death costs are the connections that it has; everything is served again without anyone's doing.
fn userspace_a_worker_that_dies_is_replaced() {
    let scene = Scene::new(Mode::Userspace);
    let agent = scene.agent(Options { still: true, ..Mode::Userspace.into() });
    let targets = [node_port(1, false), node_port(2, true), vip(1, false)];
    for round in 0..3 {
        for to in targets {
            eventually(&format!("{to} is served, round {round}"), || scene.net().ask_tcp("client", to));
        }
        let worker = scene.workers.one();
        kill(&worker);
        eventually("another worker serves", || match scene.workers.all().as_slice() {
            [other] if other.pid != worker.pid => Ok(()),
            all => Err(all.to_vec()),
        });
    }
    agent.stop();
    clean_up(&scene);
}

/// Who cannot be served since no more files can be opened is turned away at once, which is counted; the others go on. All
/// of it is in this process, since it is its own limit that a process can always change.
fn userspace_without_files_clients_are_turned_away() {
    let net = Net::new();
    net.serve("pod", "local", at(LOCAL[0], 8080));
    let mut userspace = net.within("node", || Userspace::open(Limits::default()).unwrap());
    net.within("node", || userspace.apply(&whole_plan()).unwrap());
    let to = node_port(1, false);
    let mut open = net.within("client", || TcpStream::connect(to).unwrap());
    assert!(talk(&mut open).unwrap().starts_with("local "));
    // Their own files are open before that comes to an end.
    let late = || net.within("client", || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
    let late = [late(), late(), late()];
    let former = getrlimit(Resource::Nofile);
    let lowest_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let no_more = Rlimit { current: Some(lowest_free.try_into().unwrap()), ..former };
    setrlimit(Resource::Nofile, no_more).unwrap();
    let mut late = late.map(TcpStream::from);
    // They stay until the end: what one of them closes another could open.
    for client in &mut late {
        SockRef::from(&*client).connect(&to.into()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let said = talk(client).map_err(|error| error.kind());
        assert!([Err(ErrorKind::ConnectionReset), Err(ErrorKind::BrokenPipe)].contains(&said), "{said:?}");
    }
    assert!(talk(&mut open).unwrap().starts_with("local "));
    setrlimit(Resource::Nofile, former).unwrap();
    eventually("others are served again", || net.ask_tcp("client", to));
    let drops = userspace.drops();
    assert!(drops.iter().any(|drop| drop.reason == "out_of_files" && drop.packets == 3), "{drops:?}");
}

fn kill(worker: &Presence) {
    let killed = Command::new("kill").args(["-9", &worker.pid.to_string()]).status().unwrap();
    assert!(killed.success());
}

/// A UDP client that goes on sending from one port.
struct Asker {
    socket: Datagrams,
    /// Who answered first.
    first: String,
}

impl Asker {
    fn new(scene: &Scene, to: SocketAddr) -> Self {
        let mut asker = Self { socket: scene.net().datagrams("client", to), first: String::new() };
        asker.first = asker.ask();
        asker
    }

    /// The name of who answers.
    fn ask(&self) -> String {
        eventually("an answer", || self.socket.ask(b"hi\n"))
    }
}

/// Clients of UDP and those with session affinity go on with the backend that they have, TCP connections with the
/// former worker, which ends with the last of them.
fn userspace_clients_keep_their_backend_over_an_upgrade() {
    let scene = Scene::new(Mode::Userspace);
    let former = scene.agent(Mode::Userspace);
    let askers: Vec<Asker> = (0..24).map(|_| Asker::new(&scene, node_port(5, false))).collect();
    assert!(askers.iter().any(|asker| asker.first != askers[0].first), "both endpoints serve");
    let to = node_port(6, false);
    let who = || scene.net().ask_tcp("client", to).unwrap().split(' ').next().unwrap().to_owned();
    let affine = who();
    let mut open = scene.net().within("client", || TcpStream::connect(to).unwrap());
    assert!(talk(&mut open).unwrap().starts_with(&affine));
    let old = scene.workers.one();
    assert_eq!((old.version.as_str(), old.serving), ("1", true));
    let next = scene.agent(Options { version: "2", ..Mode::Userspace.into() });
    former.stop();
    let new = scene.workers.one();
    assert_eq!(new.version, "2");
    assert!(new.pid != old.pid && scene.workers.all().len() == 2, "{:?}", scene.workers.all());
    for asker in &askers {
        assert_eq!(asker.ask(), asker.first);
    }
    for _ in 0..8 {
        assert_eq!(who(), affine);
    }
    assert!(talk(&mut open).unwrap().starts_with(&affine));
    drop(open);
    eventually("the former worker ends with its last connection", || match scene.workers.all().as_slice() {
        [one] if one.pid == new.pid => Ok(()),
        all => Err(all.to_vec()),
    });
    next.stop();
    clean_up(&scene);
}

fn userspace_a_worker_has_no_privilege() {
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let scene = Scene::new(Mode::Userspace);
    let agent = scene.agent(Mode::Userspace);
    let pid = scene.workers.one().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(field("Uid:").starts_with("65534"), "{}", field("Uid:"));
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap() & !NET_BIND_SERVICE, 0);
    assert_eq!((field("NoNewPrivs:").as_str(), field("NSsid:").ends_with(&pid.to_string())), ("1", true));
    let kib: u64 = field("RssAnon:").trim_end_matches(" kB").trim().parse().unwrap();
    println!("a worker's own memory: {kib} KiB");
    assert!(kib < 16 * 1024, "{kib} KiB");
    // What it serves outlives the agent, and goes with what cleans up.
    agent.stop();
    assert_ne!(scene.net().ask_tcp("client", node_port(1, false)).unwrap(), "");
    clean_up(&scene);
    eventually("nobody listens", || {
        let refused = scene.net().ask_tcp("client", node_port(1, false)).unwrap_err().kind();
        if refused == ErrorKind::ConnectionRefused { Ok(()) } else { Err(refused) }
    });
}

/// The next mode serves before the traces of the former one go, and nobody notices.
fn another_mode_takes_over(from: Mode, to: Mode) {
    let scene = Scene::new(from);
    let former = scene.agent(from);
    let both_here = from == Mode::Userspace || to == Mode::Userspace;
    let mut loads = scene.load(if both_here { Mode::Userspace } else { from });
    go_on(&mut loads);
    assert_eq!(traces(&scene), trace_of(from), "before");
    former.kill();
    go_on(&mut loads);
    let next = scene.agent(to);
    go_on(&mut loads);
    let gone = || {
        eventually("the traces of the former mode go", || {
            let left = traces(&scene);
            if left == trace_of(to) { Ok(()) } else { Err(left) }
        });
    };
    // What translates open connections stays until they have ended, unless the next mode translates them as well.
    if [from, to].iter().all(|mode| [Mode::Nftables, Mode::Iptables].contains(mode)) {
        gone();
    }
    go_on(&mut loads);
    // Connections that are open when the next mode takes over are left to the former one, and so are those that are just
    // being opened.
    settle(loads, &format!("{} to {}", from.name(), to.name()));
    gone();
    next.stop();
    clean_up(&scene);
}

fn trace_of(mode: Mode) -> Vec<&'static str> {
    vec![mode.name()]
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
        !scene.workers.all().is_empty(),
    ];
    let names = ALL.iter().map(|mode| mode.name());
    names.zip(found).filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

fn clean_up(scene: &Scene) {
    let mut config = seaway_proxy::ProxyConfig::new("node", &scene.place.cgroup, &scene.place.bpffs);
    config.worker = Some(agent::worker(scene.workers.0.clone(), "1"));
    scene.net().within("node", || seaway_proxy::cleanup(&config).unwrap());
    assert_eq!(traces(scene), Vec::<&str>::new());
    assert!(!scene.workers.0.exists());
    eventually("no process of a worker is left", || {
        let left = processes(&scene.workers.0);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// The processes whose command line names `place`.
fn processes(place: &FilePath) -> Vec<PathBuf> {
    let place = place.to_str().unwrap();
    let named = |path: &PathBuf| {
        let words = std::fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).split('\0').any(|word| word == place)
    };
    let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    entries.filter(named).collect()
}
