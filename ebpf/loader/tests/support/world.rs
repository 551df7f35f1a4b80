//! Real kernels for a test: a client outside of the cluster, a node with a pod, and a second node, each a network
//! namespace. Nothing is simulated but the wire.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use seaway_ebpf_loader::{NodeConfig, Role, ServiceMaps};

use crate::node::{self, Node};

/// Network namespaces of a test, deleted when it ends.
pub struct World {
    prefix: String,
    names: Vec<&'static str>,
}

pub const PATIENCE: Duration = Duration::from_secs(10);

impl World {
    /// ```text
    ///                           vip 172.30.0.200, fd00:10:30::c8 (on no device)
    /// client ──────────── up0 a ab0 ──────────── b, pods 10.244.2.9, fd00:244:2::9
    /// 203.0.113.7  203.0.113.1  │ 192.168.0.1    192.168.0.2
    /// 2001:db8::7  2001:db8::1  │ fd01::1        fd01::2
    ///                          pod 10.244.1.5, fd00:244:1::5
    /// ```
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        node::need_root();
        let prefix = format!("swt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut world = Self { prefix, names: Vec::new() };
        for name in ["client", "a", "b", "pod"] {
            world.add(name);
        }
        world.wire(("client", "c0"), ("a", "up0"));
        world.wire(("a", "ab0"), ("b", "ba0"));
        world.wire(("a", "pod0"), ("pod", "eth0"));
        for (name, command) in [
            ("client", "addr add 203.0.113.7/24 dev c0"),
            ("client", "addr add 2001:db8::7/64 dev c0 nodad"),
            ("client", "route add default via 203.0.113.1"),
            ("client", "route add default via 2001:db8::1"),
            ("a", "addr add 203.0.113.1/24 dev up0"),
            ("a", "addr add 2001:db8::1/64 dev up0 nodad"),
            ("a", "addr add 192.168.0.1/24 dev ab0"),
            ("a", "addr add fd01::1/64 dev ab0 nodad"),
            ("a", "addr add 10.244.1.1/24 dev pod0"),
            ("a", "addr add fd00:244:1::1/64 dev pod0 nodad"),
            ("a", "route add 10.244.2.0/24 via 192.168.0.2"),
            ("a", "route add fd00:244:2::/64 via fd01::2"),
            ("b", "addr add 192.168.0.2/24 dev ba0"),
            ("b", "addr add fd01::2/64 dev ba0 nodad"),
            ("b", "addr add 10.244.2.9/32 dev lo"),
            ("b", "addr add fd00:244:2::9/128 dev lo nodad"),
            ("pod", "addr add 10.244.1.5/24 dev eth0"),
            ("pod", "addr add fd00:244:1::5/64 dev eth0 nodad"),
            ("pod", "route add default via 10.244.1.1"),
            ("pod", "route add default via fd00:244:1::1"),
        ] {
            world.ip(name, command);
        }
        world.inside("a", || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            // The strict form: nothing depends on laxness.
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        });
        world
    }

    /// Adds a namespace.
    pub fn add(&mut self, name: &'static str) {
        self.names.push(name);
        node::run(&format!("ip netns add {}", self.full(name)));
        self.ip(name, "link set lo up");
    }

    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn ip(&self, name: &str, command: &str) {
        node::run(&format!("ip -n {} {command}", self.full(name)));
    }

    pub fn wire(&self, one: (&str, &str), other: (&str, &str)) {
        let (a, b) = (self.full(one.0), self.full(other.0));
        node::run(&format!("ip link add {} netns {a} type veth peer name {} netns {b}", one.1, other.1));
        self.ip(one.0, &format!("link set {} up", one.1));
        self.ip(other.0, &format!("link set {} up", other.1));
    }

    /// Moves the calling thread into a namespace.
    pub fn enter(&self, name: &str) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.full(name))).unwrap();
        // SAFETY: changes the calling thread's network namespace only.
        assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
    }

    /// Runs something in a namespace, on a thread of its own.
    pub fn inside<T: Send>(&self, name: &str, what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(name);
                what()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A TCP server that says who it is and who asks, then how much it was sent until the client has no more to say.
    pub fn tcp_server(&self, name: &str, bind: &str, called: &'static str) {
        let listener = self.inside(name, || TcpListener::bind(bind).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream, called));
            }
        });
    }

    /// A UDP server that says who it is, who asks, and how much it was sent.
    pub fn udp_server(&self, name: &str, bind: &str, called: &'static str) {
        let socket = self.inside(name, || UdpSocket::bind(bind).unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let answer = format!("{called} {} {len}", from.ip());
                // As long as the question, so that answers are fragmented too.
                let mut answer = answer.into_bytes();
                answer.resize(len.max(answer.len()), b' ');
                let _sent = socket.send_to(&answer, from);
            }
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in &self.names {
            let deleted = Command::new("ip").args(["netns", "del", &self.full(name)]).status();
            if !deleted.is_ok_and(|status| status.success()) {
                eprintln!("cannot delete network namespace {}", self.full(name));
            }
        }
    }
}

