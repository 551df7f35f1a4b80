//! Packets between pods pass by nobody's firewall: the decision as a table, and the notices of the kernel. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/all.rs"]
mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use seaway_model::Protocol;
use seaway_nft::{BaseChain, BaseFamily, Point};
use seaway_proxy::firewall::judge;
use seaway_proxy::{Mode, PodHandOver, ProxyConfig};
use support::kernel::Place;
use support::net::eventually;
use support::services::{LOCAL, REMOTE, Running, World, at, cluster};

/// One line of the table.
fn chain(line: &str) -> BaseChain {
    let (legacy, line) = line.strip_prefix("legacy ").map_or((false, line), |rest| (true, rest));
    let words: Vec<&str> = line.split_whitespace().collect();
    let [family, table, point, devices, policy, rules] = words[..] else { panic!("{line}") };
    BaseChain {
        family: BaseFamily::ALL.into_iter().find(|known| known.name() == family).unwrap(),
        table: table.to_owned(),
        legacy,
        point: Point::ALL.into_iter().find(|known| known.name() == point).unwrap(),
        devices: devices.split(',').filter(|name| *name != "-").map(str::to_owned).collect(),
        accepts: ["drop", "accept"].iter().position(|known| *known == policy).unwrap() == 1,
        has_rules: ["empty", "rules"].iter().position(|known| *known == rules).unwrap() == 1,
    }
}

#[test]
fn what_others_say_of_forwarded_packets_is_heard() {
    let names = ["eth0", "sw1"].map(Into::into).into();
    let lines = include_str!("firewall.txt").lines();
    let (mut chains, mut cases) = (Vec::new(), 0);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(wanted) = line.strip_prefix("=> ") else {
            chains.push(chain(line));
            continue;
        };
        let path = judge(PodHandOver::Auto, &Ok(chains.as_slice().into()), &names);
        assert_eq!(path.reason.as_deref().unwrap_or("directly"), wanted, "{chains:#?}");
        assert_eq!(path.direct, path.reason.is_none());
        let never = judge(PodHandOver::Never, &Ok(std::mem::take(&mut chains).into()), &names);
        assert!(!never.direct);
        cases += 1;
    }
    assert!(chains.is_empty() && cases > 20, "{cases}");
    let unread = judge(PodHandOver::Auto, &Err("it cannot be read".into()), &names);
    assert_eq!(unread.to_string(), "pods go through the stack: it cannot be read");
}

/// A node that serves. Rules of the former iptables are looked at every `period`.
struct Bed {
    world: World,
    running: Running,
    _place: Place,
}

impl Bed {
    fn new(period: Duration) -> Self {
        let (world, place) = (World::new(Mode::Ebpf), Place::new());
        let mut config = ProxyConfig::new("node", &place.cgroup, &place.bpffs);
        config.pod_link_prefixes = vec!["swpod".into()];
        config.firewall_interval = period;
        config.tunnels = vec!["tunnel".into()];
        let mut cluster = cluster();
        for (node, number) in [("node", 1), ("other", 2)] {
            let mut known = (*cluster.nodes[node]).clone();
            let v6 = format!("fd00:10:244:{number}::/64").parse().unwrap();
            known.pod_cidrs = vec![format!("10.244.{number}.0/24").parse().unwrap(), v6];
            cluster.nodes.insert(node.into(), Arc::new(known));
        }
        let running = world.serve_with(config, cluster);
        Self { world, running, _place: place }
    }

