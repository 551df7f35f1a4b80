//! Ways of packets between two pods, compared in short turns. Who asks and who answers share a core: then a figure is what a
//! packet costs, and not how long a core sleeps before it notices one. How it is on two cores is told, too.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Result, bail};
use seaway_cni_network::netns::Namespace;

use super::Effort;
use crate::driver::{Asker, STREAM_BYTES, Talker, program};
use crate::row::{Report, Row, Target};
use crate::stats::{Pairs, median_us};

const PORT: u16 = 8080;
const STREAM_PORT: u16 = 8081;
/// Round trips in a turn.
const TRIPS: usize = 300;
/// The peer that has no way by hand.
pub const BRIDGE: &str = "bridge";
/// At most so much of the time of the same way by hand.
const LATENCY: f64 = 1.05;
/// At least so much of its throughput.
const THROUGHPUT: f64 = 0.97;
/// What figures on two cores are made of for the most part.
const WOKEN: &str =
    "the other core sleeps, and how fast it is woken is the hypervisor's: see the row on one core";

/// How both ends share the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cores {
    One,
    Two,
}

impl Cores {
    fn suffix(self) -> &'static str {
        if self == Self::One { "" } else { "-2-cores" }
    }
}

/// A pod that asks one that answers. The namespaces live as long as the processes in them.
pub struct Path {
    /// On the core of the pod that answers, and on the other.
    askers: [Asker; 2],
    addr: IpAddr,
    _server: Talker,
}

impl Path {
    /// From one namespace to another, where `addr` is.
    pub fn new(client: &Namespace, server: &Namespace, addr: IpAddr) -> Result<Self> {
        let program = program()?;
        let command = |namespace: &Namespace, core: &str| -> Result<Command> {
            let mut command = namespace.command("taskset")?;
            command.args(["-c", core, &program]);
            Ok(command)
        };
        let (port, stream_port) = (PORT.to_string(), STREAM_PORT.to_string());
        let arguments = ["backend", "--port", &port, "--stream-port", &stream_port];
        let mut server = Talker::start(command(server, "0")?, &arguments)?;
        if server.line()? != "ready" {
            bail!("the pod that answers does not begin");
        }
        let askers = [Asker::start(command(client, "0")?)?, Asker::start(command(client, "1")?)?];
        let mut path = Self { askers, addr, _server: server };
        // The first packets look for neighbours.
        path.round_trips(Cores::One, 50)?;
        Ok(path)
    }

    /// Times of round trips in nanoseconds, on a new connection.
    fn round_trips(&mut self, cores: Cores, rounds: usize) -> Result<Vec<u64>> {
        let target = SocketAddr::new(self.addr, PORT);
        Ok(self.askers[cores as usize].round_trips(&[target], rounds)?.swap_remove(0))
    }

    /// Seconds of a stream, on a new connection.
    fn stream(&mut self, cores: Cores) -> Result<f64> {
        self.askers[cores as usize].stream(SocketAddr::new(self.addr, STREAM_PORT))
    }
}

/// What a path's turns came to.
#[derive(Debug, Clone, Default)]
struct Spent {
    trips_ns: Vec<u64>,
    stream_s: f64,
}

impl Spent {
    fn take_turn(&mut self, path: &mut Path, cores: Cores) -> Result<()> {
        self.trips_ns.extend(path.round_trips(cores, TRIPS)?);
        self.stream_s += path.stream(cores)?;
        Ok(())
    }

    /// Gigabytes per second.
    fn rate(&self, turns: usize) -> f64 {
        (turns as u64 * STREAM_BYTES) as f64 / 1e9 / self.stream_s
    }
}

/// The first path's blocks beside those of another.
#[derive(Debug, Clone, Default)]
struct Beside {
    round_trips: Pairs,
    streams: Pairs,
}

/// The first path beside each of the others, in turn.
pub fn compare(
    case: &str,
    paths: impl IntoIterator<Item = Path>,
    peers: &[&str],
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut paths: Vec<Path> = paths.into_iter().collect();
    for cores in [Cores::One, Cores::Two] {
        let measured = measure(&mut paths, cores, effort)?;
        for (peer, beside) in peers.iter().zip(measured) {
            add(case, cores, peer, &beside, report);
        }
    }
    Ok(())
}

fn measure(paths: &mut [Path], cores: Cores, effort: Effort) -> Result<Vec<Beside>> {
    let mut peers = vec![Beside::default(); paths.len() - 1];
    for block in 0..effort.traffic_blocks {
        let mut spent = vec![Spent::default(); paths.len()];
        for turn in 0..effort.turns {
            for step in 0..paths.len() {
                let index = (block + turn + step) % paths.len();
                spent[index].take_turn(&mut paths[index], cores)?;
            }
        }
        let trips_us = |at: usize| median_us(&spent[at].trips_ns);
        let rate = |at: usize| spent[at].rate(effort.turns);
        for (index, beside) in peers.iter_mut().enumerate() {
            beside.round_trips.push(trips_us(0), trips_us(index + 1));
            beside.streams.push(rate(0), rate(index + 1));
        }
    }
    Ok(peers)
}

fn add(case: &str, cores: Cores, peer: &str, beside: &Beside, report: &mut Report) {
    let (latency, throughput) = match (case, peer) {
        // VXLAN itself: what ours is held against is VXLAN by hand.
        ("vxlan", "veth") => (Target::None, Target::None),
        (_, BRIDGE) => (Target::RatioAtMost(1.0), Target::RatioAtLeast(1.0)),
        _ => (Target::RatioAtMost(LATENCY), Target::RatioAtLeast(THROUGHPUT)),
    };
    let row = |name: &str, unit, pairs: &Pairs, target| {
        let name = format!("{case}-{name}{}", cores.suffix());
        Row::beside(&name, 1, unit, peer, pairs.compared(), target)
    };
    let rows =
        [row("rtt", "us", &beside.round_trips, latency), row("stream", "GB/s", &beside.streams, throughput)];
    for row in rows {
        report.add(if cores == Cores::Two { row.limited_by(WOKEN) } else { row });
    }
}
