//! The proxy of one node of the lab, run in this process and fed with synthetic snapshots.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seaway_cni_network::netns::Namespace;
use seaway_lab::{LabNode, poll_until};
use seaway_model::Snapshot;
use seaway_proxy::{Metrics, Mode, ProxyConfig, StatusHandle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A debug build takes its time with the largest size.
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy that runs. It ends with this value.
#[derive(Debug)]
pub struct Serving {
    sender: watch::Sender<Arc<Snapshot>>,
    status: StatusHandle,
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Serving {
    /// Starts the proxy of `node`, with a configuration that `change` has completed.
    pub fn start(node: &LabNode, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let mut config = ProxyConfig::new(node.name(), node.cgroup(), node.bpffs());
        config.mode = Mode::Ebpf;
        config.announce_load_balancers = false;
        // Nothing is compared anew in the middle of a measurement.
        config.resync_interval = Duration::from_secs(3600);
        change(&mut config);
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (status, stop) = (config.status.clone(), CancellationToken::new());
        let (shutdown, path) = (stop.clone(), node.namespace().path().to_owned());
        let thread = std::thread::spawn(move || {
            let work = || -> Result<()> {
                // Threads that the runtime starts are in the namespace of the thread that starts them.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let metrics = Metrics::new(&prometheus::Registry::new());
                Ok(runtime.block_on(seaway_proxy::run(config, snapshots, metrics, shutdown))?)
            };
            Namespace::open(&path)?.run(work)?
        });
        Self { sender, status, stop, thread: Some(thread) }
    }

    /// Shows it `snapshot` and waits until it serves it.
    pub fn show(&mut self, snapshot: Snapshot) -> Result<()> {
        let services = snapshot.services.len();
        self.sender.send_replace(Arc::new(snapshot));
        let mut status = self.status.status();
        let serves = poll_until(PATIENCE, || {
            status = self.status.status();
            (status.synced && status.services == services) || self.ended()
        });
        if self.ended()
            && let Some(thread) = self.thread.take()
        {
            match thread.join() {
                Ok(result) => result.context("the proxy ended")?,
                Err(_) => bail!("the proxy panicked"),
            }
        }
        if !serves {
            bail!("the proxy serves {} of {services} Services: {:?}", status.services, status.last_error);
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // How it ended does not matter any more.
            drop(thread.join());
        }
    }
}
