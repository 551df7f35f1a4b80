//! The server over loopback, UDP and TCP, both families: as hickory-proto's messages and as `dig` sees it, with upstreams
//! that the tests play themselves. No privilege is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/resolver.rs"]
mod resolver;
#[path = "support/running.rs"]
mod running;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use resolver::{Behaviour, Resolver};
use running::{
    CLUSTER, ask, config, data, eventually, metric, over_tcp, over_udp, question, question_bytes, start,
    start_with, tcp_receive, tcp_send,
};
use seaway_dns::{DnsConfig, Server};
use seaway_model::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn both_transports_and_families_give_the_same_answer() {
    let running = start(&config(&[]));
    for server in [running.v4, running.v6] {
        let question = question("Web.shop.svc.cluster.LOCAL.", RecordType::A).to_vec().unwrap();
        let udp = over_udp(server, &question).await.unwrap();
        assert_eq!(udp, over_tcp(server, &question).await);
        let answer = Message::from_vec(&udp).unwrap();
        assert_eq!(answer.queries[0].name().to_ascii(), "Web.shop.svc.cluster.LOCAL.");
        assert_eq!(answer.answers[0].name.to_ascii(), "Web.shop.svc.cluster.LOCAL.");
        assert_eq!(data(&answer), ["10.96.0.1"]);
        assert!(
            answer.metadata.authoritative && answer.metadata.recursion_desired && !answer.metadata.truncation
        );
        assert!(!answer.metadata.recursion_available, "there is no upstream");
    }
}

#[tokio::test]
async fn answers_follow_the_snapshots() {
    let running = start_with(&config(&[]), Snapshot::default());
    let code =
        async || ask(running.v4, "new.shop.svc.cluster.local.", RecordType::A).await.metadata.response_code;
    assert_eq!(code().await, ResponseCode::ServFail);
    assert!(!running.metrics.ready());
    running.snapshots.send(Arc::new(cluster::snapshot(CLUSTER))).unwrap();
    eventually(async || code().await == ResponseCode::NXDomain).await;
    assert!(running.metrics.ready());
    let grown = cluster::snapshot(&format!("{CLUSTER}service shop/new cluster 10.96.0.9"));
    running.snapshots.send(Arc::new(Snapshot { version: 8, ..grown })).unwrap();
    eventually(async || code().await == ResponseCode::NoError).await;
    // The same name as another kind of Service, and no more: with it its other names come and go.
    let told = async |name: &str, kind| {
        let answer = ask(running.v4, name, kind).await;
        format!("{:?} {}", answer.metadata.response_code, data(&answer).join(" "))
    };
    let steps = [
        ("service shop/new headless", "NXDomain ", "NXDomain "),
        (
            "service shop/new headless\nendpoint shop/new 10.244.7.7 hostname=one",
            "NoError 10.244.7.7",
            "NoError one.new.shop.svc.cluster.local.",
        ),
        (
            "service shop/new external web.shop.svc.cluster.local",
            "NoError web.shop.svc.cluster.local. 10.96.0.1",
            "NXDomain ",
        ),
        (
            "service shop/new cluster 10.96.0.9\nendpoint shop/new 10.244.7.7",
            "NoError 10.96.0.9",
            "NoError 10-244-7-7.new.shop.svc.cluster.local.",
        ),
        ("", "NXDomain ", "NXDomain "),
        ("service shop/new cluster 10.96.0.9", "NoError 10.96.0.9", "NXDomain "),
    ];
    for (version, (lines, addr, name)) in (9..).zip(steps) {
        let changed = cluster::snapshot(&format!("{CLUSTER}node one 10.244.7.0/24\n{lines}"));
        running.snapshots.send(Arc::new(Snapshot { version, ..changed })).unwrap();
        eventually(async || told("new.shop.svc.cluster.local.", RecordType::A).await == addr).await;
        assert_eq!(told("7.7.244.10.in-addr.arpa.", RecordType::PTR).await, name, "{lines}");
    }
    // The writer is gone: the last known state serves.
    drop(running.snapshots);
    assert_eq!(
        ask(running.v4, "new.shop.svc.cluster.local.", RecordType::A).await.metadata.response_code,
        ResponseCode::NoError
    );
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_and_whole_over_tcp() {
    let running = start(&config(&[]));
    let plain = ask(running.v4, "many.shop.svc.cluster.local.", RecordType::A).await;
    assert!(plain.metadata.truncation && !plain.answers.is_empty() && plain.answers.len() < 50);
    let mut question = question("many.shop.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    edns.set_dnssec_ok(true);
    question.set_edns(edns);
    let question = question.to_vec().unwrap();
    let reply = over_udp(running.v4, &question).await.unwrap();
    assert!(reply.len() <= 1232);
    let large = Message::from_vec(&reply).unwrap();
    assert!(large.metadata.truncation && large.answers.len() > plain.answers.len());
    let opt = large.edns.as_ref().unwrap();
    assert_eq!((opt.version(), opt.max_payload(), opt.flags().dnssec_ok), (0, 1232, true));
    let whole = Message::from_vec(&over_tcp(running.v4, &question).await).unwrap();
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 250));
    let srv = question_bytes("many.shop.svc.cluster.local.", RecordType::SRV);
    let whole = Message::from_vec(&over_tcp(running.v4, &srv).await).unwrap();
    assert_eq!((whole.metadata.truncation, whole.answers.len(), whole.additionals.len()), (false, 250, 250));
}

