//! Maps are exchanged while traffic flows: for larger ones, and for ones of another layout when a newer version takes
//! over from a former one. Needs root.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "the test's own network namespace")]

#[path = "support/node.rs"]
mod node;
#[path = "support/wire.rs"]
mod wire;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use node::{CAPACITIES, Node, external};
use seaway_ebpf_loader::{
    BackendEntry, Capacities, Dataplane, Direction, Frontend, MapError, Protocol, Scope, ServiceEntry,
    ServiceMaps, SourceRange, remove_all,
};
use wire::{TCP, frame, ip, read, tcp};

fn syn(port: u16, to: (&str, u16)) -> Vec<u8> {
    frame(&ip("203.0.113.7", to.0, TCP, tcp(port, to.1, 2, 1, 0, b"")))
}

fn target(dataplane: &Dataplane, ifindex: u32, packet: &[u8]) -> String {
    let run = dataplane.run_packet(Direction::Ingress, packet, ifindex, 1).unwrap();
    read(&run.packet).ends()
}

#[test]
fn a_full_map_grows_and_nothing_is_lost() {
    let mut node = Node::new("grow").with_uplink();
    node.service(external("172.30.0.200", 80, Protocol::Tcp), &[("10.244.1.5", 8080, true)], |_| {});
    let before = target(&node.dataplane, node.uplink(), &syn(4000, ("172.30.0.200", 80)));
    let held = node.maps.services().unwrap();
    let ranges: Vec<SourceRange> =
        (0..64_u8).map(|n| SourceRange { service: 7, addr: [10, n, 0, 0].into(), prefix: 16 }).collect();
    node.maps.put_source_ranges(&ranges).unwrap();
    let one_more = SourceRange { service: 8, addr: [10, 0, 0, 0].into(), prefix: 16 };
    assert!(matches!(node.maps.put_source_ranges(&[one_more]), Err(MapError::Full { capacity: 64, .. })));
    // A clone from before, as a reconciler holds one.
    let mut clone = node.maps.clone();
    assert!(!node.dataplane.grow(&CAPACITIES).unwrap(), "all are large enough");
    let wanted =
        Capacities { services: 10_000, backends: 20_000, source_ranges: 128, maglev: 4096, ..CAPACITIES };
    assert!(node.dataplane.grow(&wanted).unwrap());
    assert!(!node.dataplane.grow(&wanted).unwrap());
    clone.put_source_ranges(&[one_more]).unwrap();
    assert_eq!(node.maps.source_ranges().unwrap().len(), 65);
    assert_eq!(node.maps.services().unwrap(), held);
    assert_eq!((clone.backend_capacity(), clone.maglev_capacity()), (20_000, 4096));
    // The connection is known still, and a new one finds the service.
    assert_eq!(node.maps.connections().unwrap().len(), 2);
    assert_eq!(target(&node.dataplane, node.uplink(), &syn(4000, ("172.30.0.200", 80))), before);
    assert!(
        target(&node.dataplane, node.uplink(), &syn(4001, ("172.30.0.200", 80))).ends_with("10.244.1.5 8080")
    );
    // A restart adopts the larger maps; nothing waits beside them.
    let restarted = node::open(&node.bpffs);
    assert_eq!(restarted.maps().backend_capacity(), 20_000);
    let pins: Vec<_> = std::fs::read_dir(node.bpffs.join("maps")).unwrap().flatten().collect();
    assert!(pins.iter().all(|pin| !pin.file_name().to_string_lossy().ends_with("_new")), "{pins:?}");
}

#[test]
fn what_a_crash_left_waiting_is_discarded() {
    let node = Node::new("leftover");
    let (pins, maps) = (node.bpffs.join("maps"), node.maps.services().unwrap());
    // A map that waits, of another content.
    std::fs::rename(pins.join("sw_src_range_1"), pins.join("sw_services_2_new")).unwrap();
    let restarted = node::open(&node.bpffs);
    assert_eq!(restarted.maps().services().unwrap(), maps);
    assert!(!pins.join("sw_services_2_new").exists());
}

/// Sends datagrams to a service without pause while something happens; every one of them has to arrive at a backend.
fn under_traffic(node: &mut Node, cgroup: &Path, what: impl FnOnce(&mut Node)) {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    let frontend = Frontend::new([10, 96, 0, 1].into(), 53, Protocol::Udp, Scope::Internal);
    node.service(frontend, &[("127.0.0.1", addr.port(), true)], |_| {});
    node.dataplane.attach_cgroup(cgroup).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut buffer = [0; 8];
            while !stop.load(Ordering::Relaxed) {
                // A new socket each time: nothing is remembered, every one is looked up.
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(SocketAddr::from(([10, 96, 0, 1], 53))).unwrap();
                socket.send(b"x").unwrap();
                server.recv_from(&mut buffer).expect("a look-up missed");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        what(node);
        stop.store(true, Ordering::Relaxed);
        client.join().unwrap();
    });
    assert!(sent.load(Ordering::Relaxed) > 100, "too little traffic to prove anything");
}

/// The test's process in a cgroup of its own.
struct Cgroup {
    path: std::path::PathBuf,
    former: std::path::PathBuf,
}

