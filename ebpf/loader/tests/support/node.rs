//! A node for a test: a network namespace of the thread's own with an uplink, a bpffs directory and the loaded
//! programs. All of it goes when the test ends, also when it panics.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use seaway_ebpf_loader::{
    BackendEntry, Capacities, ClusterNet, ClusterNetKind, Counter, Dataplane, Frontend, KernelMaps,
    NodeConfig, Protocol, Scope, ServiceEntry, ServiceMaps, remove_all,
};

/// The node's addresses.
pub const NODE_V4: &str = "192.168.0.1";
/// See [`NODE_V4`].
pub const NODE_V6: &str = "fd01::1";

/// Room enough for a test.
pub const CAPACITIES: Capacities = Capacities {
    services: 4096,
    backends: 4096,
    maglev: 2048,
    source_ranges: 64,
    affinity: 256,
    sockets: 4096,
    flows: 4096,
    fragments: 256,
    stats: 256,
};

/// The object under test: a fresh one if the caller has built it, else the checked-in one.
pub fn open(bpffs: &std::path::Path) -> Dataplane {
    let capacities = CAPACITIES;
    let opened = match std::env::var_os("SEAWAY_BPF_OBJECT") {
        Some(path) => Dataplane::open_object(bpffs, &capacities, &std::fs::read(path).unwrap()),
        None => Dataplane::open(bpffs, &capacities),
    };
    opened.unwrap_or_else(|e| {
        // There is no node yet whose end would do it.
        remove_all(bpffs).unwrap();
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            text.push('\n');
            text.push_str(&inner_text[inner_text.len().saturating_sub(4000)..]);
            source = inner.source();
        }
        panic!("{text}")
    })
}

/// Fails with a clear line when the test is not run as root.
pub fn need_root() {
    // SAFETY: no arguments, cannot fail.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "this test needs root (namespaces, bpf(2), cgroups): run it with sudo");
}

