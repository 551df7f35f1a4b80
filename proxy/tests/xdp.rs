//! XDP as a setting of the proxy: attached at uplinks, kept while no agent is there, told, and taken away. What it does
//! with packets is tested where the programs are (`ebpf/loader/tests/xdp*`). Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/all.rs"]
mod support;

use std::process::Command;

use seaway_ebpf_loader::{Capacities, Dataplane, Role};
use seaway_model::Protocol;
use seaway_proxy::{Mode, ProxyConfig, XdpMode, XdpUplink};
use support::kernel::Place;
use support::net::eventually;
use support::services::{NODE, Running, World, cluster, node_port};

/// A node; the endpoint of its second Service is on the other one.
struct Bed {
    world: World,
    place: Place,
}

impl Bed {
    fn new() -> Self {
        Self { world: World::new(Mode::Ebpf), place: Place::new() }
    }

    fn serve(&self, xdp: XdpMode) -> Running {
        let mut config = ProxyConfig::new("node", &self.place.cgroup, &self.place.bpffs);
        config.xdp = xdp;
        self.world.serve_with(config, cluster())
    }

    /// A client outside is answered through the NodePort.
    fn ask(&self) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let said = self.world.try_ask("client", protocol, node_port(2, false)).unwrap();
            assert_eq!(said, format!("remote {}", NODE[0]), "{protocol:?}");
        }
    }

    /// What the kernel says of the uplink.
    fn uplink(&self) -> String {
        let output = self.world.net.within("node", || {
            Command::new("ip").args(["-d", "link", "show", "dev", "eth0"]).output().unwrap()
        });
        String::from_utf8(output.stdout).unwrap()
    }

    /// The id of the XDP program that it runs, by the words in front of it.
    fn program(&self, words: &str) -> Option<String> {
        let uplink = self.uplink();
        let (_, id) = uplink.split_once("prog/xdp id ").filter(|_| uplink.contains(words))?;
        id.split(' ').next().map(str::to_owned)
    }
}

/// Waits until the proxy says of its only uplink what `wanted` says.
fn expect(running: &Running, wanted: Option<(&str, &str)>) {
    eventually("what XDP does", || {
        let said = running.status.status().xdp.uplinks;
        let holds = match (&said[..], wanted) {
            ([], None) => true,
            ([XdpUplink { device, mode, note }], Some((wanted, reason))) => {
                device == "eth0" && *mode == wanted && note.as_deref().unwrap_or_default().contains(reason)
            }
            _ => false,
        };
        if holds { Ok(()) } else { Err(said) }
    });
}

#[test]
fn it_stays_while_no_agent_is_there_and_goes_when_it_is_switched_off() {
    let bed = Bed::new();
    let running = bed.serve(XdpMode::Native);
    // The bridge's end of the link takes no frames: what leaves there is the other programs'.
    expect(&running, Some(("native", "far end takes no frames")));
    bed.ask();
    let first = bed.program("mtu 1500 xdp ").unwrap();
    running.stop();
    assert_eq!(bed.program("mtu 1500 xdp "), Some(first.clone()));
    bed.ask();
    let running = bed.serve(XdpMode::Native);
    expect(&running, Some(("native", "far end takes no frames")));
    assert_ne!(bed.program("mtu 1500 xdp ").unwrap(), first, "its successor's is in place");
    running.stop();
    let running = bed.serve(XdpMode::Generic);
    expect(&running, Some(("generic", "")));
    assert!(bed.program("xdpgeneric").is_some(), "{}", bed.uplink());
    bed.ask();
    running.stop();
    let running = bed.serve(XdpMode::Off);
    expect(&running, None);
    assert!(!bed.uplink().contains("xdp"), "{}", bed.uplink());
    bed.ask();
    running.stop();
}

#[test]
fn cleanup_takes_it_away() {
    let bed = Bed::new();
    let running = bed.serve(XdpMode::Native);
    expect(&running, Some(("native", "")));
    running.stop();
    assert!(bed.program("xdp").is_some());
    bed.world.net.within("node", || seaway_ebpf_loader::remove_all(&bed.place.bpffs).unwrap());
    assert!(!bed.uplink().contains("xdp"), "{}", bed.uplink());
}

#[test]
fn somebody_elses_program_keeps_its_place_until_it_goes() {
    let (bed, others) = (Bed::new(), Place::new());
    let mut dataplane = Dataplane::open(&others.bpffs, &Capacities::default()).unwrap();
    bed.world.net.within("node", || {
        dataplane.set_xdp(XdpMode::Native);
        dataplane.attach_devices(&[("eth0".to_owned(), Role::Uplink)]).unwrap();
    });
    let theirs = bed.program("xdp").unwrap();
    let running = bed.serve(XdpMode::Native);
    expect(&running, Some(("off", "somebody else's program \"sw_xdp\"")));
    bed.ask();
    assert_eq!(bed.program("xdp"), Some(theirs.clone()));
    seaway_ebpf_loader::remove_all(&others.bpffs).unwrap();
    expect(&running, Some(("native", "")));
    assert!(bed.program("xdp").is_some_and(|program| program != theirs));
    running.stop();
}
