//! The process that holds the sockets: it listens to one server at a time, and hands questions on while there is none.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::channel::{Word, hear, say};
use super::peers::Peers;
use super::relay::Relay;
use super::{PEERS, SOCKET};

/// How often it looks whether another one has taken its place.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// With nothing to hold and nobody to listen to it ends after so long.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Why a stand-by could not begin, or had to end.
#[derive(Debug, Error)]
pub enum StandbyError {
    /// Its socket could not be made or listened at.
    #[error("cannot listen to servers below {}", path.display())]
    Socket {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Stands by below `directory` until there is nothing to stand by for. The calling process must have no other thread, since
/// its privileges are given up.
///
/// # Errors
/// When its socket cannot be made.
pub fn serve_as_standby(directory: &Path) -> Result<(), StandbyError> {
    let failed = |source| StandbyError::Socket { path: directory.to_owned(), source };
    // An error says that it leads a session already.
    let _led = rustix::process::setsid();
    give_up_privileges();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut standby = Standby::listen(directory).map_err(failed)?;
        // Whoever started it waits for this line, or is gone.
        writeln!(io::stdout(), "stands by").and_then(|()| io::stdout().flush()).ok();
        let ended = standby.run().await.map_err(failed);
        standby.leave();
        ended
    })
}

/// Files are its own user's; nothing else takes a privilege.
fn give_up_privileges() {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    let given = rustix::thread::set_capabilities(None, sets);
    if let Err(error) = given.and_then(|()| rustix::thread::set_no_new_privs(true)) {
        warn!(%error, "the DNS stand-by keeps the privileges of whoever started it");
    }
}

struct Standby {
    directory: PathBuf,
    listener: UnixListener,
    /// By which its socket is known from that of a successor.
    inode: u64,
    held: Vec<OwnedFd>,
}

impl Standby {
    /// Takes the place of a former one, which will notice.
    fn listen(directory: &Path) -> io::Result<Self> {
        let (place, next) = (directory.join(SOCKET), directory.join(format!("{}.sock", std::process::id())));
        // Of a process that had this number and died.
        std::fs::remove_file(&next).ok();
        let listener = UnixListener::bind(&next)?;
        let inode = std::fs::metadata(&next)?.ino();
        std::fs::rename(&next, &place)?;
        Ok(Self { directory: directory.to_owned(), listener, inode, held: Vec::new() })
    }

    async fn run(&mut self) -> io::Result<()> {
        let mut server: Option<UnixStream> = None;
        let mut relay: Option<Relay> = None;
        // What is still under way of the questions that were handed on.
        let mut left = None;
        let mut alone_since = Instant::now();
        loop {
            tokio::select! {
                biased;
                heard = listen_to(server.as_ref()) => match heard {
                    Ok(Some((Word::Take, _))) => {
                        let sockets: Vec<_> = self.held.iter().map(|socket| socket.as_fd()).collect();
                        // Who is gone by now is heard of next.
                        tell(server.as_ref(), Word::Sockets, &sockets).await.ok();
                    }
                    Ok(Some((Word::Hold, sockets))) => self.held = sockets,
                    Ok(Some((Word::Release, _))) => {
                        if let Some(left) = left {
                            left.await;
                        }
                        return Ok(());
                    }
                    Ok(Some((Word::Sockets | Word::Busy, _)) | None) | Err(_) => {
                        (server, alone_since) = (None, Instant::now());
                        if self.held.is_empty() || !self.is_current() {
                            return Ok(());
                        }
                        relay = Some(self.relay());
                    }
                },
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted?;
                    if server.is_some() {
                        tell(Some(&stream), Word::Busy, &[]).await.ok();
                    } else {
                        // What arrives from now on waits for the server.
                        left = relay.take().map(Relay::stop);
                        server = Some(stream);
                    }
                }
                () = sleep(LOOK_INTERVAL), if server.is_none() => {
                    let idle = relay.is_none() && alone_since.elapsed() > IDLE_MAX;
                    if idle || !self.is_current() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn relay(&self) -> Relay {
        let peers = Peers::read(&self.directory.join(PEERS)).unwrap_or_else(|error| {
            warn!(%error, "the other nodes' DNS servers are not known: questions wait for the next server");
            Peers::default()
        });
        info!("the DNS server is gone without a word: the stand-by hands questions on to other nodes");
        Relay::start(&self.held, &peers)
    }

    /// Whether servers still find this one.
    fn is_current(&self) -> bool {
        std::fs::metadata(self.directory.join(SOCKET)).is_ok_and(|file| file.ino() == self.inode)
    }

    fn leave(&self) {
        if self.is_current() {
            std::fs::remove_file(self.directory.join(SOCKET)).ok();
        }
    }
}

/// The server's next word; never, where there is none.
async fn listen_to(server: Option<&UnixStream>) -> io::Result<Option<(Word, Vec<OwnedFd>)>> {
    match server {
        Some(stream) => stream.async_io(Interest::READABLE, || hear(stream)).await,
        None => std::future::pending().await,
    }
}

async fn tell(
    server: Option<&UnixStream>,
    word: Word,
    sockets: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<()> {
    let Some(stream) = server else { return Ok(()) };
    stream.async_io(Interest::WRITABLE, || say(stream, word, sockets)).await
}
