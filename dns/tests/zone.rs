//! The zone's rules as text files (`tests/zone/*.txt`): a cluster, then questions with the whole answers. The files are
//! compared as they are; `UPDATE_EXPECT=1 cargo test -p seaway-dns --test zone` writes what the zone says now, for review.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;

use std::path::Path;
use std::sync::Arc;

use hickory_proto::rr::{Name, RData, Record, RecordType};
use seaway_dns::zone::{Question, Reply, Window, Zone};
use seaway_dns::{DnsConfig, PodRecords};

#[test]
fn rules() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zone");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        expect_test::expect_file![&file].assert_eq(&answered(&text));
    }
}

/// The file with every answer as the zone gives it now.
fn answered(text: &str) -> String {
    let zone = zone(text);
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(question) = line.strip_prefix("? ") {
            lines.push(line.to_owned());
            lines.extend(ask(&zone, question));
        } else if !line.starts_with("  ") {
            lines.push(line.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

fn zone(text: &str) -> Zone {
    let option = |name: &str| text.lines().find_map(|line| line.strip_prefix("config ")?.strip_prefix(name));
    let config = DnsConfig {
        zone: option("zone ").unwrap_or("cluster.local").to_owned(),
        pod_records: match option("pods ").map(str::trim) {
            Some("insecure") => PodRecords::Insecure,
            Some("verified") => PodRecords::Verified,
            _ => PodRecords::Disabled,
        },
        namespaces: option("namespaces ").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        ignore_empty_services: option("ignore-empty-services").is_some(),
        reverse: option("reverse ")
            .unwrap_or_default()
            .split_whitespace()
            .map(|cidr| cidr.parse().unwrap())
            .collect(),
        ..DnsConfig::default()
    };
    let mut snapshot = cluster::snapshot(text);
    snapshot.synced = option("unsynced").is_none();
    let mut zone = Zone::new(&config).unwrap();
    zone.update(&Arc::new(snapshot));
    zone
}

fn ask(zone: &Zone, question: &str) -> Vec<String> {
    let (name, kind) = question.split_once(' ').unwrap();
    let question = Question { name: Name::from_ascii(name).unwrap(), kind: kind.trim().parse().unwrap() };
    let answer = match zone.answer(&question) {
        Reply::NotOurs => return vec!["  not ours".to_owned()],
        Reply::Elsewhere { aliases, next } => {
            return aliases.iter().map(|a| show("answer", a)).chain([format!("  then     {next}")]).collect();
        }
        Reply::Authoritative(answer) => answer,
    };
    let mut lines = vec![format!("  {:?}", answer.code)];
    lines.extend(answer.answers.iter().map(|record| show("answer", record)));
    lines.extend(answer.authorities.iter().map(|record| show("authority", record)));
    lines.extend(answer.additionals.iter().map(|record| show("additional", record)));
    lines
}

fn show(section: &str, record: &Record) -> String {
    let data = match &record.data {
        RData::TXT(text) => text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect(),
        RData::HINFO(info) => format!("{:?}", String::from_utf8_lossy(&info.cpu)),
        other => other.to_string(),
    };
    let line =
        format!("  {section:<10} {} {} {} {data}", record.name.to_ascii(), record.ttl, record.record_type());
    line.trim_end().to_owned()
}

#[test]
fn a_window_is_a_turn_of_the_whole() {
    let endpoints: Vec<String> =
        (0..20).map(|n| format!("endpoint a/b 10.0.0.{n} ports http/tcp/80")).collect();
    let zone = zone(&format!("service a/b headless ports http/tcp/80\n{}", endpoints.join("\n")));
    for kind in [RecordType::A, RecordType::SRV] {
        let question = Question { name: Name::from_ascii("b.a.svc.cluster.local.").unwrap(), kind };
        let within = |window| match zone.answer_within(&question, window) {
            Reply::Authoritative(answer) => answer.answers,
            other => panic!("{other:?}"),
        };
        let whole = within(Window::ALL);
        assert_eq!(whole.len(), 20);
        for (turn, records_max) in [(0, 20), (3, 20), (19, 5), (20, 1), (65_535, 100), (7, 0)] {
            let expected: Vec<Record> =
                whole.iter().cycle().skip(turn % 20).take(records_max.min(20)).cloned().collect();
            assert_eq!(within(Window { turn, records_max }), expected, "{turn} {records_max}");
        }
    }
}
