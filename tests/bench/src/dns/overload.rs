//! Ten times more questions than can be answered: memory, answers per second meanwhile, whether somebody else is still
//! answered, and how soon all is well again.
//!
//! Two cores cannot ask ten times as much as one of them answers. So the server's core is shared with others that run all
//! the time, and what is left of it is what it can answer with.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use seaway_lab::{LabNode, Process};

use super::Effort;
use super::peers::{load, questions};
use super::records::Case;
use super::server::{Server, pinned};
use crate::row::{Report, Row, Target};
use crate::stats::percentile;
use crate::sync::footprint::Footprint;

const SIZE: usize = 10_000;
/// Others on the server's core.
const OTHERS: usize = 20;
/// How many times more is asked than can be answered.
const TIMES: f64 = 10.0;
/// From so many sockets.
const SOCKETS: usize = 16;
/// How long it is asked for what it can answer, in seconds.
const ABLE_S: f64 = 4.0;
/// Memory is flat if it grows no more than this, from the first second on.
const GROWTH_TARGET_MB: f64 = 2.0;
const RATE_TARGET: f64 = 0.9;
const NORMAL_TARGET_MS: f64 = 1_000.0;
/// How long a client waits for an answer, and how often it asks.
const PATIENCE: Duration = Duration::from_millis(1_000);
const PAUSE: Duration = Duration::from_millis(20);
/// All is well when so many answers in a row come within so long.
const WELL_IN_A_ROW: usize = 5;
const WELL_WITHIN: Duration = Duration::from_millis(250);

/// What was seen meanwhile.
struct Seen {
    answers_per_s: f64,
    asked_per_s: f64,
    growth_mb: f64,
    shed: u64,
    /// The other client's questions, and the times of those that were answered.
    other_asked: usize,
    other_ms: Vec<f64>,
    normal_ms: f64,
}

/// Measures.
pub fn run(node: &LabNode, effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress("too many questions");
    let mut server = Server::ours(node, SIZE, 1, "0")?;
    let _others = others(node)?;
    let file = questions(node, Case::Hit, SIZE)?;
    // What is left of the core differs from one second to the next: it is looked at before and afterwards.
    let rate = |server: &Server| load(node, server, "1", &file, ABLE_S).map(|load| load.rate);
    let before = rate(&server)?;
    let seen = flood(node, &mut server, before * TIMES, effort)?;
    let able = f64::midpoint(before, rate(&server)?);
    let size = (seen.asked_per_s / able).round() as usize;
    let growth = Target::OursAtMost(GROWTH_TARGET_MB);
    report.add(
        Row::alone("overload-memory-growth", size, "MB", seen.growth_mb, growth)
            .with_note(format!("for {} s, {:.0} questions per second", effort.overload_s, seen.asked_per_s)),
    );
    let compared = crate::stats::Compared {
        ours: seen.answers_per_s,
        theirs: able,
        ratio: seen.answers_per_s / able,
        spread: [seen.answers_per_s / able; 2],
    };
    let row = Row::beside(
        "overload-answers",
        size,
        "1/s",
        "as much as it can answer",
        compared,
        Target::RatioAtLeast(RATE_TARGET),
    );
    let row = row.with_note(format!("{} questions were shed", seen.shed));
    report.add(row.limited_by("taking in what is not answered, so that sources can take turns"));
    let answered = seen.other_ms.len() as f64 / seen.other_asked.max(1) as f64;
    report.add(Row::alone("overload-other-client", size, "part", answered, Target::None).with_note(format!(
        "answered of {} questions, p50 {:.0} ms",
        seen.other_asked,
        percentile(&seen.other_ms, 0.5)
    )));
    report.add(Row::alone(
        "overload-normal-again",
        size,
        "ms",
        seen.normal_ms,
        Target::OursAtMost(NORMAL_TARGET_MS),
    ));
    Ok(())
}

/// Processes that leave little of the server's core.
fn others(node: &LabNode) -> Result<Vec<Process>> {
    let spin = || {
        let mut command = pinned(node, "0", "sh");
        command.args(["-c", "while :; do :; done"]);
        Process::spawn(&mut command).context("cannot start a process")
    };
    (0..OTHERS).map(|_| spin()).collect()
}

