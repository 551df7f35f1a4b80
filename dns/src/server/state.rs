//! What questions are answered from, and how it is kept up with the cluster and with the settings file: a new state is made
//! beside the one that serves, and put in its place.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::handler::Handler;
use crate::settings::{self, Settings};
use crate::zone::Zone;
use crate::{DnsConfig, DnsError, Metrics, PodRecords};

/// How often gauges are brought up to date.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How often the settings file is looked at, and the files that it names.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// What questions are answered from.
#[derive(Debug)]
pub(super) struct State {
    pub(super) zone: Arc<Zone>,
    pub(super) handler: Arc<Handler>,
    pub(super) rate_limit: Option<u32>,
}

impl State {
    pub(super) fn new(
        settings: &Settings,
        zone: Zone,
        former: Option<&Self>,
        listening: &[SocketAddr],
        metrics: &Metrics,
    ) -> Result<Self, DnsError> {
        let former = former.map(|former| &*former.handler);
        let handler = Arc::new(Handler::new(settings, former, listening, metrics)?);
        Ok(Self { zone: Arc::new(zone), handler, rate_limit: settings.config.rate_limit })
    }
}

/// Keeps the state up.
pub(super) struct Keeper {
    pub(super) config: DnsConfig,
    pub(super) settings: Settings,
    /// Whether the first settings wanted every pod of the cluster in the snapshots.
    pub(super) all_pods: bool,
    pub(super) listening: Vec<SocketAddr>,
    pub(super) publish: watch::Sender<Arc<State>>,
    pub(super) metrics: Metrics,
    pub(super) draining: bool,
}

impl Keeper {
    /// Follows snapshots and settings, until `end`. When nobody writes snapshots any more, the last one serves on.
    pub(super) async fn keep_up(
        &mut self,
        snapshots: &mut watch::Receiver<Arc<Snapshot>>,
        end: &CancellationToken,
    ) {
        let mut report = tokio::time::interval(REPORT_EVERY);
        let mut reload = tokio::time::interval(RELOAD_EVERY);
        let (mut watched, mut refused) = (true, None);
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                _ = report.tick() => self.publish.borrow().handler.report(),
                _ = reload.tick(), if self.config.file.is_some() => self.reload(&mut refused),
                changed = snapshots.changed(), if watched => {
                    watched = changed.is_ok();
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.follow(&snapshot);
                }
            }
        }
    }

    /// Says in which state the server is; one that is told to stop is not ready.
    pub(super) fn tell(&self, snapshot: &Snapshot) {
        let ready = snapshot.synced && !self.draining;
        self.metrics.set_state(ready, snapshot.synced, snapshot.services.len());
    }

    /// Brings the zone to a snapshot.
    fn follow(&self, snapshot: &Arc<Snapshot>) {
        let state = Arc::clone(&self.publish.borrow());
        let mut zone = (*state.zone).clone();
        let updated = zone.update(snapshot);
        self.publish.send_replace(Arc::new(State {
            zone: Arc::new(zone),
            handler: Arc::clone(&state.handler),
            rate_limit: state.rate_limit,
        }));
        // Not before answers show it.
        self.tell(snapshot);
        let took = snapshot.triggered_at.and_then(|at| SystemTime::now().duration_since(at).ok());
        for (kind, changed) in
            [("cluster_ip", updated.cluster_ip), ("headless_with_selector", updated.headless)]
        {
            if let Some(took) = took.filter(|_| changed) {
                self.metrics.programmed(kind, took);
            }
        }
    }

    /// Takes newer settings over, if they are any good. `refused` is what was said about them last.
    fn reload(&mut self, refused: &mut Option<String>) {
        let applied = settings::load(&self.config).and_then(|settings| self.apply(settings));
        match applied {
            Ok(false) => *refused = None,
            Ok(true) => {
                *refused = None;
                self.metrics.settings_loaded(true);
                info!(file = ?self.config.file, "the settings are taken over");
            }
            Err(error) => {
                let text = chain(&error);
                if refused.as_deref() != Some(&text) {
                    self.metrics.settings_loaded(false);
                    error!("{text}\nthe former settings stay");
                    *refused = Some(text);
                }
            }
        }
    }

    fn apply(&mut self, settings: Settings) -> Result<bool, DnsError> {
        if settings == self.settings {
            return Ok(false);
        }
        if settings.config.pod_records == PodRecords::Verified && !self.all_pods {
            // Pods that are there would be denied.
            let path = self.config.file.as_deref().unwrap_or(Path::new("")).display().to_string();
            return Err(DnsError::PodsUnknown { path });
        }
        let state = Arc::clone(&self.publish.borrow());
        let zone = if settings.config == self.settings.config {
            (*state.zone).clone()
        } else {
            let mut zone = Zone::new(&settings.config)?;
            zone.update(state.zone.snapshot());
            zone
        };
        let next = State::new(&settings, zone, Some(&state), &self.listening, &self.metrics)?;
        self.publish.send_replace(Arc::new(next));
        self.metrics.set_plugins(&self.listening, &settings);
        self.settings = settings;
        Ok(true)
    }
}

/// An error with what caused it.
fn chain(error: &DnsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
