//! Packets that are nearly right: a corpus of questions, and mutations of them from a seed, the same each time.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    dead_code,
    unreachable_pub,
    reason = "support of tests; any part of a random number will do"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use seaway_dns::{DnsConfig, Metrics, PodRecords, Responder};

use crate::cluster;

/// What the fuzzed server knows.
pub fn responder() -> Responder {
    let mut text = "service shop/web cluster 10.96.0.1 fd00:96::1 ports http/tcp/80 dns/udp/53\n\
        service shop/many headless ports http/tcp/80\nservice shop/out external www.example.com\n\
        service shop/in external web.shop.svc.cluster.local\nservice kube-system/kube-dns cluster 10.96.0.10\n\
        namespace shop\nnamespace bare\npod shop/client 192.0.2.9\n"
        .to_owned();
    for n in 0..200 {
        text = text + "endpoint shop/many 10.244.0." + &n.to_string() + " ports http/tcp/8080\n";
    }
    let config = DnsConfig {
        pod_records: PodRecords::Verified,
        reverse: vec!["10.96.0.0/16".parse().unwrap()],
        ..DnsConfig::default()
    };
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    Responder::new(&config, &Arc::new(cluster::snapshot(&text)), &metrics).unwrap()
}

/// Well-formed questions, and the packets of `corpus.txt`.
pub fn corpus() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let names = [
        "web.shop.svc.cluster.local.",
        "_http._tcp.web.shop.svc.cluster.local.",
        "many.shop.svc.cluster.local.",
        "10-244-0-7.many.shop.svc.cluster.local.",
        "in.shop.svc.cluster.local.",
        "www.example.com.shop.svc.cluster.local.",
        "192-0-2-9.shop.pod.cluster.local.",
        "1.0.96.10.in-addr.arpa.",
        "dns-version.cluster.local.",
        "cluster.local.",
        ".",
    ];
    let kinds =
        [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR, RecordType::ANY, RecordType::TXT];
    for name in names {
        for kind in kinds {
            let mut message = Message::query();
            message.metadata.recursion_desired = true;
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            packets.push(message.to_vec().unwrap());
            let mut edns = Edns::new();
            edns.set_max_payload(4096);
            edns.set_dnssec_ok(true);
            message.set_edns(edns);
            packets.push(message.to_vec().unwrap());
            message.queries[0].set_query_class(DNSClass::CH);
            packets.push(message.to_vec().unwrap());
        }
    }
    packets.extend(include_str!("../wire/corpus.txt").lines().filter_map(hex));
    packets
}

fn hex(line: &str) -> Option<Vec<u8>> {
    let digits: String = line.split('#').next()?.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.as_bytes().chunks(2);
    let packet: Vec<u8> =
        pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    (!packet.is_empty()).then_some(packet)
}

/// A row of numbers that a seed decides.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }
}

/// Changes `packet` in a few places.
pub fn mutate(packet: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    const STRIKING: [u8; 10] = [0, 1, 0x0c, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xc1, 0xff];
    for _ in 0..=random.below(5) {
        let at = random.below(packet.len());
        match random.below(8) {
            0 if !packet.is_empty() => packet[at] ^= 1 << random.below(8),
            1 if !packet.is_empty() => packet[at] = STRIKING[random.below(STRIKING.len())],
            2 if !packet.is_empty() => packet[at] = random.next() as u8,
            3 => packet.truncate(at),
            4 => packet.insert(at, STRIKING[random.below(STRIKING.len())]),
            // A compression pointer, to anywhere.
            5 if at + 1 < packet.len() => {
                packet[at] = 0xc0;
                packet[at + 1] = random.below(packet.len()) as u8;
            }
            // The head of one and the tail of another.
            6 => {
                let other = &corpus[random.below(corpus.len())];
                packet.truncate(at);
                packet.extend_from_slice(&other[random.below(other.len())..]);
            }
            7 => {
                let (from, length) = (random.below(packet.len()), random.below(64));
                let piece: Vec<u8> = packet.iter().skip(from).take(length).copied().collect();
                packet.splice(at..at, piece);
            }
            _ => packet.push(random.next() as u8),
        }
    }
    packet.truncate(4096);
}

/// What must hold for every packet, whatever it is.
pub fn check(responder: &Responder, packet: &[u8], reply: &mut Vec<u8>) -> Result<(), String> {
    const UDP_MAX: usize = 1232;
    let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    if !responder.respond(packet, client, reply) {
        return Ok(());
    }
    if packet.len() < 12 || packet[2] & 0x80 != 0 {
        return Err("what is no question is answered".to_owned());
    }
    if reply.len() > UDP_MAX {
        return Err(format!("an answer of {} octets", reply.len()));
    }
    let answer = Message::from_vec(reply).map_err(|error| format!("the answer is malformed: {error}"))?;
    if reply[..2] != packet[..2] || reply[2] & 0x80 == 0 {
        return Err("the answer is not one to this question".to_owned());
    }
    match Message::from_vec(packet) {
        Err(_) if reply.len() > packet.len() => Err("more octets than a malformed packet had".to_owned()),
        Err(_) => match answer.metadata.response_code {
            ResponseCode::FormErr | ResponseCode::NotImp => Ok(()),
            code => Err(format!("{code:?} to a malformed packet")),
        },
        Ok(question) => {
            let limit =
                question.edns.as_ref().map_or(512, |edns| usize::from(edns.max_payload().clamp(512, 1232)));
            if reply.len() > limit {
                return Err(format!("{} octets to a client that takes {limit}", reply.len()));
            }
            if !answer.queries.is_empty() && answer.queries != question.queries {
                return Err("another question comes back".to_owned());
            }
            Ok(())
        }
    }
}