#[tokio::test]
async fn the_first_address_is_another_one_each_time() {
    let running = start(&config(&[]));
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..50 {
        first.insert(data(&ask(running.v4, "many.shop.svc.cluster.local.", RecordType::A).await)[0].clone());
    }
    assert!(first.len() > 10, "{first:?}");
}

type Case = (fn(&mut Message), ResponseCode);

#[tokio::test]
async fn odd_questions_get_their_code() {
    let running = start(&config(&[]));
    let code = async |change: fn(&mut Message)| {
        let mut message = question("web.shop.svc.cluster.local.", RecordType::A);
        message.set_edns(Edns::new());
        change(&mut message);
        let reply = over_udp(running.v4, &message.to_vec().unwrap()).await.unwrap();
        u16::from(Message::from_vec(&reply).unwrap().metadata.response_code)
    };
    let cases: [Case; 10] = [
        (|_| {}, ResponseCode::NoError),
        (|m| m.metadata.op_code = OpCode::Notify, ResponseCode::NotImp),
        (|m| m.metadata.op_code = OpCode::Status, ResponseCode::NotImp),
        (|m| m.queries.clear(), ResponseCode::FormErr),
        (|m| m.queries.extend_from_within(..), ResponseCode::FormErr),
        (|m| _ = m.queries[0].set_query_type(RecordType::AXFR), ResponseCode::Refused),
        (|m| _ = m.queries[0].set_query_type(RecordType::OPT), ResponseCode::FormErr),
        (|m| _ = m.queries[0].set_query_type(RecordType::Unknown(65_280)), ResponseCode::NoError),
        (|m| _ = m.queries[0].set_query_class(DNSClass::CH), ResponseCode::Refused),
        (|m| _ = m.edns.as_mut().unwrap().set_version(1), ResponseCode::BADVERS),
    ];
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        assert_eq!(code(change).await, u16::from(expected), "case {at}");
    }
    // Without upstreams other names are refused, and an alias that leads there is told.
    let refused = ask(running.v4, "www.example.com.", RecordType::A).await;
    assert_eq!(
        (refused.metadata.response_code, refused.metadata.authoritative),
        (ResponseCode::Refused, false)
    );
    let alias = ask(running.v4, "out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(
        (alias.metadata.response_code, data(&alias)),
        (ResponseCode::NoError, vec!["www.example.com.".to_owned()])
    );
}

#[tokio::test]
async fn rubbish_is_survived() {
    let running = start(&config(&[]));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = question_bytes("web.shop.svc.cluster.local.", RecordType::A);
    let mut seed: u64 = 42;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap()
    };
    for round in 0..3000 {
        let mut packet = if round % 3 == 0 { vec![0; random() % 100] } else { good.clone() };
        for _ in 0..random() % 6 {
            if !packet.is_empty() {
                let at = random() % packet.len();
                packet[at] = u8::try_from(random() % 256).unwrap();
            }
        }
        packet.truncate(random() % (packet.len() + 20));
        socket.send_to(&packet, running.v4).await.unwrap();
        if round % 50 == 0 {
            let answer = ask(running.v4, "web.shop.svc.cluster.local.", RecordType::A).await;
            assert_eq!(data(&answer), ["10.96.0.1"]);
        }
    }
    let mut stream = TcpStream::connect(running.v4).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(3), stream.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    assert_eq!(metric(&running, "coredns_panics_total"), "0");
}

