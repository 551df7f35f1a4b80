//! One round: look at the snapshot and at the kernel, and bring the second to the first.

use std::time::{Duration, Instant};

use seaway_model::Snapshot;
use tracing::{debug, info, warn};

use super::desired::{Desired, desired, usurped};
use super::leaks::Leaks;
use super::plan::{Op, plan};
use super::way_out::WayOut;
use super::{NodeNetworkError, install, kernel, leaks, mtu};
use crate::metrics::gauge;
use crate::netlink::{Link, Netlink};
use crate::pod::retired::{self, Undertaker};
use crate::{Metrics, NodeNetworkConfig, NodeNetworkOptions};

/// How often reservations are looked at, at most: every one is a file.
const LEAK_INTERVAL: Duration = Duration::from_secs(30);

/// What is remembered between rounds: what keeps the log short, saves work, or needs time.
pub(super) struct Reconciler {
    config: NodeNetworkConfig,
    options: NodeNetworkOptions,
    metrics: Option<Metrics>,
    netlink: Netlink,
    /// What was left out in the last round.
    skipped: Vec<String>,
    /// Another project's network configuration that runtimes take instead of ours.
    taken_instead: Option<String>,
    /// The installed plugin has been compared with its source since the start.
    plugin_compared: bool,
    leaks: Leaks,
    way_out: WayOut,
    /// The right to delete links that are done with; none while a process that DEL started has it.
    undertaker: Option<Undertaker>,
    /// When reservations were last looked at.
    looked: Option<Instant>,
    /// Since when this node cannot serve.
    failing: Option<Instant>,
}

/// How far a round came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// It is not known yet what should be.
    Nothing,
    /// Pods can be started.
    Serving,
}

impl Reconciler {
    pub(super) fn new(
        config: NodeNetworkConfig,
        options: NodeNetworkOptions,
        metrics: Option<Metrics>,
    ) -> Result<Self, NodeNetworkError> {
        let netlink = Netlink::open()?;
        let way_out = WayOut::new(options.masquerade.clone());
        Ok(Self {
            config,
            options,
            metrics,
            netlink,
            skipped: Vec::new(),
            taken_instead: None,
            plugin_compared: false,
            leaks: Leaks::default(),
            way_out,
            undertaker: None,
            looked: None,
            failing: None,
        })
    }

    /// One round. The first error is returned after everything else has been tried.
    pub(super) fn round(&mut self, snapshot: &Snapshot, now: Instant) -> Result<(), NodeNetworkError> {
        let mut reached = Reached::Nothing;
        let outcome = self.network(snapshot, &mut reached, now);
        let outcome = outcome.and(self.collect_leaks(now));
        let withdrawn = match (&outcome, reached) {
            // What cannot be done for one peer does not keep the node from serving.
            (_, Reached::Serving) => {
                self.failing = None;
                Ok(())
            }
            // Without the API server the last known state goes on serving.
            (Ok(()), Reached::Nothing) if !self.is_left_out(snapshot) => Ok(()),
            (_, Reached::Nothing) => self.withdraw(now),
        };
        if let Some(metrics) = &self.metrics {
            metrics.rounds.with_label_values(&[if outcome.is_ok() { "ok" } else { "error" }]).inc();
            metrics.serving.set(i64::from(install::conflist_is_there(&self.config)));
        }
        outcome.and(withdrawn)
    }

    /// Whether it is known for certain that this node has no pod subnets: its Node is gone, or was made anew. The subnets
    /// that it had may be another node's by now.
    fn is_left_out(&self, snapshot: &Snapshot) -> bool {
        let own = snapshot.nodes.get(self.config.node_name.as_str());
        snapshot.synced && own.is_none_or(|node| node.pod_cidrs.is_empty())
    }

    fn network(
        &mut self,
        snapshot: &Snapshot,
        reached: &mut Reached,
        now: Instant,
    ) -> Result<(), NodeNetworkError> {
        let links = self.netlink.links()?;
        self.bury(&links)?;
        kernel::enable_forwarding(&links)?;
        let own = snapshot.nodes.get(self.config.node_name.as_str());
        let uplinks = kernel::uplinks(&mut self.netlink, &self.config, own.map(AsRef::as_ref))?;
        let Some(mut desired) = desired(&self.config, snapshot, &uplinks) else {
            debug!("the own Node has no pod subnets yet");
            return Ok(());
        };
        if let Some((subnet, network)) = usurped(&desired.own, &uplinks) {
            return Err(NodeNetworkError::SubnetTaken { subnet, network });
        }
        if let Some(masquerade) = &mut desired.masquerade {
            masquerade.except(&self.options.not_masqueraded);
        }
        self.report(&desired);
        let vxlan = match &desired.vxlan {
            Some(device) => {
                Some(kernel::ensure_vxlan(&mut self.netlink, &self.options.vxlan_device, device)?)
            }
            None => None,
        };
        let actual = kernel::read(&mut self.netlink, vxlan)?;
        let ways = self.apply(&plan(&desired, &actual, vxlan, snapshot.synced));
        if vxlan.is_none() && snapshot.synced {
            kernel::remove_vxlan(&mut self.netlink)?;
        }
        if !snapshot.synced {
            return ways;
        }
        let masquerade = self.way_out.ensure(desired.masquerade.as_ref(), &actual.others, now);
        if let Some(metrics) = &self.metrics {
            metrics.masquerade_tables.set(gauge(self.way_out.tables()));
        }
        // One node with an impossible address, or a kernel without NAT, does not keep all pods from starting.
        self.install(&desired)?;
        *reached = Reached::Serving;
        let pods = self.follow_mtu(&links, desired.mtu);
        ways.and(masquerade.map_err(NodeNetworkError::from)).and(pods)
    }

