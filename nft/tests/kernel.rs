//! What this crate writes, read back by the kernel and by the `nft` program, in a network namespace of its own. Needs
//! root.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use expect_test::expect;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use seaway_nft::{
    Base, Batch, Chain, ChainKind, Data, DataType, Element, Expr, Family, Hook, MetaKey, Reject, SetSpec,
    Table, Verdict, conntrack, reg32,
};

const TABLE: Table<'static> = Table { family: Family::Ip, name: "seaway-test" };

/// A network namespace that the calling thread is in; it goes when it is dropped.
struct Netns(String);

static NAMES: AtomicU32 = AtomicU32::new(0);

impl Netns {
    fn enter() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces");
        let name = format!("swnft{}x{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        let this = Self(name);
        run("ip", &format!("netns add {}", this.0));
        let file = std::fs::File::open(format!("/run/netns/{}", this.0)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        run("ip", "link set lo up");
        this
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn frontend(last: u8, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![10, 96, 0, last, 17, 0, 0, 0, high, low, 0, 0]
}

fn load_frontend() -> Vec<Expr> {
    vec![
        Expr::Payload { base: Base::Network, offset: 16, length: 4, to: reg32(0) },
        Expr::Meta { key: MetaKey::L4Proto, to: reg32(1) },
        Expr::Payload { base: Base::Transport, offset: 2, length: 2, to: reg32(2) },
    ]
}

/// A table with a set of each kind.
fn fill(batch: &mut Batch) {
    use DataType::{InetProto, InetService, Ipv4Addr, Mark};
    batch.add_table(TABLE, "made by a test");
    batch.add_counter(TABLE, "refused");
    batch.add_set(TABLE, &SetSpec::verdict_map("verdicts", &[Ipv4Addr, InetProto, InetService]));
    let backends =
        SetSpec::map("backends", &[Ipv4Addr, InetProto, InetService, Mark], &[Ipv4Addr, InetService]);
    batch.add_set(TABLE, &backends);
    batch.add_set(TABLE, &SetSpec { interval: true, ..SetSpec::set("ranges", &[Ipv4Addr, Ipv4Addr]) });
    batch.add_set(TABLE, &SetSpec { interval: true, ..SetSpec::set("pods", &[Ipv4Addr]) });
    batch.add_chain(TABLE, Chain { name: "refuse", base: None });
    let refuse = [Expr::Count { counter: "refused".into() }, Expr::Reject(Reject::Unreachable(3))];
    batch.add_rule(TABLE, "refuse", &refuse);
    batch.add_chain(TABLE, Chain { name: "output", base: Some((ChainKind::Nat, Hook::Output, -100)) });
    let dispatch = Expr::VerdictMap { set: "verdicts".into(), from: reg32(0) };
    batch.add_rule(TABLE, "output", &[load_frontend(), vec![dispatch]].concat());
    let pick = vec![
        Expr::Random { modulus: 2, offset: 0, to: reg32(3) },
        Expr::Map { set: "backends".into(), from: reg32(0), to: reg32(3) },
        Expr::DestinationNat { addr: reg32(3), port: reg32(4) },
    ];
    batch.add_rule(TABLE, "output", &[load_frontend(), pick].concat());
}

fn elements() -> [(&'static str, Vec<Element>); 4] {
    let refuse = Some(Data::Verdict(Verdict::Goto("refuse".into())));
    let backend = |index: u32| {
        let key = [frontend(2, 53), index.to_ne_bytes().into()].concat();
        Element { user_data: vec![0xe0, 1, 7], ..Element::entry(key, vec![127, 0, 0, 1, 0x1f, 0x90, 0, 0]) }
    };
    let range = Element {
        key_end: Some(vec![10, 96, 0, 1, 192, 0, 2, 255]),
        ..Element::key(vec![10, 96, 0, 1, 192, 0, 2, 0])
    };
    let end = Element { interval_end: true, ..Element::key(vec![10, 245, 0, 0]) };
    [
        ("verdicts", vec![Element { data: refuse, ..Element::key(frontend(1, 53)) }]),
        ("backends", vec![backend(0), backend(1)]),
        ("ranges", vec![range]),
        ("pods", vec![Element::key(vec![10, 244, 0, 0]), end]),
    ]
}

fn make() {
    let mut batch = Batch::new();
    fill(&mut batch);
    for (set, elements) in elements() {
        batch.add_elements(TABLE, set, &elements);
    }
    seaway_nft::commit(batch, "fill").unwrap();
}

#[test]
fn what_is_written_is_read_back_and_listed() {
    let _netns = Netns::enter();
    assert_eq!(seaway_nft::table_comment(TABLE).unwrap(), None);
    make();
    assert_eq!(seaway_nft::table_comment(TABLE).unwrap().as_deref(), Some("made by a test"));
    for (set, mut written) in elements() {
        let mut read = seaway_nft::elements(TABLE, set).unwrap();
        // The kernel begins intervals with the end of what is below them, if that was said.
        read.retain(|element| written.contains(element));
        read.sort();
        written.sort();
        assert_eq!(read, written, "{set}");
    }
    let chains = seaway_nft::chains(TABLE).unwrap();
    let chains: Vec<_> = chains.iter().map(|chain| (chain.name.as_str(), chain.uses)).collect();
    assert_eq!(chains, [("refuse", 2), ("output", 2)]);
    expect![[r#"
        table ip seaway-test {
        	comment "made by a test"
        	counter refused {
        		packets 0 bytes 0
        	}

        	map verdicts {
        		type ipv4_addr . inet_proto . inet_service : verdict
        		elements = { 10.96.0.1 . udp . 53 : goto refuse }
        	}

        	map backends {
        		type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service
        		elements = { 10.96.0.2 . udp . 53 . 0x00000000 : 127.0.0.1 . 8080,
        			     10.96.0.2 . udp . 53 . 0x00000001 : 127.0.0.1 . 8080 }
        	}

        	set ranges {
        		type ipv4_addr . ipv4_addr
        		flags interval
        		elements = { 10.96.0.1 . 192.0.2.0/24 }
        	}

        	set pods {
        		type ipv4_addr
        		flags interval
        		elements = { 10.244.0.0/16 }
        	}

        	chain refuse {
        		counter name "refused" reject
        	}

        	chain output {
        		type nat hook output priority -100; policy accept;
        		ip daddr . meta l4proto . th dport vmap @verdicts
        		dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @backends
        	}
        }
    "#]]
    .assert_eq(&run("nft", "list table ip seaway-test"));
}

#[test]
fn a_batch_is_all_or_nothing_and_counts_as_one_change() {
    let _netns = Netns::enter();
    make();
    let before = seaway_nft::generation().unwrap();
    let mut batch = Batch::new();
    batch.delete_elements(TABLE, "pods", &elements()[3].1);
    batch.delete_elements(TABLE, "backends", &[Element::key([frontend(9, 9), vec![0; 4]].concat())]);
    let error = seaway_nft::commit(batch, "delete").unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT), "{error}");
    assert_eq!(seaway_nft::generation().unwrap(), before);
    assert!(!seaway_nft::elements(TABLE, "pods").unwrap().is_empty());
    // In one batch: a value changes, and the table is made anew as it was.
    let mut batch = Batch::new();
    let mut changed = elements()[1].1[0].clone();
    changed.data = Some(Data::Value(vec![127, 0, 0, 1, 0x1f, 0x91, 0, 0]));
    batch.delete_elements(TABLE, "backends", std::slice::from_ref(&changed));
    batch.add_elements(TABLE, "backends", std::slice::from_ref(&changed));
    seaway_nft::commit(batch, "change").unwrap();
    assert_eq!(seaway_nft::generation().unwrap(), before + 1);
    assert!(seaway_nft::elements(TABLE, "backends").unwrap().contains(&changed));
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    fill(&mut batch);
    seaway_nft::commit(batch, "replace").unwrap();
    assert!(seaway_nft::elements(TABLE, "backends").unwrap().is_empty());
}

#[test]
fn packets_are_sent_to_backends_and_their_flows_are_forgotten() {
    let _netns = Netns::enter();
    make();
    run("ip", "route add 10.96.0.0/16 dev lo");
    let server = UdpSocket::bind("127.0.0.1:8080").unwrap();
    let client = UdpSocket::bind("127.0.0.1:4000").unwrap();
    client.send_to(b"hi", "10.96.0.2:53").unwrap();
    let mut buffer = [0; 16];
    let (length, peer) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..length], peer).unwrap();
    let (_, peer) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(peer, "10.96.0.2:53".parse().unwrap());
    let flows = conntrack::flows(None, 17).unwrap();
    let [flow] = flows[..] else { panic!("{flows:?}") };
    assert_eq!(flow.original.destination, "10.96.0.2:53".parse().unwrap());
    assert_eq!(flow.reply.source, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(conntrack::flows(Some(Family::Ip), 17).unwrap(), [flow]);
    assert_eq!(conntrack::flows(Some(Family::Ip6), 17).unwrap(), []);
    assert_eq!(conntrack::flows(None, 6).unwrap(), []);
    assert!(conntrack::forget(&flow).unwrap());
    assert!(!conntrack::forget(&flow).unwrap());
    assert_eq!(conntrack::flows(None, 17).unwrap(), []);
    // Refused, and counted.
    assert!(client.send_to(b"hi", "10.96.0.1:53").is_err());
    let counters = seaway_nft::counters(TABLE).unwrap();
    assert_eq!((counters[0].name.as_str(), counters[0].packets), ("refused", 1));
}
