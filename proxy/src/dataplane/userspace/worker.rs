//! The process that listens and hands on. It does what agents tell it over its socket, and outlives them: while none is
//! there it goes on with what it was told last.
//!
//! **Invariant:** one worker at a time takes new connections. A successor is given the sockets that listen before the
//! former one lets go of them, so that a client cannot tell.

use std::io::{self, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use thiserror::Error;

use super::channel::Channel;
use super::directory::Directory;
use super::legacy::{self, Legacy};
use super::wire::{Line, PROTOCOL, Presence};
use super::{Limits, Network, Userspace, listen};
use crate::dataplane::{Dataplane as _, DataplaneError, out_of_files};
use crate::frontend::{Frontend, Group};
use crate::plan::Plan;
use crate::stale::{Forgotten, Targets};

/// Who nobody is.
const NOBODY: u32 = 65_534;
/// No connection has to end because a successor came.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// A plan of so many steps leaves much memory behind that nobody needs again.
const LARGE: usize = 1_000;
/// How often one that takes nothing new looks whether its last connection has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a worker could not begin.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// Its socket could not be made.
    #[error("cannot listen to agents below {}", path.display())]
    Socket {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its threads could not be started.
    #[error(transparent)]
    Open(#[from] DataplaneError),
}

/// A worker, as the threads that listen to agents see it.
struct Worker {
    version: String,
    socket: PathBuf,
    /// `None`: it takes no new connections.
    userspace: Mutex<Option<Userspace<Network>>>,
    /// What counts connections, also when it takes no new ones.
    shared: Arc<super::limits::Shared>,
}

/// Serves as the worker below `directory` until the process is told to end. Returns at once where another one of this
/// version serves already. The calling process must have no other thread, since its privileges are given up.
pub fn serve_as_worker(directory: &Path, version: &str) -> Result<(), WorkerError> {
    let path = directory;
    let refused = |source| WorkerError::Socket { path: path.to_owned(), source };
    let directory = Directory::at(path);
    directory.make().map_err(refused)?;
    // An error says that it leads a session already.
    let _led = rustix::process::setsid();
    let lock = directory.lock().map_err(refused)?;
    let former = directory.current();
    if former.as_ref().is_some_and(|(_, presence)| presence.version == version) {
        return Ok(());
    }
    allow_many_descriptors();
    listen::let_waiting_connections_migrate();
    let legacy = former.and_then(|(channel, presence)| inherit(channel, &presence));
    let (listener, socket) = directory.bind().map_err(refused)?;
    directory.make_current(&socket).map_err(refused)?;
    give_up_privileges();
    let mut userspace = Userspace::open(Limits { linger: FOREVER, ..Limits::default() })?;
    let heir = legacy.is_some();
    if let Some((mut channel, legacy)) = legacy {
        userspace.inherit(legacy);
        if let Err(error) = channel.send(&Line::Taken).and_then(|()| channel.get()) {
            tracing::warn!(%error, "the former worker does not say that it lets go");
        }
    }
    let shared = Arc::clone(userspace.network().shared());
    let (version, userspace) = (version.to_owned(), Mutex::new(Some(userspace)));
    let worker = Arc::new(Worker { version, socket, userspace, shared });
    let told = writeln!(io::stdout(), "serves").and_then(|()| io::stdout().flush());
    drop(lock);
    if told.is_err() && !heir {
        // Whoever started it is gone, and may never have known of it.
        worker.retire();
    }
    tracing::info!(version = worker.version, heir, "the userspace worker serves");
    worker.listen(&listener).map_err(refused)
}

/// What the former worker hands over; `None`: it has to be done without.
fn inherit(mut channel: Channel, former: &Presence) -> Option<(Channel, Legacy)> {
    tracing::info!(version = former.version, pid = former.pid, "taking over from a worker");
    match Legacy::receive(&mut channel) {
        Ok(legacy) => Some((channel, legacy)),
        Err(error) => {
            tracing::warn!(%error, "the former worker does not hand over; everything is opened anew");
            None
        }
    }
}

/// Every socket needs one: as many as the kernel allows, or, without privilege, as the process may have.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let most = Rlimit { current: most.or(limit.maximum), maximum: most.or(limit.maximum) };
    let own = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most).or_else(|_| setrlimit(Resource::Nofile, own)) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// Becomes nobody, who may listen at low ports and nothing else.
fn give_up_privileges() {
    if let Err(error) = become_nobody() {
        tracing::warn!(%error, "the userspace worker keeps the privileges of whoever started it");
    }
}

fn become_nobody() -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    if rustix::process::geteuid().is_root() {
        thread::set_keep_capabilities(true)?;
        thread::set_thread_groups(&[])?;
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_thread_res_uid(uid, uid, uid)?;
    }
    let needed = CapabilitySet::NET_BIND_SERVICE & thread::capabilities(None)?.permitted;
    let sets = CapabilitySets { effective: needed, permitted: needed, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets)?;
    thread::set_no_new_privs(true)
}

impl Worker {
    fn listen(self: &Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // It waits until connections have ended. They have not to end because an agent came.
                Err(error) if out_of_files(&error) => {
                    std::thread::sleep(LOOK_INTERVAL);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let worker = Arc::clone(self);
            let listening = move || {
                let error = worker.obey(Channel::new(stream));
                tracing::debug!(%error, "an agent is gone");
            };
            std::thread::Builder::new().name("agent".into()).stack_size(512 * 1024).spawn(listening)?;
        }
    }

