//! The sockets: several UDP sockets and a TCP listener per address, and how they start and end.

mod batch;
mod datagram;
mod exchange;
mod guard;
mod limit;
mod queue;
mod seats;
mod socket;
mod state;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::metrics::Meter;
use crate::settings::{self, Settings};
use crate::zone::Zone;
use crate::{DnsConfig, DnsError, Metrics, Watched};
use limit::Limiter;
use state::{Keeper, State};
use udp::Listeners;

/// How long clients that do not read their answers may hold up the end.
const DRAIN: Duration = Duration::from_secs(2);
/// How often it is looked whether somebody still asks.
const DRAIN_EVERY: Duration = Duration::from_millis(20);

/// A DNS server whose sockets are bound and not yet read.
#[derive(Debug)]
pub struct Server {
    config: DnsConfig,
    settings: Settings,
    zone: Zone,
    bound: Vec<socket::Bound>,
}

/// What the tasks of a running server share.
struct Shared {
    states: watch::Receiver<Arc<State>>,
    limiter: Limiter,
    metrics: Metrics,
    /// Questions that wait for an upstream.
    pending: TaskTracker,
    /// Ends the tasks: nobody asks any more.
    close: CancellationToken,
    began: Instant,
    /// When somebody asked last, in milliseconds from `began`.
    asked_ms: AtomicU64,
    queue_max: usize,
    tcp_connections_max: usize,
    tcp_idle_timeout: Duration,
}

impl Shared {
    fn new(states: watch::Receiver<Arc<State>>, config: &DnsConfig, metrics: &Metrics) -> Self {
        Self {
            states,
            limiter: Limiter::default(),
            metrics: metrics.clone(),
            pending: TaskTracker::new(),
            close: CancellationToken::new(),
            began: Instant::now(),
            asked_ms: AtomicU64::new(0),
            queue_max: config.queue_max,
            tcp_connections_max: config.tcp_connections_max,
            tcp_idle_timeout: config.tcp_idle_timeout,
        }
    }

    /// Notes that somebody asks.
    fn asked(&self, now: Instant) {
        let since = now.saturating_duration_since(self.began).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        // The threads share this number: to write it for every packet would have them wait for each other.
        if self.asked_ms.load(Ordering::Relaxed) != since {
            self.asked_ms.store(since, Ordering::Relaxed);
        }
    }

    /// For how long nobody has asked.
    fn quiet(&self) -> Duration {
        let asked = Duration::from_millis(self.asked_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(asked)
    }

    /// Waits until nobody asks and nothing is owed, or until that takes too long.
    async fn drain(&self, config: &DnsConfig) {
        let began = Instant::now();
        while began.elapsed() < config.drain_max {
            let quiet = self.quiet().min(began.elapsed());
            if quiet >= config.drain_quiet && self.pending.is_empty() {
                return;
            }
            sleep(DRAIN_EVERY).await;
        }
    }
}

impl Server {
    /// Reads the settings file, if there is one, and binds every address of `config.listen`. A port of 0 takes a free one,
    /// the same for UDP and TCP.
    ///
    /// # Errors
    /// When an address cannot be listened at, the configuration contradicts itself, or the settings make no sense.
    pub fn bind(config: &DnsConfig) -> Result<Self, DnsError> {
        Self::bind_among(config, Vec::new())
    }

    /// The same, with the sockets that a former server has left where they listen at one of the addresses.
    pub(crate) fn bind_among(config: &DnsConfig, left: Vec<OwnedFd>) -> Result<Self, DnsError> {
        if config.listen.is_empty() {
            return Err(DnsError::NoListenAddress);
        }
        let settings = settings::load(config)?;
        let zone = Zone::new(&settings.config)?;
        let mut left = socket::Left::of(left);
        let sockets = config.sockets.max(1);
        let bound = config.listen.iter().map(|&address| socket::bind(address, sockets, &mut left));
        Ok(Self { config: config.clone(), settings, zone, bound: bound.collect::<Result<_, _>>()? })
    }

    /// All its sockets.
    pub(crate) fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        self.bound.iter().flat_map(socket::Bound::sockets).collect()
    }

    /// The addresses that are listened at.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|bound| bound.address).collect()
    }

    /// Serves until `shutdown`, and then until nobody asks any more.
    ///
    /// # Errors
    /// When the runtime does not take the sockets, certificates cannot be read, or one of the server's tasks panicked.
    pub async fn serve(
        self,
        watched: impl Into<Watched>,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Result<(), DnsError> {
        let Watched { mut snapshots, pods } = watched.into();
        let listening = self.local_addrs();
        let mut zone = self.zone;
        zone.update(&snapshots.borrow_and_update());
        let origin = zone.origin().clone();
        let first = State::new(&self.settings, zone, None, &listening, &metrics)?;
        metrics.set_plugins(&listening, &self.settings);
        let (publish, states) = watch::channel(Arc::new(first));
        let shared = Arc::new(Shared::new(states, &self.config, &metrics));
        let mut tasks = JoinSet::new();
        let mut listeners = Listeners::new(shared.close.clone());
        for bound in self.bound {
            let meter = Arc::new(Meter::new(&metrics, bound.address, &origin));
            start(bound, &shared, &meter, &mut listeners, &mut tasks)?;
        }
        info!(?listening, zone = %origin, upstreams = ?self.settings.config.upstreams, "DNS serves");
        let config = self.config;
        let settings = self.settings;
        let mut keeper = Keeper {
            config: config.clone(),
            settings,
            pods,
            listening,
            publish,
            metrics: metrics.clone(),
            draining: false,
        };
        keeper.tell(&snapshots.borrow().clone());
        let failed = tokio::select! {
            () = keeper.keep_up(&mut snapshots, &shutdown) => None,
            // Before the end none ends of its own accord.
            Some(Err(source)) = tasks.join_next() => Some(DnsError::Task { source }),
        };
        keeper.draining = true;
        metrics.set_draining();
        if failed.is_none() {
            let draining = CancellationToken::new();
            tokio::select! {
                () = shared.drain(&config) => {}
                // What changes meanwhile is to be told, too.
                () = keeper.keep_up(&mut snapshots, &draining) => {}
            }
        }
        metrics.set_state(false, false, 0);
        listeners.stop();
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
    listeners: &mut Listeners,
    tasks: &mut JoinSet<()>,
) -> Result<(), DnsError> {
    let address = bound.address;
    let failed = |protocol| move |source| DnsError::Listen { protocol, address, source };
    for socket in bound.udp {
        tasks.spawn(listeners.start(socket, shared, meter).map_err(failed("UDP"))?);
    }
    let listener = tokio::net::TcpListener::from_std(bound.tcp).map_err(failed("TCP"))?;
    tasks.spawn(tcp::serve(listener, Arc::clone(shared), Arc::clone(meter)));
    Ok(())
}
