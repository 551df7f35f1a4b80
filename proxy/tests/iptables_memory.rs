//! The battery over the iptables data plane with tables in memory, the rules themselves, and how much of them a change
//! writes.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "battery/world.rs"]
mod world;

use std::sync::Arc;

use expect_test::expect_file;
use laws::dataplane_battery;
use proptest::strategy::{Strategy as _, ValueTree as _};
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Family, IngressMode, LoadBalancerIngress, Protocol, Service,
    ServiceKey, ServicePort, Snapshot, TrafficPolicy,
};
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::dataplane::iptables::rule::Table;
use seaway_proxy::dataplane::iptables::{Iptables, Memory, Tables as _};
use seaway_proxy::dataplane::{Dataplane as _, DataplaneError, Subject};
use seaway_proxy::desired::{Desired, NodeView, desired};
use seaway_proxy::plan::{Actual, Device, Host, diff};

fn make() -> Iptables<Memory> {
    Iptables::new(Memory::new()).unwrap()
}

dataplane_battery!(iptables, 64, make);

#[test]
fn faulty_iptables_converges() {
    laws::it_converges(|| Faulty::new(make(), 10, 7), 32);
}

fn service(snapshot: &mut Snapshot, name: &str, ip: &str, endpoints: &[(&str, &str)]) -> Service {
    let key = ServiceKey::new("t", name);
    let port = EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let endpoint = |(addr, node): &(&str, &str)| Endpoint {
        node: Some((*node).into()),
        ..Endpoint::new(addr.parse().unwrap(), [port.clone()].into())
    };
    let set = EndpointSet { endpoints: endpoints.iter().map(endpoint).collect() };
    snapshot.endpoints.insert(key.clone(), Arc::new(set));
    let mut service = Service::new(key);
    service.cluster_ips = vec![ip.parse().unwrap()];
    service.ports = vec![ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        app_protocol: None,
    }];
    service
}

fn add(snapshot: &mut Snapshot, service: Service) {
    snapshot.services.insert(service.key.clone(), Arc::new(service));
}

fn host() -> Host {
    let uplinks = [Device { name: "eth0".into(), index: 2 }].into();
    Host { node_v4: Some("172.30.0.11".parse().unwrap()), node_v6: None, uplinks, ..Host::default() }
}

fn wanted(snapshot: &Snapshot) -> Desired {
    let view = NodeView {
        name: "a".into(),
        node_port_addresses: vec!["172.30.0.11".parse().unwrap()],
        node_port_loopback: true,
        ..NodeView::default()
    };
    desired(snapshot, &view)
}

#[test]
fn source_nat_goes_around_reserved_ports() {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    let web = service(&mut snapshot, "web", "10.96.0.1", &[("10.244.1.1", "a")]);
    add(&mut snapshot, web);
    let mut memory = Memory::new();
    memory.reserved_ports = "2000-2100,40000-60000".to_owned();
    let mut dataplane = Iptables::new(memory).unwrap();
    dataplane.apply(&diff(&wanted(&snapshot), &host(), &Actual::default())).unwrap();
    let rules = dataplane.tables().rules(Family::V4, Table::Nat, "SEAWAY-POSTROUTING").unwrap();
    let sources: Vec<&str> = rules.iter().filter_map(|rule| rule.value("--to-source")).collect();
    assert_eq!(sources, ["172.30.0.11:2101-29999"; 3]);
}

/// What a person would want to read before letting this into a node.
#[test]
fn the_rules_of_a_small_cluster() {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    let mut web = service(&mut snapshot, "web", "10.96.0.1", &[("10.244.1.1", "a"), ("10.244.2.1", "b")]);
    web.session_affinity = Some(std::time::Duration::from_secs(10_800));
    web.ports[0].node_port = Some(30_080);
    add(&mut snapshot, web);
    let nobody = service(&mut snapshot, "nobody", "10.96.0.2", &[]);
    add(&mut snapshot, nobody);
    let mut guarded = service(&mut snapshot, "guarded", "fd00:10:96::3", &[("fd00:10:244:2::3", "b")]);
    let vip = LoadBalancerIngress { addr: "2001:db8::3".parse().unwrap(), mode: IngressMode::Vip };
    guarded.load_balancer = vec![vip];
    guarded.source_ranges = vec!["2001:db8:1::/48".parse().unwrap()];
    add(&mut snapshot, guarded);
    let mut elsewhere = service(&mut snapshot, "elsewhere", "10.96.1.4", &[("10.244.2.4", "b")]);
    elsewhere.external_ips = vec!["192.0.2.4".parse().unwrap()];
    elsewhere.external_policy = TrafficPolicy::Local;
    add(&mut snapshot, elsewhere);
    let mut dataplane = make();
    let plan = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    let text: Vec<String> = dataplane
        .tables()
        .restored
        .iter()
        .map(|(family, input)| {
            let program = if *family == Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
            format!("{program} --noflush\n{input}")
        })
        .collect();
    assert_eq!(text.len(), 2, "one run per family");
    expect_file!["iptables/small-cluster.txt"].assert_eq(&text.join("\n"));
}

