//! The XDP program between real kernels: a client outside of the cluster, a node, and a second node with the backend,
//! each a network namespace. Needs root and `ip`.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]
#![allow(unsafe_code, reason = "setns(2)")]

#[path = "support/node.rs"]
mod node;
#[path = "support/world.rs"]
mod world;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use node::{GRO, Node, TX_CHECKSUM, external, offload};
use seaway_ebpf_loader::{Capacities, Counter, Dataplane, Protocol, Role, XdpMode};
use world::{FAMILIES, World, ask_tcp, ask_udp, at, ready};

/// The world with the program at both uplinks, NodePorts with a backend on the other node, and far ends that take frames
/// and send whole checksums.
fn with_xdp(mode: XdpMode) -> (World, Node) {
    let (world, mut node) = ready();
    for (name, link) in [("client", "c0"), ("b", "ba0")] {
        world.inside(name, || {
            offload(link, GRO, true);
            offload(link, TX_CHECKSUM, false);
        });
    }
    attach(&mut node.dataplane, mode);
    for f in &FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            node.service(external(f.own, 30_080, protocol), &[(f.other, 8080, false)], |entry| {
                entry.node_port = true;
            });
        }
    }
    (world, node)
}

fn attach(dataplane: &mut Dataplane, mode: XdpMode) {
    dataplane.set_xdp(mode);
    let devices = ["up0", "ab0"].map(|name| (name.to_owned(), Role::Uplink));
    assert!(dataplane.attach_devices(&devices).unwrap().is_empty());
}

/// How the devices run the program, and what is said of that.
fn running(dataplane: &Dataplane) -> Vec<(&str, XdpMode, Option<&str>)> {
    dataplane.xdp().iter().map(|xdp| (xdp.device.as_str(), xdp.mode, xdp.note.as_deref())).collect()
}

