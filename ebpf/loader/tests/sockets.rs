//! The socket programs on real sockets, in a cgroup and a network namespace of the test's own; and what a restart of
//! the agent does to them. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use node::{Node, internal};
use seaway_ebpf_loader::{
    Counter, Frontend, MapError, NodeConfig, Protocol, Role, ServiceEntry, ServiceMaps, cgroup2_mount,
    netns_cookie,
};

const VIP_V4: &str = "10.96.0.1";
const VIP_V6: &str = "fd00:10:96::1";

/// The test process in a cgroup of its own; back to where it was when dropped. One at a time.
struct Cgroup {
    path: PathBuf,
    former: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Cgroup {
    fn enter() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        node::need_root();
        let mount = cgroup2_mount().unwrap();
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let here = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let former = mount.join(here);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("seaway-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        join(&path);
        Self { path, former, _turn: turn }
    }
}

fn join(cgroup: &Path) {
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        join(&self.former);
        if let Err(e) = std::fs::remove_dir(&self.path) {
            eprintln!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// A node whose socket programs are attached to the test's cgroup.
fn attached(name: &str) -> (Node, Cgroup) {
    let cgroup = Cgroup::enter();
    let mut node = Node::new(name);
    node.dataplane.attach_cgroup(&cgroup.path).unwrap();
    (node, cgroup)
}

/// Answers every connection and datagram on a loopback address with its name, until dropped.
struct Echo {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Echo {
    fn tcp(host: &str, name: &'static str) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let echo = Self { addr: listener.local_addr().unwrap(), stop: Arc::new(AtomicBool::new(false)) };
        let stop = Arc::clone(&echo.stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || answer(stream, name));
            }
        });
        echo
    }

    fn udp(host: &str, name: &'static str) -> Self {
        let socket = UdpSocket::bind((host, 0)).unwrap();
        let echo = Self { addr: socket.local_addr().unwrap(), stop: Arc::new(AtomicBool::new(false)) };
        let stop = Arc::clone(&echo.stop);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let _sent = socket.send_to(name.as_bytes(), from);
            }
        });
        echo
    }

    fn backend(&self) -> (String, u16, bool) {
        (self.addr.ip().to_string(), self.addr.port(), true)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A byte for each byte: the first of the name.
fn answer(mut stream: TcpStream, name: &str) {
    let mut buffer = [0; 64];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&name.as_bytes()[..1].repeat(read)).is_err() {
            return;
        }
    }
}

fn ask_tcp(addr: SocketAddr) -> std::io::Result<char> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
    ask_stream(&mut stream)
}

fn ask_stream(stream: &mut TcpStream) -> std::io::Result<char> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"?")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(char::from(byte[0]))
}

fn udp_socket(host: &str) -> UdpSocket {
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> (String, SocketAddr) {
    socket.send_to(b"?", to).unwrap();
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..len]).into_owned(), from)
}

fn serve(node: &mut Node, frontend: Frontend, echoes: &[&Echo]) -> ServiceEntry {
    let backends: Vec<_> = echoes.iter().map(|echo| echo.backend()).collect();
    let backends: Vec<_> =
        backends.iter().map(|(addr, port, local)| (addr.as_str(), *port, *local)).collect();
    node.service(frontend, &backends, |_| {})
}

fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), port)
}

#[test]
fn tcp_reaches_a_backend_and_believes_to_talk_to_the_frontend() {
    let (mut node, _cgroup) = attached("tcp");
    for (vip, host) in [(VIP_V4, "127.0.0.1"), (VIP_V6, "::1")] {
        let echo = Echo::tcp(host, "a");
        serve(&mut node, internal(vip, 80, Protocol::Tcp), &[&echo]);
        let mut stream = TcpStream::connect(at(vip, 80)).unwrap();
        assert_eq!(ask_stream(&mut stream).unwrap(), 'a');
        assert_eq!(stream.peer_addr().unwrap(), at(vip, 80));
        let flows = node.maps.socket_flows().unwrap();
        let flow = flows.iter().find(|flow| flow.frontend == (vip.parse().unwrap(), 80)).unwrap();
        assert_eq!((flow.backend, flow.sticky), ((echo.addr.ip(), echo.addr.port()), false));
    }
    assert_eq!(node.counter(Counter::SocketTranslated), 2);
    assert_eq!(node.counter(Counter::SocketReply), 2);
    assert!(node.maps.socket_flows().unwrap().is_empty(), "closed sockets are forgotten");
}

