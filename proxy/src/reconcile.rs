//! The loop: brings the data plane in line with the newest snapshot, at its own pace.
//!
//! Events only say that something is waiting. A sync takes the newest snapshot and the links as they are, computes
//! what changed, and carries out the difference. Now and then, and whenever something went wrong, the data plane is
//! read back and compared as a whole.
//!
//! **Invariant:** nothing is written before every list has been read once: until then the kernel goes on with what
//! the former process left in it.

mod site;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seaway_model::{Node, ServiceKey, Snapshot};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::dataplane::{Applied, Dataplane, DataplaneError, Failure, Subject};
use crate::desired::{Computation, NodeView};
use crate::firewall::{self, PodPath, Rulesets};
use crate::frontend::FrontendKey;
use crate::links::{self, Link};
use crate::masquerade::MasqueradeOrder;
use crate::metrics::SyncEnd;
use crate::monitor::Monitor;
use crate::notices::{self, MaglevOffer, Notices};
use crate::plan::{Actual, ClusterNets, Host, Plan, diff, diff_of};
use crate::sockets::View;
use crate::status::{Xdp, XdpUplink};
use crate::{Metrics, Mode, ProxyConfig, stale};

use site::{IP_FAMILIES, cluster, ip_families, tunnels};
pub use site::{host, view};

/// How often the links are looked at where the kernel tells of their changes, and where it does not.
const LINKS_INTERVAL: Duration = Duration::from_secs(10);
const LINKS_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A change of so many frontends leaves much memory behind that nobody needs again.
const LARGE: usize = 10_000;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Keeps one data plane in line.
pub struct Reconciler {
    config: ProxyConfig,
    metrics: Metrics,
    computation: Computation,
    /// `None` while a call is under way on another thread.
    dataplane: Option<Box<dyn Dataplane>>,
    /// `None`: it has to be read.
    actual: Option<Actual>,
    /// Frontends that may differ from what is held.
    pending: BTreeSet<FrontendKey>,
    links: Vec<Link>,
    serves_pod_links: bool,
    /// The pod subnets and addresses of all nodes.
    cluster: Arc<ClusterNets>,
    /// Other people's rules about packets between pods.
    rulesets: watch::Receiver<Rulesets>,
    /// Which way these go, as last decided.
    pod_path: Option<PodPath>,
    /// What XDP did when that was last asked.
    xdp: Xdp,
    /// The snapshot of the last sync.
    former: Snapshot,
    /// UDP flows have to be looked through: an endpoint is gone, or may have gone before this process began.
    forget_due: bool,
    /// Endpoints are gone, or may have gone before this process began: sockets may have to be ended.
    departure: bool,
    /// The own Node as last seen. Before it is seen nothing is written: without its addresses half of what the kernel
    /// holds would be taken away. When it vanishes later, its addresses are still there.
    node: Option<Arc<Node>>,
    failures: u32,
    /// The last failure that was logged, so that a lasting one is logged once.
    logged: Option<String>,
    notices: Notices,
    trim_due: bool,
    maglev_offered: bool,
    maglev_backends_max: usize,
    dsr_offered: bool,
    mode: &'static str,
    /// The families that the node has addresses of.
    families: &'static [&'static str],
    views: watch::Sender<View>,
}

/// Steps that failed, or why there were none.
type Outcome = Result<Vec<Failure>, DataplaneError>;

impl Reconciler {
    /// A loop over `dataplane`.
    pub fn new(config: ProxyConfig, metrics: Metrics, dataplane: Box<dyn Dataplane>) -> Self {
        let mut reconciler = Self::waiting(config, metrics);
        reconciler.begin(dataplane);
        reconciler
    }

    /// A loop whose data plane is being opened.
    pub(crate) fn waiting(mut config: ProxyConfig, metrics: Metrics) -> Self {
        config.node_port_loopback &= config.mode != Mode::Nftables;
        let notices = Notices::new(config.reporter.clone());
        // What is likely: where it turns out to be otherwise, everything is decided anew.
        let maglev_offered = matches!(config.mode, Mode::Auto | Mode::Ebpf);
        let dsr_offered = maglev_offered;
        Self {
            config,
            metrics,
            computation: Computation::default(),
            serves_pod_links: false,
            cluster: Arc::default(),
            rulesets: watch::Sender::new(firewall::unread()).subscribe(),
            pod_path: None,
            xdp: Xdp::default(),
            dataplane: None,
            actual: None,
            pending: BTreeSet::new(),
            links: Vec::new(),
            former: Snapshot::default(),
            forget_due: true,
            departure: true,
            node: None,
            failures: 0,
            logged: None,
            notices,
            trim_due: false,
            maglev_offered,
            maglev_backends_max: usize::MAX,
            dsr_offered,
            mode: "",
            families: &IP_FAMILIES,
            views: watch::Sender::new(View::default()),
        }
    }

