//! The bench's side of its processes: starts them where they belong, and talks to them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use seaway_lab::Process;
use serde::de::DeserializeOwned;

use crate::worker::asker::{Answer, Ask};

/// What a stream sends in a turn: hundredths of a second. A virtual machine is a fifth slower from one second to the next,
/// so whatever is compared takes many short turns.
pub const STREAM_BYTES: u64 = 32 << 20;

/// This program, for commands.
pub fn program() -> Result<String> {
    let path = std::env::current_exe().context("where is this program?")?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

/// A process that prints lines. It ends with this value.
#[derive(Debug)]
pub struct Talker {
    lines: BufReader<ChildStdout>,
    input: ChildStdin,
    process: Process,
}

impl Talker {
    /// Starts `command`, which has to run this program, as a worker.
    pub fn start(mut command: Command, arguments: &[&str]) -> Result<Self> {
        command.arg("worker").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command).context("cannot start a process of the bench")?;
        let child = process.child();
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (input, output) = input.zip(output).context("a process without pipes")?;
        Ok(Self { lines: BufReader::new(output), input, process })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Says a line to it.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("a process of the bench ended")
    }

    /// Its next line.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("a process of the bench ended");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Its next line, read as JSON.
    pub fn said<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("not understood: {line}"))
    }
}

/// A client process.
#[derive(Debug)]
pub struct Asker(Talker);

impl Asker {
    /// Starts it with `command`.
    pub fn start(command: Command) -> Result<Self> {
        Ok(Self(Talker::start(command, &["asker"])?))
    }

    /// Asks, without waiting for the answer.
    pub fn ask(&mut self, ask: &Ask) -> Result<()> {
        writeln!(self.0.input, "{}", serde_json::to_string(ask)?).context("a client process ended")
    }

    /// Waits for the answer.
    pub fn answer(&mut self) -> Result<Answer> {
        match self.0.said()? {
            Answer::Failed(why) => bail!("a client failed: {why}"),
            answer => Ok(answer),
        }
    }

    /// Times of connecting to each of `targets`.
    pub fn connects(&mut self, targets: &[SocketAddr], rounds: usize) -> Result<Vec<Vec<u64>>> {
        self.times(&Ask::Connect { targets: targets.to_vec(), rounds })
    }

    /// Times of round trips on open connections.
    pub fn round_trips(&mut self, targets: &[SocketAddr], rounds: usize) -> Result<Vec<Vec<u64>>> {
        self.times(&Ask::RoundTrips { targets: targets.to_vec(), rounds })
    }

    /// Connections per second.
    pub fn rate(&mut self, target: SocketAddr, threads: usize, for_ms: u64) -> Result<f64> {
        self.per_second(&Ask::Rate { target, threads, for_ms })
    }

    /// How many seconds [`STREAM_BYTES`] take.
    pub fn stream(&mut self, target: SocketAddr) -> Result<f64> {
        let times = self.times(&Ask::Stream { target, bytes: STREAM_BYTES })?;
        Ok(times[0][0] as f64 / 1e9)
    }

    fn times(&mut self, ask: &Ask) -> Result<Vec<Vec<u64>>> {
        self.ask(ask)?;
        match self.answer()? {
            Answer::Times(times) => Ok(times),
            other => bail!("an answer to something else: {other:?}"),
        }
    }

    fn per_second(&mut self, ask: &Ask) -> Result<f64> {
        self.ask(ask)?;
        match self.answer()? {
            Answer::PerSecond(figure) => Ok(figure),
            other => bail!("an answer to something else: {other:?}"),
        }
    }
}