#[test]
fn ipv6_sockets_reach_ipv4_services() {
    let (mut node, _cgroup) = attached("mapped");
    let mapped: IpAddr = "::ffff:10.96.0.1".parse().unwrap();
    let tcp = Echo::tcp("127.0.0.1", "a");
    let udp = Echo::udp("127.0.0.1", "datagram");
    serve(&mut node, internal(VIP_V4, 80, Protocol::Tcp), &[&tcp]);
    serve(&mut node, internal(VIP_V4, 53, Protocol::Udp), &[&udp]);
    let mut stream = TcpStream::connect(SocketAddr::new(mapped, 80)).unwrap();
    assert_eq!(ask_stream(&mut stream).unwrap(), 'a');
    assert_eq!(stream.peer_addr().unwrap(), SocketAddr::new(mapped, 80));
    let unconnected = udp_socket("::");
    let (said, from) = ask_udp(&unconnected, SocketAddr::new(mapped, 53));
    assert_eq!((said.as_str(), from), ("datagram", SocketAddr::new(mapped, 53)));
    let connected = udp_socket("::");
    connected.connect(SocketAddr::new(mapped, 53)).unwrap();
    connected.send(b"?").unwrap();
    let mut buffer = [0; 64];
    assert_eq!(connected.recv_from(&mut buffer).unwrap(), (8, SocketAddr::new(mapped, 53)));
}

#[test]
fn udp_answers_come_from_the_frontend() {
    let (mut node, _cgroup) = attached("udp");
    for (vip, host) in [(VIP_V4, "127.0.0.1"), (VIP_V6, "::1")] {
        let echo = Echo::udp(host, "datagram");
        serve(&mut node, internal(vip, 53, Protocol::Udp), &[&echo]);
        let unconnected = udp_socket(host);
        assert_eq!(ask_udp(&unconnected, at(vip, 53)), ("datagram".to_owned(), at(vip, 53)));
        // The same socket talks to others directly, too.
        let other = Echo::udp(host, "other");
        assert_eq!(ask_udp(&unconnected, other.addr), ("other".to_owned(), other.addr));
        let connected = udp_socket(host);
        connected.connect(at(vip, 53)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), at(vip, 53));
        for _ in 0..3 {
            connected.send(b"?").unwrap();
            let mut buffer = [0; 64];
            assert_eq!(connected.recv(&mut buffer).unwrap(), 8);
            connected.send(b"?").unwrap();
            assert_eq!(connected.recv_from(&mut buffer).unwrap(), (8, at(vip, 53)));
        }
    }
}

#[test]
fn an_unconnected_socket_keeps_its_backend_while_that_serves() {
    let (mut node, _cgroup) = attached("sticky");
    let echoes = [Echo::udp("127.0.0.1", "a"), Echo::udp("127.0.0.1", "b"), Echo::udp("127.0.0.1", "c")];
    let frontend = internal(VIP_V4, 53, Protocol::Udp);
    let entry = serve(&mut node, frontend, &[&echoes[0], &echoes[1], &echoes[2]]);
    let socket = udp_socket("127.0.0.1");
    let (first, _) = ask_udp(&socket, at(VIP_V4, 53));
    assert!((0..20).all(|_| ask_udp(&socket, at(VIP_V4, 53)).0 == first));
    // Several sockets see several backends.
    let mut seen: Vec<_> = (0..60).map(|_| ask_udp(&udp_socket("127.0.0.1"), at(VIP_V4, 53)).0).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["a", "b", "c"]);
    let left: Vec<_> = echoes
        .iter()
        .zip(["a", "b", "c"])
        .filter(|(_, name)| *name != first)
        .map(|(e, _)| e.backend())
        .collect();
    let left: Vec<_> = left.iter().map(|(addr, port, local)| (addr.as_str(), *port, *local)).collect();
    node.write(frontend, entry.id, &left, |_| {});
    let (next, from) = ask_udp(&socket, at(VIP_V4, 53));
    assert_ne!(next, first);
    assert_eq!(from, at(VIP_V4, 53));
    assert!((0..20).all(|_| ask_udp(&socket, at(VIP_V4, 53)).0 == next));
}

