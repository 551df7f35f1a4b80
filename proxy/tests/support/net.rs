//! A small network in namespaces: a LAN with a client, the node under test and another node, a pod on each node.
//!
//! ```text
//!  client 172.30.7.100 ──┐                    ┌── node  172.30.7.11 ── pod    10.244.1.5
//!                        ├── bridge (lan) ────┤
//!                        │                    └── other 172.30.7.12    remote 10.244.2.5 (an address of other)
//! ```

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The network; its namespaces go when it is dropped.
pub(crate) struct Net {
    prefix: String,
}

static NETS: AtomicU32 = AtomicU32::new(0);
const NAMES: [&str; 5] = ["lan", "client", "node", "other", "pod"];

impl Net {
    /// How many packets the node's stack has forwarded.
    pub(crate) fn forwarded(&self) -> u64 {
        let (v4, v6) = self.within("node", || {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
            (read("snmp"), read("snmp6"))
        });
        let mut lines = v4.lines().filter(|line| line.starts_with("Ip: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let mut both = names.split(' ').zip(values.split(' '));
        let (_, v4) = both.find(|(name, _)| *name == "ForwDatagrams").unwrap();
        let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")).unwrap().trim();
        v4.parse::<u64>().unwrap() + v6.parse::<u64>().unwrap()
    }

    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces");
        let prefix = format!("swp{}x{}", std::process::id(), NETS.fetch_add(1, Ordering::Relaxed));
        let net = Self { prefix };
        for name in NAMES {
            ip(&format!("netns add {}", net.ns(name)));
            net.ip(name, "link set lo up");
        }
        net.ip("lan", "link add br0 type bridge");
        net.ip("lan", "link set br0 up");
        for (name, last) in [("client", "100"), ("node", "11"), ("other", "12")] {
            net.ip(name, &format!("link add eth0 type veth peer name {name} netns {}", net.ns("lan")));
            net.ip("lan", &format!("link set {name} master br0 up"));
            net.ip(name, &format!("addr add 172.30.7.{last}/24 dev eth0"));
            net.ip(name, &format!("addr add fd00:7::{last}/64 dev eth0 nodad"));
            net.ip(name, "link set eth0 up");
        }
        net.forward("node");
        net.ip("pod", &format!("link add eth0 type veth peer name swpod netns {}", net.ns("node")));
        net.ip("pod", "addr add 10.244.1.5/32 dev eth0");
        net.ip("pod", "addr add fd00:10:244:1::5/128 dev eth0 nodad");
        net.ip("pod", "link set eth0 up");
        net.ip("node", "addr add 169.254.1.1/32 dev swpod");
        net.ip("node", "addr add fe80::1/64 dev swpod nodad");
        net.ip("node", "link set swpod up");
        net.ip("node", "route add 10.244.1.5/32 dev swpod");
        net.ip("node", "-6 route add fd00:10:244:1::5/128 dev swpod");
        net.ip("pod", "route add 169.254.1.1/32 dev eth0");
        net.ip("pod", "route add default via 169.254.1.1 dev eth0");
        net.ip("pod", "-6 route add default via fe80::1 dev eth0");
        // The other node's pod is an address of that node itself.
        net.ip("other", "addr add 10.244.2.5/32 dev lo");
        net.ip("other", "addr add fd00:10:244:2::5/128 dev lo nodad");
        net.ip("other", "route add 10.244.1.0/24 via 172.30.7.11");
        net.ip("other", "-6 route add fd00:10:244:1::/64 via fd00:7::11");
        net.ip("node", "route add 10.244.2.0/24 via 172.30.7.12");
        net.ip("node", "-6 route add fd00:10:244:2::/64 via fd00:7::12");
        net
    }

    pub(crate) fn forward(&self, name: &str) {
        self.within(name, || {
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
            }
        });
    }

