//! Connects, sends, and measures: a client.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::clock::now_ns;

/// Nothing here takes longer, unless it is lost.
const PATIENCE: Duration = Duration::from_secs(3);
const STREAM_CHUNK: usize = 256 * 1024;
/// What decides how fast a stream may go: Linux's own default, whatever the machine's is. One that paces packets, as BBR
/// does, is slower by its timers than any way of packets makes it.
const CONGESTION: &[u8] = b"cubic";
/// Between two looks at which backend answers.
const FOLLOW_PAUSE: Duration = Duration::from_micros(50);

/// What is asked, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// Connect to each target in turn, one byte each way, `rounds` times.
    Connect { targets: Vec<SocketAddr>, rounds: usize },
    /// One connection per target, one byte each way on each in turn, `rounds` times.
    RoundTrips { targets: Vec<SocketAddr>, rounds: usize },
    /// As many connections with one byte each way as `threads` can make.
    Rate { target: SocketAddr, threads: usize, for_ms: u64 },
    /// So many bytes on one connection, until the other side has read them all.
    Stream { target: SocketAddr, bytes: u64 },
    /// Connect until the backend whose address ends in `backend` answers.
    Follow { target: SocketAddr, backend: u8, limit_ms: u64 },
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// Nanoseconds of each round, per target; of a stream.
    Times(Vec<Vec<u64>>),
    /// Connections per second.
    PerSecond(f64),
    /// When it came about ([`now_ns`]).
    At(u64),
    /// It did not.
    Failed(String),
}

/// Does what the lines of standard input ask for.
pub fn run() -> Result<()> {
    for line in io::stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let answer = carry_out(&ask).unwrap_or_else(|error| Answer::Failed(format!("{ask:?}: {error}")));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn carry_out(ask: &Ask) -> io::Result<Answer> {
    match ask {
        Ask::Connect { targets, rounds } => connects(targets, *rounds),
        Ask::RoundTrips { targets, rounds } => round_trips(targets, *rounds),
        Ask::Rate { target, threads, for_ms } => rate(*target, *threads, Duration::from_millis(*for_ms)),
        Ask::Stream { target, bytes } => stream(*target, *bytes),
        Ask::Follow { target, backend, limit_ms } => {
            follow(*target, *backend, Duration::from_millis(*limit_ms))
        }
    }
}

/// A socket that gives up some time and leaves no port waiting behind.
fn socket(target: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // This bounds connecting, too.
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn exchange(connection: &mut TcpStream) -> io::Result<u8> {
    let mut byte = [1];
    connection.write_all(&byte)?;
    connection.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Connects and sends one byte each way. Returns the time that it took, and the backend.
fn connect(target: SocketAddr) -> io::Result<(u64, u8)> {
    let socket = socket(target)?;
    let begun = Instant::now();
    socket.connect(&target.into())?;
    let mut connection = TcpStream::from(socket);
    let backend = exchange(&mut connection)?;
    Ok((begun.elapsed().as_nanos() as u64, backend))
}

fn connects(targets: &[SocketAddr], rounds: usize) -> io::Result<Answer> {
    let mut times = vec![Vec::with_capacity(rounds); targets.len()];
    for round in 0..rounds {
        // Who goes first alternates: going second on warm caches is an advantage.
        for step in 0..targets.len() {
            let index = (round + step) % targets.len();
            times[index].push(connect(targets[index])?.0);
        }
    }
    Ok(Answer::Times(times))
}

fn round_trips(targets: &[SocketAddr], rounds: usize) -> io::Result<Answer> {
    let open = |target: &SocketAddr| -> io::Result<TcpStream> {
        let socket = socket(*target)?;
        socket.set_tcp_nodelay(true)?;
        socket.connect(&(*target).into())?;
        let mut connection = TcpStream::from(socket);
        exchange(&mut connection)?;
        Ok(connection)
    };
    let mut connections = targets.iter().map(open).collect::<io::Result<Vec<TcpStream>>>()?;
    let mut times = vec![Vec::with_capacity(rounds); targets.len()];
    for round in 0..rounds {
        for step in 0..connections.len() {
            let index = (round + step) % connections.len();
            let begun = Instant::now();
            exchange(&mut connections[index])?;
            times[index].push(begun.elapsed().as_nanos() as u64);
        }
    }
    Ok(Answer::Times(times))
}

fn rate(target: SocketAddr, threads: usize, duration: Duration) -> io::Result<Answer> {
    let count = AtomicU64::new(0);
    let begun = Instant::now();
    let until_then = || -> io::Result<()> {
        while begun.elapsed() < duration {
            connect(target)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(until_then)).collect();
        handles
            .into_iter()
            .try_for_each(|handle| handle.join().map_err(|_| io::Error::other("a client thread panicked"))?)
    })?;
    Ok(Answer::PerSecond(count.into_inner() as f64 / begun.elapsed().as_secs_f64()))
}

fn stream(target: SocketAddr, bytes: u64) -> io::Result<Answer> {
    let socket = socket(target)?;
    socket.set_tcp_congestion(CONGESTION)?;
    socket.connect(&target.into())?;
    let mut connection = TcpStream::from(socket);
    connection.write_all(&bytes.to_be_bytes())?;
    let chunk = vec![7; STREAM_CHUNK];
    let begun = Instant::now();
    let mut left = bytes as usize;
    while left > 0 {
        left -= connection.write(&chunk[..left.min(STREAM_CHUNK)])?;
    }
    connection.read_exact(&mut [0])?;
    Ok(Answer::Times(vec![vec![begun.elapsed().as_nanos() as u64]]))
}

fn follow(target: SocketAddr, backend: u8, limit: Duration) -> io::Result<Answer> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if connect(target)?.1 == backend {
            return Ok(Answer::At(now_ns()));
        }
        std::thread::sleep(FOLLOW_PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "packets do not follow"))
}
