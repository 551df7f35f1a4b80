//! What an answer costs, packet to packet and without sockets: `cargo run --release -p seaway-dns --example bench_answers`.
//! Prints one JSON object per row. CPU time is compared, measured in turn in one run, medians of five: hits with misses, and
//! large zones with small ones. The last row is the memory of a large cluster, snapshot and zone.

use std::error::Error;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use seaway_dns::zone::Zone;
use seaway_dns::{DnsConfig, Metrics, Responder};
use seaway_model::{
    Endpoint, EndpointPort, EndpointSet, Protocol, Service, ServiceKey, ServicePort, Snapshot,
};

const ROUNDS: usize = 5;
const ANSWERS: u32 = 100_000;
const SIZES: [u32; 3] = [1_000, 10_000, 50_000];
const CASES: [&str; 4] = ["hit", "nxdomain", "nodata", "srv"];
const MISS_TARGET: f64 = 1.1;
const SIZE_TARGET: f64 = 1.05;
const MEMORY_TARGET_MB: f64 = 60.0;

fn main() -> Result<(), Box<dyn Error>> {
    memory()?;
    let responders = SIZES.map(|size| responder(&Arc::new(cluster(size))));
    let mut costs = vec![Vec::new(); SIZES.len() * CASES.len()];
    for _ in 0..ROUNDS {
        for (row, cost) in costs.iter_mut().enumerate() {
            let (at, case) = (row / CASES.len(), CASES[row % CASES.len()]);
            let responder = responders[at].as_ref().map_err(ToString::to_string)?;
            cost.push(cpu_us(responder, SIZES[at], case)?);
        }
    }
    let medians: Vec<f64> = costs.into_iter().map(median).collect();
    for (row, &ours) in medians.iter().enumerate() {
        let (at, case) = (row / CASES.len(), row % CASES.len());
        if matches!(CASES[case], "nxdomain" | "nodata") {
            print(CASES[case], SIZES[at], ours, ("hit", medians[at * CASES.len()]), MISS_TARGET);
        }
        print(CASES[case], SIZES[at], ours, ("1000 records", medians[case]), SIZE_TARGET);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what a bench is for")]
fn print(case: &str, size: u32, ours: f64, (peer, theirs): (&str, f64), target: f64) {
    let ratio = ours / theirs;
    println!(
        "{{\"bench\":\"dns\",\"case\":\"{case}\",\"size\":{size},\"unit\":\"cpu us per answer\",\"ours\":{ours:.3},\
         \"peer\":\"{peer}\",\"theirs\":{theirs:.3},\"ratio\":{ratio:.3},\"target\":{target},\"ok\":{}}}",
        ratio <= target
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of this thread per answer, names all over the zone.
fn cpu_us(responder: &Responder, size: u32, case: &str) -> Result<f64, Box<dyn Error>> {
    let packets = (0..512).map(|n| packet(case, n * 7919 % size)).collect::<Result<Vec<_>, _>>()?;
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut reply = Vec::new();
    let began = cpu_ns()?;
    for packet in packets.iter().cycle().take(ANSWERS as usize) {
        if !responder.respond(std::hint::black_box(packet), client, &mut reply) {
            return Err("no answer".into());
        }
    }
    Ok((cpu_ns()? - began) / 1000.0 / f64::from(ANSWERS))
}

fn packet(case: &str, n: u32) -> Result<Vec<u8>, Box<dyn Error>> {
    let (name, kind) = match case {
        "nxdomain" => (format!("n{n}.shop.svc.cluster.local."), RecordType::A),
        "nodata" => (format!("s{n}.shop.svc.cluster.local."), RecordType::AAAA),
        "srv" => (format!("_http._tcp.s{n}.shop.svc.cluster.local."), RecordType::SRV),
        _ => (format!("s{n}.shop.svc.cluster.local."), RecordType::A),
    };
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(message.to_vec()?)
}

fn responder(snapshot: &Arc<Snapshot>) -> Result<Responder, Box<dyn Error>> {
    let metrics = Metrics::new(&prometheus::Registry::new())?;
    Ok(Responder::new(&DnsConfig::default(), snapshot, &metrics)?)
}

fn cluster(size: u32) -> Snapshot {
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    for n in 0..size {
        let mut service = Service::new(ServiceKey::new("shop", &format!("s{n}")));
        service.cluster_ips.push(Ipv4Addr::from_bits(0x0a60_0000 + n).into());
        service.ports.push(ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: None,
        });
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    snapshot
}

/// Snapshot and zone of 8,200 Services and 150,000 endpoints with pods, every fifth Service headless.
#[expect(clippy::print_stdout, reason = "what a bench is for")]
fn memory() -> Result<(), Box<dyn Error>> {
    const SERVICES: u32 = 8_200;
    const PODS: u32 = 150_000;
    let before = resident_mb()?;
    let mut snapshot = cluster(SERVICES);
    let ports: Arc<[EndpointPort]> =
        vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into();
    for n in 0..SERVICES {
        let key = ServiceKey::new("shop", &format!("s{n}"));
        let endpoints = (PODS * n / SERVICES..PODS * (n + 1) / SERVICES)
            .map(|pod| Endpoint {
                addr: Ipv4Addr::from_bits(0x0af4_0000 + pod).into(),
                hostname: None,
                node: Some("node".into()),
                zone: None,
                ready: true,
                serving: true,
                terminating: false,
                hints: None,
                ports: Arc::clone(&ports),
            })
            .collect();
        if n % 5 == 0
            && let Some(service) = snapshot.services.get_mut(&key)
        {
            let service = Arc::make_mut(service);
            service.headless = true;
            service.cluster_ips.clear();
        }
        snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints }));
    }
    let snapshot = Arc::new(snapshot);
    let modelled = resident_mb()?;
    let mut zone = Zone::new(&DnsConfig::default())?;
    zone.update(&snapshot);
    let ours = resident_mb()? - before;
    println!(
        "{{\"bench\":\"dns\",\"case\":\"memory, {SERVICES} Services, {PODS} pods (the model alone: {:.1})\",\
         \"size\":{PODS},\"unit\":\"MB\",\"ours\":{ours:.1},\"peer\":\"CoreDNS's formula\",\"theirs\":212,\
         \"ratio\":{:.3},\"target\":{MEMORY_TARGET_MB},\"ok\":{}}}",
        modelled - before,
        ours / 212.0,
        ours <= MEMORY_TARGET_MB
    );
    Ok(())
}

/// What this thread has run, in nanoseconds.
fn cpu_ns() -> Result<f64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

fn resident_mb() -> Result<f64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kb: f64 = line.trim_end_matches("kB").trim().parse()?;
    Ok(kb / 1024.0)
}