    pub(crate) fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) fn ip(&self, name: &str, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.ns(name)));
    }

    /// Runs `f` on a thread of its own in a namespace.
    pub(crate) fn within<R: Send>(&self, name: &str, f: impl FnOnce() -> R + Send) -> R {
        let path = format!("/run/netns/{}", self.ns(name));
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&path);
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `f` on a thread of its own in a namespace, for as long as it likes.
    pub(crate) fn spawn_within(&self, name: &str, f: impl FnOnce() + Send + 'static) {
        let path = format!("/run/netns/{}", self.ns(name));
        std::thread::spawn(move || {
            enter(&path);
            f();
        });
    }

    /// Servers in a namespace, at `addr`, that say `name` and who asked.
    pub(crate) fn serve(&self, ns: &str, name: &'static str, addr: SocketAddr) {
        let (tcp, udp) =
            self.within(ns, || (TcpListener::bind(addr).unwrap(), UdpSocket::bind(addr).unwrap()));
        std::thread::spawn(move || {
            for connection in tcp.incoming() {
                let Ok(connection) = connection else { return };
                std::thread::spawn(move || converse(connection, name));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _sent = udp.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// Asks as a process of `ns` in `cgroup`, where the socket hooks are. `Err`: how bash failed.
    pub(crate) fn ask_from_cgroup(
        &self,
        ns: &str,
        cgroup: &std::path::Path,
        protocol: &str,
        to: SocketAddr,
    ) -> Result<String, String> {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec 3<>/dev/{protocol}/{}/{} || exit 7; echo hi >&3; \
             timeout 3 dd bs=512 count=1 status=none <&3 || exit 8",
            cgroup.display(),
            to.ip(),
            to.port()
        );
        let output = self.within(ns, || Command::new("bash").args(["-c", &script]).output().unwrap());
        if output.status.success() { Ok(text(&output)) } else { Err(format!("{output:?}")) }
    }

    /// A client in `ns` and `cgroup` that stays connected.
    pub(crate) fn stay(
        &self,
        ns: &str,
        cgroup: &std::path::Path,
        protocol: &str,
        to: SocketAddr,
    ) -> StayingClient {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec 3<>/dev/{protocol}/{}/{} 4<&0 || exit 7; cat <&4 >&3 & \
             while answer=$(timeout 20 dd bs=512 count=1 status=none <&3); how=$?; [ \"$how$answer\" \\> 0 ] \
             && [ $how = 0 ]; do echo \"$answer\"; done; echo \"ended $how\"",
            cgroup.display(),
            to.ip(),
            to.port()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.within(ns, || command.spawn().unwrap());
        let lines = BufReader::new(child.stdout.take().unwrap());
        StayingClient { input: child.stdin.take(), lines, child }
    }

    /// Asks over TCP from a process that no hook serves.
    pub(crate) fn ask_tcp(&self, ns: &str, to: SocketAddr) -> std::io::Result<String> {
        self.within(ns, || {
            let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            connection.set_read_timeout(Some(Duration::from_secs(2)))?;
            talk(&mut connection)
        })
    }

    /// A client over UDP in a process that no hook serves.
    pub(crate) fn datagrams(&self, ns: &str, to: SocketAddr) -> Datagrams {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.within(ns, || UdpSocket::bind(any).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        Datagrams(socket)
    }

    /// Asks over UDP from a process that no hook serves.
    pub(crate) fn ask_udp(&self, ns: &str, to: SocketAddr) -> std::io::Result<String> {
        self.within(ns, || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send(b"hi\n")?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in NAMES {
            let _gone = Command::new("ip").args(["netns", "del", &self.ns(name)]).output();
        }
    }
}

/// A process with an open connection.
pub(crate) struct StayingClient {
    input: Option<std::process::ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
    child: std::process::Child,
}

impl StayingClient {
    /// Asks once more.
    pub(crate) fn ask(&mut self) -> String {
        self.input.as_mut().unwrap().write_all(b"hi\n").unwrap();
        self.line()
    }

    /// The next line that it says: an answer, or `ended` with how its last read ended (1: an error, 0: the end).
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for StayingClient {
    fn drop(&mut self) {
        self.input = None;
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// A client that sends from one port all the time.
pub(crate) struct Datagrams(UdpSocket);

impl Datagrams {
    /// The name of who answers.
    pub(crate) fn ask(&self, bytes: &[u8]) -> Result<String, ErrorKind> {
        let mut buffer = [0; 512];
        self.0.send(bytes).map_err(|error| error.kind())?;
        let length = self.0.recv(&mut buffer).map_err(|error| error.kind())?;
        Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_owned())
    }

    /// Asks until that is the answer.
    pub(crate) fn hears(&self, what: &str, wanted: &Result<String, ErrorKind>) {
        eventually(what, || {
            let heard = self.ask(b"hi\n");
            if heard == *wanted { Ok(()) } else { Err(heard) }
        });
    }
}

/// One line each way on an open connection.
pub(crate) fn talk(connection: &mut TcpStream) -> std::io::Result<String> {
    connection.write_all(b"hi\n")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while connection.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn converse(connection: TcpStream, name: &str) {
    let peer = connection.peer_addr().unwrap();
    let mut writer = connection.try_clone().unwrap();
    for line in BufReader::new(connection).lines() {
        if line.is_err() || writer.write_all(format!("{name} {}\n", peer.ip()).as_bytes()).is_err() {
            return;
        }
    }
}

fn enter(path: &str) {
    let namespace = std::fs::File::open(path).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Tries until it works or half a minute is over: programs take the verifier a while where many are loaded at once.
pub(crate) fn eventually<T, E: std::fmt::Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("{what}: {error:?}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}
