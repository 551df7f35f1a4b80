//! From a mode to its data plane, and from one mode to another: the traces of the others go once the new one serves.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::dataplane::ebpf::{self, Ebpf};
use crate::dataplane::fake::Fake;
use crate::dataplane::iptables::{self, Iptables};
use crate::dataplane::nftables::{self, Nftables};
use crate::dataplane::userspace::{Limits, Userspace};
use crate::dataplane::{Dataplane, DataplaneError};
use crate::reconcile::chain;
use crate::{Mode, ProxyConfig, ProxyError};

/// What `auto` tries, in this order.
const PREFERENCE: [Mode; 4] = [Mode::Ebpf, Mode::Nftables, Mode::Iptables, Mode::Userspace];
/// How often it is looked whether the new data plane serves.
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
    let (bpffs, cgroup) = (config.bpffs.clone(), config.cgroup.clone());
    // Loading programs takes the verifier a while, and tables a process.
    let opened = tokio::task::spawn_blocking(move || -> Result<Box<dyn Dataplane>, DataplaneError> {
        Ok(match mode {
            Mode::Auto | Mode::Ebpf => Box::new(Ebpf::open(&bpffs, &cgroup)?),
            Mode::Nftables => Box::new(Nftables::open()?),
            Mode::Iptables => Box::new(Iptables::open()?),
            Mode::Userspace => Box::new(Userspace::open(Limits::default())?),
            Mode::Fake => Box::new(Fake::default()),
        })
    });
    let opened = opened.await.map_err(ProxyError::Part)?;
    opened.map_err(|source| ProxyError::Open { backend: mode.name(), source })
}

/// Removes everything that the proxy put into the kernel, in whatever mode: links, maps, pins, tables, chains.
pub fn cleanup(config: &ProxyConfig) -> Result<(), ProxyError> {
    nftables::remove_all().map_err(ProxyError::Tables)?;
    iptables::remove_all().map_err(ProxyError::Tables)?;
    ebpf::remove_all(&config.bpffs)
        .map_err(|source| ProxyError::Cleanup { path: config.bpffs.clone(), source })
}

fn remove_traces(mode: Mode, bpffs: &Path) -> Result<(), DataplaneError> {
    match mode {
        Mode::Ebpf => ebpf::remove_all(bpffs),
        Mode::Nftables => nftables::remove_all(),
        Mode::Iptables => iptables::remove_all(),
        Mode::Auto | Mode::Userspace | Mode::Fake => Ok(()),
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
    let bpffs = config.bpffs.clone();
    let removed = tokio::task::spawn_blocking(move || {
        let others = PREFERENCE.into_iter().filter(|mode| serving != "fake" && mode.name() != serving);
        for mode in others {
            if let Err(error) = remove_traces(mode, &bpffs) {
                // A kernel that does not offer the mode has no traces of it.
                tracing::debug!(mode = mode.name(), error = %chain(&error), "cannot look for traces of another mode");
            }
        }
    });
    if removed.await.is_err() {
        tracing::warn!("removing the traces of other modes panicked");
    }
    shutdown.cancelled().await;
}
