//! Pid 1 of a pod: one thread, one `poll` over its socket, its containers and what they print.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use seaway_cni_network::netlink::{Netlink, NetlinkError};

use super::children::Children;
use super::protocol::{Report, Request, SHIM_SPEC, SOCKET, ShimSpec};

/// A request longer than this is not one of ours.
const MAX_REQUEST: usize = 1024 * 1024;

/// Why a pod cannot be held.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub(crate) struct InitError {
    action: String,
    source: io::Error,
}

fn step<T, E: Into<io::Error>>(result: Result<T, E>, action: impl Into<String>) -> Result<T, InitError> {
    result.map_err(|source| InitError { action: action.into(), source: source.into() })
}

/// Holds the pod of `directory` until it is killed.
pub(crate) fn run(directory: &Path) -> Result<(), InitError> {
    step(std::env::set_current_dir(directory), format!("enter {}", directory.display()))?;
    let text = step(fs::read(SHIM_SPEC), format!("read {SHIM_SPEC}"))?;
    let spec: ShimSpec = step(serde_json::from_slice(&text), format!("parse {SHIM_SPEC}"))?;
    isolate(&spec)?;
    match fs::remove_file(SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            step(Err(error), "remove the former socket")?;
        }
        _ => {}
    }
    // Bound under another name first: whoever sees the socket can connect to it.
    let listener = step(UnixListener::bind("shim.new"), "listen")?;
    step(listener.set_nonblocking(true), "listen")?;
    step(fs::rename("shim.new", SOCKET), "publish the socket")?;
    // The agent waits for one byte.
    step(io::stdout().write_all(b"\n").and_then(|()| io::stdout().flush()), "tell the agent")?;
    Shim { listener, connections: BTreeMap::new(), next: 0, children: Children::default() }.serve()
}

/// Leaves the session, the cgroup and the mounts of whoever started this process.
fn isolate(spec: &ShimSpec) -> Result<(), InitError> {
    step(rustix::process::setsid(), "start a session")?;
    let procs = spec.cgroup.join("cgroup.procs");
    step(fs::write(&procs, "0"), format!("join {}", procs.display()))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    step(mount_change("/", slave), "detach the mounts")?;
    step(mount("proc", "/proc", "proc", MountFlags::empty(), None), "mount /proc")?;
    if let Some(hostname) = &spec.hostname {
        step(rustix::system::sethostname(hostname.as_bytes()), format!("set the host name {hostname}"))?;
    }
    if spec.loopback {
        step(loopback_up().map_err(io::Error::other), "bring up lo")?;
    }
    Ok(())
}

/// The loopback device is the runtime's business, not the CNI plugin's.
fn loopback_up() -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    match netlink.link("lo")? {
        Some(lo) => netlink.set_up(lo.index),
        None => Ok(()),
    }
}

struct Connection {
    stream: UnixStream,
    pending: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Source {
    Listener,
    Connection(u64),
    Output(u64),
    Child,
}

struct Shim {
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    children: Children,
}

impl Shim {
    fn serve(mut self) -> Result<(), InitError> {
        loop {
            let ready = step(self.wait(), "poll")?;
            for source in ready {
                match source {
                    Source::Listener => self.accept(),
                    Source::Connection(id) => self.read(id),
                    Source::Output(id) => self.children.drain(id),
                    Source::Child => {}
                }
            }
            for report in self.children.reap(Instant::now()) {
                self.broadcast(&report);
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener];
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        for (id, connection) in &self.connections {
            sources.push(Source::Connection(*id));
            fds.push(PollFd::new(&connection.stream, PollFlags::IN));
        }
        for (id, fd) in self.children.outputs() {
            sources.push(Source::Output(id));
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        for fd in self.children.pidfds() {
            sources.push(Source::Child);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let timeout = self.children.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map(|(_, source)| source).collect())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.next += 1;
                self.connections.insert(self.next, Connection { stream, pending: Vec::new() });
            }
        }
    }

    fn read(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut buffer = [0; 16 * 1024];
        let open = loop {
            match connection.stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(n) => connection.pending.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        let mut lines = Vec::new();
        while let Some(end) = connection.pending.iter().position(|b| *b == b'\n') {
            lines.push(connection.pending.drain(..=end).collect::<Vec<u8>>());
        }
        if !open || connection.pending.len() > MAX_REQUEST {
            self.connections.remove(&id);
        }
        for line in lines {
            match serde_json::from_slice(&line) {
                Ok(request) => self.handle(id, request),
                Err(error) => super::complain(&format!("not a request: {error}")),
            }
        }
    }

    fn handle(&mut self, from: u64, request: Request) {
        match request {
            Request::List => {
                let list = Report::Containers(self.children.records());
                self.send(from, &list);
            }
            Request::Start(spec) => {
                let report = self.children.start(*spec);
                self.broadcast(&report);
            }
            Request::Stop { name, force } => self.children.stop(&name, force),
            Request::Exec { id, name, args, timeout_ms } => {
                if let Some(report) = self.children.exec(id, &name, args, timeout_ms) {
                    self.send(from, &report);
                }
            }
        }
    }

    fn broadcast(&mut self, report: &Report) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.send(id, report);
        }
    }

    /// A connection that does not take a report at once is dropped: the agent comes back and lists.
    fn send(&mut self, id: u64, report: &Report) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Ok(mut line) = serde_json::to_vec(report) else { return };
        line.push(b'\n');
        if connection.stream.write_all(&line).is_err() {
            self.connections.remove(&id);
        }
    }
}