    /// Whether `masqueradeAll` has its effect. Programs at pods' links have to know each of these: a pod's socket leaves
    /// the translation to them.
    fn masquerades_all(&self, dataplane: &dyn Dataplane) -> bool {
        let known = self.config.own_pod_links || !self.config.pod_link_prefixes.is_empty();
        let why = match (dataplane.offers_masquerade_all(), self.serves_pod_links && !known) {
            (false, _) => "this mode cannot",
            (true, true) => "the pods' links are not known (--pod-link-prefix)",
            (true, false) => return true,
        };
        if self.config.masquerade_all {
            tracing::warn!(
                mode = self.mode,
                why,
                "masqueradeAll: backends see the pods of this node all the same"
            );
        }
        false
    }

    /// The data plane is open.
    pub(crate) fn begin(&mut self, dataplane: Box<dyn Dataplane>) {
        self.mode = dataplane.name();
        self.config.status.update(|status| self.mode.clone_into(&mut status.mode));
        self.maglev_offered = dataplane.offers_maglev();
        self.serves_pod_links = dataplane.serves_pod_links();
        if self.config.maglev && !self.maglev_offered {
            tracing::warn!(mode = self.mode, "this mode has no Maglev: backends are chosen at random");
        }
        self.dsr_offered = dataplane.offers_dsr();
        if self.config.dsr && !self.dsr_offered {
            tracing::warn!(mode = self.mode, "this mode has no direct server return: source NAT is used");
        }
        self.maglev_backends_max = dataplane.maglev_backends_max();
        self.config.masquerade_all &= self.masquerades_all(&*dataplane);
        // Packets from a loopback address cannot leave the node, and nftables sees nothing but packets.
        self.config.node_port_loopback &= self.mode != Mode::Nftables.name();
        self.config.masquerade.iter_mut().for_each(|order| order.begin(&*dataplane));
        self.dataplane = Some(dataplane);
    }

    /// Looks at other people's rules about packets between pods.
    pub(crate) fn observe(&mut self, rulesets: watch::Receiver<Rulesets>) {
        self.rulesets = rulesets;
    }

    /// Decides what a sync will want: the kernel takes its time with opening a data plane.
    pub(crate) fn foresee(&mut self, snapshot: &Snapshot) {
        if !snapshot.synced {
            return;
        }
        if let Some(view) = self.look(snapshot) {
            self.pending.append(&mut self.computation.update(snapshot, &view));
        }
    }

    /// The node as it is now; `None`: it is not known.
    fn look(&mut self, snapshot: &Snapshot) -> Option<NodeView> {
        if self.links.is_empty() {
            self.links_changed();
        }
        if let Some(node) = snapshot.nodes.get(&*self.config.node_name) {
            self.node = Some(Arc::clone(node));
        }
        let view = |node| view(&self.config, Some(node), &self.links);
        let (maglev_offered, dsr_offered) = (self.maglev_offered, self.dsr_offered);
        self.node.as_deref().map(|node| NodeView { maglev_offered, dsr_offered, ..view(node) })
    }

