//! Whatever way a cluster has come about, the zone is the one of its last state: updating step by step answers as a zone made
//! afresh does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;

use std::sync::Arc;

use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use seaway_dns::DnsConfig;
use seaway_dns::zone::{Question, Zone};
use seaway_model::Snapshot;

/// An object of a small world, so that the same names and addresses come up again and again.
fn line() -> impl Strategy<Value = String> {
    let key = (0..2, 0..3).prop_map(|(namespace, name)| format!("ns{namespace}/s{name}"));
    let addr =
        prop_oneof![(1..6).prop_map(|n| format!("10.0.0.{n}")), (1..4).prop_map(|n| format!("fd00::{n}"))];
    let host =
        prop_oneof![Just(""), Just("hostname=h1"), Just("hostname=h2"), Just("hostname=H1"), Just("unready")];
    prop_oneof![
        (key.clone(), addr.clone())
            .prop_map(|(key, addr)| format!("service {key} cluster {addr} ports http/tcp/80")),
        key.clone().prop_map(|key| format!("service {key} headless ports http/tcp/80")),
        key.clone().prop_map(|key| format!("service {key} headless publish-not-ready ports http/tcp/80")),
        (key.clone(), 0..3).prop_map(|(key, n)| format!("service {key} external s{n}.ns0.svc.cluster.local")),
        (key, addr, host)
            .prop_map(|(key, addr, host)| format!("endpoint {key} {addr} {host} ports http/tcp/8080")),
        (1..3).prop_map(|n| format!("node n{n} 10.0.{n}.0/24")),
        Just("node n0 10.0.0.0/24".to_owned()),
    ]
}

fn questions() -> Vec<Question> {
    let mut names = vec!["cluster.local".to_owned(), "ns0.svc.cluster.local".to_owned()];
    for service in ["s0.ns0", "s1.ns0", "s2.ns0", "s0.ns1", "s1.ns1", "s2.ns1"] {
        for below in ["", "_http._tcp.", "_tcp.", "h1.", "h2.", "10-0-0-1.", "10-0-0-2.", "fd00--1."] {
            names.push(format!("{below}{service}.svc.cluster.local"));
        }
    }
    names.extend((1..6).map(|n| format!("{n}.0.0.10.in-addr.arpa")));
    names.push(format!("2.{}0.0.d.f.ip6.arpa", "0.".repeat(27)));
    let kinds = [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR];
    names
        .iter()
        .flat_map(|name| {
            let mut name = Name::from_ascii(name).unwrap();
            name.set_fqdn(true);
            kinds.map(move |kind| Question { name: name.clone(), kind })
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn step_by_step_as_afresh(steps in proptest::collection::vec(proptest::collection::vec(line(), 0..12), 1..6)) {
        let mut stepped = Zone::new(&DnsConfig::default()).unwrap();
        let mut last = Arc::new(Snapshot::default());
        for (version, lines) in (1..).zip(&steps) {
            last = Arc::new(Snapshot { version, ..cluster::snapshot(&lines.join("\n")) });
            stepped.update(&last);
        }
        let mut fresh = Zone::new(&DnsConfig::default()).unwrap();
        fresh.update(&last);
        for question in questions() {
            prop_assert_eq!(stepped.answer(&question), fresh.answer(&question), "{:?}", question);
        }
    }

    #[test]
    fn no_name_is_too_strange(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8), kind: u16) {
        let mut zone = Zone::new(&DnsConfig::default()).unwrap();
        zone.update(&Arc::new(cluster::snapshot("service a/b cluster 10.0.0.1\nservice a/c headless\nendpoint a/c 10.0.0.2")));
        for tail in [&[][..], &["svc", "cluster", "local"], &["a", "svc", "cluster", "local"], &["c", "a", "svc", "cluster", "local"], &["in-addr", "arpa"], &["ip6", "arpa"]] {
            let labels = labels.iter().map(Vec::as_slice).chain(tail.iter().map(|label| label.as_bytes()));
            let Ok(name) = Name::from_labels(labels) else { continue };
            zone.answer(&Question { name, kind: RecordType::from(kind) });
        }
    }
}