fn flood(node: &LabNode, server: &mut Server, rate: f64, effort: Effort) -> Result<Seen> {
    let sockets = (0..SOCKETS).map(|_| client(node, "127.0.0.1", server.port)).collect::<Result<Vec<_>>>()?;
    let other = client(node, "127.0.0.2", server.port)?;
    let packets = Case::Hit.packets(SIZE, 1_024)?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (stop, sent, packets) = (&stop, &sent, &packets);
    thread::scope(|scope| {
        let flooding = scope.spawn(move || send(&sockets, packets, rate, stop, sent));
        let asking = scope.spawn(move || ask(&other, packets, stop).map(|answers| (other, answers)));
        let watched = watch(server, sent, effort);
        stop.store(true, Ordering::SeqCst);
        let ended = Instant::now();
        flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        let (other, (other_asked, other_ms)) =
            asking.join().map_err(|_| anyhow::anyhow!("the other client panicked"))??;
        let (answers_per_s, asked_per_s, growth_mb, shed) = watched?;
        let normal_ms = until_well(&other, packets, ended)?;
        Ok(Seen { answers_per_s, asked_per_s, growth_mb, shed, other_asked, other_ms, normal_ms })
    })
}

fn client(node: &LabNode, from: &str, port: u16) -> Result<UdpSocket> {
    let socket = super::socket(node, from)?;
    socket.connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends at `rate` from the second core, and reads nothing.
fn send(
    sockets: &[UdpSocket],
    packets: &[Vec<u8>],
    rate: f64,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(1);
    sched_setaffinity(None, &cores)?;
    let began = Instant::now();
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        if count >= due {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        let until = due.min(count + 256);
        while count < until {
            // A full buffer drops it, as a full network would.
            sockets[count as usize % SOCKETS].send(&packets[count as usize % packets.len()]).ok();
            count += 1;
        }
        sent.store(count, Ordering::Relaxed);
    }
    Ok(())
}

/// Asks now and then; how often, and the times of the answers in milliseconds.
fn ask(socket: &UdpSocket, packets: &[Vec<u8>], stop: &AtomicBool) -> Result<(usize, Vec<f64>)> {
    let (mut asked, mut times_ms) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let packet = &packets[asked % packets.len()];
        asked += 1;
        times_ms.extend(time_of(socket, packet)?.map(|time| time.as_secs_f64() * 1e3));
        thread::sleep(PAUSE);
    }
    Ok((asked, times_ms))
}

/// How long the answer took, if there was one.
fn time_of(socket: &UdpSocket, packet: &[u8]) -> Result<Option<Duration>> {
    let began = Instant::now();
    socket.send(packet)?;
    let mut buffer = [0; 512];
    while let Ok(length) = socket.recv(&mut buffer) {
        // Not one that came too late for an earlier question.
        if length > 2 && buffer[..2] == packet[..2] {
            return Ok(Some(began.elapsed()));
        }
    }
    Ok(None)
}

/// Answers and questions per second, growth of memory, and what was shed.
fn watch(server: &mut Server, sent: &AtomicU64, effort: Effort) -> Result<(f64, f64, f64, u64)> {
    thread::sleep(Duration::from_secs(1));
    let resident =
        |server: &Server| Footprint::of(server.pid()).map(|footprint| footprint.resident as f64 / 1e6);
    let (began, asked_before, first_mb) = (Instant::now(), sent.load(Ordering::Relaxed), resident(server)?);
    let (answers_before, shed_before) = server.counted()?;
    let mut most_mb = first_mb;
    while began.elapsed() < Duration::from_secs(effort.overload_s) {
        thread::sleep(Duration::from_millis(250));
        most_mb = most_mb.max(resident(server)?);
    }
    let (answers, shed) = server.counted()?;
    let (seconds, asked) = (began.elapsed().as_secs_f64(), sent.load(Ordering::Relaxed));
    let per_s = |count: u64| count as f64 / seconds;
    Ok((per_s(answers - answers_before), per_s(asked - asked_before), most_mb - first_mb, shed - shed_before))
}

/// The milliseconds from `ended` until answers come as they should.
fn until_well(socket: &UdpSocket, packets: &[Vec<u8>], ended: Instant) -> Result<f64> {
    let (mut in_a_row, mut since) = (0, ended);
    for packet in packets {
        let began = Instant::now();
        let well = time_of(socket, packet)?.is_some_and(|time| time <= WELL_WITHIN);
        in_a_row = if well { in_a_row + 1 } else { 0 };
        if in_a_row == 1 {
            since = began;
        }
        if in_a_row == WELL_IN_A_ROW {
            return Ok(since.saturating_duration_since(ended).as_secs_f64() * 1e3);
        }
    }
    bail!("the server does not answer as it did")
}
