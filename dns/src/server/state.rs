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
use crate::settings::{self, Files, Settings};
use crate::zone::Zone;
use crate::{DnsConfig, DnsError, Metrics, PodRecords, PodsWanted};

/// How often gauges are brought up to date.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How often the settings file is looked at, and the files that it names, and resolv.conf.
const RELOAD_EVERY: Duration = Duration::from_secs(1);
/// What is new in it has to be the same after so long: whoever writes it may be in the middle of that.
const SETTLES_IN: Duration = Duration::from_millis(100);

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

    /// The same for one task.
    pub(super) fn own(&self) -> Self {
        let (zone, handler) = (Arc::new(self.zone.own()), Arc::clone(&self.handler));
        Self { zone, handler, rate_limit: self.rate_limit }
    }
}

/// Keeps the state up.
pub(super) struct Keeper {
    pub(super) config: DnsConfig,
    pub(super) settings: Settings,
    /// Who is told whether every pod of the cluster is wanted in the snapshots.
    pub(super) pods: Option<PodsWanted>,
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
        let (mut watched, mut look) = (true, Look::default());
        let follows = self.config.file.is_some() || self.config.resolv_conf.is_some();
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                _ = report.tick() => self.publish.borrow().handler.report(),
                _ = reload.tick(), if follows => if self.is_new(&mut look) {
                    reload.reset_after(SETTLES_IN);
                } else {
                    self.reload(&mut look);
                },
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

    /// Looks at the settings file. Whether it says something that it did not say before.
    fn is_new(&self, look: &mut Look) -> bool {
        if look.files.as_ref().is_some_and(Files::are_unchanged) {
            return false;
        }
        let files = Files::new(SystemTime::now());
        let found = settings::load_strictly(&self.config, &files).map_err(|error| chain(&error));
        look.files = Some(files);
        let new = look.found.as_ref() != Some(&found);
        if new {
            (look.found, look.said) = (Some(found), None);
        }
        new
    }

    /// Takes over what the file says, if it is any good.
    fn reload(&mut self, look: &mut Look) {
        let Some(found) = &look.found else { return };
        // Compared before they are copied: most of the time nothing is new.
        let applied = match found {
            Ok(settings) if *settings == self.settings => {
                self.want_pods(settings);
                Ok(Applied::Same)
            }
            Ok(settings) => self.apply(settings.clone()).map_err(|error| chain(&error)),
            Err(text) => Err(text.clone()),
        };
        let said = match applied {
            Ok(Applied::Same) => None,
            Ok(Applied::Anew) => {
                self.metrics.settings_loaded(true);
                Some("the settings are taken over".to_owned())
            }
            Ok(Applied::Later) => Some("the settings hold as soon as all pods are listed".to_owned()),
            Err(text) => {
                if look.said.as_ref() != Some(&text) {
                    self.metrics.settings_loaded(false);
                    error!("{text}\nthe former settings stay");
                }
                look.said = Some(text);
                return;
            }
        };
        if let Some(text) = said.as_ref().filter(|_| look.said != said) {
            info!(file = ?self.config.file, resolv_conf = ?self.config.resolv_conf, "{text}");
        }
        look.said = said;
    }

    fn apply(&mut self, settings: Settings) -> Result<Applied, DnsError> {
        let state = Arc::clone(&self.publish.borrow());
        if self.lacks_pods(&settings, state.zone.snapshot()) {
            // Pods that are there would be denied.
            if self.pods.is_none() {
                let path = self.config.file.as_deref().unwrap_or(Path::new("")).display().to_string();
                return Err(DnsError::PodsUnknown { path });
            }
            self.want_pods(&settings);
            return Ok(Applied::Later);
        }
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
        self.want_pods(&settings);
        self.settings = settings;
        Ok(Applied::Anew)
    }

    /// Whether names of pods are to be verified from now on, and not all pods are known.
    fn lacks_pods(&self, settings: &Settings, snapshot: &Snapshot) -> bool {
        let verified = |settings: &Settings| settings.config.pod_records == PodRecords::Verified;
        verified(settings) && !verified(&self.settings) && !snapshot.all_pods
    }

    fn want_pods(&self, settings: &Settings) {
        if let Some(pods) = &self.pods {
            pods.tell(&settings.config);
        }
    }
}

