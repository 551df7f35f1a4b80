//! The agent's end of a shim's socket: one task per sandbox keeps its state current and passes requests on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Child;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Ask, ExecResult, SandboxState};
use crate::shim::protocol::{ContainerRecord, Report, Request, SOCKET};

type Starting = oneshot::Sender<Result<ContainerRecord, String>>;

/// Connects to the shim of a pod's directory. The path may be longer than a socket address holds, hence the detour
/// through the directory's file descriptor.
pub(super) async fn connect(pod_dir: &Path) -> io::Result<UnixStream> {
    let directory = std::fs::File::open(pod_dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    UnixStream::connect(path).await
}

/// Follows a sandbox until its shim is gone.
pub(super) struct Link {
    pod_dir: PathBuf,
    state: watch::Sender<SandboxState>,
    asks: mpsc::UnboundedReceiver<Ask>,
    starting: BTreeMap<String, Starting>,
    execs: BTreeMap<u64, oneshot::Sender<ExecResult>>,
    next_exec: u64,
    /// The shim, where this process started it: it must be waited for.
    child: Option<Child>,
}

impl Link {
    pub(super) fn new(
        pod_dir: PathBuf,
        state: watch::Sender<SandboxState>,
        asks: mpsc::UnboundedReceiver<Ask>,
        child: Option<Child>,
    ) -> Self {
        let (starting, execs) = (BTreeMap::new(), BTreeMap::new());
        Self { pod_dir, state, asks, starting, execs, next_exec: 0, child }
    }

    /// Reads the first list, so that whoever gets the sandbox sees its containers; then follows in a task of its own.
    pub(super) async fn start(mut self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        write(&mut writer, &Request::List).await?;
        let mut line = String::new();
        while reader.read_line(&mut line).await? > 0 {
            let list = matches!(serde_json::from_str(&line), Ok(Report::Containers(_)));
            self.take(&line);
            if list {
                tokio::spawn(self.follow(reader, writer));
                return Ok(());
            }
            line.clear();
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn follow(mut self, mut reader: BufReader<OwnedReadHalf>, mut writer: OwnedWriteHalf) {
        loop {
            self.serve(&mut reader, &mut writer).await;
            // The shim drops a connection that is too slow; only one that is gone refuses the next.
            let Ok(stream) = connect(&self.pod_dir).await else { break };
            let (read, write_half) = stream.into_split();
            (reader, writer) = (BufReader::new(read), write_half);
            if write(&mut writer, &Request::List).await.is_err() {
                break;
            }
        }
        self.state.send_modify(|state| state.alive = false);
        if let Some(mut child) = self.child.take() {
            let _reaped = tokio::task::spawn_blocking(move || child.wait()).await;
        }
    }

    async fn serve(&mut self, reader: &mut BufReader<OwnedReadHalf>, writer: &mut OwnedWriteHalf) {
        let mut line = Vec::new();
        loop {
            tokio::select! {
                read = reader.read_until(b'\n', &mut line) => match read {
                    Ok(n) if n > 0 => {
                        self.take(&String::from_utf8_lossy(&line));
                        line.clear();
                    }
                    _ => return,
                },
                ask = self.asks.recv() => {
                    // Nobody holds the sandbox any more: its state is of no interest, but its end is still awaited.
                    let Some(ask) = ask else { return drain(reader).await };
                    let request = self.request(ask);
                    if write(writer, &request).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn request(&mut self, ask: Ask) -> Request {
        match ask {
            Ask::Start(spec, answer) => {
                self.starting.insert(spec.name.clone(), answer);
                Request::Start(spec)
            }
            Ask::Stop { name, force } => Request::Stop { name, force },
            Ask::Exec { name, args, timeout, answer } => {
                self.next_exec += 1;
                self.execs.insert(self.next_exec, answer);
                let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                Request::Exec { id: self.next_exec, name, args, timeout_ms }
            }
        }
    }

    fn take(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(Report::Containers(records)) => self.state.send_modify(|state| {
                state.alive = true;
                state.containers = records.into_iter().map(|r| (r.name.clone(), r)).collect();
            }),
            Ok(Report::Container(record)) => {
                // The state first: who hears that it has started finds it there.
                self.state.send_modify(|state| {
                    state.containers.insert(record.name.clone(), record.clone());
                });
                if let Some(answer) = self.starting.remove(&record.name) {
                    // Whoever asked may have given up.
                    let _unheard = answer.send(Ok(record));
                }
            }
            Ok(Report::StartFailed { name, message }) => {
                if let Some(answer) = self.starting.remove(&name) {
                    let _unheard = answer.send(Err(message));
                }
            }
            Ok(Report::ExecDone { id, code, output }) => {
                if let Some(answer) = self.execs.remove(&id) {
                    let _unheard = answer.send(ExecResult { code, output });
                }
            }
            Err(error) => {
                tracing::warn!(%error, pod = %self.pod_dir.display(), "a shim's report cannot be read");
            }
        }
    }
}

/// Waits until the other side closes.
async fn drain(reader: &mut BufReader<OwnedReadHalf>) {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
        line.clear();
    }
}

async fn write(writer: &mut OwnedWriteHalf, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
