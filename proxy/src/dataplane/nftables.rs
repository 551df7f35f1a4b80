//! The nftables data plane, for kernels and places where eBPF is not to be had.
//!
//! Two tables of our own (see `schema`), a handful of maps in each, and no chain per Service. A change is a few
//! elements in one transaction; what is there is read once, and again only when somebody has changed some ruleset.
//!
//! Differences from the eBPF data plane, which are those of kube-proxy's mode of this name:
//! - NodePorts do not answer at loopback addresses: packets from a loopback address cannot leave the node.
//! - What the node itself sends to a Service reaches the backend from the node's address.
//! - Packets from outside to NodePorts and load balancer addresses of policy Cluster reach local backends, too, from
//!   the node's address.
//!
//! The table of kube-proxy's TestInternalExternalMasquerade holds row by row. A pod that reaches itself does so from
//! the node's address.

mod adopt;
mod codec;
mod kernel;
mod layout;
mod memory;
mod schema;

pub use adopt::Contents;
pub use codec::Address;
pub use kernel::{Found, Kernel, Netlink};
pub use layout::Op;
pub use memory::Memory;
pub use schema::{MARK, Set, TABLE, Target};

pub(crate) use kernel::remove_all;

/// Has the tables translate no new connection; those that are open go on for as long as the tables are there.
pub(crate) fn end_services() -> Result<(), DataplaneError> {
    super::end_services(&mut Nftables::open()?)
}

use seaway_model::Protocol;

use super::{Applied, Dataplane, DataplaneError, Failure, Subject};
use crate::plan::{Actual, Plan};
use crate::stale::{Forgotten, Targets};
use crate::status::DropCount;
use layout::Layout;

/// The nftables data plane of one node.
#[derive(Debug)]
pub struct Nftables<K> {
    kernel: K,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The tables have to be read first.
    Unknown,
    /// They have to be made, whatever is in their place.
    Absent,
    /// They hold this, as of a generation of the ruleset, where it is known.
    Held(Box<Layout>, Option<u32>),
}

impl Nftables<Netlink> {
    /// The data plane of the network namespace that this process is in.
    pub fn open() -> Result<Self, DataplaneError> {
        let mut kernel = Netlink::default();
        // Whether this kernel has nf_tables and this process the right to use it shows here, not at the first change.
        kernel.generation()?;
        Ok(Self::new(kernel))
    }
}

impl<K: Kernel> Nftables<K> {
    /// The data plane that is kept in `kernel`. Nothing is written before the first plan.
    pub fn new(kernel: K) -> Self {
        Self { kernel, state: State::Unknown }
    }

    /// Where it is kept.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Looks at the tables, if they may have changed. Returns whether what is there is not as it should be.
    fn look(&mut self) -> Result<bool, DataplaneError> {
        let generation = self.kernel.generation()?;
        if let State::Held(_, known) = &self.state
            && *known == Some(generation)
        {
            return Ok(false);
        }
        self.state = State::Unknown;
        let found = self.kernel.read()?;
        let after = self.kernel.generation()?;
        let contents = match found {
            Found::Ours(contents) => contents,
            Found::Nothing | Found::Foreign => {
                self.state = State::Absent;
                return Ok(found == Found::Foreign);
            }
        };
        let ports = self.kernel.snat_ports();
        let layout =
            Layout::adopt(&contents).filter(|layout| kernel::chains_are_whole(&contents, layout, &ports));
        let damaged = layout.is_none();
        self.state = match layout {
            Some(layout) => State::Held(Box::new(layout), (after == generation).then_some(after)),
            None => State::Absent,
        };
        Ok(damaged)
    }

    fn commit(&mut self, ops: &[Op]) -> Result<Option<u32>, DataplaneError> {
        let before = self.kernel.generation()?;
        self.kernel.commit(ops)?;
        let after = self.kernel.generation()?;
        // Had anybody else changed something in between, it would have counted, too.
        Ok((after == before.wrapping_add(1)).then_some(after))
    }

    /// Flows to addresses that have just been given their first backend, which began when nobody served there: they
    /// are not translated, and would stay so for as long as they go on.
    fn forget_untranslated(&mut self, layout: &mut Layout) -> Result<(), DataplaneError> {
        if layout.fresh_udp.is_empty() {
            return Ok(());
        }
        for flow in self.kernel.udp_flows()? {
            let untranslated = flow.reply.source == flow.original.destination;
            if untranslated && flow.zone == 0 && layout.fresh_udp.contains(&address(&flow)) {
                self.kernel.forget(&flow)?;
            }
        }
        layout.fresh_udp.clear();
        Ok(())
    }
}

fn address(flow: &seaway_nft::conntrack::Flow) -> Address {
    let destination = flow.original.destination;
    Address { addr: destination.ip(), port: destination.port(), protocol: Protocol::Udp }
}

impl<K: Kernel> Dataplane for Nftables<K> {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn offers_masquerade_all(&self) -> bool {
        true
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        let damaged = self.look()?;
        Ok(match &self.state {
            State::Held(layout, _) => {
                Actual { frontends: layout.frontends(), host: layout.host.clone(), stale: 0 }
            }
            _ => Actual { stale: usize::from(damaged), ..Actual::default() },
        })
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        if plan.is_empty() {
            return Ok(Applied::default());
        }
        if matches!(self.state, State::Unknown) {
            self.look()?;
        }
        let (mut layout, known, create) = match std::mem::replace(&mut self.state, State::Unknown) {
            State::Held(layout, known) => (layout, known, false),
            State::Unknown | State::Absent => (Box::default(), None, true),
        };
        let (mut ops, mut failed) = layout.compile(plan);
        if create {
            ops.insert(0, Op::Create);
        }
        let known = if ops.is_empty() { known } else { self.commit(&ops)? };
        if let Err(error) = self.forget_untranslated(&mut layout) {
            failed.push(Failure { subject: Subject::Sweep, error });
        }
        self.state = State::Held(layout, known);
        Ok(Applied { done: plan.len().saturating_sub(failed.len()), failed })
    }

    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        if matches!(self.state, State::Unknown) {
            self.look()?;
        }
        let State::Held(mut layout, known) = std::mem::replace(&mut self.state, State::Unknown) else {
            return Ok(Forgotten::default());
        };
        let mut forgotten = Vec::new();
        for flow in self.kernel.udp_flows()? {
            let backend = flow.reply.source;
            let stale = match layout.group(&address(&flow)) {
                Some(group) => !serving.contains(&(group, backend.ip(), backend.port())),
                // Only what was translated was ours.
                None => layout.gone_udp.contains(&address(&flow)) && backend != flow.original.destination,
            };
            if stale && flow.zone == 0 && self.kernel.forget(&flow)? {
                forgotten.push(backend.ip());
            }
        }
        layout.gone_udp.clear();
        self.state = State::Held(layout, known);
        Ok(forgotten.into_iter().collect())
    }

    fn drops(&self) -> Vec<DropCount> {
        self.kernel.drops()
    }
}
