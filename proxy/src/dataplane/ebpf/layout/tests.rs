//! Plans in, map operations out.
#![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use std::time::Duration;

use expect_test::{Expect, expect};
use seaway_model::{Family, Protocol, ServiceKey};

use super::*;
use crate::frontend::{FrontendKind, Scope};

const CAPACITY: u32 = 16;

fn key(addr: &str, port: u16, scope: Scope) -> FrontendKey {
    FrontendKey { addr: addr.parse().unwrap(), port, protocol: Protocol::Tcp, scope }
}

fn frontend(service: &str, kind: FrontendKind, backends: &[&str]) -> Frontend {
    let backend = |addr: &&str| Backend { addr: addr.parse().unwrap(), port: 8080, local: false };
    Frontend {
        group: Group::of(&ServiceKey::new("default", service), "", Protocol::Tcp, Family::V4),
        kind,
        backends: backends.iter().map(backend).collect(),
        affinity: None,
        source_ranges: [].into(),
        preserve_source: false,
        elsewhere: false,
        maglev: false,
        dsr: false,
        masquerade: false,
    }
}

fn put(frontends: &[(FrontendKey, Frontend)]) -> Plan {
    let upserts = frontends.iter().map(|(key, frontend)| (*key, Arc::new(frontend.clone()))).collect();
    Plan { upserts, ..Plan::default() }
}

/// Operations in words. Ids are hashes: they are shown as letters in the order of their appearance.
fn words(ops: &Ops) -> String {
    let mut ids: Vec<u32> = Vec::new();
    let mut letter = |id: u32| {
        if id == 0 {
            return '-';
        }
        let at = ids.iter().position(|held| *held == id).unwrap_or_else(|| {
            ids.push(id);
            ids.len() - 1
        });
        char::from(b'A' + u8::try_from(at).unwrap())
    };
    let place = |key: &loader::Frontend| format!("{}:{} {:?}", key.addr, key.port, key.scope);
    let mut lines = Vec::new();
    for range in &ops.add_ranges {
        lines.push(format!("add range {} {}/{}", letter(range.service), range.addr, range.prefix));
    }
    for (base, slice) in &ops.put_slices {
        let addrs: Vec<String> = slice.iter().map(|b| b.addr.to_string()).collect();
        lines.push(format!("put slice {base} {} {}", letter(slice[0].service), addrs.join(" ")));
    }
    for (key, entry) in &ops.put_services {
        lines.push(format!("put {} -> {} {}+{}", place(key), letter(entry.id), entry.base, entry.count));
    }
    for key in &ops.remove_services {
        lines.push(format!("remove {}", place(key)));
    }
    for range in &ops.remove_ranges {
        lines.push(format!("remove range {} {}/{}", letter(range.service), range.addr, range.prefix));
    }
    lines.join("\n") + "\n"
}

fn check(layout: &mut Layout, plan: &Plan, expected: Expect) {
    let (ops, failed) = layout.compile(plan, Instant::now());
    assert!(failed.is_empty(), "{failed:?}");
    expected.assert_eq(&words(&ops));
}

