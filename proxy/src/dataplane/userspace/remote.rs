//! The agent's side of the userspace data plane: finds the worker or starts it, tells it the plans, and reads back
//! what it serves. It keeps nothing itself, so that it can be killed at any time.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::Notify;

use super::channel::Channel;
use super::directory::Directory;
use super::wire::{Line, Presence, drops_of};
use crate::dataplane::{Applied, Dataplane, DataplaneError, Failure};
use crate::plan::{Actual, Plan};
use crate::stale::{Forgotten, Targets};
use crate::status::DropCount;

/// Targets that go into one line.
const TARGETS_A_LINE: usize = 512;
/// A worker that was told to end is gone by then.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How the process is started that listens and hands on, and where it is found. It ends up in
/// [`super::serve_as_worker`].
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The directory of its sockets, for one node alone.
    pub directory: PathBuf,
    /// The program; where it is not there any more, the one that runs.
    pub program: PathBuf,
    /// What the program is told.
    pub arguments: Vec<OsString>,
    /// The version that it should be of. One of another version hands over to one that is started anew.
    pub version: String,
}

/// The data plane of a worker.
#[derive(Debug)]
pub struct Remote {
    config: WorkerConfig,
    directory: Directory,
    link: Option<Link>,
    /// There was a worker once: from then on its version does not matter, lest two agents exchange it for ever.
    settled: bool,
    lost: Arc<Notify>,
    drops: Vec<DropCount>,
}

/// The conversation with a worker.
#[derive(Debug)]
struct Link(Channel);

impl Drop for Link {
    fn drop(&mut self) {
        // Whoever waits for its end need not wait any more.
        let _ended = self.0.stream().shutdown(Shutdown::Both);
    }
}

fn failed(action: &str) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Io { action: format!("the userspace worker: {action}"), source }
}