impl Cgroup {
    fn enter() -> Self {
        let mount = seaway_ebpf_loader::cgroup2_mount().unwrap();
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let here = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let former = mount.join(here);
        let path = mount.join(format!("seaway-exchange-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Self { path, former }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::write(self.former.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        if let Err(e) = std::fs::remove_dir(&self.path) {
            eprintln!("cannot remove {}: {e}", self.path.display());
        }
    }
}

#[test]
fn no_look_up_misses_while_maps_grow() {
    let mut node = Node::new("grow-traffic");
    let cgroup = Cgroup::enter();
    under_traffic(&mut node, &cgroup.path, |node| {
        let mut wanted = CAPACITIES;
        for _ in 0..2 {
            (wanted.services, wanted.backends) = (wanted.services * 2, wanted.backends * 2);
            assert!(node.dataplane.grow(&wanted).unwrap());
        }
    });
}

/// The former version's own object, loaded and attached as it did that, with services in its maps.
fn former_version(bpffs: &Path, uplink: (&str, u32)) -> aya::Ebpf {
    use aya::programs::links::FdLink;
    use aya::programs::tc::TcAttachOptions;
    use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
    let object = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/former/1.bpf.o")).unwrap();
    let (maps, links) = (bpffs.join("maps"), bpffs.join("links"));
    for directory in [&maps, &links] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let mut loader = aya::EbpfLoader::new();
    for name in [
        "services",
        "backends",
        "src_range",
        "affinity",
        "sockets",
        "flows",
        "fragments",
        "counters",
        "config",
    ] {
        let name: &'static str = Box::leak(format!("sw_{name}_1").into_boxed_str());
        loader.map_pin_path(name, maps.join(name));
    }
    let mut ebpf = loader.load(&object).unwrap();
    for (name, kind) in [("sw_ingress", TcAttachType::Ingress), ("sw_egress", TcAttachType::Egress)] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(uplink.0, kind, options).unwrap();
        let link: FdLink = program.take_link(id).unwrap().try_into().unwrap();
        link.pin(links.join(format!("{name}-{}", uplink.1))).unwrap();
    }
    ebpf
}

#[test]
fn a_newer_version_takes_over_from_the_former_one_with_its_maps() {
    let node = Node::new("migrate").with_uplink();
    remove_all(&node.bpffs).unwrap();
    let mut former = former_version(&node.bpffs, ("up0", node.uplink()));
    write_former(&mut former);
    let ids = |node: &Node| -> Vec<(String, u32)> {
        let attached = node.dataplane.attached().unwrap();
        attached.into_iter().map(|link| (link.program.to_owned(), link.program_id)).collect()
    };
    let before = ids(&node);
    assert_eq!(before.len(), 2);
    drop(former);

    let dataplane = node::open(&node.bpffs);
    let maps = dataplane.maps();
    let frontend = external("172.30.0.200", 80, Protocol::Tcp);
    let expected = ServiceEntry {
        id: 77,
        base: 3,
        count: 1,
        affinity: Some(Duration::from_secs(60)),
        generation: 5,
        drop_when_empty: true,
        ..ServiceEntry::default()
    };
    assert_eq!(maps.services().unwrap(), [(frontend, expected)]);
    let backend = BackendEntry { addr: [10, 244, 1, 5].into(), port: 8080, service: 77, local: true };
    assert_eq!(maps.backends(3, 1).unwrap(), [backend]);
    let config = maps.config().unwrap();
    assert_eq!((config.node_v4, config.snat_ports), (Some([192, 168, 0, 1].into()), 2000..=3000));
    assert_eq!((config.netns_cookie, config.stats), (42, false));
    // Both links run the new programs, which serve what the former ones did.
    let after = ids(&node);
    assert!(before.iter().zip(&after).all(|(b, a)| b.0 == a.0 && b.1 != a.1), "{before:?} {after:?}");
    assert!(target(&dataplane, node.uplink(), &syn(4000, ("172.30.0.200", 80))).ends_with("10.244.1.5 8080"));
    for name in ["sw_services_1", "sw_config_1"] {
        assert!(!node.bpffs.join("maps").join(name).exists(), "{name} is left");
    }
    // A second start has nothing to convert.
    let again = node::open(&node.bpffs);
    assert_eq!(again.maps().services().unwrap(), [(frontend, expected)]);
}

/// What the former version would have written, byte for byte.
fn write_former(former: &mut aya::Ebpf) {
    use aya::maps::{Array, HashMap};
    let mut key = [0_u8; 24];
    key[10..12].fill(0xff);
    key[12..16].copy_from_slice(&[172, 30, 0, 200]);
    key[16..18].copy_from_slice(&80_u16.to_be_bytes());
    (key[18], key[19]) = (TCP, 1);
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    // id, base, count, flags (drop when empty), affinity timeout, generation
    let service: [u8; 24] = words(&[77, 3, 1, 2, 60, 5]).try_into().unwrap();
    let mut services: HashMap<_, [u8; 24], [u8; 24]> =
        former.map_mut("sw_services_1").unwrap().try_into().unwrap();
    services.insert(key, service, 0).unwrap();
    let mut backend = [0_u8; 24];
    backend[10..12].fill(0xff);
    backend[12..16].copy_from_slice(&[10, 244, 1, 5]);
    backend[16..18].copy_from_slice(&8080_u16.to_be_bytes());
    backend[18..20].copy_from_slice(&1_u16.to_ne_bytes());
    backend[20..24].copy_from_slice(&77_u32.to_ne_bytes());
    let mut backends: Array<_, [u8; 24]> = former.map_mut("sw_backends_1").unwrap().try_into().unwrap();
    backends.set(3, backend, 0).unwrap();
    let mut config = [0_u8; 48];
    config[10..12].fill(0xff);
    config[12..16].copy_from_slice(&[192, 168, 0, 1]);
    config[32..40].copy_from_slice(&42_u64.to_ne_bytes());
    config[40..42].copy_from_slice(&2000_u16.to_ne_bytes());
    config[42..44].copy_from_slice(&3000_u16.to_ne_bytes());
    let mut configs: Array<_, [u8; 48]> = former.map_mut("sw_config_1").unwrap().try_into().unwrap();
    configs.set(0, config, 0).unwrap();
}
