//! The sockets outlive the process that answers at them. A stand-by, a small process of its own, holds them as well: when the
//! agent dies without a word, it hands what arrives on to other nodes' servers, and the next agent takes the same sockets
//! over, with what waits in them.
//!
//! It knows no zone and keeps no state but the servers of the other nodes, which agents write into a file beside its socket.
//! So it costs little, and what it gives are a living server's answers. A server that ends in good order takes its stand-by
//! along, and every agent starts one of its own version.
//!
//! **Invariant:** a question is handed on once. Who is another node's server, by its address, is told that this one fails, not
//! led on.

mod channel;
mod peers;
mod process;
mod relay;

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{DnsConfig, DnsError, Metrics, Server, Watched, settings};
use channel::{Word, hear, say};
use peers::Peers;
pub use process::{StandbyError, serve_as_standby};

/// Its socket, in its directory.
const SOCKET: &str = "standby.sock";
/// The other nodes' servers, beside it.
const PEERS: &str = "peers";
/// A stand-by that does not answer within this time is done without.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a former server's stand-by goes on while the first list of everything is on its way; after it, it is looked whether
/// that one can still help.
const SYNC_PATIENCE: Duration = Duration::from_secs(10);
/// The other nodes' servers are written down no more often.
const PEERS_INTERVAL: Duration = Duration::from_millis(200);

/// How a stand-by is found, and started.
#[derive(Debug, Clone)]
pub struct StandbyConfig {
    /// Where its socket is. It is made, for its owner alone.
    pub directory: PathBuf,
    /// The program, which calls [`serve_as_standby`]; where it is gone, the running one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// As [`crate::run`], with a stand-by. Without one, where it cannot be had, as [`crate::run`].
///
/// # Errors
/// When an address cannot be listened at, or the configuration contradicts itself.
pub async fn run_beside_standby(
    config: DnsConfig,
    standby: StandbyConfig,
    watched: Watched,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let mut snapshots = watched.snapshots.clone();
    // A file that would keep the server from coming leaves the stand-by to what it does.
    settings::load(&config)?;
    let directory = standby.directory.clone();
    shutdown.run_until_cancelled(await_zone(&directory, &mut snapshots)).await;
    let (link, left) = match spawn_blocking(move || Link::open(&standby)).await {
        Ok(opened) => opened,
        Err(error) => {
            warn!(%error, "the DNS stand-by could not be asked");
            (None, Vec::new())
        }
    };
    let server = Server::bind_among(&config, left)?;
    if let Some(link) = &link {
        link.hold(&server.sockets());
    }
    let note = note_peers(&config, &directory, snapshots);
    let serve = server.serve(watched, metrics, shutdown);
    tokio::select! {
        ended = serve => ended,
        never = note => match never {},
    }
}

/// Waits until the zone is known, as long as a former server's stand-by hands on what is asked: the other nodes' answers are the
/// better ones, however long the API server is away. Where nobody is left to hand on to, not for long: other names are answered
/// without it.
async fn await_zone(directory: &Path, snapshots: &mut watch::Receiver<Arc<Snapshot>>) {
    let mut stands_by = directory.join(SOCKET).exists();
    while stands_by {
        let synced = timeout(SYNC_PATIENCE, snapshots.wait_for(|snapshot| snapshot.synced)).await;
        let peers = Peers::read(&directory.join(PEERS)).unwrap_or_default();
        // It notices, and goes on when nothing is said.
        stands_by =
            synced.is_err() && peers.any_ready() && UnixStream::connect(directory.join(SOCKET)).is_ok();
    }
}

/// The conversation with the stand-by. When it is dropped, and not torn off, the stand-by lets go and ends.
#[derive(Debug)]
struct Link(UnixStream);

impl Link {
    /// Takes over the sockets that a former server left, and starts a stand-by.
    fn open(config: &StandbyConfig) -> (Option<Self>, Vec<OwnedFd>) {
        let socket = config.directory.join(SOCKET);
        let left = inherit(&socket).unwrap_or_default();
        let begun = DirBuilder::new().recursive(true).mode(0o700).create(&config.directory);
        match begun.and_then(|()| start(config)).and_then(|()| connect(&socket)) {
            Ok(stream) => (Some(Self(stream)), left),
            Err(error) => {
                warn!(%error, "there is no DNS stand-by: a crash of the agent leaves its pods without names until it is back");
                (None, left)
            }
        }
    }

    fn hold(&self, sockets: &[BorrowedFd<'_>]) {
        if let Err(error) = say(&self.0, Word::Hold, sockets) {
            warn!(%error, "the DNS stand-by does not take the sockets");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Without it, it is told by what becomes of the sockets: nothing arrives any more.
        say(&self.0, Word::Release, &[]).ok();
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What a stand-by has whose server is gone. One whose server lives is left alone.
fn inherit(socket: &Path) -> io::Result<Vec<OwnedFd>> {
    let stream = connect(socket)?;
    say(&stream, Word::Take, &[])?;
    match hear(&stream)? {
        Some((Word::Sockets, sockets)) => {
            say(&stream, Word::Release, &[])?;
            Ok(sockets)
        }
        _ => Ok(Vec::new()),
    }
}

/// Starts one, and waits until it listens.
fn start(config: &StandbyConfig) -> io::Result<()> {
    let running = Path::new("/proc/self/exe");
    let program = if config.program.exists() { &config.program } else { running };
    let mut command = Command::new(program);
    command.args(&config.arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("it has no output"))?;
    let heard = BufReader::new(stdout).read_line(&mut String::new())?;
    // Its end is taken note of, whenever that is.
    std::thread::Builder::new()
        .name("dns-standby".into())
        .stack_size(64 << 10)
        .spawn(move || child.wait())?;
    if heard == 0 { Err(io::Error::other("it ended at once")) } else { Ok(()) }
}

/// Keeps the file with the other nodes' servers up to date, for as long as it is polled.
async fn note_peers(
    config: &DnsConfig,
    directory: &Path,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> std::convert::Infallible {
    let mut written = None;
    loop {
        let (synced, peers) = {
            let snapshot = snapshots.borrow_and_update();
            (snapshot.synced, Peers::of(&snapshot, &config.service, &config.listen))
        };
        // What a former server knew is better than nothing.
        if synced && written.as_ref() != Some(&peers) {
            match peers.write(&directory.join(PEERS)) {
                Ok(()) => written = Some(peers),
                Err(error) => warn!(%error, "the other nodes' DNS servers cannot be written down"),
            }
        }
        sleep(PEERS_INTERVAL).await;
        if snapshots.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// With settings that make no sense there is no server: whoever hands on for the former one goes on with that.
    #[tokio::test]
    async fn wrong_settings_leave_the_stand_by_alone() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let file = dir.path().join("dns.toml");
        std::fs::write(&file, "[surprise]\n").unwrap();
        let config = DnsConfig {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            file: Some(file),
            ..DnsConfig::default()
        };
        let standby = StandbyConfig {
            directory: dir.path().to_owned(),
            program: "/nowhere".into(),
            arguments: Vec::new(),
        };
        let synced = Snapshot { synced: true, ..Snapshot::default() };
        let (_writer, snapshots) = watch::channel(Arc::new(synced));
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let ended =
            run_beside_standby(config, standby, snapshots.into(), metrics, CancellationToken::new()).await;
        assert!(matches!(ended, Err(DnsError::Settings { .. })), "{ended:?}");
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