#[tokio::test]
async fn tcp_takes_several_questions_in_pieces_and_ends_idle_connections() {
    let resolver = Resolver::start(Behaviour::Late(Duration::from_millis(150))).await;
    let running = start(&config(&[resolver.address]));
    let mut stream = TcpStream::connect(running.v4).await.unwrap();
    let slow = question("slow.example.", RecordType::A);
    let fast = question("web.shop.svc.cluster.local.", RecordType::A);
    tcp_send(&mut stream, &slow.to_vec().unwrap()).await;
    let packet = fast.to_vec().unwrap();
    let framed = [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], &packet].concat();
    for piece in framed.chunks(7) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let first = Message::from_vec(&tcp_receive(&mut stream).await).unwrap();
    let second = Message::from_vec(&tcp_receive(&mut stream).await).unwrap();
    assert_eq!((first.metadata.id, second.metadata.id), (fast.metadata.id, slow.metadata.id));
    let closed = timeout(Duration::from_secs(3), stream.read(&mut [0; 8])).await.unwrap().unwrap();
    assert_eq!(closed, 0);
}

/// More questions at once on one connection than may wait: it is read no further meanwhile, and each is answered once.
#[tokio::test]
async fn every_question_of_a_full_connection_is_answered() {
    let resolver = Resolver::start(Behaviour::Late(Duration::from_millis(20))).await;
    let running = start(&config(&[resolver.address]));
    let mut stream = TcpStream::connect(running.v4).await.unwrap();
    let mut owed = std::collections::BTreeSet::new();
    for n in 0..200 {
        let name =
            if n % 3 == 0 { "web.shop.svc.cluster.local.".to_owned() } else { format!("n{n}.example.") };
        let mut question = question(&name, RecordType::A);
        question.metadata.id = n;
        tcp_send(&mut stream, &question.to_vec().unwrap()).await;
        owed.insert(n);
    }
    while !owed.is_empty() {
        let answer = Message::from_vec(&tcp_receive(&mut stream).await).unwrap();
        assert!(owed.remove(&answer.metadata.id), "{} twice", answer.metadata.id);
        assert_eq!(answer.answers.len(), 1);
    }
}