/// Runs a command in the calling thread's namespaces.
pub fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs several `ip` commands in one process.
pub fn batch(commands: &[&str]) {
    use std::io::Write;
    let mut ip =
        Command::new("ip").args(["-batch", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{commands:?}");
}

/// `ETHTOOL_STXCSUM`: checksums of what a device sends are left to it.
pub const TX_CHECKSUM: u32 = 0x17;
/// `ETHTOOL_SGRO`: what a device receives is put together; a virtual one then takes frames as they are.
pub const GRO: u32 = 0x2c;

/// Switches an offload of a device.
pub fn offload(device: &str, command: u32, on: bool) {
    use std::os::fd::AsRawFd;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    #[repr(C)]
    struct Request {
        name: [u8; libc::IF_NAMESIZE],
        data: *mut [u32; 2],
        room: [u64; 2],
    }
    let mut value = [command, on.into()];
    let mut request = Request { name: [0; libc::IF_NAMESIZE], data: &raw mut value, room: [0; 2] };
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // SAFETY: the request has the layout of `struct ifreq`, its data that of `struct ethtool_value`.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
}

/// A test's node.
pub struct Node {
    pub bpffs: PathBuf,
    pub dataplane: Dataplane,
    pub maps: KernelMaps,
    next_base: u32,
    next_id: u32,
}

impl Node {
    /// Moves the thread to a fresh namespace and loads the programs.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        need_root();
        // SAFETY: only this thread's network namespace changes.
        let code = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(code, 0, "unshare: {}", std::io::Error::last_os_error());
        run("ip link set lo up");
        let unique =
            format!("seaway-test-{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bpffs = PathBuf::from("/sys/fs/bpf").join(unique);
        let dataplane = open(&bpffs);
        let maps = dataplane.maps();
        Self { bpffs, dataplane, maps, next_base: 0, next_id: 1 }
    }

    /// Gives the node an uplink `up0` with addresses, and routes to the pods of another node.
    pub fn with_uplink(self) -> Self {
        batch(&[
            // The address that the frames of `wire` are for.
            "link add up0 address 02:00:00:00:00:01 type veth peer name wire0",
            "addr add 192.168.0.1/24 dev up0",
            "addr add fd01::1/64 dev up0 nodad",
            "link set up0 up",
            "link set wire0 up",
            "route add 10.244.2.0/24 via 192.168.0.2",
            "route add 10.244.9.0/24 via 192.168.0.2",
            "route add 203.0.113.0/24 via 192.168.0.254",
            "route add fd00:244:2::/64 via fd01::2",
            "route add fd00:244:9::/64 via fd01::2",
            "route add 2001:db8::/64 via fd01::fe",
        ]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        let mut node = self;
        let config = NodeConfig {
            node_v4: Some(NODE_V4.parse().unwrap()),
            node_v6: Some(NODE_V6.parse().unwrap()),
            ..NodeConfig::default()
        };
        node.maps.set_config(&config).unwrap();
        node.knows_nodes(&[NODE_V4, NODE_V6, "192.168.0.2", "fd01::2"]);
        node
    }

    /// Tells the programs addresses of nodes.
    pub fn knows_nodes(&mut self, addrs: &[&str]) {
        let net = |text: &&str| {
            let addr: IpAddr = text.parse().unwrap();
            let prefix = if addr.is_ipv4() { 32 } else { 128 };
            ClusterNet { addr, prefix, kind: ClusterNetKind::Node }
        };
        self.maps.put_cluster_nets(&addrs.iter().map(net).collect::<Vec<_>>()).unwrap();
    }

    /// The uplink's index.
    #[allow(clippy::unused_self, reason = "a node in a namespace of its own has the only uplink there")]
    pub fn uplink(&self) -> u32 {
        // SAFETY: a C string.
        let index = unsafe { libc::if_nametoindex(c"up0".as_ptr()) };
        assert_ne!(index, 0);
        index
    }

    /// Writes a service of one frontend; `backends`: address, port, local. Returns its entry.
    pub fn service(
        &mut self,
        frontend: Frontend,
        backends: &[(&str, u16, bool)],
        change: impl FnOnce(&mut ServiceEntry),
    ) -> ServiceEntry {
        let id = self.next_id;
        self.next_id += 1;
        self.write(frontend, id, backends, change)
    }

    /// Writes a service anew under an id that it has.
    pub fn write(
        &mut self,
        frontend: Frontend,
        id: u32,
        backends: &[(&str, u16, bool)],
        change: impl FnOnce(&mut ServiceEntry),
    ) -> ServiceEntry {
        let mut slice: Vec<BackendEntry> = backends
            .iter()
            .map(|(addr, port, local)| BackendEntry {
                addr: addr.parse().unwrap(),
                port: *port,
                service: id,
                local: *local,
            })
            .collect();
        slice.sort();
        let count = u32::try_from(slice.len()).unwrap();
        let mut entry = ServiceEntry { id, base: self.next_base, count, ..ServiceEntry::default() };
        change(&mut entry);
        self.next_base += count;
        self.maps.put_backends(&[(entry.base, slice)]).unwrap();
        self.maps.put_services(&[(frontend, entry)]).unwrap();
        entry
    }

    /// A counter's value.
    pub fn counter(&self, wanted: Counter) -> u64 {
        self.maps.counters().unwrap().into_iter().find(|(counter, _)| *counter == wanted).unwrap().1
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(e) = remove_all(&self.bpffs) {
            eprintln!("cannot clean up: {e}");
        }
    }
}

/// A frontend for packets from outside.
pub fn external(addr: &str, port: u16, protocol: Protocol) -> Frontend {
    Frontend::new(addr.parse::<IpAddr>().unwrap(), port, protocol, Scope::External)
}

/// A frontend for sockets.
pub fn internal(addr: &str, port: u16, protocol: Protocol) -> Frontend {
    Frontend::new(addr.parse::<IpAddr>().unwrap(), port, protocol, Scope::Internal)
}