#[test]
fn frontends_of_a_group_share_a_slice_and_a_change_writes_a_new_one_first() {
    let mut layout = Layout::new(CAPACITY, 0);
    let (inside, outside) = (key("10.96.0.1", 80, Scope::Internal), key("10.96.0.1", 80, Scope::External));
    let web = frontend("web", FrontendKind::ClusterIP, &["10.0.0.1", "10.0.0.2"]);
    check(
        &mut layout,
        &put(&[(inside, web.clone()), (outside, web)]),
        expect![[r#"
        put slice 0 A 10.0.0.1 10.0.0.2
        put 10.96.0.1:0 Internal -> - 0+0
        put 10.96.0.1:80 Internal -> A 0+2
        put 10.96.0.1:80 External -> A 0+2
    "#]],
    );
    let web = frontend("web", FrontendKind::ClusterIP, &["10.0.0.3"]);
    let (ops, _) = layout.compile(&put(&[(inside, web.clone()), (outside, web)]), Instant::now());
    assert_eq!(ops.put_slices[0].0, 2, "not over the one in use");
    assert!(ops.remove_services.is_empty());
    let gone = Plan { removals: vec![inside, outside], ..Plan::default() };
    check(
        &mut layout,
        &gone,
        expect![[r#"
        remove 10.96.0.1:0 Internal
        remove 10.96.0.1:80 Internal
        remove 10.96.0.1:80 External
    "#]],
    );
    assert!(layout.groups.is_empty() && layout.ids.is_empty() && layout.guards.is_empty());
}

#[test]
fn source_ranges_come_before_their_frontend_and_go_after_it() {
    let mut layout = Layout::new(CAPACITY, 0);
    let vip = key("192.0.2.1", 80, Scope::External);
    let mut web = frontend("web", FrontendKind::LoadBalancer, &["10.0.0.1"]);
    web.source_ranges = ["203.0.113.0/24".parse().unwrap()].into();
    check(
        &mut layout,
        &put(&[(vip, web.clone())]),
        expect![[r#"
        add range A 203.0.113.0/24
        put slice 0 A 10.0.0.1
        put 192.0.2.1:80 External -> A 0+1
    "#]],
    );
    web.source_ranges = ["198.51.100.0/24".parse().unwrap()].into();
    check(
        &mut layout,
        &put(&[(vip, web)]),
        expect![[r#"
        add range A 198.51.100.0/24
        put 192.0.2.1:80 External -> A 0+1
        remove range A 203.0.113.0/24
    "#]],
    );
}

#[test]
fn a_full_array_fails_one_frontend_and_leaves_it_as_it_is() {
    let mut layout = Layout::new(2, 0);
    let (web, api) = (key("10.96.0.1", 80, Scope::External), key("10.96.0.2", 80, Scope::External));
    let two = frontend("web", FrontendKind::ExternalIP, &["10.0.0.1", "10.0.0.2"]);
    layout.compile(&put(&[(web, two)]), Instant::now());
    let plan = put(&[(api, frontend("api", FrontendKind::ExternalIP, &["10.0.0.3"]))]);
    let (ops, failed) = layout.compile(&plan, Instant::now());
    assert_eq!(ops, Ops::default());
    assert_eq!(failed.len(), 1);
    expect!["map backends is full: 3 entries wanted, 2 possible"].assert_eq(&failed[0].error.to_string());
    assert_eq!(layout.frontends().len(), 1);
    // Once there is room, it works.
    layout.compile(&Plan { removals: vec![web], ..Plan::default() }, Instant::now());
    let (_, failed) = layout.compile(&plan, Instant::now() + Duration::from_secs(1));
    assert!(failed.is_empty());
}

#[test]
fn groups_of_one_id_are_kept_apart() {
    let mut layout = Layout::new(CAPACITY, 0);
    let mut first = frontend("web", FrontendKind::ExternalIP, &["10.0.0.1"]);
    let mut second = frontend("api", FrontendKind::ExternalIP, &["10.0.0.2"]);
    first.group = Group::from_bits(7);
    second.group = Group::from_bits(7 | 1 << 40);
    let plan = put(&[
        (key("192.0.2.1", 80, Scope::External), first.clone()),
        (key("192.0.2.2", 80, Scope::External), second.clone()),
    ]);
    let (ops, _) = layout.compile(&plan, Instant::now());
    let ids: Vec<u32> = ops.put_services.iter().map(|(_, entry)| entry.id).collect();
    assert_eq!(ids, [7, 8]);
    for ((key, entry), frontend) in ops.put_services.iter().zip([first, second]) {
        let key = codec::frontend_key(key).unwrap();
        assert_eq!(
            codec::frontend(&key, entry).unwrap().0.group,
            frontend.group,
            "found again after a restart"
        );
    }
}

/// Between the two, a port that a Service has would be refused.
#[test]
fn what_refuses_the_rest_of_an_address_is_written_apart_from_its_ports() {
    let web = frontend("web", FrontendKind::ClusterIP, &["10.0.0.1"]);
    let ports = [80, 443].map(|port| (key("10.96.0.1", port, Scope::Internal), web.clone()));
    let (mut ops, _) = Layout::new(4, 0).compile(&put(&ports), Instant::now());
    let refusals: Vec<_> = ops.take_refusals().into_iter().map(|(key, _)| key).collect();
    let rest = loader::Frontend::any_port("10.96.0.1".parse().unwrap(), loader::Scope::Internal);
    assert_eq!(refusals, [rest]);
    assert_eq!(ops.put_services.iter().map(|(key, _)| key.port).collect::<Vec<_>>(), [80, 443]);
}

#[test]
fn what_makes_no_sense_in_the_kernel_is_swept() {
    let sound = frontend("web", FrontendKind::ClusterIP, &["10.0.0.1"]);
    let (good, bad) = (key("10.96.0.1", 80, Scope::Internal), key("10.96.0.2", 80, Scope::Internal));
    let (id, _) = Layout::new(1, 0).id(sound.group).unwrap();
    let orphan = loader::Frontend::any_port("10.96.0.9".parse().unwrap(), loader::Scope::Internal);
    let contents = Contents {
        services: vec![
            (codec::key(&good).unwrap(), codec::entry(&good, &sound, id, 0, 0, None)),
            (codec::key(&bad).unwrap(), codec::entry(&bad, &sound, id, 0, 1, None)),
            (orphan, loader::ServiceEntry::default()),
        ],
        ranges: vec![loader::SourceRange { service: 99, addr: "10.0.0.0".parse().unwrap(), prefix: 8 }],
        backends: codec::slice(&sound.backends, id),
        capacity: CAPACITY,
        maglev_capacity: 0,
    };
    let mut layout = Layout::adopt(&contents);
    assert_eq!(layout.frontends().keys().collect::<Vec<_>>(), [&good]);
    assert_eq!(layout.stale(), 4, "a slice that is not there, two guards, a range");
    check(
        &mut layout,
        &Plan { sweep: true, ..Plan::default() },
        expect![[r#"
        put 10.96.0.1:0 Internal -> - 0+0
        remove 10.96.0.2:80 Internal
        remove 10.96.0.9:0 Internal
        remove range A 10.0.0.0/8
    "#]],
    );
    assert_eq!(layout.stale(), 0);
}

#[test]
fn a_map_that_fills_is_exchanged_before_it_is_full() {
    use crate::dataplane::Dataplane as _;
    use crate::dataplane::ebpf::{Ebpf, Memory};
    let service = |n: u8| {
        let addrs = [format!("10.244.{n}.1"), format!("10.244.{n}.2"), format!("10.244.{n}.3")];
        let addrs: Vec<&str> = addrs.iter().map(String::as_str).collect();
        let key = key(&format!("10.96.0.{n}"), 80, Scope::Internal);
        (key, frontend(&format!("web-{n}"), FrontendKind::ClusterIP, &addrs))
    };
    let all: Vec<_> = (1..=100).map(service).collect();
    let small = Memory::new(8, 8);
    let mut fixed = Ebpf::new(small.clone(), 1024..=29_999, 1);
    assert!(!fixed.apply(&put(&all)).unwrap().failed.is_empty(), "there is no room");
    let mut growing = Ebpf::new(Memory { grows: true, ..small }, 1024..=29_999, 1);
    assert!(growing.apply(&put(&all[..1])).unwrap().failed.is_empty());
    assert!(growing.apply(&put(&all)).unwrap().failed.is_empty());
    assert_eq!(growing.read().unwrap().frontends.len(), 100);
    for (key, frontend) in &all {
        let held = growing.kernel().maps.resolve(&crate::dataplane::ebpf::map_key(key).unwrap()).unwrap();
        assert_eq!(held.len(), frontend.backends.len());
    }
    // A hundred frontends and as many guards, and half as much again; 300 new backends beside the three that were there.
    assert_eq!(growing.kernel().maps.service_capacity, 300);
    assert_eq!(growing.kernel().maps.backends.len(), 454);
}