/// What kube-proxy's dashboards are shown: how many rules are ours, and how many the last change wrote.
#[test]
fn rules_are_counted() {
    let counts = |dataplane: &Iptables<Memory>, written: bool| -> usize {
        let counts = dataplane.rule_counts();
        counts.iter().map(|count| if written { count.written } else { count.owned }).sum()
    };
    let ours = |dataplane: &mut Iptables<Memory>| -> usize {
        let texts = Family::ALL.map(|family| dataplane.tables().clone().save(family).unwrap());
        texts
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| line.contains("-A ") && line.contains("SEAWAY-"))
            .count()
    };
    let mut dataplane = make();
    let mut snapshot = many(20);
    let plan = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    dataplane.read().unwrap();
    let all = ours(&mut dataplane);
    assert!(all > 40, "{all}");
    assert_eq!((counts(&dataplane, false), counts(&dataplane, true)), (all, all));
    let more = service(&mut snapshot, "one-more", "10.97.0.1", &[("10.244.9.1", "a")]);
    add(&mut snapshot, more);
    let plan = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    let written = counts(&dataplane, true);
    assert!(written > 0 && written < all, "{written} of {all}");
    dataplane.read().unwrap();
    assert_eq!(counts(&dataplane, false), ours(&mut dataplane));
}

fn many(count: u16) -> Snapshot {
    let mut snapshot = Snapshot { synced: true, ..Snapshot::default() };
    for index in 0..count {
        let [high, low] = index.to_be_bytes();
        let (one, two) = (format!("10.244.{high}.{low}"), format!("10.245.{high}.{low}"));
        let ip = format!("10.96.{high}.{low}");
        let service = service(&mut snapshot, &format!("web-{index}"), &ip, &[(&one, "a"), (&two, "b")]);
        add(&mut snapshot, service);
    }
    snapshot
}

/// A change costs what it is, and the addresses beside it, not all that there is.
#[test]
fn a_change_writes_few_chains() {
    let mut snapshot = many(2000);
    let mut dataplane = make();
    let plan = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    dataplane.apply(&plan).unwrap();
    let before = dataplane.tables().restored.len();
    let changed = service(&mut snapshot, "web-700", "10.96.2.188", &[("10.244.9.9", "a")]);
    add(&mut snapshot, changed);
    let plan = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    assert_eq!(plan.len(), 2, "inside and outside");
    dataplane.apply(&plan).unwrap();
    let restored = &dataplane.tables().restored[before..];
    assert_eq!(restored.len(), 1);
    let written: Vec<&str> = restored[0].1.lines().filter(|line| line.starts_with(':')).collect();
    // Two buckets, the new choice and its backend; the former choice and its two backends.
    assert_eq!(written.len(), 7, "{written:?}");
    let again = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    assert!(again.is_empty());
}

/// A kernel that does not know a part of what one frontend needs keeps no other from being served.
#[test]
fn one_that_is_refused_keeps_no_other_from_being_served() {
    let snapshot = many(40);
    let mut tables = Memory::new();
    tables.refuse = Some("-d 10.96.0.7/32".into());
    let mut dataplane = Iptables::new(tables).unwrap();
    let plan = diff(&wanted(&snapshot), &host(), &dataplane.read().unwrap());
    let applied = dataplane.apply(&plan).unwrap();
    let failed: Vec<String> = applied
        .failed
        .iter()
        .map(|failure| match (&failure.subject, &failure.error) {
            (Subject::Frontend(key), DataplaneError::Io { .. }) => key.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(failed, ["10.96.0.7:80/TCP internal", "10.96.0.7:80/TCP external"]);
    assert_eq!(dataplane.read().unwrap().frontends.len(), 78);
}

/// Whatever line someone deletes, and whatever someone adds to a chain of ours: the next look puts it right.
#[test]
fn what_someone_breaks_is_repaired() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..4 {
        let snapshot = world::snapshot().new_tree(&mut runner).unwrap().current();
        let mut dataplane = make();
        laws::bring(&mut dataplane, &snapshot).unwrap();
        for family in Family::ALL {
            let whole = dataplane.tables().clone().save(family).unwrap();
            let mut table = "";
            for line in whole.lines() {
                table = line.strip_prefix('*').unwrap_or(table);
                let Some(rule) = line.strip_prefix("-A ").filter(|_| line.contains("SEAWAY-")) else {
                    continue;
                };
                let chain = rule.split(' ').next().unwrap();
                for change in [format!("-D {rule}"), format!("-A {chain} -s 192.0.2.77/32 -j RETURN")] {
                    if change.starts_with("-A") && !chain.starts_with("SEAWAY-") {
                        continue;
                    }
                    let mut broken = dataplane.tables().clone();
                    broken.restore(family, &format!("*{table}\n{change}\nCOMMIT\n")).unwrap();
                    let mut successor = Iptables::new(broken).unwrap();
                    laws::bring(&mut successor, &snapshot).unwrap();
                    let mut repaired = successor.tables().clone();
                    let sorted = |text: &str| {
                        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                        lines.sort();
                        lines
                    };
                    assert_eq!(sorted(&repaired.save(family).unwrap()), sorted(&whole), "after {change}");
                }
            }
        }
    }
}
