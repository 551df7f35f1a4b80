//! A proxy in a process of its own. What it is told changes all the time: the first Service has its endpoint here and
//! another one for a while, so that every moment of an exchange may be one in which something is written.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use seaway_model::Snapshot;
use seaway_proxy::dataplane::userspace::WorkerConfig;
use seaway_proxy::{Metrics, Mode, ProxyConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::kernel::Place;
use crate::support::net::Net;
use crate::support::services::{cluster, service};

const CHANGE_EVERY: Duration = Duration::from_millis(15);

/// What an agent is told when it starts.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    /// The version that its worker in user space should be of.
    pub(crate) version: &'static str,
    /// Nothing changes, and nothing is looked at unless something happens.
    pub(crate) still: bool,
}

impl From<Mode> for Options {
    fn from(mode: Mode) -> Self {
        Self { mode, version: "1", still: false }
    }
}

/// Where workers of the userspace mode are found.
pub(crate) fn workers(place: &Place) -> PathBuf {
    std::env::temp_dir().join(place.bpffs.file_name().unwrap())
}

/// How this program becomes a worker.
pub(crate) fn worker(directory: PathBuf, version: &str) -> WorkerConfig {
    WorkerConfig {
        arguments: vec!["--worker".into(), directory.clone().into(), version.into()],
        directory,
        program: std::env::current_exe().unwrap(),
        version: version.to_owned(),
    }
}

/// A process of the proxy; it is killed when it is dropped.
pub(crate) struct Agent {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Agent {
    /// Starts one, and waits until it serves.
    pub(crate) fn start(net: &Net, place: &Place, options: impl Into<Options>) -> Self {
        let options = options.into();
        let mut agent = Self::begin(net, place, options);
        let mut line = String::new();
        agent.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "serves", "the agent in mode {} ended", options.mode.name());
        agent
    }

    /// Starts one.
    pub(crate) fn begin(net: &Net, place: &Place, options: impl Into<Options>) -> Self {
        let Options { mode, version, still } = options.into();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("SEAWAY_ROLE", "agent").env("MODE", mode.name());
        command.env("WORKERS", workers(place)).env("VERSION", version).env("STILL", still.to_string());
        command.env("CGROUP", &place.cgroup).env("BPFFS", &place.bpffs);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = net.within("node", || command.spawn().unwrap());
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// Tells it to end, and waits until it has.
    pub(crate) fn stop(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }

    /// Ends it without warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn told(more: bool) -> Arc<Snapshot> {
    let mut snapshot = cluster();
    let endpoints: &[&str] = if more { &["local", "remote"] } else { &["local"] };
    service(&mut snapshot, 3, endpoints, |_| {});
    service(&mut snapshot, 1, endpoints, |_| {});
    // Clients of these are told apart by the endpoint that they have.
    service(&mut snapshot, 5, &["local", "remote"], |_| {});
    service(&mut snapshot, 6, &["local", "remote"], |s| s.session_affinity = Some(Duration::from_secs(600)));
    Arc::new(snapshot)
}

/// The process: serves until its input ends.
pub(crate) fn main() {
    let name = |variable| std::env::var_os(variable).map(PathBuf::from).unwrap();
    let mut config = ProxyConfig::new("node", name("CGROUP"), name("BPFFS"));
    config.mode = name("MODE").to_str().unwrap().parse().unwrap();
    let still = name("STILL").to_str() == Some("true");
    config.resync_interval = if still { Duration::from_secs(3600) } else { Duration::from_millis(200) };
    config.worker = Some(worker(name("WORKERS"), name("VERSION").to_str().unwrap()));
    // A connection that was lost on the way leaves a trace in connection tracking that nobody ends.
    config.drain_max = Duration::from_secs(20);
    let status = config.status.clone();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    std::thread::spawn(move || {
        let _ended = std::io::stdin().lock().read_line(&mut String::new());
        stop.cancel();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, snapshots) = watch::channel(told(false));
        let changes = async {
            let mut more = false;
            loop {
                if still {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(CHANGE_EVERY).await;
                more = !more;
                sender.send_replace(told(more));
            }
        };
        let ready = async {
            while !status.status().synced {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            println!("serves");
            std::io::stdout().flush().unwrap();
            std::future::pending::<()>().await;
        };
        let metrics = Metrics::new(&prometheus::Registry::new());
        tokio::select! {
            ended = seaway_proxy::run(config, snapshots, metrics, shutdown) => ended.unwrap(),
            () = changes => {}
            () = ready => {}
        }
    });
}
