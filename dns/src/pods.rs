//! Which pods the server has to know: those of its node, or all, as the settings of the moment say. A list of all costs the API
//! server and every node, so that whoever watches the cluster makes it only while it is wanted.

use std::sync::Arc;

use seaway_model::Snapshot;
use tokio::sync::watch;

use crate::{DnsConfig, PodRecords, settings};

/// The cluster as somebody watches it, and how that one is told which pods are wanted.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The cluster, state by state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// `None`: what is watched stays as it is.
    pub pods: Option<PodsWanted>,
}

impl From<watch::Receiver<Arc<Snapshot>>> for Watched {
    fn from(snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self { snapshots, pods: None }
    }
}

/// Says whether every node's pods are wanted.
#[derive(Debug, Clone)]
pub struct PodsWanted {
    all: watch::Sender<bool>,
    of_every_node: bool,
}

impl PodsWanted {
    /// And who is told. `of_every_node`: pods of every node ask this server, and it walks the search path for them.
    pub fn new(config: &DnsConfig, of_every_node: bool) -> (Self, watch::Receiver<bool>) {
        let (all, told) = watch::channel(false);
        let wanted = Self { all, of_every_node };
        // Settings that cannot be read are told of when the server is bound.
        wanted.tell(settings::load(config).as_ref().map_or(config, |settings| &settings.config));
        (wanted, told)
    }

    /// Tells what is wanted under these settings.
    pub(crate) fn tell(&self, config: &DnsConfig) {
        let walks = self.of_every_node && config.autopath;
        let all = walks || config.pod_records == PodRecords::Verified;
        self.all.send_if_modified(|told| std::mem::replace(told, all) != all);
    }
}