#[test]
fn session_affinity_goes_by_the_pod() {
    let (mut node, _cgroup) = attached("pod-affinity");
    let echoes = [Echo::tcp("127.0.0.1", "a"), Echo::tcp("127.0.0.1", "b"), Echo::tcp("127.0.0.1", "c")];
    let entry = serve(&mut node, internal(VIP_V4, 80, Protocol::Tcp), &[&echoes[0], &echoes[1], &echoes[2]]);
    let affine = ServiceEntry { affinity: Some(Duration::from_secs(60)), ..entry };
    node.maps.put_services(&[(internal(VIP_V4, 80, Protocol::Tcp), affine)]).unwrap();
    let first = ask_tcp(at(VIP_V4, 80)).unwrap();
    assert!((0..20).all(|_| ask_tcp(at(VIP_V4, 80)).unwrap() == first));
    node.maps.put_services(&[(internal(VIP_V4, 80, Protocol::Tcp), entry)]).unwrap();
    assert!((0..60).any(|_| ask_tcp(at(VIP_V4, 80)).unwrap() != first));
}

#[test]
fn a_service_without_backends_and_an_undefined_port_refuse_at_once() {
    let (mut node, _cgroup) = attached("refuse");
    for (vip, host) in [(VIP_V4, "127.0.0.1"), (VIP_V6, "::1")] {
        serve(&mut node, internal(vip, 80, Protocol::Tcp), &[]);
        serve(&mut node, internal(vip, 53, Protocol::Udp), &[]);
        let every_port = Frontend::any_port(vip.parse().unwrap(), seaway_ebpf_loader::Scope::Internal);
        node.service(every_port, &[], |_| {});
        let begin = Instant::now();
        for port in [80, 81, 443] {
            assert_eq!(ask_tcp(at(vip, port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        let socket = udp_socket(host);
        for port in [53, 54] {
            assert_eq!(socket.send_to(b"?", at(vip, port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(
                udp_socket(host).connect(at(vip, port)).unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
        }
        assert!(begin.elapsed() < Duration::from_secs(2), "not at once: {:?}", begin.elapsed());
    }
    assert_eq!(node.counter(Counter::SocketRefused), 14);
}

#[test]
fn node_ports_are_kept_from_the_nodes_processes_only() {
    let (mut node, _cgroup) = attached("bind");
    let cookie = netns_cookie().unwrap();
    for v4 in [true, false] {
        node.service(Frontend::node_port_guard(v4, 30_080, Protocol::Tcp), &[], |entry| {
            entry.node_port = true;
        });
    }
    // Without the namespace's cookie nothing is protected; that is how pods see it.
    drop(TcpListener::bind("0.0.0.0:30080").unwrap());
    node.maps.set_config(&NodeConfig { netns_cookie: cookie, ..NodeConfig::default() }).unwrap();
    for addr in ["0.0.0.0:30080", "127.0.0.1:30080", "[::]:30080", "[::1]:30080"] {
        assert_eq!(TcpListener::bind(addr).unwrap_err().kind(), ErrorKind::AddrInUse, "{addr}");
    }
    drop(UdpSocket::bind("0.0.0.0:30080").unwrap());
    drop(TcpListener::bind("0.0.0.0:30081").unwrap());
    assert_eq!(node.counter(Counter::BindRefused), 4);
    node.maps.set_config(&NodeConfig { netns_cookie: cookie + 1, ..NodeConfig::default() }).unwrap();
    drop(TcpListener::bind("0.0.0.0:30080").unwrap());
}

#[test]
fn host_only_services_are_for_the_node_alone() {
    let (mut node, _cgroup) = attached("host-only");
    let echo = Echo::tcp("127.0.0.1", "a");
    let frontend = internal("127.0.0.1", 30_080, Protocol::Tcp);
    let entry = serve(&mut node, frontend, &[&echo]);
    node.maps.put_services(&[(frontend, ServiceEntry { host_only: true, ..entry })]).unwrap();
    assert_eq!(ask_tcp(at("127.0.0.1", 30_080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(node.counter(Counter::SocketTranslated), 0);
    let cookie = netns_cookie().unwrap();
    node.maps.set_config(&NodeConfig { netns_cookie: cookie, ..NodeConfig::default() }).unwrap();
    assert_eq!(ask_tcp(at("127.0.0.1", 30_080)).unwrap(), 'a');
}

#[test]
fn sockets_of_pods_leave_masqueraded_services_to_packets() {
    let (mut node, _cgroup) = attached("masquerade");
    let echo = Echo::tcp("127.0.0.1", "a");
    let frontend = internal("127.0.0.7", 80, Protocol::Tcp);
    let entry = serve(&mut node, frontend, &[&echo]);
    node.maps.put_services(&[(frontend, ServiceEntry { masquerade: true, ..entry })]).unwrap();
    // To the programs, this is a pod's namespace: nobody answers at the service's own address.
    assert_eq!(ask_tcp(at("127.0.0.7", 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!((node.counter(Counter::SocketTranslated), node.counter(Counter::SocketRefused)), (0, 0));
    let cookie = netns_cookie().unwrap();
    node.maps.set_config(&NodeConfig { netns_cookie: cookie, ..NodeConfig::default() }).unwrap();
    assert_eq!(ask_tcp(at("127.0.0.7", 80)).unwrap(), 'a');
}

#[test]
fn a_restart_replaces_the_programs_without_a_failed_connection() {
    let (mut node, cgroup) = attached("restart");
    let echo = Echo::tcp("127.0.0.1", "a");
    serve(&mut node, internal(VIP_V4, 80, Protocol::Tcp), &[&echo]);
    let mut established = TcpStream::connect(at(VIP_V4, 80)).unwrap();
    let before = node.dataplane.attached().unwrap();
    assert_eq!(before.len(), 11, "{before:?}");

    let stop = Arc::new(AtomicBool::new(false));
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let client = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            use std::os::fd::AsRawFd;
            // SAFETY: this thread joins the test's network namespace.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(ask_tcp(at(VIP_V4, 80)).unwrap(), 'a', "after {connections} connections");
                connections += 1;
            }
            connections
        }
    });
    for _ in 0..5 {
        let mut restarted = node::open(&node.bpffs);
        restarted.attach_cgroup(&cgroup.path).unwrap();
        node.maps = restarted.maps();
        node.dataplane = restarted;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(client.join().unwrap() > 0);
    let after = node.dataplane.attached().unwrap();
    assert_eq!(after.len(), before.len());
    assert!(before.iter().zip(&after).all(|(b, a)| b.program == a.program && b.program_id != a.program_id));
    assert_eq!(ask_stream(&mut established).unwrap(), 'a');
    assert_eq!(established.peer_addr().unwrap(), at(VIP_V4, 80));
    assert_eq!(node.maps.services().unwrap().len(), 1);

    // The agent dies: pins hold everything up. The node is taken down: nothing is left.
    let bpffs = node.bpffs.clone();
    seaway_ebpf_loader::remove_all(&bpffs).unwrap();
    assert!(!bpffs.exists());
    drop(node);
    TcpStream::connect_timeout(&at(VIP_V4, 80), Duration::from_millis(200)).unwrap_err();
}

#[test]
fn devices_are_followed_and_targets_that_went_are_attached_anew() {
    let cgroup = Cgroup::enter();
    let mut node = Node::new("devices").with_uplink();
    let devices =
        |names: &[&str]| -> Vec<_> { names.iter().map(|name| ((*name).to_owned(), Role::Uplink)).collect() };
    let carrying = |node: &Node| {
        let attached = node.dataplane.attached().unwrap();
        attached.into_iter().map(|a| format!("{} {}", a.program, a.target)).collect::<Vec<_>>()
    };
    node::run("ip tuntap add tun0 mode tun");
    assert_eq!(node.dataplane.attach_devices(&devices(&["up0", "nix0", "tun0"])).unwrap(), ["nix0", "tun0"]);
    assert_eq!(carrying(&node), ["sw_egress up0", "sw_ingress up0"]);
    assert!(node.dataplane.attach_devices(&devices(&["up0", "wire0"])).unwrap().is_empty());
    assert_eq!(carrying(&node).len(), 4);
    assert!(node.dataplane.attach_devices(&devices(&["wire0"])).unwrap().is_empty());
    assert_eq!(carrying(&node), ["sw_egress wire0", "sw_ingress wire0"]);
    node::run("ip link del up0");
    assert_eq!(carrying(&node), Vec::<String>::new());
    node::run("ip link add up0 type veth peer name wire0");
    assert!(node.dataplane.attach_devices(&devices(&["up0", "wire0"])).unwrap().is_empty());
    assert_eq!(carrying(&node).len(), 4);
    // A cgroup that was removed and made again has another id.
    let inner = cgroup.path.join("inner");
    for _ in 0..2 {
        std::fs::create_dir(&inner).unwrap();
        node.dataplane.attach_cgroup(&inner).unwrap();
        assert_eq!(carrying(&node).len(), 15);
        std::fs::remove_dir(&inner).unwrap();
    }
    node.dataplane.detach_cgroup().unwrap();
    assert!(node.dataplane.attach_devices(&[]).unwrap().is_empty());
    assert_eq!(carrying(&node), Vec::<String>::new());
}

#[test]
fn maps_hold_what_is_written_and_say_when_they_are_full() {
    node::need_root();
    let mut node = Node::new("maps");
    let entries: Vec<_> = (0..4096_u32)
        .map(|i| {
            let addr = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a60_0000 + i));
            let frontend = Frontend::new(addr, 80, Protocol::Tcp, seaway_ebpf_loader::Scope::Internal);
            (frontend, ServiceEntry { id: i, generation: i, ..ServiceEntry::default() })
        })
        .collect();
    node.maps.put_services(&entries).unwrap();
    let mut read = node.maps.services().unwrap();
    read.sort_by_key(|(frontend, _)| *frontend);
    assert_eq!(read, entries);
    let one_more = (internal("10.97.0.1", 80, Protocol::Udp), ServiceEntry::default());
    let full = node.maps.put_services(&[one_more]).unwrap_err();
    assert!(matches!(full, MapError::Full { capacity: 4096, .. }), "{full:?}");
    let frontends: Vec<_> = entries.iter().map(|(frontend, _)| *frontend).collect();
    node.maps.remove_services(&frontends[..100]).unwrap();
    node.maps.remove_services(&frontends).unwrap();
    assert!(node.maps.services().unwrap().is_empty());
    node.maps.put_services(&[one_more]).unwrap();
    let slice = |base: u32| {
        let backend = |i| seaway_ebpf_loader::BackendEntry {
            addr: IpAddr::from(std::net::Ipv4Addr::from_bits(0x0af4_0000 + base + i)),
            port: 80,
            service: base,
            local: i % 2 == 0,
        };
        (0..8).map(backend).collect::<Vec<_>>()
    };
    node.maps.put_backends(&[(0, slice(0)), (100, slice(100)), (4088, slice(4088))]).unwrap();
    for base in [0, 100, 4088] {
        assert_eq!(node.maps.backends(base, 8).unwrap(), slice(base));
    }
    assert!(matches!(node.maps.put_backends(&[(4089, slice(1))]).unwrap_err(), MapError::OutOfBounds { .. }));
    let backwards: Vec<_> = slice(0).into_iter().rev().collect();
    assert!(matches!(node.maps.put_backends(&[(0, backwards)]).unwrap_err(), MapError::Unordered { .. }));
    let usage = node.maps.usage().unwrap();
    assert_eq!((usage[0].used, usage[1].capacity), (Some(1), 4096));
    // An agent that is set to another size takes over the maps that there are.
    let capacities = seaway_ebpf_loader::Capacities::default();
    let restarted = seaway_ebpf_loader::Dataplane::open(&node.bpffs, &capacities).unwrap();
    assert_eq!(restarted.maps().usage().unwrap(), usage);
}
