//! The server's rules as text files (`tests/zone/*.txt`): a cluster, then questions with the whole answers, packet in and
//! packet out. The files are compared as they are; `UPDATE_EXPECT=1 cargo test -p seaway-dns --test zone` writes what the
//! server says now, for review.
//!
//! A question is `? NAME TYPE [WORD…]`. By default it comes from nobody's address, over UDP, with EDNS and room for 1,232
//! octets, and wants recursion. Words change that: `tcp`, `edns=OCTETS`, `no-edns`, `version=N`, `do`, `cd`, `no-rd`,
//! `class=CLASS`, `opcode=CODE`, `from=ADDRESS`, `ad`. Where there is a word, the answer's length limit and EDNS are shown as
//! well. `config upstream` has a resolver beside the server (`support/resolver.rs` says what it answers), and loopback asks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/resolver.rs"]
mod resolver;
#[path = "support/running.rs"]
mod running;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, OpCode, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use prometheus::Registry;
use resolver::{Behaviour, Resolver};
use running::{over_tcp, over_udp};
use seaway_dns::zone::{Question, Reply, Window, Zone};
use seaway_dns::{DnsConfig, Metrics, PodRecords, Responder};
use seaway_model::Snapshot;

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

/// The file with every answer as the server gives it now.
fn answered(text: &str) -> String {
    let (config, snapshot) = described(text);
    if text.lines().any(|line| line == "config upstream") {
        return with_upstream(text, config, snapshot);
    }
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let responder = Responder::new(&config, &Arc::new(snapshot), &metrics).unwrap();
    filled_in(text, |packet, from, tcp| {
        let mut reply = Vec::new();
        let answered = if tcp {
            responder.respond_over_tcp(packet, from, &mut reply)
        } else {
            responder.respond(packet, from, &mut reply)
        };
        answered.then_some(reply)
    })
}

/// The same from a whole server that has an upstream.
fn with_upstream(text: &str, config: DnsConfig, snapshot: Snapshot) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let resolver = runtime.block_on(Resolver::start(Behaviour::Answer));
    let listen = running::config(&[]).listen;
    let config = DnsConfig { listen, upstreams: vec![resolver.address], ..config };
    let server = runtime.block_on(async { running::start_with(&config, snapshot) });
    let filled_in = filled_in(text, |packet, _from, tcp| {
        runtime.block_on(async {
            if tcp { Some(over_tcp(server.v4, packet).await) } else { over_udp(server.v4, packet).await }
        })
    });
    server.shutdown.cancel();
    filled_in
}

/// The file with what `respond` answers to its questions.
fn filled_in(text: &str, mut respond: impl FnMut(&[u8], IpAddr, bool) -> Option<Vec<u8>>) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(question) = line.strip_prefix("? ") {
            lines.push(line.to_owned());
            let (packet, from, tcp) = packet(question);
            match respond(&packet, from, tcp) {
                Some(reply) => lines.extend(shown(question, &reply)),
                None => lines.push("  nothing".to_owned()),
            }
        } else if !line.starts_with("  ") {
            lines.push(line.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

fn described(text: &str) -> (DnsConfig, Snapshot) {
    let option = |name: &str| text.lines().find_map(|line| line.strip_prefix("config ")?.strip_prefix(name));
    let config = DnsConfig {
        zone: option("zone ").unwrap_or("cluster.local").to_owned(),
        pod_records: match option("pods ").map(str::trim) {
            Some("insecure") => PodRecords::Insecure,
            Some("verified") => PodRecords::Verified,
            _ => PodRecords::Disabled,
        },
        search: option("search ").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        ttl_s: option("ttl ").map_or(5, |ttl| ttl.parse().unwrap()),
        namespaces: option("namespaces ").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        listen: option("listen ")
            .unwrap_or_default()
            .split_whitespace()
            .map(|at| at.parse().unwrap())
            .collect(),
        zonal: option("zonal").is_some(),
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
    (config, snapshot)
}

/// The question as a packet, who asks, and whether over TCP.
fn packet(question: &str) -> (Vec<u8>, IpAddr, bool) {
    let mut words = question.split_whitespace();
    let (name, kind) = (Name::from_ascii(words.next().unwrap()).unwrap(), words.next().unwrap());
    let kind = match kind.strip_prefix("TYPE") {
        Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
        None => kind.parse().unwrap(),
    };
    let mut message = Message::query();
    // A server may take turns by it.
    message.metadata.id = 0;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    let (mut with_edns, mut from, mut tcp) = (true, "192.0.2.250".parse().unwrap(), false);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("tcp", _) => tcp = true,
            ("no-edns", _) => with_edns = false,
            ("edns", octets) => _ = edns.set_max_payload(octets.parse().unwrap()),
            ("version", version) => _ = edns.set_version(version.parse().unwrap()),
            ("do", _) => _ = edns.set_dnssec_ok(true),
            ("ad", _) => message.metadata.authentic_data = true,
            ("cd", _) => message.metadata.checking_disabled = true,
            ("no-rd", _) => message.metadata.recursion_desired = false,
            ("class", class) => _ = message.queries[0].set_query_class(class.parse().unwrap()),
            ("opcode", code) => message.metadata.op_code = OpCode::from_u8(code.parse().unwrap()),
            ("from", address) => from = address.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    message.edns = with_edns.then_some(edns);
    (message.to_vec().unwrap(), from, tcp)
}

/// An answer, a line for its head and one for each record.
fn shown(question: &str, reply: &[u8]) -> Vec<String> {
    let message = Message::from_vec(reply).unwrap();
    let flags = &message.metadata;
    let shown = [
        (flags.authoritative, " aa"),
        (flags.truncation, " tc"),
        (flags.recursion_desired, " rd"),
        (flags.recursion_available, " ra"),
        (flags.authentic_data, " ad"),
        (flags.checking_disabled, " cd"),
    ];
    let shown: String = shown.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let code = match u16::from(flags.response_code) {
        // The same number has another name where there are signatures.
        16 => "BadVers".to_owned(),
        _ => format!("{:?}", flags.response_code),
    };
    let mut lines = vec![format!("  {code}{shown}")];
    assert_eq!(message.metadata.id, 0);
    for query in &message.queries {
        // What was asked comes back letter by letter.
        let asked = question.split_whitespace().next().unwrap();
        assert_eq!(query.name().to_ascii(), asked);
    }
    if question.split_whitespace().count() > 2 {
        lines.push(match &message.edns {
            Some(edns) => {
                let dnssec_ok = if edns.flags().dnssec_ok { " do" } else { "" };
                format!("  edns       {} octets{dnssec_ok}", edns.max_payload())
            }
            None => "  no edns".to_owned(),
        });
    }
    let sections = [
        ("answer", &message.answers),
        ("authority", &message.authorities),
        ("additional", &message.additionals),
    ];
    for (section, records) in sections {
        // Long ones are all alike.
        lines.extend(records.iter().take(12).map(|record| show(section, record)));
        if records.len() > 12 {
            lines.push(format!("  {section:<10} and {} more", records.len() - 12));
        }
    }
    lines
}

fn show(section: &str, record: &Record) -> String {
    let data = match &record.data {
        RData::TXT(text) => {
            let text: String = text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect();
            // Enough of it.
            if text.len() > 40 { format!("{}…", &text[..40]) } else { text }
        }
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
    let (config, snapshot) =
        described(&format!("service a/b headless ports http/tcp/80\n{}", endpoints.join("\n")));
    let mut zone = Zone::new(&config).unwrap();
    zone.update(&Arc::new(snapshot));
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