/// What was seen of the settings file last.
#[derive(Debug, Default)]
struct Look {
    /// What it was read from.
    files: Option<Files>,
    found: Option<Result<Settings, String>>,
    /// What was said about it, once.
    said: Option<String>,
}

/// What became of settings.
enum Applied {
    /// They hold already.
    Same,
    /// They hold from now on.
    Anew,
    /// They will hold when what they need is known.
    Later,
}

/// An error with what caused it.
fn chain(error: &DnsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Name;

    /// A keeper of a server that has just started.
    fn keeper(config: DnsConfig) -> Keeper {
        let settings = settings::load(&config).unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let zone = Zone::new(&config).unwrap();
        let state = State::new(&settings, zone, None, &[], &metrics).unwrap();
        let (publish, _) = watch::channel(Arc::new(state));
        let (listening, pods, draining) = (Vec::new(), None, false);
        Keeper { config, settings, pods, listening, publish, metrics, draining }
    }

    fn look(keeper: &mut Keeper, look: &mut Look) {
        if !keeper.is_new(look) {
            keeper.reload(look);
        }
    }

    #[test]
    fn resolvers_follow_resolv_conf() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        let config = DnsConfig { resolv_conf: Some(file.clone()), ..DnsConfig::default() };
        let mut keeper = keeper(config.clone());
        let mut seen = Look::default();
        // Each step: what the file says, and who is asked after it has said so for a while, with pods' search domains.
        let steps = [
            ("", "", ""),
            ("nameserver 192.0.2.1\nsearch corp.example\n", "192.0.2.1:53", "corp.example."),
            ("# to be written", "192.0.2.1:53", "corp.example."),
            ("nameserver 192.0.2.2\nnameserver 2001:db8::1\n", "192.0.2.2:53 [2001:db8::1]:53", ""),
        ];
        for (text, upstreams, search) in steps {
            write(text);
            look(&mut keeper, &mut seen);
            look(&mut keeper, &mut seen);
            let told: Vec<String> =
                keeper.settings.config.upstreams.iter().map(ToString::to_string).collect();
            assert_eq!(
                (told.join(" "), keeper.settings.config.search.join(" ")),
                (upstreams.into(), search.into())
            );
            let forward = keeper.settings.zones[0].forward.as_ref().unwrap();
            assert_eq!(forward.upstreams.len(), told.len());
        }
        std::fs::remove_file(&file).unwrap();
        look(&mut keeper, &mut seen);
        look(&mut keeper, &mut seen);
        assert_eq!(keeper.settings.config.upstreams.len(), 2);
        // What the command line says comes first.
        write("nameserver 192.0.2.1\nsearch corp.example\n");
        let upstreams = vec!["192.0.2.9:53".parse().unwrap()];
        let own = settings::load(&DnsConfig { upstreams: upstreams.clone(), ..config.clone() }).unwrap();
        assert_eq!((own.config.upstreams, own.config.search), (upstreams, vec!["corp.example.".to_owned()]));
    }

    /// Whoever writes the file may have come as far as nothing, or half of it: each is right, and not what is meant.
    #[test]
    fn a_file_is_taken_over_when_it_has_been_the_same_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dns.toml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        let whole = "[[zone]]\nname = \"one.example\"\n[[zone]]\nname = \"two.example\"\n";
        write(whole);
        let config = DnsConfig { file: Some(file.clone()), ..DnsConfig::default() };
        let mut keeper = keeper(config);
        let mut seen = Look::default();
        // Each step: what the file says, and how many zones there are after a look at it.
        let steps = [
            (whole, 3),
            (whole, 3),
            ("", 3),
            ("[[zone]]\nname = \"one.example\"\n", 3),
            (whole, 3),
            (whole, 3),
            ("[[zone", 3),
            ("[[zone", 3),
            ("[[zone]]\nname = \"one.example\"\n", 3),
            ("[[zone]]\nname = \"one.example\"\n", 2),
            ("[[zone]]\nname = \".\"\n", 2),
            ("[[zone]]\nname = \".\"\n", 1),
        ];
        for (at, (text, zones)) in steps.into_iter().enumerate() {
            write(text);
            look(&mut keeper, &mut seen);
            assert_eq!(keeper.settings.zones.len(), zones, "step {at}");
        }
        assert_eq!(keeper.settings.zones[0].name, Name::root());
    }
}