    /// What the loop works with, for those who clean up behind it.
    pub(crate) fn views(&self) -> watch::Receiver<View> {
        self.views.subscribe()
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, shutdown: CancellationToken) {
        let mut resync = interval(self.config.resync_interval);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        resync.reset();
        let monitor = Monitor::of_links()
            .inspect_err(
                |error| tracing::warn!(%error, "the kernel does not tell of changed links; they are polled"),
            )
            .ok();
        let heard_of_links = async || match &monitor {
            Some(monitor) => monitor.changed().await,
            None => std::future::pending().await,
        };
        let mut look_at_links =
            interval(if monitor.is_some() { LINKS_INTERVAL } else { LINKS_POLL_INTERVAL });
        look_at_links.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lost = self.dataplane.as_ref().and_then(|dataplane| dataplane.lost());
        let heard_of_loss = async || match &lost {
            Some(lost) => lost.notified().await,
            None => std::future::pending().await,
        };
        let mut rulesets = self.rulesets.clone();
        let heard_of_rules = async |rulesets: &mut watch::Receiver<Rulesets>| {
            // Nobody looks at the rules: that is no change.
            if rulesets.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let mut order = self.config.masquerade.clone();
        let mut open = true;
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = snapshots.changed(), if open => open = changed.is_ok(),
                _ = resync.tick() => self.actual = None,
                () = heard_of_loss() => self.actual = None,
                () = heard_of_rules(&mut rulesets) => {}
                () = MasqueradeOrder::changed(&mut order) => {}
                () = heard_of_links() => if !self.links_changed() { continue },
                _ = look_at_links.tick() => if !self.links_changed() { continue },
                () = retry => {}
            }
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            if !snapshot.synced {
                continue;
            }
            self.config.status.pending();
            self.metrics.queued(self.families);
            let ok = self.sync(&snapshot).await;
            if self.dataplane.is_none() {
                return; // Lost in a panic: only a new start helps.
            }
            retry_at = (!ok).then(|| tokio::time::Instant::now() + self.backoff());
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.config.min_sync_interval) => {}
            }
        }
    }

    /// The node as its data plane is to see it.
    fn host(&mut self) -> Host {
        let mut host = host(&self.config, self.node.as_deref(), &self.links);
        if self.serves_pod_links {
            host.uplinks.extend(tunnels(&self.config, &self.links));
            host.cluster = Arc::clone(&self.cluster);
            host.hand_over = self.hands_over(&host);
        } else {
            host.pod_links.clear();
            host.shaped_links.clear();
            host.tunnel_port = None;
        }
        host
    }

    /// One sync. Returns whether everything is as it should be.
    pub async fn sync(&mut self, snapshot: &Snapshot) -> bool {
        let started = Instant::now();
        let Some(view) = self.look(snapshot) else {
            let text = format!("waiting for the Node object {:?}", self.config.node_name);
            self.config.status.update(|status| status.last_error = Some(text));
            return true;
        };
        let changes = snapshot.changes_since(&self.former);
        if !changes.nodes.is_empty() {
            self.cluster = cluster(snapshot);
        }
        let host = self.host();
        self.pending.append(&mut self.computation.update(snapshot, &view));
        self.metrics.changed(&changes);
        self.forget_due |= stale::udp_vanished_of(&changes.services, &self.former, snapshot);
        self.departure |= stale::departed(&changes.services, &self.former, snapshot);
        self.former = snapshot.clone();
        self.views.send_modify(|view| {
            view.desired = self.computation.desired().clone();
            view.snapshot = snapshot.clone();
        });
        self.families = ip_families(&host);
        let full = self.actual.is_none();
        let mut result = self.bring_in_line(&host).await;
        if result.is_ok()
            && self.forget_due
            && let Err(error) = self.forget_udp(snapshot).await
        {
            result = Err(error);
        }
        if result.is_ok() && std::mem::take(&mut self.departure) {
            self.views.send_modify(|view| view.departures += 1);
        }
        let ok = match result {
            Ok(failed) => self.settle(failed),
            Err(error) => {
                self.actual = None;
                self.failed(&error);
                false
            }
        };
        let desired = self.computation.desired();
        let (mode, families) = (self.mode, self.families);
        let sync = SyncEnd { mode, families, took: started.elapsed(), ok, full };
        self.metrics.sync_done(desired, &sync);
        let devices = host.uplinks.iter().map(|device| device.name.to_string()).collect();
        let last_error = self.logged.clone();
        self.config.status.update(|status| {
            status.devices = devices;
            status.last_error = last_error;
        });
        if ok {
            self.failures = 0;
            self.config.status.sync_done(desired, started.elapsed(), desired.complete);
            if let Some(triggered_at) = snapshot.triggered_at {
                self.metrics.programmed(self.families, triggered_at);
            }
        }
        self.notices.conflicts(snapshot, self.computation.desired());
        self.tell_wishes(snapshot, &changes.services);
        if std::mem::take(&mut self.trim_due) {
            tokio::task::spawn_blocking(seaway_ebpf_loader::trim_memory);
        }
        ok
    }

    /// Decides whether packets between pods are handed over, and tells it when that has changed.
    fn hands_over(&mut self, host: &Host) -> bool {
        let links = host.pod_links.iter().chain(&host.uplinks).map(|link| Arc::clone(&link.name)).collect();
        let path = firewall::judge(self.config.pod_hand_over, &self.rulesets.borrow(), &links);
        let direct = path.direct;
        if self.pod_path.as_ref() != Some(&path) {
            tracing::info!("{path}");
            self.metrics.pods_handed_over(direct);
            self.config.status.update(|status| status.pod_path = Some(path.clone()));
            self.pod_path = Some(path);
        }
        direct
    }

    /// Tells those of `services` whose wishes are not followed.
    fn tell_wishes(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceKey>) {
        let maglev = MaglevOffer {
            offered: self.maglev_offered,
            by_default: self.config.maglev,
            backends_max: self.maglev_backends_max,
        };
        self.notices.balancing(snapshot, services, maglev);
        self.notices.forwarding(snapshot, services, self.dsr_offered);
    }

    /// Once new flows go elsewhere, flows to endpoints that are gone are forgotten.
    async fn forget_udp(&mut self, snapshot: &Snapshot) -> Result<(), DataplaneError> {
        let serving = stale::serving_udp(snapshot);
        let started = Instant::now();
        let forgotten = self.on_thread(move |dataplane| dataplane.forget_udp(&serving)).await??;
        self.forget_due = false;
        self.metrics.forgot_udp(self.families, forgotten, started.elapsed());
        Ok(())
    }

    async fn bring_in_line(&mut self, host: &Host) -> Outcome {
        let (actual, known) = match self.actual.take() {
            Some(actual) => (actual, true),
            None => (self.read().await?, false),
        };
        let order = self.config.masquerade.clone();
        let wanted = order.as_ref().and_then(MasqueradeOrder::wanted);
        let (held, config, links) = (&actual.host.masquerading, &self.config, &self.links);
        let masquerading = order.as_ref().map(|o| o.decide(wanted.as_deref(), host, held, config, links));
        let host = &Host { masquerading: masquerading.unwrap_or_default(), ..host.clone() };
        let outcome = self.carry_out(host, actual, known).await;
        if let Some(order) = order.filter(|_| wanted.is_some()) {
            order.answer(host, &outcome);
        }
        outcome
    }

    /// `known`: `actual` is what was held after the last time.
    async fn carry_out(&mut self, host: &Host, actual: Actual, known: bool) -> Outcome {
        let plan = if known {
            diff_of(&self.pending, self.computation.desired(), host, &actual)
        } else {
            let plan = diff(self.computation.desired(), host, &actual);
            self.metrics.repaired(plan.unexpected(&self.pending));
            plan
        };
        self.pending.clear();
        if plan.is_empty() {
            self.actual = Some(actual);
            return Ok(Vec::new());
        }
        self.metrics.planned(&plan);
        tracing::debug!(
            upserts = plan.upserts.len(),
            removals = plan.removals.len(),
            host = plan.host.is_some(),
            "applying"
        );
        self.trim_due |= plan.len() >= LARGE;
        // What will be held can be told while it is being written.
        let plan = Arc::new(plan);
        let held = async { actual.after(&plan) };
        let (applied, held) = tokio::join!(self.apply(Arc::clone(&plan)), held);
        let failed = applied?.failed;
        self.actual = Some(held);
        Ok(failed)
    }

    /// What to make of steps that failed. Returns whether to leave it at that.
    fn settle(&mut self, failed: Vec<Failure>) -> bool {
        let Some(first) = failed.first() else {
            self.logged = None;
            return true;
        };
        self.failed(&first.error);
        let mut lasting = true;
        for failure in failed {
            self.notice(&failure);
            match (failure.subject, failure.error) {
                // Trying again is of no use before something changes; the next resync does.
                (Subject::Frontend(key), DataplaneError::Unsupported { .. }) => {
                    if let Some(actual) = &mut self.actual {
                        actual.frontends.remove(&key);
                    }
                }
                (subject, _) => {
                    lasting = false;
                    if let Subject::Frontend(key) = subject {
                        self.pending.insert(key);
                    }
                }
            }
        }
        if !lasting {
            // What is held is not what was planned: compare as a whole next time.
            self.actual = None;
        }
        lasting
    }

    /// Tells whom a failed step is about.
    fn notice(&mut self, failure: &Failure) {
        let Subject::Frontend(key) = failure.subject else { return };
        let Some(entry) = self.computation.desired().frontends.get(&key) else { return };
        let address = SocketAddr::new(key.addr, key.port);
        let (reason, what) = match &failure.error {
            DataplaneError::Unsupported { what, backend, .. } => {
                (notices::UNSUPPORTED, format!("{what} is not supported by proxy mode {backend}"))
            }
            error @ DataplaneError::Full { .. } => (notices::FULL, error.to_string()),
            error if error.is_taken() => {
                (notices::CONFLICT, "another process of the node listens there".to_owned())
            }
            error if error.is_out_of_files() => {
                (notices::EXHAUSTED, "no more files can be opened".to_owned())
            }
            _ => return,
        };
        let message =
            format!("{address}/{} is not served on node {}: {what}", key.protocol, self.config.node_name);
        self.notices.warn(&self.former, &entry.owner.service, reason, message);
    }

    fn failed(&mut self, error: &DataplaneError) {
        self.failures += 1;
        let text = chain(error);
        if self.logged.as_ref() != Some(&text) {
            tracing::warn!(error = %text, "the data plane is not in line with what is desired");
            self.logged = Some(text);
        }
    }

    fn backoff(&self) -> Duration {
        BACKOFF_MIN.saturating_mul(1 << self.failures.clamp(1, 10)).min(BACKOFF_MAX)
    }

    /// Looks at the links. Returns whether they changed.
    fn links_changed(&mut self) -> bool {
        match links::list() {
            Ok(links) => {
                let changed = links != self.links;
                self.links = links;
                changed
            }
            Err(error) => {
                tracing::warn!(%error, "cannot list the links of this node");
                false
            }
        }
    }

    async fn read(&mut self) -> Result<Actual, DataplaneError> {
        let read = |dataplane: &mut dyn Dataplane| {
            let (actual, drops, xdp) = (dataplane.read(), dataplane.drops(), dataplane.xdp());
            (actual, drops, xdp, dataplane.rule_counts(), dataplane.localhost_node_ports())
        };
        let (actual, drops, xdp, rules, localhost) = self.on_thread(read).await?;
        self.tell_xdp(xdp);
        self.metrics.dropped(&drops);
        self.metrics.rules_counted(&rules);
        if let Some(accepted) = localhost {
            self.metrics.localhost_node_ports(accepted);
        }
        self.notices.exhaustion(&self.config.node_name, &drops);
        self.config.status.update(|status| status.drops = drops);
        actual
    }

    async fn apply(&mut self, plan: Arc<Plan>) -> Result<Applied, DataplaneError> {
        let (applied, rules, xdp) = self
            .on_thread(move |dataplane| {
                let applied = dataplane.apply(&plan);
                (applied, dataplane.rule_counts(), plan.host.is_some().then(|| dataplane.xdp()))
            })
            .await?;
        self.metrics.rules_counted(&rules);
        if let Some(xdp) = xdp {
            self.tell_xdp(xdp);
        }
        applied
    }

    /// Tells what uplinks run of XDP, when that has changed.
    fn tell_xdp(&mut self, xdp: Xdp) {
        for uplink in xdp.uplinks.iter().filter(|uplink| !self.xdp.uplinks.contains(uplink)) {
            let XdpUplink { device, mode, note } = uplink;
            let note = note.as_deref().unwrap_or("it does what it can");
            tracing::info!(device, mode, "XDP at an uplink: {note}");
        }
        self.metrics.xdp_forwarded(xdp.packets);
        self.config.status.update(|status| status.xdp = xdp.clone());
        self.xdp = xdp;
    }

    /// System calls block: they are made where they hold nobody up.
    async fn on_thread<R: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut dyn Dataplane) -> R + Send + 'static,
    ) -> Result<R, DataplaneError> {
        let Some(mut dataplane) = self.dataplane.take() else { return Err(DataplaneError::Lost) };
        let done = tokio::task::spawn_blocking(move || {
            let result = call(dataplane.as_mut());
            (dataplane, result)
        });
        let (dataplane, result) = done.await.map_err(|_| DataplaneError::Lost)?;
        self.dataplane = Some(dataplane);
        Ok(result)
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
