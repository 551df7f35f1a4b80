//! A client in a process of its own, in a cgroup where the socket programs see it: one new connection after the other
//! to each target, and one that stays open and is used all the time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::support::kernel::Place;
use crate::support::net::{Net, talk};

/// Long enough that only what is lost takes longer: a first SYN is repeated after a second.
const PATIENCE: Duration = Duration::from_millis(900);
const PAUSE: Duration = Duration::from_millis(4);
const SHOWN_MAX: usize = 8;
/// So many clients open connections at a time, so that always some are in the middle of it.
const CLIENTS: usize = 4;

/// Who asks, and whom.
pub(crate) struct Path {
    /// The network namespace.
    pub(crate) ns: &'static str,
    /// Addresses of Services.
    pub(crate) targets: Vec<SocketAddr>,
}

/// A running load.
pub(crate) struct Load {
    /// Where it runs.
    pub(crate) name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// New connections that were served.
    pub(crate) served: usize,
    /// New ones that were not.
    pub(crate) failed: Vec<String>,
    /// Open ones that broke.
    pub(crate) broken: Vec<String>,
}

impl Load {
    /// Starts one. When this returns every target has been reached.
    pub(crate) fn start(net: &Net, place: &Place, path: &Path) -> Self {
        let targets: Vec<String> = path.targets.iter().map(ToString::to_string).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("SEAWAY_ROLE", "load").env("TARGETS", targets.join(","));
        // The client outside is no process of the node.
        if path.ns != "client" {
            command.env("CGROUP", &place.cgroup);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = net.within(path.ns, || command.spawn().unwrap());
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut load = Self { name: path.ns.to_owned(), child, input, output };
        assert_eq!(load.line(), "open", "the load from {} did not begin", path.ns);
        load
    }

    /// Waits until so many rounds more have been made: a round is a new connection to each target.
    pub(crate) fn go_on(&mut self, rounds: usize) {
        writeln!(self.input.as_mut().unwrap(), "{rounds}").unwrap();
        assert_eq!(self.line(), "done", "the load from {} ended", self.name);
    }

    /// Ends it.
    pub(crate) fn end(mut self) -> Outcome {
        self.input = None;
        let mut outcome = Outcome::default();
        loop {
            let line = self.line();
            match line.split_once(' ') {
                Some(("served", count)) => outcome.served = count.parse().unwrap(),
                Some(("failed", what)) => outcome.failed.push(what.to_owned()),
                Some(("broken", what)) => outcome.broken.push(what.to_owned()),
                _ => break,
            }
        }
        assert!(self.child.wait().unwrap().success());
        outcome
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut connection = open(to)?;
    said(talk(&mut connection)?)
}

fn open(to: SocketAddr) -> std::io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&to, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

fn said(answer: String) -> std::io::Result<()> {
    if answer.is_empty() { Err(std::io::Error::other("closed without an answer")) } else { Ok(()) }
}

/// New connections to all targets, a round after the other.
fn renew(targets: &[SocketAddr], ended: &AtomicBool, rounds: &Sender<()>) -> (usize, Vec<String>) {
    let (mut served, mut failed) = (0, Vec::new());
    while !ended.load(Ordering::Relaxed) {
        for to in targets {
            match once(*to) {
                Ok(()) => served += 1,
                Err(error) => failed.push(format!("{to}: {error}")),
            }
        }
        let _nobody_waits = rounds.send(());
        std::thread::sleep(PAUSE);
    }
    (served, failed)
}

/// Connections that stay.
fn stay(mut connections: Vec<(SocketAddr, TcpStream)>, ended: &AtomicBool) -> Vec<String> {
    let mut broken = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        connections.retain_mut(|(to, connection)| match talk(connection).and_then(said) {
            Ok(()) => true,
            Err(error) => {
                broken.push(format!("{to}: {error}"));
                false
            }
        });
        std::thread::sleep(PAUSE);
    }
    broken
}

/// Until every target answers: a path may be opening.
fn reach(targets: &[SocketAddr]) -> Vec<(SocketAddr, TcpStream)> {
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    let reached = |to: &SocketAddr| loop {
        match open(*to).and_then(|mut connection| {
            said(talk(&mut connection)?)?;
            Ok(connection)
        }) {
            Ok(connection) => return (*to, connection),
            Err(error) => assert!(std::time::Instant::now() < deadline, "{to}: {error}"),
        }
    };
    targets.iter().map(reached).collect()
}

/// The process.
pub(crate) fn main() {
    if let Some(cgroup) = std::env::var_os("CGROUP") {
        let procs = std::path::Path::new(&cgroup).join("cgroup.procs");
        std::fs::write(procs, std::process::id().to_string()).unwrap();
    }
    let targets = std::env::var("TARGETS").unwrap();
    let targets: Vec<SocketAddr> = targets.split(',').map(|to| to.parse().unwrap()).collect();
    let open = reach(&targets);
    println!("open");
    let ended = Arc::new(AtomicBool::new(false));
    let (sender, rounds) = channel();
    let renewing: Vec<_> = (0..CLIENTS)
        .map(|first| {
            let (ended, sender) = (Arc::clone(&ended), sender.clone());
            let mut targets = targets.clone();
            let others = first * targets.len() / CLIENTS;
            targets.rotate_left(others);
            std::thread::spawn(move || renew(&targets, &ended, &sender))
        })
        .collect();
    let staying = {
        let ended = Arc::clone(&ended);
        std::thread::spawn(move || stay(open, &ended))
    };
    obey(&rounds);
    ended.store(true, Ordering::Relaxed);
    let (mut served, mut failed) = (0, Vec::new());
    for client in renewing {
        let (more, of_them) = client.join().unwrap();
        served += more;
        failed.extend(of_them);
    }
    println!("served {served}");
    for (word, all) in [("failed", failed), ("broken", staying.join().unwrap())] {
        for what in all.iter().take(SHOWN_MAX) {
            println!("{word} {what}");
        }
    }
    println!("end");
}

/// Each line is a number of rounds to wait for.
fn obey(rounds: &Receiver<()>) {
    for line in std::io::stdin().lines() {
        while rounds.try_recv().is_ok() {}
        for _ in 0..line.unwrap().trim().parse().unwrap() {
            rounds.recv().unwrap();
        }
        println!("done");
    }
}