    /// Deletes what calls of DEL have left.
    fn bury(&mut self, links: &[Link]) -> Result<(), NodeNetworkError> {
        if self.undertaker.is_none() {
            let data_dir = &self.config.data_dir;
            let failed = |source| NodeNetworkError::File {
                action: "lock retired links in",
                path: data_dir.clone(),
                source,
            };
            self.undertaker = Undertaker::appoint(data_dir).map_err(failed)?;
        }
        retired::delete_among(&mut self.netlink, links)?;
        Ok(())
    }

    fn follow_mtu(&mut self, links: &[Link], mtu: u32) -> Result<(), NodeNetworkError> {
        mtu::follow(&mut self.netlink, &self.config, links, mtu)
    }

    fn collect_leaks(&mut self, now: Instant) -> Result<(), NodeNetworkError> {
        let interval = LEAK_INTERVAL.min(self.options.leak_grace / 2);
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < interval) {
            return Ok(());
        }
        self.looked = Some(now);
        let (netlink, grace) = (&mut self.netlink, self.options.leak_grace);
        let found = leaks::reconcile(&mut self.leaks, netlink, &self.config.data_dir, now, grace)?;
        if let Some(metrics) = &self.metrics {
            metrics.reservations.set(gauge(found.held));
            metrics.leak_candidates.set(gauge(self.leaks.candidates()));
            metrics.leaks_released.inc_by(found.released as u64);
        }
        Ok(())
    }

    /// After a while of failing, new pods should start elsewhere.
    fn withdraw(&mut self, now: Instant) -> Result<(), NodeNetworkError> {
        let since = *self.failing.get_or_insert(now);
        let failing = now.saturating_duration_since(since);
        if failing >= self.options.withdraw_after && install::withdraw_conflist(&self.config)? {
            warn!(?failing, "network configuration withdrawn: no pods start until the node can serve again");
        }
        Ok(())
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), NodeNetworkError> {
        for op in ops {
            debug!(?op, "changing the pod network");
        }
        let outcome = kernel::apply(&mut self.netlink, ops).map_err(NodeNetworkError::from);
        if !ops.is_empty() {
            if let Some(metrics) = &self.metrics {
                metrics.steps.inc_by(ops.len() as u64);
            }
            info!(steps = ops.len(), ok = outcome.is_ok(), "pod network brought up to date");
        }
        outcome
    }

    /// Plugin first, configuration last: the ways are there by now.
    fn install(&mut self, desired: &Desired) -> Result<(), NodeNetworkError> {
        if !self.plugin_compared || !install::plugin_is_there(&self.config) {
            install::install_plugin(&self.config)?;
            self.plugin_compared = true;
        }
        install::mark_ready(&self.config)?;
        let conflist = install::conflist(
            &self.config,
            &desired.own,
            desired.mtu,
            desired.vxlan.as_ref().map(|_| self.options.vxlan_device.as_str()),
        );
        if install::install_conflist(&self.config, &conflist)? {
            info!(subnets = ?desired.own, mtu = desired.mtu, "network configuration installed: pods may start");
        }
        let other = install::taken_instead(&self.config);
        if let Some(file) = other.as_ref().filter(|_| other != self.taken_instead) {
            let directory = &self.config.cni_conf_dir;
            warn!(%file, ?directory, "runtimes take this network configuration instead of ours: remove it");
        }
        self.taken_instead = other;
        Ok(())
    }

    fn report(&mut self, desired: &Desired) {
        if let Some(metrics) = &self.metrics {
            metrics.peers.set(gauge(desired.peers.len()));
            metrics.skipped.set(gauge(desired.skipped.len()));
            metrics.mtu.set(i64::from(desired.mtu));
        }
        if desired.skipped != self.skipped {
            for reason in &desired.skipped {
                warn!(%reason, "left out of the pod network");
            }
            self.skipped.clone_from(&desired.skipped);
        }
    }
}