    fn userspace(&self) -> MutexGuard<'_, Option<Userspace<Network>>> {
        self.userspace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what an agent says, until it ends.
    fn obey(self: &Arc<Self>, mut channel: Channel) -> io::Error {
        let (mut plan, mut serving) = (Plan::default(), Targets::new());
        loop {
            let done =
                channel.get().and_then(|line| self.follow(line, &mut channel, &mut plan, &mut serving));
            if let Err(error) = done {
                return error;
            }
        }
    }

    fn follow(
        self: &Arc<Self>,
        line: Line,
        channel: &mut Channel,
        plan: &mut Plan,
        serving: &mut Targets,
    ) -> io::Result<()> {
        match line {
            Line::Hello => return channel.send(&Line::Worker(self.presence())),
            Line::Host(host) => plan.host = Some(host.into()),
            Line::Upsert(key, frontend) => {
                let frontend: Arc<Frontend> = frontend.try_into().map_err(garbled)?;
                // Addresses of one Service come one after the other, and need one copy.
                let alike = plan.upserts.last().filter(|(_, former)| **former == *frontend);
                let frontend = alike.map_or(frontend, |(_, former)| Arc::clone(former));
                plan.upserts.push(((&key).try_into().map_err(garbled)?, frontend));
            }
            Line::Remove(key) => plan.removals.push((&key).try_into().map_err(garbled)?),
            Line::Serving(part) => {
                let target = |(group, addr, port)| (Group::from_bits(group), addr, port);
                serving.extend(part.into_iter().map(target));
            }
            Line::Read => return legacy::tell(channel, self.userspace().as_mut().ok_or_else(retired)?),
            Line::Apply => return self.apply(channel, &std::mem::take(plan)),
            Line::ForgetUdp => return self.forget_udp(channel, &std::mem::take(serving)),
            Line::HandOver => return self.hand_over(channel),
            Line::Retire => {
                self.retire();
                return done(channel, 0);
            }
            Line::End => {
                let said = done(channel, 0);
                self.end();
                return said;
            }
            _ => return Err(garbled("an answer where a question should be".to_owned())),
        }
        Ok(())
    }

    fn presence(&self) -> Presence {
        Presence {
            protocol: PROTOCOL,
            version: self.version.clone(),
            pid: std::process::id(),
            serving: self.userspace().is_some(),
            busy: self.shared.busy(),
        }
    }

    fn apply(&self, channel: &mut Channel, plan: &Plan) -> io::Result<()> {
        let applied = self.userspace().as_mut().ok_or_else(retired)?.apply(plan).map_err(io::Error::other)?;
        for failure in &applied.failed {
            channel.put(&Line::Failed(failure.into()))?;
        }
        done(channel, applied.done)?;
        if plan.len() >= LARGE {
            seaway_ebpf_loader::trim_memory();
        }
        Ok(())
    }

    fn forget_udp(&self, channel: &mut Channel, serving: &Targets) -> io::Result<()> {
        let forgotten = self.userspace().as_mut().ok_or_else(retired)?.forget_udp(serving);
        let Forgotten { v4, v6 } = forgotten.map_err(io::Error::other)?;
        channel.send(&Line::Done { count: v4 + v6, of_ipv6: v6, drops: Vec::new() })
    }

    /// Everything goes to a successor. While it is told nobody changes anything.
    fn hand_over(self: &Arc<Self>, channel: &mut Channel) -> io::Result<()> {
        {
            let mut held = self.userspace();
            legacy::hand_over(channel, held.as_mut().ok_or_else(retired)?)?;
            channel.stream().set_read_timeout(Some(Duration::from_secs(30)))?;
            if !matches!(channel.get()?, Line::Taken) {
                return Err(garbled("the successor has not taken it".to_owned()));
            }
            drop(held.take());
        }
        tracing::info!("a successor has taken over");
        self.end_when_idle();
        done(channel, 0)
    }

    /// Takes nothing new from now on.
    fn retire(self: &Arc<Self>) {
        if self.userspace().take().is_some() {
            self.end_when_idle();
        }
    }

    fn end_when_idle(self: &Arc<Self>) {
        let worker = Arc::clone(self);
        let wait = move || {
            // What waited at the sockets when they were closed is taken in before the first look.
            std::thread::sleep(LOOK_INTERVAL);
            while worker.shared.busy() > 0 {
                std::thread::sleep(LOOK_INTERVAL);
            }
            worker.end();
        };
        if let Err(error) = std::thread::Builder::new().name("last".into()).spawn(wait) {
            tracing::error!(%error, "cannot wait for the last connection");
            self.end();
        }
    }

    fn end(&self) {
        // Nobody may do that any more: then the next agent does.
        let _removed = std::fs::remove_file(&self.socket);
        std::process::exit(0)
    }
}

fn done(channel: &mut Channel, count: usize) -> io::Result<()> {
    channel.send(&Line::Done { count, of_ipv6: 0, drops: Vec::new() })
}

fn retired() -> io::Error {
    io::Error::other("this worker takes nothing new")
}

pub(super) fn garbled(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
