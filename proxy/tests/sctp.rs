//! SCTP, where the kernel can translate it: packets of an association made by hand, since many kernels know the protocol
//! in connection tracking only. Where a mode cannot, it says so on the Service, and serves its other ports. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/all.rs"]
mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seaway_model::{Protocol, ServicePort, Snapshot, TrafficPolicy};
use seaway_proxy::{Mode, Notice, ProxyConfig, Reporter};
use socket2::{Domain, Socket, Type};
use support::kernel::Place;
use support::net::eventually;
use support::services::{CLIENT, LOCAL, NODE, REMOTE, World, cluster, cluster_ip, node_port, service, vip};

const SCTP: u8 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// Checksum of SCTP (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A packet with one chunk: the beginning of an association, or the answer to it.
fn packet(from: u16, to: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([chunk, 0, 0, 20]);
    // Own tag, window, streams out and in, first sequence number.
    bytes.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// A packet that has arrived.
#[derive(Debug)]
struct Arrived {
    from: SocketAddr,
    to_port: u16,
    chunk: u8,
}

/// All SCTP that comes to a namespace in a family. (It is no UDP: the type only sends and receives.)
struct Raw(UdpSocket);

impl Raw {
    fn open_at(world: &World, ns: &str, addr: &str) -> Self {
        let addr: IpAddr = addr.parse().unwrap();
        let raw = Self::open(world, ns, addr.is_ipv6());
        let socket = Socket::from(OwnedFd::from(raw.0));
        socket.bind(&SocketAddr::new(addr, 0).into()).unwrap();
        Self(UdpSocket::from(OwnedFd::from(socket)))
    }

    fn open(world: &World, ns: &str, v6: bool) -> Self {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let protocol = Some(socket2::Protocol::from(i32::from(SCTP)));
        let socket = world.net.within(ns, || Socket::new(domain, Type::RAW, protocol).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        Self(UdpSocket::from(OwnedFd::from(socket)))
    }

    fn send(&self, bytes: &[u8], to: IpAddr) {
        self.0.send_to(bytes, SocketAddr::new(to, 0)).unwrap();
    }

    fn receive(&self) -> std::io::Result<Arrived> {
        let mut buffer = [0; 256];
        let (length, from) = self.0.recv_from(&mut buffer)?;
        let header = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let sctp = &mut buffer[header..length];
        let sum: [u8; 4] = sctp[8..12].try_into().unwrap();
        sctp[8..12].fill(0);
        assert_eq!(crc32c(sctp).to_le_bytes(), sum, "the checksum covers what was rewritten");
        let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
        Ok(Arrived { from: SocketAddr::new(from.ip(), port(0)), to_port: port(2), chunk: sctp[12] })
    }

    /// The next packet with such a chunk that comes to a port.
    fn expect(&self, chunk: u8, port: Option<u16>) -> std::io::Result<Arrived> {
        let deadline = Instant::now() + Duration::from_millis(600);
        loop {
            let arrived = self.receive()?;
            if arrived.chunk == chunk && port.is_none_or(|port| port == arrived.to_port) {
                return Ok(arrived);
            }
            if Instant::now() > deadline {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Services with an SCTP port beside the others: 1 is here, 2 elsewhere, 4 both with external policy Local.
fn with_sctp() -> Snapshot {
    let mut snapshot = cluster();
    let sctp = |service: &mut seaway_model::Service, index: u16| {
        service.ports.push(ServicePort {
            name: "sctp".into(),
            protocol: Protocol::Sctp,
            port: 80,
            node_port: Some(30_000 + index),
            app_protocol: None,
        });
    };
    service(&mut snapshot, 1, &["local"], |s| sctp(s, 1));
    service(&mut snapshot, 2, &["remote"], |s| sctp(s, 2));
    service(&mut snapshot, 4, &["local", "remote"], |s| {
        sctp(s, 4);
        s.external_policy = TrafficPolicy::Local;
    });
    snapshot
}

/// What an association from `ns` to `to` meets: who gets its first packet, and whom that one sees.
fn associate(world: &World, ns: &str, to: SocketAddr, port: u16) -> std::io::Result<(&'static str, IpAddr)> {
    let v6 = to.is_ipv6();
    let client = Raw::open(world, ns, v6);
    let servers = [("local", "pod", LOCAL), ("remote", "other", REMOTE)]
        .map(|(name, ns, addrs)| (name, Raw::open_at(world, ns, addrs[usize::from(v6)])));
    client.send(&packet(port, to.port(), 0, INIT), to.ip());
    let mut missed = std::io::Error::from(std::io::ErrorKind::TimedOut);
    for (name, server) in &servers {
        match server.expect(INIT, Some(8080)) {
            Ok(seen) => {
                server.send(&packet(8080, seen.from.port(), 7, INIT_ACK), seen.from.ip());
                let answer = client.expect(INIT_ACK, Some(port))?;
                assert_eq!(answer.from, to, "{ns}: the answer is the Service's");
                return Ok((name, seen.from.ip()));
            }
            Err(error) => missed = error,
        }
    }
    Err(missed)
}

fn associations_reach_their_endpoint(mode: Mode) {
    let world = World::new(mode);
    let running = world.serve(with_sctp());
    let mut port = 5000;
    for v6 in [false, true] {
        let (node, client) = (NODE[usize::from(v6)], CLIENT[usize::from(v6)]);
        let pod = LOCAL[usize::from(v6)];
        for (ns, to, by, sees) in [
            ("client", node_port(1, v6), "local", node),
            ("client", node_port(2, v6), "remote", node),
            ("client", vip(1, v6), "local", node),
            ("client", vip(2, v6), "remote", node),
            ("client", vip(4, v6), "local", client),
            ("client", node_port(4, v6), "local", client),
            ("pod", cluster_ip(2, v6), "remote", pod),
            ("node", cluster_ip(1, v6), "local", node),
            ("node", cluster_ip(2, v6), "remote", node),
        ] {
            let met = eventually(&format!("{ns} to {to}"), || {
                port += 1;
                associate(&world, ns, to, port)
            });
            assert_eq!(met, (by, sees.parse().unwrap()), "{ns} to {to}");
        }
    }
    let seen = rules(&world, mode);
    for part in ["10.96.7.1", "fd00:10:96::2"] {
        let found = seen.iter().any(|line| line.contains(part) && line.contains("sctp"));
        assert!(found, "no rule for SCTP at {part}:\n{}", seen.join("\n"));
    }
    running.stop();
}

/// The kernel's rules as its own tools print them.
fn rules(world: &World, mode: Mode) -> Vec<String> {
    let commands: &[&[&str]] = match mode {
        Mode::Nftables => &[&["nft", "list", "ruleset"]],
        _ => &[&["iptables-save"], &["ip6tables-save"]],
    };
    world.net.within("node", || {
        let print = |words: &&[&str]| {
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{words:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let text: String = commands.iter().map(print).collect();
        text.split([',', '\n']).map(str::to_owned).collect()
    })
}

#[test]
fn nftables_serves_it() {
    associations_reach_their_endpoint(Mode::Nftables);
}

#[test]
fn iptables_serves_it() {
    associations_reach_their_endpoint(Mode::Iptables);
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<Notice>>);

impl Reporter for Heard {
    fn warn(&self, notice: Notice) {
        self.0.lock().unwrap().push(notice);
    }
}

/// An Event on each Service that asks for it; its other ports are served.
fn it_is_refused_by_name(mode: Mode) {
    let (world, place) = (World::new(mode), Place::new());
    if mode == Mode::Userspace {
        world.net.ip("node", "route add local 10.96.0.0/16 dev lo");
    }
    let heard = Arc::new(Heard::default());
    let mut config = ProxyConfig::new("node", &place.cgroup, &place.bpffs);
    config.reporter = Some(Arc::<Heard>::clone(&heard));
    let running = world.serve_with(config, with_sctp());
    for name in ["web-1", "web-2"] {
        eventually(&format!("an event on {name}"), || {
            let heard = heard.0.lock().unwrap();
            let told = heard.iter().any(|notice| {
                (notice.kind, &*notice.name, notice.reason) == ("Service", name, "NotSupportedByProxy")
                    && notice.message.contains("/SCTP is not served on node node: SCTP is not supported")
                    && notice.message.contains(mode.name())
            });
            if told { Ok(()) } else { Err(format!("{heard:?}")) }
        });
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert!(world.ask("client", protocol, node_port(1, false)).starts_with("local "));
    }
    running.stop();
}

#[test]
fn ebpf_says_that_it_cannot() {
    it_is_refused_by_name(Mode::Ebpf);
}

#[test]
fn userspace_says_that_it_cannot() {
    it_is_refused_by_name(Mode::Userspace);
}