#[tokio::test]
async fn one_client_does_not_keep_all_connections_from_the_others() {
    let running = start(&DnsConfig {
        tcp_connections_max: 4,
        tcp_idle_timeout: Duration::from_secs(60),
        ..config(&[])
    });
    let packet = question_bytes("web.shop.svc.cluster.local.", RecordType::A);
    let mut other = TcpStream::connect(running.v4).await.unwrap();
    let mut asked = async || {
        tcp_send(&mut other, &packet).await;
        tcp_receive(&mut other).await
    };
    asked().await;
    let mut greedy = Vec::new();
    for _ in 0..20 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        greedy.push(socket.connect(running.v4).await.unwrap());
    }
    // Those that had to go are closed, and the other's is not.
    for stream in &mut greedy[..17] {
        assert_eq!(timeout(Duration::from_secs(5), stream.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    }
    asked().await;
    timeout(Duration::from_secs(5), over_tcp(running.v4, &packet)).await.unwrap();
}

#[tokio::test]
async fn other_names_are_asked_upstream_once_and_remembered() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let running = start(&config(&[resolver.address]));
    let answer = ask(running.v4, "WWW.example.", RecordType::A).await;
    assert_eq!(data(&answer), ["192.0.2.1"]);
    assert_eq!(answer.answers[0].name.to_ascii(), "WWW.example.");
    assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
    assert_eq!(data(&ask(running.v6, "www.Example.", RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(resolver.asked(), 1);
    let denied = ask(running.v4, "nothing.example.", RecordType::A).await;
    assert_eq!((denied.metadata.response_code, denied.authorities.len()), (ResponseCode::NXDomain, 1));
    ask(running.v4, "nothing.example.", RecordType::A).await;
    assert_eq!(resolver.asked(), 2);
    assert_eq!(metric(&running, "coredns_cache_hits_total"), "2");
    // Too large for UDP: asked again over TCP, from here and by the client.
    let large = ask(running.v4, "large.example.", RecordType::TXT).await;
    assert!(large.metadata.truncation);
    let whole = over_tcp(running.v4, &question_bytes("large.example.", RecordType::TXT)).await;
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 20);
    // An alias out of the zone, in one answer.
    let chased = ask(running.v4, "out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&chased), ["www.example.com.", "192.0.2.1"]);
    assert!(chased.metadata.authoritative);
    // A target that does not fit says so, and comes whole over TCP.
    let far = cluster::snapshot(&format!("{CLUSTER}service shop/far external large.example"));
    running.snapshots.send(Arc::new(Snapshot { version: 8, ..far })).unwrap();
    eventually(async || {
        ask(running.v4, "far.shop.svc.cluster.local.", RecordType::TXT).await.metadata.truncation
    })
    .await;
    let far = over_tcp(running.v4, &question_bytes("far.shop.svc.cluster.local.", RecordType::TXT)).await;
    assert_eq!(Message::from_vec(&far).unwrap().answers.len(), 21);
    let inside = ask(running.v4, "in.shop.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!(data(&inside), ["web.shop.svc.cluster.local.", "fd00:96::1"]);
}

#[tokio::test]
async fn the_next_upstream_helps_where_one_fails() {
    let silent = Resolver::start(Behaviour::Silent).await;
    let refusing = Resolver::start(Behaviour::Fail(ResponseCode::Refused)).await;
    let good = Resolver::start(Behaviour::Answer).await;
    let closed: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for bad in [silent.address, refusing.address, closed] {
        let running = start(&config(&[bad, good.address]));
        let answer = ask(running.v4, "www.example.", RecordType::A).await;
        assert_eq!(data(&answer), ["192.0.2.1"], "{bad}");
    }
    // All of them: a failure in time, not silence.
    let running = start(&config(&[silent.address, closed]));
    let failed = ask(running.v4, "www.example.", RecordType::A).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    let failing = Resolver::start(Behaviour::Fail(ResponseCode::ServFail)).await;
    let before = refusing.asked();
    let running = start(&config(&[refusing.address, failing.address]));
    let failed = ask(running.v4, "www.example.", RecordType::A).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((refusing.asked() - before, failing.asked()), (1, 1));
    let running = start(&config(&[refusing.address]));
    let refused = ask(running.v4, "www.example.", RecordType::A).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_asked_last() {
    let silent = Resolver::start(Behaviour::Silent).await;
    let good = Resolver::start(Behaviour::Answer).await;
    let running = start(&config(&[silent.address, good.address]));
    for n in 0..6 {
        ask(running.v4, &format!("n{n}.example."), RecordType::A).await;
    }
    assert_eq!((silent.asked(), good.asked()), (2, 6));
}

#[tokio::test]
async fn forged_answers_are_not_taken() {
    let forging = Resolver::start(Behaviour::ForgeFirst).await;
    let running = start(&config(&[forging.address]));
    assert_eq!(data(&ask(running.v4, "www.example.", RecordType::A).await), ["192.0.2.1"]);
    assert_ne!(metric(&running, "coredns_cache_drops_total"), "0");
}

#[tokio::test]
async fn many_clients_with_one_question_are_one_question_upstream() {
    let resolver = Resolver::start(Behaviour::Late(Duration::from_millis(200))).await;
    let running = start(&config(&[resolver.address]));
    let asks: Vec<_> =
        (0..50).map(|_| tokio::spawn(ask(running.v4, "www.example.", RecordType::A))).collect();
    for asked in asks {
        assert_eq!(data(&asked.await.unwrap()), ["192.0.2.1"]);
    }
    assert_eq!(resolver.asked(), 1);
}

#[tokio::test]
async fn too_many_questions_upstream_are_refused_at_once() {
    let resolver = Resolver::start(Behaviour::Silent).await;
    let running = start(&DnsConfig { forward_in_flight_max: 3, ..config(&[resolver.address]) });
    let asks: Vec<_> = (0..5)
        .map(|n| {
            let server = running.v4;
            tokio::spawn(async move { ask(server, &format!("n{n}.example."), RecordType::A).await })
        })
        .collect();
    let mut codes = Vec::new();
    for asked in asks {
        codes.push(asked.await.unwrap().metadata.response_code);
    }
    assert_eq!(codes.iter().filter(|&&code| code == ResponseCode::Refused).count(), 2, "{codes:?}");
    assert_eq!(metric(&running, "coredns_forward_max_concurrent_rejects_total"), "2");
}

#[tokio::test]
async fn one_client_does_not_keep_all_upstreams_from_the_others() {
    let resolver = Resolver::start(Behaviour::Silent).await;
    let running = start(&DnsConfig { forward_in_flight_max: 10, ..config(&[resolver.address]) });
    let greedy = UdpSocket::bind("127.0.0.9:0").await.unwrap();
    for n in 0..30 {
        let packet = question_bytes(&format!("n{n}.example."), RecordType::A);
        greedy.send_to(&packet, running.v4).await.unwrap();
    }
    let mut codes = Vec::new();
    for _ in 0..22 {
        let mut buffer = [0; 512];
        timeout(Duration::from_secs(3), greedy.recv(&mut buffer)).await.unwrap().unwrap();
        codes.push(buffer[3] & 0xf);
    }
    assert_eq!(codes, [u8::try_from(u16::from(ResponseCode::Refused)).unwrap(); 22]);
    // Upstream is asked, and says nothing.
    let other = ask(running.v4, "www.example.", RecordType::A).await;
    assert_eq!(other.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn an_old_answer_serves_while_no_upstream_does() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let running = start(&config(&[resolver.address]));
    ask(running.v4, "short.example.", RecordType::A).await;
    drop(resolver);
    // Its time to live is one second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let old = ask(running.v4, "short.example.", RecordType::A).await;
    assert_eq!((data(&old), old.answers[0].ttl), (vec!["192.0.2.1".to_owned()], 30));
    assert_eq!(metric(&running, "coredns_cache_served_stale_total"), "1");
}

#[tokio::test]
async fn a_way_back_to_ourselves_is_no_storm() {
    // Ourselves as an upstream: left out.
    let probe = Server::bind(&config(&[])).unwrap().local_addrs()[0];
    let running = start(&DnsConfig { listen: vec![probe, "[::1]:0".parse().unwrap()], ..config(&[probe]) });
    let refused = ask(running.v4, "www.example.", RecordType::A).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    // Somebody who asks us what we ask him: it ends, and each question was asked a few times only.
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let running = start(&config(&[relay.local_addr().unwrap()]));
    let back = running.v4;
    let relayed = tokio::spawn(async move {
        let mut buffer = vec![0; 512];
        let mut count = 0;
        while let Ok(received) = timeout(Duration::from_millis(1500), relay.recv_from(&mut buffer)).await {
            relay.send_to(&buffer[..received.unwrap().0], back).await.unwrap();
            count += 1;
        }
        count
    });
    let failed = ask(running.v4, "www.example.", RecordType::A).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    assert!(relayed.await.unwrap() <= 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_over_without_a_lost_question() {
    let first = start(&config(&[]));
    let address = first.v4;
    let stop = CancellationToken::new();
    let asking = tokio::spawn({
        let stop = stop.clone();
        async move {
            let (mut good, mut lost) = (0, 0);
            let packet = question_bytes("web.shop.svc.cluster.local.", RecordType::A);
            while !stop.is_cancelled() {
                if over_udp(address, &packet).await.is_some() { good += 1 } else { lost += 1 }
            }
            (good, lost)
        }
    });
    let config = DnsConfig { listen: vec![first.v4, first.v6], ..config(&[]) };
    let second = start(&config);
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.shutdown.cancel();
    first.task.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.cancel();
    let (good, lost) = asking.await.unwrap();
    assert!(good > 50, "{good}");
    // A packet may be on its way to a socket of the first just as that one closes.
    assert!(lost <= 1, "{lost} of {good}");
    drop(second);
}

#[tokio::test]
async fn what_is_under_way_is_answered_at_the_end() {
    let resolver = Resolver::start(Behaviour::Late(Duration::from_millis(250))).await;
    let running = start(&config(&[resolver.address]));
    let asking = tokio::spawn(ask(running.v4, "www.example.", RecordType::A));
    eventually(async || resolver.asked() == 1).await;
    running.shutdown.cancel();
    running.task.await.unwrap().unwrap();
    assert_eq!(data(&asking.await.unwrap()), ["192.0.2.1"]);
    assert!(!running.metrics.ready());
    // The port is free again.
    let again = Server::bind(&DnsConfig { listen: vec![running.v4], ..config(&[]) }).unwrap();
    assert_eq!(again.local_addrs(), [running.v4]);
}

#[tokio::test]
async fn mistakes_in_the_configuration() {
    let error = |change: fn(&mut DnsConfig)| {
        let mut config = config(&[]);
        change(&mut config);
        Server::bind(&config).unwrap_err().to_string()
    };
    assert_eq!(error(|c| c.listen.clear()), "no address to listen at: want at least one");
    assert_eq!(error(|c| c.zone = ".".to_owned()), "cluster domain \".\": is empty");
    assert!(error(|c| c.zone = "a..b".to_owned()).starts_with("cluster domain \"a..b\": "));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = DnsConfig { listen: vec![taken.local_addr().unwrap()], ..config(&[]) };
    let message = Server::bind(&config).unwrap_err().to_string();
    assert_eq!(message, format!("cannot listen on TCP {}", taken.local_addr().unwrap()));
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_know() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let running = start(&config(&[resolver.address]));
    ask(running.v4, "web.shop.svc.cluster.local.", RecordType::A).await;
    ask(running.v4, "nothing.shop.svc.cluster.local.", RecordType::AAAA).await;
    ask(running.v6, "www.example.", RecordType::A).await;
    over_tcp(running.v4, &question_bytes("1.0.96.10.in-addr.arpa.", RecordType::PTR)).await;
    let text = || prometheus::TextEncoder::new().encode_to_string(&running.registry.gather()).unwrap();
    let server = format!("server=\"dns://{}\"", running.v4);
    for line in [
        format!(
            "coredns_dns_requests_total{{family=\"1\",proto=\"udp\",{server},type=\"A\",view=\"\",zone=\"cluster.local.\"}} 1"
        ),
        format!(
            "coredns_dns_requests_total{{family=\"1\",proto=\"tcp\",{server},type=\"PTR\",view=\"\",zone=\"arpa.\"}} 1"
        ),
        format!(
            "coredns_dns_responses_total{{plugin=\"kubernetes\",rcode=\"NXDOMAIN\",{server},view=\"\",zone=\"cluster.local.\"}} 1"
        ),
        format!("coredns_dns_request_duration_seconds_count{{{server},view=\"\",zone=\"cluster.local.\"}} 2"),
        format!("coredns_forward_requests_total{{to=\"{}\"}} 1", resolver.address),
        format!("coredns_forward_responses_total{{rcode=\"NOERROR\",to=\"{}\"}} 1", resolver.address),
        "coredns_cache_misses_total{server=\"dns://\",view=\"\",zones=\".\"} 1".to_owned(),
        format!("coredns_plugin_enabled{{name=\"kubernetes\",{server},view=\"\",zone=\"cluster.local.\"}} 1"),
        format!("coredns_plugin_enabled{{name=\"forward\",{server},view=\"\",zone=\".\"}} 1"),
        "seaway_dns_synced 1".to_owned(),
        "seaway_dns_services 5".to_owned(),
    ] {
        // Threads tell what they have counted now and then.
        let told = timeout(Duration::from_secs(5), async {
            while !text().contains(&line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(told.await.is_ok(), "{line}\n{}", text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_reads_the_answers() {
    let running = start(&config(&[]));
    let dig = async |arguments: &str| {
        let mut command = Command::new("dig");
        command.args(["@127.0.0.1", "-p", &running.v4.port().to_string(), "+tries=1", "+time=3"]);
        command.args(arguments.split_whitespace());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        let output = output.expect("dig is needed: `cargo xtask setup` installs it (package bind9-dnsutils)");
        String::from_utf8(output.stdout).unwrap()
    };
    for transport in ["+notcp", "+tcp"] {
        let answer = dig(&format!("{transport} web.shop.svc.cluster.local A")).await;
        assert!(answer.contains("status: NOERROR") && answer.contains("flags: qr aa rd"), "{answer}");
        assert!(answer.contains("web.shop.svc.cluster.local. 5\tIN\tA\t10.96.0.1"), "{answer}");
        assert!(!answer.contains("malformed"), "{answer}");
    }
    // From UDP to TCP by itself.
    assert_eq!(dig("+short many.shop.svc.cluster.local A").await.lines().count(), 250);
    assert_eq!(dig("+short -x 10.96.0.1").await, "web.shop.svc.cluster.local.\n");
    assert_eq!(dig("+short -x fd00:96::1").await, "web.shop.svc.cluster.local.\n");
    assert_eq!(
        dig("+short _http._tcp.web.shop.svc.cluster.local SRV").await,
        "0 50 80 web.shop.svc.cluster.local.\n"
    );
    assert_eq!(dig("+short +noedns dns-version.cluster.local TXT").await, "\"1.1.0\"\n");
    assert!(
        dig("+ednsopt=100:00 +edns=1 +noednsnegotiation cluster.local").await.contains("status: BADVERS")
    );
    assert!(dig("nothing.shop.svc.cluster.local").await.contains("status: NXDOMAIN"));
}
