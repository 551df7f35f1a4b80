//! kube-proxy's TestInternalExternalMasquerade with packets, on every backend that works in the kernel: who asks where,
//! who answers, and whom the one that answers sees. The table is `masquerade.txt`. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use seaway_model::{Protocol, TrafficPolicy};
use seaway_proxy::{Mode, ProxyConfig};
use support::kernel::Place;
use support::net::eventually;
use support::services::{CLIENT, LOCAL, NODE, World, cluster, cluster_ip, node_port, service, vip};

const TABLE: &str = include_str!("masquerade.txt");
/// So many answers more than are needed to see all that are wanted: none of them may be another.
const MORE: usize = 6;
const ENOUGH: usize = 60;

/// The rows of `masqueradeAll`: towards ClusterIPs pods of the node are hidden, too; nothing else is another.
const TABLE_OF_ALL: &str = "
pod    cluster-ip 1 -> local node
pod    cluster-ip 2 -> remote node
pod    cluster-ip 4 -> local node, remote node
pod    cluster-ip 6 -> local node
pod    node-port  4 -> local node, remote pod | ebpf: local *, remote pod
pod    vip        2 -> remote node            | ebpf: remote pod
node   cluster-ip 2 -> remote node
client cluster-ip 2 -> remote node
client vip        4 -> local client
";

#[test]
fn ebpf_masquerades_row_by_row() {
    the_table_holds(Mode::Ebpf, false);
}

#[test]
fn nftables_masquerades_row_by_row() {
    the_table_holds(Mode::Nftables, false);
}

#[test]
fn iptables_masquerades_row_by_row() {
    the_table_holds(Mode::Iptables, false);
}

#[test]
fn ebpf_masquerades_all() {
    the_table_holds(Mode::Ebpf, true);
}

#[test]
fn nftables_masquerades_all() {
    the_table_holds(Mode::Nftables, true);
}

#[test]
fn iptables_masquerades_all() {
    the_table_holds(Mode::Iptables, true);
}

/// One row: who, where, which Service, and the answers wanted in a mode.
struct Row<'a> {
    text: &'a str,
    from: &'a str,
    kind: &'a str,
    index: u16,
    answers: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn parse(text: &'a str, mode: Mode) -> Self {
        let (question, answers) = text.split_once("->").unwrap();
        let words: Vec<&str> = question.split_whitespace().collect();
        let prefix = format!("{}:", mode.name());
        let mut columns = answers.split('|').map(str::trim);
        let all = columns.next().unwrap();
        let own = columns.find_map(|column| column.strip_prefix(&prefix)).unwrap_or(all);
        let answers = own.split(',').map(str::trim).collect();
        Self { text, from: words[0], kind: words[1], index: words[2].parse().unwrap(), answers }
    }

    fn target(&self, v6: bool) -> SocketAddr {
        match self.kind {
            "cluster-ip" => cluster_ip(self.index, v6),
            "vip" => vip(self.index, v6),
            _ => node_port(self.index, v6),
        }
    }

    /// Whether an answer is one of those wanted; `*` stands for any source.
    fn wants(&self, answer: &str, v6: bool) -> Option<usize> {
        let seen = |name: &str| match name {
            "pod" => LOCAL[usize::from(v6)],
            "client" => CLIENT[usize::from(v6)],
            _ => NODE[usize::from(v6)],
        };
        self.answers.iter().position(|wanted| {
            let (who, whom) = wanted.split_once(' ').unwrap();
            let (by, source) = answer.split_once(' ').unwrap_or((answer, ""));
            by == who && (whom == "*" || source == seen(whom))
        })
    }
}

fn the_table_holds(mode: Mode, masquerade_all: bool) {
    let place = Place::new();
    let world = World::new(mode);
    world.net.ip("client", &format!("route add 10.96.7.0/24 via {}", NODE[0]));
    world.net.ip("client", &format!("-6 route add fd00:10:96::/112 via {}", NODE[1]));
    let mut snapshot = cluster();
    service(&mut snapshot, 6, &["local", "remote"], |s| s.internal_policy = TrafficPolicy::Local);
    let mut config = ProxyConfig::new("node", &place.cgroup, &place.bpffs);
    config.masquerade_all = masquerade_all;
    // What is masqueraded by the programs, they see at the pods' links.
    config.pod_link_prefixes.extend(masquerade_all.then(|| "swpod".to_owned()));
    let running = world.serve_with(config, snapshot);
    let ask = |from: &str, protocol: Protocol, to: SocketAddr| {
        // Only what is in the node's cgroup is seen by the socket programs.
        if mode == Mode::Ebpf && from != "client" {
            return world.net.ask_from_cgroup(from, &place.cgroup, &protocol.as_str().to_lowercase(), to);
        }
        world.try_ask(from, protocol, to).map_err(|error| error.to_string())
    };
    let mut wrong = Vec::new();
    let table = if masquerade_all { TABLE_OF_ALL } else { TABLE };
    for text in table.lines().map(str::trim).filter(|row| !row.is_empty() && !row.starts_with('#')) {
        let row = Row::parse(text, mode);
        for v6 in [false, true] {
            let to = row.target(v6);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                eventually("the path is open", || ask(row.from, protocol, to));
                if let Err(answer) = check(&row, v6, || ask(row.from, protocol, to)) {
                    wrong.push(format!("{}: {protocol} to {to}: {answer}", row.text));
                }
            }
        }
    }
    running.stop();
    assert!(wrong.is_empty(), "{}:\n{}", mode.name(), wrong.join("\n"));
}

/// Asks until all wanted answers have come, and a few times more.
fn check(row: &Row<'_>, v6: bool, ask: impl Fn() -> Result<String, String>) -> Result<(), String> {
    let mut met = BTreeSet::new();
    let mut more = 0;
    for _ in 0..ENOUGH {
        let answer = ask()?;
        met.insert(row.wants(&answer, v6).ok_or(answer)?);
        if met.len() == row.answers.len() {
            more += 1;
        }
        if more > MORE {
            return Ok(());
        }
    }
    Err(format!("only {met:?} of {:?}", row.answers))
}