fn garbled(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Remote {
    /// Finds the worker, or starts one in the network namespace of the calling thread.
    pub fn open(config: WorkerConfig) -> Result<Self, DataplaneError> {
        let directory = Directory::at(&config.directory);
        directory.make().map_err(failed("no directory for its socket"))?;
        let (lost, drops) = (Arc::new(Notify::new()), Vec::new());
        let mut remote = Self { config, directory, link: None, settled: false, lost, drops };
        remote.link()?;
        Ok(remote)
    }

    fn link(&mut self) -> Result<&mut Channel, DataplaneError> {
        if self.link.is_none() {
            let channel = self.find().map_err(failed("cannot be reached"))?;
            tell_of_its_end(channel.stream(), Arc::clone(&self.lost)).map_err(failed("cannot be watched"))?;
            (self.link, self.settled) = (Some(Link(channel)), true);
        }
        self.link.as_mut().map(|link| &mut link.0).ok_or(DataplaneError::Lost)
    }

    fn find(&self) -> io::Result<Channel> {
        let fits = |presence: &Presence| self.settled || presence.version == self.config.version;
        if let Some((channel, _)) = self.directory.current().filter(|(_, presence)| fits(presence)) {
            return Ok(channel);
        }
        start(&self.config)?;
        let (channel, presence) = self.directory.current().ok_or_else(|| io::Error::other("it ended"))?;
        tracing::info!(pid = presence.pid, version = presence.version, "the userspace worker serves");
        Ok(channel)
    }

    /// What is done with a channel; where that fails, the next one tries another.
    fn converse<R>(
        &mut self,
        action: &str,
        talk: impl FnOnce(&mut Channel) -> io::Result<R>,
    ) -> Result<R, DataplaneError> {
        let said = talk(self.link()?);
        if said.is_err() {
            self.link = None;
        }
        said.map_err(failed(action))
    }
}

/// Starts a worker and waits until it is found, or has ended since another one was first.
fn start(config: &WorkerConfig) -> io::Result<()> {
    let running = Path::new("/proc/self/exe");
    let program = if config.program.exists() { &config.program } else { running };
    let mut command = Command::new(program);
    command.args(&config.arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take();
    let said = stdout.map_or(Ok(0), |stdout| BufReader::new(stdout).read_line(&mut String::new()));
    // Its end is taken note of, whenever that is.
    std::thread::Builder::new()
        .name("worker-end".into())
        .stack_size(64 * 1024)
        .spawn(move || child.wait())?;
    said.map(|_| ())
}

/// Has `lost` notified when the other side of `stream` ends.
fn tell_of_its_end(stream: &UnixStream, lost: Arc<Notify>) -> io::Result<()> {
    let stream = stream.try_clone()?;
    let watch = move || {
        let mut watched = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
        while poll(&mut watched, None).is_err() {}
        lost.notify_one();
    };
    std::thread::Builder::new().name("worker-watch".into()).stack_size(64 * 1024).spawn(watch)?;
    Ok(())
}

/// What `Done` says.
struct Done {
    forgotten: Forgotten,
    drops: Vec<DropCount>,
}

/// The lines before `Done`, each given to `take`; what `Done` says.
fn answer(channel: &mut Channel, mut take: impl FnMut(Line) -> Result<(), String>) -> io::Result<Done> {
    loop {
        match channel.get()? {
            Line::Done { count, of_ipv6, drops } => {
                let forgotten = Forgotten { v4: count.saturating_sub(of_ipv6), v6: of_ipv6 };
                return Ok(Done { forgotten, drops: drops_of(drops) });
            }
            line => take(line).map_err(garbled)?,
        }
    }
}

fn read(channel: &mut Channel) -> io::Result<(Actual, Vec<DropCount>)> {
    channel.send(&Line::Read)?;
    let mut actual = Actual::default();
    let Done { drops, .. } = answer(channel, |line| {
        match line {
            Line::Frontend(key, frontend) => {
                actual.frontends.insert((&key).try_into()?, frontend.try_into()?);
            }
            Line::Host(host) => actual.host = host.into(),
            _ => {}
        }
        Ok(())
    })?;
    Ok((actual, drops))
}

fn apply(channel: &mut Channel, plan: &Plan) -> io::Result<Vec<Failure>> {
    if let Some(host) = &plan.host {
        channel.put(&Line::Host(host.into()))?;
    }
    for (key, frontend) in &plan.upserts {
        channel.put(&Line::Upsert(key.into(), (&**frontend).into()))?;
    }
    for key in &plan.removals {
        channel.put(&Line::Remove(key.into()))?;
    }
    channel.send(&Line::Apply)?;
    let mut failures = Vec::new();
    answer(channel, |line| {
        if let Line::Failed(failure) = line {
            failures.push(failure.try_into()?);
        }
        Ok(())
    })?;
    Ok(failures)
}

fn forget_udp(channel: &mut Channel, serving: &Targets) -> io::Result<Forgotten> {
    let targets: Vec<_> = serving.iter().map(|(group, addr, port)| (group.bits(), *addr, *port)).collect();
    for part in targets.chunks(TARGETS_A_LINE) {
        channel.put(&Line::Serving(part.to_vec()))?;
    }
    channel.send(&Line::ForgetUdp)?;
    answer(channel, |_| Ok(())).map(|done| done.forgotten)
}

impl Dataplane for Remote {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn offers_maglev(&self) -> bool {
        true
    }

    fn offers_masquerade_all(&self) -> bool {
        // Its backends never see anybody else.
        true
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        // The worker that it had may have ended: then there is another one at once.
        let said = self.converse("cannot be read", read).or_else(|_| self.converse("cannot be read", read));
        let (actual, drops) = said?;
        self.drops = drops;
        Ok(actual)
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        let failed = self.converse("cannot be told", |channel| apply(channel, plan))?;
        Ok(Applied { done: plan.len().saturating_sub(failed.len()), failed })
    }

    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        self.converse("cannot be told", |channel| forget_udp(channel, serving))
    }

    fn drops(&self) -> Vec<DropCount> {
        self.drops.clone()
    }

    fn lost(&self) -> Option<Arc<Notify>> {
        Some(Arc::clone(&self.lost))
    }
}

/// The workers below `directory`.
pub fn workers(directory: &Path) -> io::Result<Vec<Presence>> {
    Ok(Directory::at(directory).all()?.into_iter().map(|(_, presence, _)| presence).collect())
}

/// Has the workers below `directory` end with the last connection that each has open, but for the current one where it
/// is to be kept. Says whether none is left of them.
pub fn retire_workers(directory: &Path, keep_current: bool) -> io::Result<bool> {
    let directory = Directory::at(directory);
    let mut left = false;
    for (mut channel, presence, current) in directory.all()? {
        if current && presence.serving && keep_current {
            continue;
        }
        left = true;
        if presence.serving {
            channel.send(&Line::Retire)?;
            answer(&mut channel, |_| Ok(()))?;
        }
    }
    if left || keep_current { Ok(!left) } else { directory.remove() }
}

/// Ends all workers below `directory` together with their connections.
pub fn end_workers(directory: &Path) -> io::Result<()> {
    let directory = Directory::at(directory);
    let deadline = Instant::now() + END_WITHIN;
    loop {
        let all = directory.all()?;
        if all.is_empty() && directory.remove()? {
            return Ok(());
        }
        for (mut channel, _, _) in all {
            // It may be gone before it is told, or before it has answered. If it is not, it is told again.
            let _answered = channel.send(&Line::End).and_then(|()| channel.get());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a userspace worker does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