fn serve(mut stream: TcpStream, called: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(()) = stream.write_all(format!("{called} {}\n", peer.ip()).as_bytes()) else { return };
    let mut sent = Vec::new();
    if stream.read_to_end(&mut sent).is_ok() {
        let _answered = stream.write_all(sent.len().to_string().as_bytes());
    }
}

/// Connects, sends `bytes`, and returns all that is answered.
pub fn ask_tcp(to: SocketAddr, bytes: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    assert_eq!(stream.peer_addr()?, to);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&vec![7; bytes])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.replace('\n', " "))
}

/// Sends a datagram from a connected socket and returns the answer.
pub fn ask_udp(to: SocketAddr, bytes: usize) -> std::io::Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(to)?;
    let mut buffer = vec![0; 65536];
    let mut last = Err(ErrorKind::TimedOut.into());
    // A first large datagram may be lost for the path's MTU to be learnt.
    for _ in 0..5 {
        last = socket.send(&vec![7; bytes]).and_then(|_| socket.recv(&mut buffer));
        if let Ok(len) = last {
            return Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned());
        }
        if last.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
            break;
        }
    }
    last.map(|_| String::new())
}

/// The world with servers in the pod and on the other node, and the programs on both uplinks of `a`, in whose
/// namespace the calling thread is then.
pub fn ready() -> (World, Node) {
    let world = World::new();
    for (name, v4, v6) in [("pod", "10.244.1.5", "[fd00:244:1::5]"), ("b", "10.244.2.9", "[fd00:244:2::9]")] {
        for addr in [v4, v6] {
            world.tcp_server(name, &format!("{addr}:8080"), name);
            world.udp_server(name, &format!("{addr}:8080"), name);
        }
    }
    let mut node = Node::new("forwarding");
    world.enter("a");
    let config = NodeConfig {
        node_v4: Some("192.168.0.1".parse().unwrap()),
        node_v6: Some("fd01::1".parse().unwrap()),
        ..NodeConfig::default()
    };
    node.maps.set_config(&config).unwrap();
    let devices = ["up0", "ab0"].map(|name| (name.to_owned(), Role::Uplink));
    assert!(node.dataplane.attach_devices(&devices).unwrap().is_empty());
    (world, node)
}

pub struct Family {
    pub vip: &'static str,
    /// The node's own address, for NodePorts.
    pub own: &'static str,
    pub pod: &'static str,
    pub other: &'static str,
    /// What the servers see: the client itself, or the node.
    pub seen_by_pod: &'static str,
    pub seen_by_other: &'static str,
}

pub const FAMILIES: [Family; 2] = [
    Family {
        vip: "172.30.0.200",
        own: "203.0.113.1",
        pod: "10.244.1.5",
        other: "10.244.2.9",
        seen_by_pod: "203.0.113.7",
        seen_by_other: "192.168.0.1",
    },
    Family {
        vip: "fd00:10:30::c8",
        own: "2001:db8::1",
        pod: "fd00:244:1::5",
        other: "fd00:244:2::9",
        seen_by_pod: "2001:db8::7",
        seen_by_other: "fd01::1",
    },
];

pub fn at(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), port)
}
