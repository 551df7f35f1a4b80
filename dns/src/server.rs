//! The sockets: several UDP sockets and a TCP listener per address, and how they start and end.

mod exchange;
mod socket;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::forward::Forwarder;
use crate::handler::Handler;
use crate::metrics::Meter;
use crate::zone::Zone;
use crate::{DnsConfig, DnsError, Metrics};

/// How often gauges are brought up to date.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long questions that wait for an upstream may hold up the end.
const DRAIN: Duration = Duration::from_secs(2);

/// A DNS server whose sockets are bound and not yet read.
#[derive(Debug)]
pub struct Server {
    config: DnsConfig,
    zone: Zone,
    bound: Vec<socket::Bound>,
}

/// What the tasks of a running server share.
struct Shared {
    handler: Handler,
    zones: watch::Receiver<Arc<Zone>>,
    /// Questions that wait for an upstream.
    pending: TaskTracker,
    stop: CancellationToken,
    tcp_connections_max: usize,
    tcp_idle_timeout: Duration,
}

impl Server {
    /// Binds every address of `config.listen`. A port of 0 takes a free one, the same for UDP and TCP.
    ///
    /// # Errors
    /// When an address cannot be listened at, or the configuration contradicts itself.
    pub fn bind(config: &DnsConfig) -> Result<Self, DnsError> {
        if config.listen.is_empty() {
            return Err(DnsError::NoListenAddress);
        }
        let zone = Zone::new(config)?;
        let bound = config.listen.iter().map(|&address| socket::bind(address, config.sockets.max(1)));
        Ok(Self { config: config.clone(), zone, bound: bound.collect::<Result<_, _>>()? })
    }

    /// The addresses that are listened at.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|bound| bound.address).collect()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the runtime does not take the sockets, or one of the server's tasks panicked.
    pub async fn serve(
        self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Result<(), DnsError> {
        let listening = self.local_addrs();
        let mut zone = self.zone;
        zone.update(&snapshots.borrow_and_update());
        let origin = zone.origin().clone();
        let (publish, zones) = watch::channel(Arc::new(zone));
        let shared = Arc::new(Shared {
            handler: Handler { forwarder: Forwarder::new(&self.config, &listening, metrics.clone()) },
            zones,
            pending: TaskTracker::new(),
            stop: shutdown.child_token(),
            tcp_connections_max: self.config.tcp_connections_max,
            tcp_idle_timeout: self.config.tcp_idle_timeout,
        });
        let mut tasks = JoinSet::new();
        for bound in self.bound {
            let meter = Arc::new(Meter::new(&metrics, bound.address, &origin));
            start(bound, &shared, &meter, &mut tasks)?;
        }
        info!(?listening, zone = %origin, upstreams = ?self.config.upstreams, "DNS serves");
        let failed = tokio::select! {
            () = keep_up(&publish, &mut snapshots, &shared.handler.forwarder, &metrics, &shutdown) => None,
            // Before the shutdown none ends of its own accord.
            Some(Err(source)) = tasks.join_next() => Some(DnsError::Task { source }),
        };
        metrics.set_state(false, false, 0);
        shared.stop.cancel();
        shared.pending.close();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a DNS task ended badly");
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn start(
    bound: socket::Bound,
    shared: &Arc<Shared>,
    meter: &Arc<Meter>,
    tasks: &mut JoinSet<()>,
) -> Result<(), DnsError> {
    let address = bound.address;
    let failed = |protocol| move |source| DnsError::Listen { protocol, address, source };
    for socket in bound.udp {
        let socket = tokio::net::UdpSocket::from_std(socket).map_err(failed("UDP"))?;
        tasks.spawn(udp::serve(Arc::new(socket), Arc::clone(shared), Arc::clone(meter)));
    }
    let listener = tokio::net::TcpListener::from_std(bound.tcp).map_err(failed("TCP"))?;
    tasks.spawn(tcp::serve(listener, Arc::clone(shared), Arc::clone(meter)));
    Ok(())
}

/// Makes a zone of each new snapshot, until `shutdown`. When nobody writes snapshots any more, the last one serves on.
async fn keep_up(
    publish: &watch::Sender<Arc<Zone>>,
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    forwarder: &Forwarder,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) {
    let mut report = tokio::time::interval(REPORT_EVERY);
    let mut watched = true;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        metrics.set_state(snapshot.synced, snapshot.synced, snapshot.services.len());
        let mut zone = (**publish.borrow()).clone();
        zone.update(&snapshot);
        publish.send_replace(Arc::new(zone));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = report.tick() => forwarder.report(),
                changed = snapshots.changed(), if watched => {
                    watched = changed.is_ok();
                    break;
                }
            }
        }
    }
}
