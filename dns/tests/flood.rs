//! A client that asks far more than can be answered, over real sockets, and another one that asks now and then: it is answered
//! all the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/running.rs"]
mod running;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use running::{config, eventually, metric, question_bytes, start};
use seaway_dns::DnsConfig;

/// How many the other client asks. A few of the first may meet a socket that is full of the flood.
const QUESTIONS: u16 = 30;
/// It asks each of them twice, and waits so long for each.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 2;
/// Longer than the test takes, by far.
const FLOOD_MAX: Duration = Duration::from_secs(90);

/// A flood that ends with this value.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// From one source, as fast as it goes, without a look at the answers.
    fn start(from: &str, server: SocketAddr, packet: &[u8]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let spawn = |_| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.connect(server).unwrap();
            let (stop, sent, packet, began) =
                (Arc::clone(&stop), Arc::clone(&sent), packet.to_vec(), Instant::now());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < FLOOD_MAX {
                    for _ in 0..64 {
                        // What does not fit is lost, as it would be on the way.
                        sent.fetch_add(u64::from(socket.send(&packet).is_ok()), Ordering::Relaxed);
                    }
                }
            })
        };
        // Two of them have more of two cores than the server has.
        let threads = (0..2).map(spawn).collect();
        Self { stop, sent, threads }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// How many of the questions are answered within a client's patience.
fn answered(from: &str, server: SocketAddr) -> u16 {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.connect(server).unwrap();
    let mut packet = question_bytes("web.shop.svc.cluster.local.", RecordType::A);
    let mut ask = |id: u16| {
        packet[..2].copy_from_slice(&id.to_be_bytes());
        (0..TRIES).any(|_| {
            socket.send(&packet).unwrap();
            is_answered(&socket, id)
        })
    };
    let answers = (0..QUESTIONS).filter(|id| {
        thread::sleep(Duration::from_millis(10));
        ask(*id)
    });
    u16::try_from(answers.count()).unwrap()
}

fn is_answered(socket: &UdpSocket, id: u16) -> bool {
    let (began, mut buffer) = (Instant::now(), [0; 512]);
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() {
            return false;
        }
        socket.set_read_timeout(Some(left)).unwrap();
        // Not one that comes too late for an earlier question.
        if socket.recv(&mut buffer).is_ok_and(|length| length > 12 && buffer[..2] == id.to_be_bytes()) {
            return true;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_floods_does_not_starve_another() {
    // One socket: both have to come through it.
    let running = start(&DnsConfig { sockets: 1, ..config(&[]) });
    let server = running.v4;
    let number = |name| metric(&running, name).parse::<f64>().unwrap();
    let flood =
        Flood::start("127.0.0.9", server, &question_bytes("web.shop.svc.cluster.local.", RecordType::A));
    eventually(async || number("seaway_dns_shed_total") > 0.0).await;
    let (sent, told) = (flood.sent(), number("coredns_dns_responses_total"));
    let answers = tokio::task::spawn_blocking(move || answered("127.0.0.2", server)).await.unwrap();
    let (sent, told) = (flood.sent() - sent, number("coredns_dns_responses_total") - told);
    drop(flood);
    #[expect(clippy::cast_precision_loss, reason = "packets of some seconds")]
    let times = sent as f64 / told;
    assert!(times > 1.5, "that was no flood: {sent} questions, {told} answers");
    assert!(answers >= QUESTIONS / 2, "{answers} of {QUESTIONS}, while {times:.0} times too much was asked");
}
