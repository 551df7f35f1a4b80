//! How many answers a second one core makes, without sockets in between and over loopback: `cargo run --release -p seaway-dns
//! --example answers_per_second`. Figures from a shared machine are no results; the ratio between hits and misses, and between
//! small and large zones, is.

use std::error::Error;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use seaway_dns::zone::{Question, Zone};
use seaway_dns::{DnsConfig, Metrics, Server};
use seaway_model::{Service, ServiceKey, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const MEASURED_FOR: Duration = Duration::from_millis(700);
/// Questions under way at once over loopback.
const WINDOW: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:>9} {:>6} {:>14} {:>14}", "services", "name", "zone/s", "loopback/s");
    for size in [100_u32, 10_000, 50_000] {
        let snapshot = Arc::new(cluster(size));
        for (label, name) in [("hit", format!("s{}.shop", size / 2)), ("miss", "nothing.shop".to_owned())] {
            let name = Name::from_ascii(format!("{name}.svc.cluster.local."))?;
            let question = Question { name, kind: RecordType::A };
            println!(
                "{size:>9} {label:>6} {:>14.0} {:>14.0}",
                in_process(&snapshot, &question)?,
                over_loopback(&snapshot, &question)?
            );
        }
    }
    Ok(())
}

fn cluster(size: u32) -> Snapshot {
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    for n in 0..size {
        let mut service = Service::new(ServiceKey::new("shop", &format!("s{n}")));
        service.cluster_ips.push(Ipv4Addr::from_bits(0x0a60_0000 + n).into());
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    snapshot
}

fn in_process(snapshot: &Arc<Snapshot>, question: &Question) -> Result<f64, Box<dyn Error>> {
    let mut zone = Zone::new(&DnsConfig::default())?;
    zone.update(snapshot);
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < MEASURED_FOR {
        for _ in 0..100 {
            std::hint::black_box(zone.answer(std::hint::black_box(question)));
        }
        count += 100;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// The server on one thread, the client on another.
fn over_loopback(snapshot: &Arc<Snapshot>, question: &Question) -> Result<f64, Box<dyn Error>> {
    let config = DnsConfig { listen: vec!["127.0.0.1:0".parse()?], sockets: 1, ..DnsConfig::default() };
    let server = Server::bind(&config)?;
    let address = server.local_addrs()[0];
    let metrics = Metrics::new(&prometheus::Registry::new())?;
    let (_writer, snapshots) = watch::channel(Arc::clone(snapshot));
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(server.serve(snapshots, metrics, stop)).map_err(std::io::Error::other)
    });
    let mut message = Message::query();
    message.add_query(Query::query(question.name.clone(), question.kind));
    let packet = message.to_vec()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    for _ in 0..WINDOW {
        socket.send(&packet)?;
    }
    let (began, mut count, mut buffer) = (Instant::now(), 0_u32, [0; 512]);
    while began.elapsed() < MEASURED_FOR {
        socket.recv(&mut buffer)?;
        socket.send(&packet)?;
        count += 1;
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    shutdown.cancel();
    serving.join().map_err(|_| "the server panicked")??;
    Ok(rate)
}
