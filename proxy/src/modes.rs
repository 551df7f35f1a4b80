//! From a mode to its data plane, and from one mode to another: the traces of the others go once the new one serves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seaway_nft::conntrack::Flow;
use tokio_util::sync::CancellationToken;

use crate::dataplane::ebpf::{self, Ebpf};
use crate::dataplane::fake::Fake;
use crate::dataplane::iptables::{self, Iptables};
use crate::dataplane::nftables::{self, Nftables};
use crate::dataplane::userspace::{self, Limits, Remote, Userspace};
use crate::dataplane::{Dataplane, DataplaneError, forget_ended, translated_tcp};
use crate::reconcile::chain;
use crate::{Mode, ProxyConfig, ProxyError};

/// What `auto` tries, in this order.
const PREFERENCE: [Mode; 4] = [Mode::Ebpf, Mode::Nftables, Mode::Iptables, Mode::Userspace];
/// How often it is looked whether the new data plane serves, and whether connections of a former one have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The data plane that the mode asks for. `auto` takes the first that this kernel offers.
pub(crate) async fn open(config: &ProxyConfig) -> Result<Box<dyn Dataplane>, ProxyError> {
    if config.mode != Mode::Auto {
        return open_one(config.mode, config).await;
    }
    let mut first = None;
    for mode in PREFERENCE {
        match open_one(mode, config).await {
            Ok(dataplane) => {
                tracing::info!(mode = mode.name(), "took the first mode that this node offers");
                return Ok(dataplane);
            }
            Err(error) => {
                tracing::warn!(mode = mode.name(), error = %chain(&error), "this node does not offer the mode");
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or(ProxyError::Ended))
}

async fn open_one(mode: Mode, config: &ProxyConfig) -> Result<Box<dyn Dataplane>, ProxyError> {
    let (bpffs, cgroup, worker) = (config.bpffs.clone(), config.cgroup.clone(), config.worker.clone());
    let xdp = config.xdp;
    // Loading programs takes the verifier a while, and tables a process.
    let opened = tokio::task::spawn_blocking(move || -> Result<Box<dyn Dataplane>, DataplaneError> {
        Ok(match mode {
            Mode::Auto | Mode::Ebpf => Box::new(Ebpf::open(&bpffs, &cgroup)?.with_xdp(xdp)),
            Mode::Nftables => Box::new(Nftables::open()?),
            Mode::Iptables => Box::new(Iptables::open()?),
            Mode::Userspace => match worker {
                Some(worker) => Box::new(Remote::open(worker)?),
                None => Box::new(Userspace::open(Limits::default())?),
            },
            Mode::Fake => Box::new(Fake::default()),
        })
    });
    let opened = opened.await.map_err(ProxyError::Part)?;
    opened.map_err(|source| ProxyError::Open { backend: mode.name(), source })
}

/// Removes everything that the proxy left, in whatever mode: links, maps, pins, tables, chains, and the worker.
pub fn cleanup(config: &ProxyConfig) -> Result<(), ProxyError> {
    if let Some(worker) = &config.worker {
        userspace::end_workers(&worker.directory).map_err(ProxyError::Worker)?;
    }
    nftables::remove_all().map_err(ProxyError::Tables)?;
    iptables::remove_all().map_err(ProxyError::Tables)?;
    ebpf::remove_all(&config.bpffs)
        .map_err(|source| ProxyError::Cleanup { path: config.bpffs.clone(), source })
}

/// What other modes may have left behind.
struct Leftovers {
    modes: Vec<Mode>,
    /// The eBPF programs translate no new connections; those that they do are still open.
    retiring: Option<ebpf::Retiring>,
    /// The new mode does not keep the kernel's connection tracking at work: a former one that needs it stays until its
    /// connections have ended, or until then.
    tracked_until: Option<Instant>,
    /// Where workers of the userspace mode are found, until when their connections may go on, and whether one of them
    /// serves.
    workers: Option<PathBuf>,
    workers_until: Instant,
    worker_serves: bool,
}

impl Leftovers {
    /// Removes what can go by now.
    fn remove(&mut self, bpffs: &Path) {
        let mut modes = std::mem::take(&mut self.modes);
        modes.retain(|mode| match self.remove_traces(*mode, bpffs) {
            Ok(gone) => !gone,
            Err(error) => {
                // A kernel that does not offer the mode has no traces of it.
                tracing::debug!(mode = mode.name(), error = %chain(&error), "cannot look for traces of another mode");
                false
            }
        });
        self.modes = modes;
    }

    /// False: they have to stay for a while.
    fn remove_traces(&mut self, mode: Mode, bpffs: &Path) -> Result<bool, DataplaneError> {
        if matches!(mode, Mode::Nftables | Mode::Iptables)
            && self.tracked_until.is_some_and(|end| Instant::now() < end)
        {
            let ended =
                if mode == Mode::Nftables { nftables::end_services() } else { iptables::end_services() };
            ended?;
            let translated = translated_tcp();
            forget_ended(&translated);
            if translated.iter().any(Flow::is_open) {
                return Ok(false);
            }
        }
        match mode {
            Mode::Ebpf => {
                if self.retiring.is_none() {
                    self.retiring = ebpf::Retiring::begin(bpffs)?;
                }
                return self.retiring.as_mut().map_or(Ok(true), ebpf::Retiring::end);
            }
            Mode::Nftables => nftables::remove_all(),
            Mode::Iptables => iptables::remove_all(),
            Mode::Userspace => return self.retire_workers(),
            Mode::Auto | Mode::Fake => Ok(()),
        }?;
        Ok(true)
    }

    /// Workers end with their last connection; the one that serves stays.
    fn retire_workers(&self) -> Result<bool, DataplaneError> {
        let Some(workers) = &self.workers else { return Ok(true) };
        let retired = if !self.worker_serves && Instant::now() > self.workers_until {
            userspace::end_workers(workers).map(|()| true)
        } else {
            userspace::retire_workers(workers, self.worker_serves)
        };
        retired
            .map_err(|source| DataplaneError::Io { action: "cannot end the userspace worker".into(), source })
    }
}

/// Once the mode called `serving` serves, removes what others left behind; then waits for `shutdown`.
pub(crate) async fn succeed(config: ProxyConfig, serving: &'static str, shutdown: CancellationToken) {
    while !config.status.status().synced {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    // Of the workers of the userspace mode, all but one are leftovers in that mode, too.
    let is_other = |mode: &Mode| mode.name() != serving || *mode == Mode::Userspace;
    let others = PREFERENCE.into_iter().filter(|mode| serving != "fake" && is_other(mode));
    let tracks = [Mode::Nftables.name(), Mode::Iptables.name()].contains(&serving);
    let tracked_until = (!tracks).then(|| Instant::now() + config.drain_max);
    let mut leftovers = Leftovers {
        modes: others.collect(),
        retiring: None,
        tracked_until,
        workers: config.worker.as_ref().map(|worker| worker.directory.clone()),
        workers_until: Instant::now() + config.drain_max,
        worker_serves: serving == Mode::Userspace.name(),
    };
    while !leftovers.modes.is_empty() {
        let bpffs = config.bpffs.clone();
        let removed = tokio::task::spawn_blocking(move || {
            leftovers.remove(&bpffs);
            leftovers
        });
        let Ok(left) = removed.await else {
            tracing::warn!("removing the traces of other modes panicked");
            break;
        };
        leftovers = left;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    shutdown.cancelled().await;
}
