//! The seam between what is decided and what programs a kernel.
//!
//! A backend is a pure `compile` of a [`Plan`] into its own operations and a thin executor of those. All backends
//! pass one battery of tests, the ones that live in memory too.

pub mod ebpf;
pub mod fake;
pub mod faulty;
pub mod iptables;
pub mod nftables;
pub mod userspace;

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rustix::io::Errno;
use seaway_nft::conntrack::Flow;
use thiserror::Error;
use tokio::sync::Notify;

use crate::frontend::FrontendKey;
use crate::plan::{Actual, Plan};
use crate::sockets::Translation;
use crate::stale::{Forgotten, Targets};
use crate::status::{DropCount, RuleCount, Xdp};
use crate::traffic::TrafficTable;

/// Something that packets pass and that can be programmed.
pub trait Dataplane: Send {
    /// The name that operators know it by.
    fn name(&self) -> &'static str;

    /// What it holds now, read back from where it is kept.
    fn read(&mut self) -> Result<Actual, DataplaneError>;

    /// Carries out `plan`. A frontend that fails does not keep the others from being written.
    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError>;

    /// Whether its backends on other nodes can answer clients outside directly.
    fn offers_dsr(&self) -> bool {
        false
    }

    /// Whether it wants to be told of the pods' links, of the node's tunnels to others, and whether packets between pods
    /// are to be handed over.
    fn serves_pod_links(&self) -> bool {
        false
    }

    /// Forgets UDP flows whose backend is not in `serving`. Returns how many.
    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        let _ = serving;
        Ok(Forgotten::default())
    }

    /// The table of the sockets that it translated, where it translates at sockets. It may be asked at any time, from
    /// any thread.
    fn sockets(&self) -> Option<Box<dyn SocketTable>> {
        None
    }

    /// Whether it can choose backends by Maglev.
    fn offers_maglev(&self) -> bool {
        false
    }

    /// The most backends that it chooses among by Maglev.
    fn maglev_backends_max(&self) -> usize {
        usize::MAX
    }

    /// Whether it can hide the pods of this node behind the node's address (`masqueradeAll`).
    fn offers_masquerade_all(&self) -> bool {
        false
    }

    /// Whether it can masquerade what pods send to the world ([`crate::MasqueradeOrder`]).
    fn offers_masquerade(&self) -> bool {
        false
    }

    /// Counts traffic per Service and backend from now on. The table of what it counts; `None`: it cannot.
    fn count_traffic(&mut self) -> Option<Box<dyn TrafficTable>> {
        None
    }

    /// Notified when what it holds may have been lost at once: it has to be read back.
    fn lost(&self) -> Option<Arc<Notify>> {
        None
    }

    /// The rules that it has written, where it counts rules.
    fn rule_counts(&self) -> Vec<RuleCount> {
        Vec::new()
    }

    /// Connections to NodePorts at loopback addresses, where rules count them, as read back last.
    fn localhost_node_ports(&self) -> Option<u64> {
        None
    }

    /// What XDP does, where it is switched on.
    fn xdp(&self) -> Xdp {
        Xdp::default()
    }

    /// Packets dropped, by reason.
    fn drops(&self) -> Vec<DropCount> {
        Vec::new()
    }
}

/// The ports of source NAT that connection tracking does: it does not give what the node's own connections use, and knows
/// nothing of ports that the administrator has reserved.
pub(crate) fn tracked_snat_ports() -> RangeInclusive<u16> {
    let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    seaway_model::snat_ports(&seaway_model::port_ranges(&reserved))
}

/// Removes all frontends, and nothing else.
pub(crate) fn end_services(dataplane: &mut dyn Dataplane) -> Result<(), DataplaneError> {
    let removals: Vec<FrontendKey> = dataplane.read()?.frontends.keys().copied().collect();
    if !removals.is_empty() {
        dataplane.apply(&Plan { removals, ..Plan::default() })?;
    }
    Ok(())
}

/// The TCP connections that the kernel's connection tracking translates. A kernel without it has none.
pub(crate) fn translated_tcp() -> Vec<Flow> {
    const TCP: u8 = 6;
    let mut flows = seaway_nft::conntrack::flows(None, TCP).unwrap_or_default();
    flows.retain(Flow::is_translated);
    flows
}

/// Has connection tracking forget those of `translated` that have ended.
pub(crate) fn forget_ended(translated: &[Flow]) {
    for flow in translated.iter().filter(|flow| flow.zone == 0 && !flow.is_open()) {
        if let Err(error) = seaway_nft::conntrack::forget(flow) {
            tracing::debug!(%error, "cannot forget a connection that has ended");
            return;
        }
    }
}

/// Sockets of this node that were sent to a backend when they connected.
pub trait SocketTable: Send {
    /// All that are connected.
    fn translated(&self) -> Result<Vec<Translation>, DataplaneError>;
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Steps that were carried out.
    pub done: usize,
    /// Steps that were not.
    pub failed: Vec<Failure>,
}

/// A step that was not carried out.
#[derive(Debug)]
pub struct Failure {
    /// What it was about.
    pub subject: Subject,
    /// Why.
    pub error: DataplaneError,
}

/// What a step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A frontend.
    Frontend(FrontendKey),
    /// The node: its addresses and links.
    Host,
    /// What belongs to nothing.
    Sweep,
}

impl DataplaneError {
    /// The process may not open another file.
    pub(crate) fn is_out_of_files(&self) -> bool {
        matches!(self, Self::Io { source, .. } if out_of_files(source))
    }

    /// Somebody else has the address.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// The process, or the machine, has as many files open as it may.
pub(crate) fn out_of_files(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE].map(|code| Some(code.raw_os_error()));
    codes.contains(&error.raw_os_error())
}

/// A data plane refused.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// A fault that a test asked for.
    #[error("injected fault at step {step}")]
    Injected {
        /// The how-manieth step it was.
        step: u64,
    },
    /// The data plane cannot do what a frontend asks for.
    #[error("frontend {frontend}: {what} is not supported by {backend}")]
    Unsupported {
        /// The frontend.
        frontend: FrontendKey,
        /// What it asks for.
        what: &'static str,
        /// The backend's name.
        backend: &'static str,
    },
    /// A map has no room.
    #[error("map {map} is full: {wanted} entries wanted, {capacity} possible")]
    Full {
        /// The map's name.
        map: &'static str,
        /// Its size.
        capacity: u32,
        /// How many entries are needed.
        wanted: u64,
    },
    /// The kernel holds something that this version cannot read.
    #[error("map {map} holds an entry that does not decode: {what}")]
    Corrupt {
        /// The map's name.
        map: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A link could not be attached to.
    #[error("cannot attach to link {device}")]
    Attach {
        /// The link's name.
        device: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A call into it panicked.
    #[error("the data plane was lost in a panic; the proxy has to be started anew")]
    Lost,
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was attempted.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The loader failed.
    #[error("{action}")]
    Loader {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
