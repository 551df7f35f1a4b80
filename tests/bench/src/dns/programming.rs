//! From an EndpointSlice's change in the API server to the new answer, with the real watch in between.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::rr::RecordType;
use seaway_lab::LabNode;

use super::Effort;
use super::records::packet;
use super::server::Server;
use crate::clock::now_ns;
use crate::cluster::{self, NAMESPACE, Place};
use crate::objects;
use crate::row::{Report, Row, Target};
use crate::stats::{median, percentile};
use crate::sync::server::ApiServer;

const SIZE: usize = 10_000;
const PLACE: Place = Place(1);
const TARGET_MS: f64 = 20.0;
/// Longer than that it counts as broken.
const LIMIT_NS: u64 = 2_000_000_000;

/// The only endpoint of a Service changes, over and over; a client asks for the new one's name until it is there.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("one endpoint changes");
    let specs = cluster::services(SIZE, PLACE);
    let mut spec =
        specs.iter().find(|spec| spec.cluster_ip == PLACE.cluster_ip()).context("the real Service")?.clone();
    let listener = node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let api = ApiServer::start(listener, &specs, PLACE)?;
    let server = Server::watching(node, &api.url())?;
    let socket = super::socket(node, "127.0.0.1")?;
    socket.connect(("127.0.0.1", server.port))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let names = PLACE.backends().map(|addr| {
        let label = addr.to_string().replace('.', "-");
        packet(&format!("{label}.{}.{NAMESPACE}.svc.cluster.local.", spec.name), RecordType::A)
    });
    let mut times_ms = Vec::new();
    for number in 0..=effort.changes {
        let at = number % 2;
        spec.endpoints = vec![PLACE.backends()[at]];
        let sent_ns = api.change_slice(&objects::slice(&spec, 1_000_000 + number as u64))?;
        let question = names[at].as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let told_ns = ask_until_there(&socket, question, sent_ns)?;
        // The first change takes the other endpoints away.
        if number > 0 {
            times_ms.push((told_ns - sent_ns) as f64 / 1e6);
        }
        std::thread::sleep(Duration::from_millis(1 + number as u64 % 5));
    }
    let p99 = percentile(&times_ms, 0.99);
    let row = Row::alone("change-to-answer-p99", SIZE, "ms", p99, Target::OursAtMost(TARGET_MS));
    let spread = format!("median {:.2}, at most {:.2}", median(&times_ms), percentile(&times_ms, 1.0));
    report.add(if row.is_ok() {
        row.with_note(spread)
    } else {
        row.with_note(format!(
            "falls short; {spread}; API server, server and client share the machine's cores"
        ))
    });
    Ok(())
}

/// Asks until the name is there; when that was.
fn ask_until_there(socket: &UdpSocket, question: &[u8], sent_ns: u64) -> Result<u64> {
    let mut buffer = [0; 512];
    loop {
        socket.send(question)?;
        let length = socket.recv(&mut buffer).context("the server does not answer")?;
        let now = now_ns();
        if length > 12 && buffer[3].trailing_zeros() >= 4 && buffer[7] > 0 {
            return Ok(now);
        }
        if now - sent_ns > LIMIT_NS {
            bail!("the change does not show");
        }
    }
}