/// What the kernel says of a device.
fn link(name: &str) -> String {
    let output = Command::new("ip").args(["-d", "link", "show", "dev", name]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Packets that the programs have translated, and how many of them by XDP.
fn translated(node: &Node) -> (u64, u64) {
    let all = node.counter(Counter::Forward) + node.counter(Counter::Reply);
    (all, node.counter(Counter::XdpForwarded))
}

fn ask_all(world: &World) {
    for f in &FAMILIES {
        let to = at(f.own, 30_080);
        let said = world.inside("client", || ask_tcp(to, 1_000_000)).unwrap();
        assert_eq!(said, format!("b {} 1000000", f.seen_by_other), "TCP to {to}");
        for bytes in [100, 4000] {
            let said = world.inside("client", || ask_udp(to, bytes)).unwrap();
            assert_eq!(said, format!("b {} {bytes}", f.seen_by_other), "UDP to {to}");
        }
    }
}

#[test]
fn clients_reach_a_backend_elsewhere_past_the_stack_and_its_buffers() {
    let (world, node) = with_xdp(XdpMode::Native);
    assert_eq!(running(&node.dataplane), ["up0", "ab0"].map(|name| (name, XdpMode::Native, None)));
    ask_all(&world);
    let (all, by_xdp) = translated(&node);
    assert!(all > 500 && by_xdp > all / 10 * 9, "{by_xdp} of {all}");
}

#[test]
fn checksums_that_are_left_to_devices_are_left_to_the_stack() {
    let (world, node) = with_xdp(XdpMode::Native);
    for (name, link) in [("client", "c0"), ("b", "ba0")] {
        world.inside(name, || offload(link, TX_CHECKSUM, true));
    }
    ask_all(&world);
    let (all, by_xdp) = translated(&node);
    assert!(all > 50 && by_xdp < all / 10, "{by_xdp} of {all}: all but one in 65,536 is told apart");
}

#[test]
fn far_ends_that_take_no_frames_lose_none() {
    let (world, mut node) = with_xdp(XdpMode::Native);
    for (name, link) in [("client", "c0"), ("b", "ba0")] {
        world.inside(name, || offload(link, GRO, false));
    }
    node.dataplane.renew_xdp().unwrap();
    assert!(running(&node.dataplane).iter().all(|(_, mode, note)| {
        *mode == XdpMode::Native && note.is_some_and(|note| note.contains("takes no frames"))
    }));
    ask_all(&world);
    assert_eq!(node.counter(Counter::XdpForwarded), 0);
}

#[test]
fn the_generic_form_does_the_same_at_any_device() {
    let (world, mut node) = with_xdp(XdpMode::Generic);
    for (name, link) in [("client", "c0"), ("b", "ba0")] {
        world.inside(name, || offload(link, GRO, false));
    }
    node.dataplane.renew_xdp().unwrap();
    assert_eq!(running(&node.dataplane), ["up0", "ab0"].map(|name| (name, XdpMode::Generic, None)));
    assert!(link("up0").contains("xdpgeneric"), "{}", link("up0"));
    ask_all(&world);
    let (all, by_xdp) = translated(&node);
    assert!(by_xdp > all / 10 * 9, "{by_xdp} of {all}");
}

/// A connection that says more now and then, and how much in all at its end.
struct Talk {
    stream: TcpStream,
    said: usize,
}

impl Talk {
    fn begin(world: &World, to: std::net::SocketAddr) -> Self {
        let stream = world.inside("client", || TcpStream::connect_timeout(&to, world::PATIENCE)).unwrap();
        stream.set_read_timeout(Some(world::PATIENCE)).unwrap();
        stream.set_write_timeout(Some(world::PATIENCE)).unwrap();
        Self { stream, said: 0 }
    }

    /// More than the buffers on the way hold: some of it has arrived when this returns.
    fn go_on(&mut self) {
        const BYTES: usize = 16 << 20;
        self.stream.write_all(&vec![7; BYTES]).unwrap();
        self.said += BYTES;
    }

    fn end(mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.lines().last(), Some(self.said.to_string().as_str()));
    }
}

#[test]
fn connections_go_on_while_nobody_is_there_while_it_is_replaced_and_when_it_is_switched_off() {
    let (world, mut node) = with_xdp(XdpMode::Native);
    let mut talks: Vec<Talk> = FAMILIES.iter().map(|f| Talk::begin(&world, at(f.own, 30_080))).collect();
    let go_on = |talks: &mut Vec<Talk>, node: &Node| {
        let before = node.counter(Counter::XdpForwarded);
        talks.iter_mut().for_each(Talk::go_on);
        node.counter(Counter::XdpForwarded) - before
    };
    assert!(go_on(&mut talks, &node) > 10_000);
    // The agent dies: what it pinned stays.
    let maps = node.maps.clone();
    let other = tempdir();
    drop(std::mem::replace(&mut node.dataplane, node::open(&other.0)));
    node.maps = maps;
    assert!(link("up0").contains("xdp"), "{}", link("up0"));
    assert!(go_on(&mut talks, &node) > 10_000);
    // The next one puts its own in place.
    let mut restarted = node::open(&node.bpffs);
    restarted.set_xdp(XdpMode::Native);
    restarted.renew_xdp().unwrap();
    assert!(link("up0").contains("xdp"), "before it knows its uplinks, nothing is taken away");
    attach(&mut restarted, XdpMode::Native);
    let programs = |dataplane: &Dataplane| {
        let attached = dataplane.attached().unwrap();
        attached
            .into_iter()
            .filter(|link| link.program.starts_with("sw_xdp"))
            .map(|link| link.program_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(programs(&restarted).len(), 2);
    node.maps = restarted.maps();
    node.dataplane = restarted;
    assert!(go_on(&mut talks, &node) > 10_000);
    // Larger maps, which every program goes over to.
    let larger = Capacities { services: 2 * node::CAPACITIES.services, ..node::CAPACITIES };
    assert!(node.dataplane.grow(&larger).unwrap());
    assert!(go_on(&mut talks, &node) > 10_000);
    for mode in [XdpMode::Generic, XdpMode::Native] {
        attach(&mut node.dataplane, mode);
        assert_eq!(running(&node.dataplane), ["up0", "ab0"].map(|name| (name, mode, None)));
        assert!(go_on(&mut talks, &node) > 10_000);
    }
    attach(&mut node.dataplane, XdpMode::Off);
    assert_eq!((running(&node.dataplane), programs(&node.dataplane)), (vec![], vec![]));
    for name in ["up0", "ab0"] {
        assert!(!link(name).contains("xdp"), "{}", link(name));
    }
    assert_eq!(go_on(&mut talks, &node), 0);
    talks.into_iter().for_each(Talk::end);
}

#[test]
fn what_somebody_else_has_attached_stays_and_is_named() {
    let (world, mut node) = with_xdp(XdpMode::Off);
    let other = tempdir();
    let mut others = node::open(&other.0);
    others.set_xdp(XdpMode::Native);
    others.attach_devices(&[("up0".to_owned(), Role::Uplink)]).unwrap();
    let held = link("up0");
    attach(&mut node.dataplane, XdpMode::Native);
    let [(_, XdpMode::Off, Some(said)), (_, XdpMode::Native, None)] = running(&node.dataplane)[..] else {
        panic!("{:?}", node.dataplane.xdp());
    };
    assert!(said.contains("somebody else's program \"sw_xdp\""), "{said}");
    assert_eq!(link("up0"), held);
    ask_all(&world);
    // When it is gone, the place is free.
    seaway_ebpf_loader::remove_all(&other.0).unwrap();
    node.dataplane.renew_xdp().unwrap();
    assert_eq!(running(&node.dataplane), ["up0", "ab0"].map(|name| (name, XdpMode::Native, None)));
    seaway_ebpf_loader::remove_all(&node.bpffs).unwrap();
    assert!(!link("up0").contains("xdp"), "{}", link("up0"));
}

/// A bpffs directory of another agent.
struct Others(std::path::PathBuf);

impl Drop for Others {
    fn drop(&mut self) {
        let _gone = seaway_ebpf_loader::remove_all(&self.0);
    }
}

fn tempdir() -> Others {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Others(format!("/sys/fs/bpf/seaway-test-others-{}-{number}", std::process::id()).into())
}
