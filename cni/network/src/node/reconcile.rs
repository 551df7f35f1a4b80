//! One round: look at the snapshot and at the kernel, and bring the second to the first.

use seaway_model::Snapshot;
use tracing::{debug, info, warn};

use super::desired::{Desired, desired};
use super::plan::{Op, plan};
use super::{NodeNetworkError, install, kernel, masquerade};
use crate::NodeNetworkConfig;
use crate::netlink::Netlink;

/// What is remembered between rounds: only what keeps the log short and saves work.
pub(super) struct Reconciler {
    config: NodeNetworkConfig,
    netlink: Netlink,
    /// What was left out in the last round.
    skipped: Vec<String>,
    /// The installed plugin has been compared with its source since the start.
    plugin_compared: bool,
}

impl Reconciler {
    pub(super) fn new(config: NodeNetworkConfig) -> Result<Self, NodeNetworkError> {
        Ok(Self { config, netlink: Netlink::open()?, skipped: Vec::new(), plugin_compared: false })
    }

    /// One round. The first error is returned after everything else has been tried.
    pub(super) fn round(&mut self, snapshot: &Snapshot) -> Result<(), NodeNetworkError> {
        let links = self.netlink.links()?;
        kernel::enable_forwarding(&links)?;
        let own = snapshot.nodes.get(self.config.node_name.as_str());
        let uplinks = kernel::uplinks(&mut self.netlink, &self.config, own.map(AsRef::as_ref))?;
        let Some(desired) = desired(&self.config, snapshot, &uplinks) else {
            debug!("the own Node has no pod subnets yet");
            return Ok(());
        };
        self.report_skipped(&desired);
        let vxlan = match &desired.vxlan {
            Some(device) => Some(kernel::ensure_vxlan(&mut self.netlink, device)?),
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
        let masquerade = masquerade::ensure(desired.masquerade.as_ref());
        // One node with an impossible address, or a kernel without NAT, does not keep all pods from starting.
        self.install(&desired)?;
        ways.and(masquerade.map_err(NodeNetworkError::from))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), NodeNetworkError> {
        let mut outcome = Ok(());
        for op in ops {
            debug!(?op, "changing the pod network");
            if let Err(error) = kernel::apply(&mut self.netlink, op)
                && outcome.is_ok()
            {
                outcome = Err(error.into());
            }
        }
        if !ops.is_empty() {
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
        let conflist = install::conflist(
            &self.config,
            &desired.own,
            desired.mtu,
            desired.vxlan.as_ref().map(|_| kernel::VXLAN_DEVICE),
        );
        if install::install_conflist(&self.config, &conflist)? {
            info!(subnets = ?desired.own, mtu = desired.mtu, "network configuration installed: pods may start");
        }
        Ok(())
    }

    fn report_skipped(&mut self, desired: &Desired) {
        if desired.skipped != self.skipped {
            for reason in &desired.skipped {
                warn!(%reason, "left out of the pod network");
            }
            self.skipped.clone_from(&desired.skipped);
        }
    }
}