    /// Runs a program on the node, by words.
    fn run(&self, words: &str) {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let output = self.world.net.within("node", || command.output().unwrap());
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    /// What another node's pod says to this node's.
    fn ask(&self, v6: bool) -> std::io::Result<String> {
        self.world.try_ask("pod", Protocol::Tcp, at(REMOTE[usize::from(v6)], 8080))
    }

    /// Waits until the two talk past this node's stack, or through it.
    fn await_path(&self, v6: bool, direct: bool) {
        eventually(if direct { "the short way" } else { "the stack" }, || {
            let before = self.world.net.forwarded();
            let answer = self.ask(v6).map_err(|error| error.to_string())?;
            if (self.world.net.forwarded() == before) == direct { Ok(()) } else { Err(answer) }
        });
    }

    /// Waits until packets between pods go directly, or through the stack for this reason.
    fn expect(&self, wanted: &str) {
        eventually(wanted, || {
            let path = self.running.status.status().pod_path;
            let said = path.as_ref().map(|path| path.reason.as_deref().unwrap_or("directly"));
            if said == Some(wanted) { Ok(()) } else { Err(path) }
        });
    }
}

/// Nothing but a notice can be what wakes the proxy up here.
#[test]
fn rules_of_others_are_noticed_when_they_come_and_go() {
    let bed = Bed::new(Duration::from_secs(3600));
    bed.expect("directly");
    bed.run("nft add table ip filter");
    bed.run("nft add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }");
    bed.run("nft add chain ip filter others");
    bed.run("nft add rule ip filter others drop");
    bed.run("nft add table ip seaway-masq");
    bed.run("nft add chain ip seaway-masq post { type nat hook postrouting priority 100; }");
    bed.run("nft add rule ip seaway-masq post counter");
    // Nothing of that counts, as is seen below once it is all that is left.
    bed.run("nft add rule ip filter FORWARD jump others");
    bed.expect("table ip filter has rules at forward");
    bed.run("nft flush chain ip filter FORWARD");
    bed.expect("directly");
    bed.run("nft add chain ip filter FORWARD { policy drop; }");
    bed.expect("table ip filter does not accept by default at forward");
    bed.run("nft delete table ip filter");
    bed.expect("directly");
    bed.run("nft add table netdev guard");
    bed.run("nft add chain netdev guard in { type filter hook ingress device swpod priority 0; }");
    bed.run("nft add rule netdev guard in counter");
    bed.expect("table netdev guard has rules at ingress");
    bed.run("nft delete table netdev guard");
    bed.expect("directly");
    bed.running.stop();
}

/// The former iptables gives no notice.
#[test]
fn rules_of_the_former_iptables_are_found() {
    let bed = Bed::new(Duration::from_millis(20));
    bed.expect("directly");
    for (command, table) in [("iptables-legacy", "table ip filter"), ("ip6tables-legacy", "table ip6 filter")]
    {
        bed.run(&format!("{command} -A INPUT -j ACCEPT"));
        bed.run(&format!("{command} -P INPUT DROP"));
        bed.run(&format!("{command} -A FORWARD -j ACCEPT"));
        bed.expect(&format!("{table} of iptables-legacy has rules at forward"));
        bed.run(&format!("{command} -F FORWARD"));
        bed.expect("directly");
        bed.run(&format!("{command} -P FORWARD DROP"));
        bed.expect(&format!("{table} of iptables-legacy does not accept by default at forward"));
        bed.run(&format!("{command} -P FORWARD ACCEPT"));
        bed.expect("directly");
    }
    bed.running.stop();
}

/// A rule that drops what one pod sends another is followed, although a moment ago nobody would have asked it.
#[test]
fn a_rule_between_two_pods_is_followed() {
    let bed = Bed::new(Duration::from_secs(3600));
    bed.expect("directly");
    for v6 in [false, true] {
        let family = if v6 { "ip6" } else { "ip" };
        let [from, to] = [LOCAL, REMOTE].map(|pair| pair[usize::from(v6)]);
        let guard = |command: &str, rest: &str| bed.run(&format!("nft {command} {family} guard{rest}"));
        guard("add table", "");
        guard("add chain", " forward { type filter hook forward priority 0; }");
        // Nobody is asked by a chain without rules.
        bed.await_path(v6, true);
        guard("add rule", &format!(" forward {family} saddr {from} {family} daddr {to} drop"));
        bed.expect(&format!("table {family} guard has rules at forward"));
        eventually("nobody answers", || match bed.ask(v6) {
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(()),
            other => Err(other),
        });
        guard("flush chain", " forward");
        guard("add rule", " forward counter");
        bed.await_path(v6, false);
        guard("delete table", "");
        bed.await_path(v6, true);
    }
    bed.running.stop();
}

/// Pods of the two nodes reach each other in VXLAN from now on.
fn tunnel(bed: &Bed) {
    let net = &bed.world.net;
    for (name, own, others, addr, remote) in
        [("node", 1, 2, "172.30.7.11", "172.30.7.12"), ("other", 2, 1, "172.30.7.12", "172.30.7.11")]
    {
        net.ip(
            name,
            &format!(
                "link add tunnel mtu 1450 address 02:00:00:00:00:0{own} type vxlan id 1 dstport 8472 \
                 local {addr} remote {remote} dev eth0 nolearning"
            ),
        );
        net.ip(name, "link set tunnel up");
        for (family, gateway, bits) in
            [("-4", format!("10.244.{others}.0"), 24), ("-6", format!("fd00:10:244:{others}::"), 64)]
        {
            net.ip(name, &format!("neigh add {gateway} lladdr 02:00:00:00:00:0{others} dev tunnel"));
            let to = format!("{gateway}/{bits}");
            // IPv6 takes no next hop that another route leads to.
            net.ip(name, &format!("{family} route delete {to}"));
            net.ip(name, &format!("{family} route add {to} via {gateway} dev tunnel onlink"));
        }
    }
}

/// In both directions: what the pod sends is handed to the tunnel, what comes out of it to the pod.
#[test]
fn pods_talk_past_the_stack_in_a_tunnel_too() {
    let bed = Bed::new(Duration::from_secs(3600));
    bed.expect("directly");
    tunnel(&bed);
    for v6 in [false, true] {
        bed.await_path(v6, true);
    }
    bed.run("nft add table inet guard");
    bed.run("nft add chain inet guard forward { type filter hook forward priority 0; }");
    bed.run("nft add rule inet guard forward counter");
    for v6 in [false, true] {
        bed.await_path(v6, false);
    }
    bed.running.stop();
}
