//! The iptables data plane, for kernels that offer neither eBPF nor nf_tables to us: rules in the restore format.
//!
//! All that is ours is in chains that begin with `SEAWAY-`; their comments say for which frontend a rule stands, so
//! that a successor takes over what it finds. A sync is one run of `iptables-restore --noflush` per family, in which
//! only chains that change are written. Open connections are kept by the kernel's connection tracking.
//!
//! Sources are translated as kube-proxy does (the table of its TestInternalExternalMasquerade holds row by row), to the
//! node's own address.
//!
//! What it cannot do: NodePorts at `::1` (the kernel routes no packet from there), and affinity for more clients per
//! backend than the module `recent` remembers (100, unless it was loaded with another `ip_list_tot`).

mod adopt;
mod chains;
mod edit;
mod layout;
mod memory;
pub mod rule;
mod save;
mod tables;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use seaway_model::{Family, Protocol};
use seaway_nft::conntrack::Flow;

pub use memory::Memory;
pub use tables::{Commands, Tables};

use super::{Applied, Dataplane, DataplaneError, Failure, Subject};
use crate::frontend::{Frontend, FrontendKey, Group};
use crate::plan::{Actual, Host, Plan};
use crate::stale::{Forgotten, Targets};
use crate::status::{DropCount, RuleCount};
use layout::Layout;
use rule::Table;
use save::{Counters, Saved};

/// After this many frontends were refused by the kernel, the others are not tried one by one.
const FAILURES_MAX: usize = 16;
/// Lets packets whose source is a loopback address leave the node, to be given another one on the way.
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// The iptables data plane of one node.
#[derive(Debug)]
pub struct Iptables<T> {
    tables: T,
    families: Vec<Family>,
    /// `None`: not known, the tables have to be read first.
    layouts: Option<Vec<Layout>>,
    /// UDP addresses that just got their first backend: flows that began before are not translated.
    fresh_udp: HashSet<(IpAddr, u16)>,
    /// UDP addresses that are nobody's any more.
    gone_udp: HashSet<(IpAddr, u16)>,
    /// The node as last applied; what stands in tables that this kernel has not is taken from here.
    host: Host,
    counts: Counts,
    packets: BTreeMap<Family, Counters>,
}

/// Rules by family and table: those that are ours, and those that were written last.
type Counts = BTreeMap<(Family, Table), (usize, usize)>;

impl Iptables<Commands> {
    /// The data plane in the tables of this network namespace, through the programs of the package iptables.
    pub fn open() -> Result<Self, DataplaneError> {
        Self::new(Commands)
    }
}

impl<T: Tables> Iptables<T> {
    /// The data plane in `tables`. Nothing is written before the first plan. IPv6 may be missing.
    pub fn new(mut tables: T) -> Result<Self, DataplaneError> {
        tables.save(Family::V4)?;
        let mut families = vec![Family::V4];
        match tables.save(Family::V6) {
            Ok(_) => families.push(Family::V6),
            Err(error) => {
                let error = crate::reconcile::chain(&error);
                tracing::warn!(%error, "IPv6 frontends are not served: ip6tables does not work here");
            }
        }
        let (fresh_udp, gone_udp) = (HashSet::new(), HashSet::new());
        let (counts, packets) = (Counts::default(), BTreeMap::new());
        let host = Host::default();
        Ok(Self { tables, families, layouts: None, fresh_udp, gone_udp, host, counts, packets })
    }

    /// Where it is kept.
    pub fn tables(&self) -> &T {
        &self.tables
    }

    fn read_layouts(&mut self) -> Result<Vec<Layout>, DataplaneError> {
        let mut layouts = Vec::new();
        for family in self.families.clone() {
            let text = self.tables.save(family)?;
            let saved = Saved::parse(&text);
            self.packets.insert(family, saved.counters);
            for table in Table::ALL {
                self.counts.entry((family, table)).or_default().0 = saved.rules(table);
            }
            layouts.push(Layout::adopt(family, saved, self.tables.snat_ports()));
        }
        let of = |family| layouts.iter().find(|layout: &&Layout| layout.family == family);
        let host = Host {
            node_v4: of(Family::V4).and_then(|layout| layout.host.node_v4),
            node_v6: of(Family::V6).map_or(self.host.node_v6, |layout| layout.host.node_v6),
            uplinks: of(Family::V4).map_or_else(Default::default, |layout| layout.host.uplinks.clone()),
            ..Host::default()
        };
        for layout in &mut layouts {
            layout.host = host.clone();
        }
        self.host = host;
        Ok(layouts)
    }

    /// One run per family.
    fn once(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        let mut layouts = match self.layouts.take() {
            Some(layouts) => layouts,
            None => self.read_layouts()?,
        };
        for layout in &mut layouts {
            if let Some(input) = layout.compile(plan) {
                self.tables.restore(layout.family, &input)?;
                for (table, written) in save::written(&input) {
                    self.counts.entry((layout.family, table)).or_default().1 = written;
                }
            }
        }
        self.layouts = Some(layouts);
        Ok(())
    }

    /// Carries out `plan`; when that fails, in halves, until those frontends are found that are refused.
    fn carry_out(&mut self, plan: Plan, failed: &mut Vec<Failure>) -> Result<(), DataplaneError> {
        let Err(first) = self.once(&plan) else { return Ok(()) };
        if plan.upserts.is_empty() {
            return Err(first);
        }
        let upserts = plan.upserts.clone();
        self.once(&Plan { upserts: Vec::new(), ..plan })?;
        self.halves(&upserts, failed);
        Ok(())
    }

    fn halves(&mut self, upserts: &[(FrontendKey, Arc<Frontend>)], failed: &mut Vec<Failure>) {
        let Some((key, _)) = upserts.first() else { return };
        let error = if failed.len() < FAILURES_MAX {
            match self.once(&Plan { upserts: upserts.to_vec(), ..Plan::default() }) {
                Ok(()) => return,
                Err(error) => error,
            }
        } else {
            DataplaneError::Unsupported {
                frontend: *key,
                what: "anything that this plan asks for",
                backend: "iptables",
            }
        };
        if upserts.len() == 1 {
            failed.push(Failure { subject: Subject::Frontend(*key), error });
            return;
        }
        let (left, right) = upserts.split_at(upserts.len() / 2);
        self.halves(left, failed);
        self.halves(right, failed);
    }

    /// What `plan` means for UDP flows that there are.
    fn note_udp(&mut self, plan: &Plan) {
        for (key, frontend) in plan.upserts.iter().filter(|(key, _)| key.protocol == Protocol::Udp) {
            self.gone_udp.remove(&(key.addr, key.port));
            if !frontend.backends.is_empty() {
                self.fresh_udp.insert((key.addr, key.port));
            }
        }
        let removed = plan.removals.iter().filter(|key| key.protocol == Protocol::Udp);
        self.gone_udp.extend(removed.map(|key| (key.addr, key.port)));
    }

    /// Forgets the UDP flows that `stale` picks, by address, port and where their answers come from.
    fn forget_flows(
        &mut self,
        stale: impl Fn((IpAddr, u16), (IpAddr, u16)) -> bool,
    ) -> Result<Forgotten, DataplaneError> {
        let mut forgotten = Vec::new();
        for family in self.families.clone() {
            for flow in self.tables.udp_flows(family)? {
                let Flow { original, reply, zone: 0, .. } = &flow else { continue };
                let asked = (original.destination.ip(), original.destination.port());
                let answers = (reply.source.ip(), reply.source.port());
                if stale(asked, answers) && self.tables.forget(&flow)? {
                    forgotten.push(answers.0);
                }
            }
        }
        Ok(forgotten.into_iter().collect())
    }

    /// Flows to addresses that nobody served when they began would go on untranslated.
    fn forget_untranslated(&mut self) -> Result<(), DataplaneError> {
        let fresh = std::mem::take(&mut self.fresh_udp);
        if !fresh.is_empty() {
            self.forget_flows(|asked, answers| asked == answers && fresh.contains(&asked))?;
        }
        Ok(())
    }

    fn refusal(&self, key: &FrontendKey) -> Option<DataplaneError> {
        let unsupported =
            |what| Some(DataplaneError::Unsupported { frontend: *key, what, backend: "iptables" });
        if !self.families.contains(&Family::of(key.addr)) {
            return unsupported("IPv6 without a working ip6tables");
        }
        if key.addr == IpAddr::V6(Ipv6Addr::LOCALHOST) {
            return unsupported("a NodePort at ::1, from which the kernel routes nothing,");
        }
        None
    }
}

impl<T: Tables> Dataplane for Iptables<T> {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn offers_masquerade_all(&self) -> bool {
        true
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.layouts = None;
        let layouts = self.read_layouts()?;
        let frontends = layouts.iter().flat_map(Layout::frontends);
        let frontends = frontends.map(|(key, frontend)| (*key, Arc::clone(frontend))).collect();
        let stale = layouts.iter().map(Layout::disorder).sum();
        self.layouts = Some(layouts);
        Ok(Actual { frontends, host: self.host.clone(), stale })
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        let mut plan = plan.clone();
        let steps = plan.len();
        let mut failed = Vec::new();
        plan.upserts.retain(|(key, _)| match self.refusal(key) {
            Some(error) => {
                failed.push(Failure { subject: Subject::Frontend(*key), error });
                false
            }
            None => true,
        });
        if let Some(host) = &plan.host
            && let Some(device) = host.uplinks.iter().find(|device| !nameable(&device.name))
        {
            let source = "iptables cannot name this link".into();
            let error = DataplaneError::Attach { device: device.name.to_string(), source };
            failed.push(Failure { subject: Subject::Host, error });
            plan.host = None;
        }
        if plan
            .upserts
            .iter()
            .any(|(key, f)| key.addr.is_ipv4() && key.addr.is_loopback() && !f.backends.is_empty())
        {
            self.tables.set_sysctl(ROUTE_LOCALNET, "1")?;
        }
        if let Some(host) = &plan.host {
            self.host = host.clone();
        }
        self.note_udp(&plan);
        self.carry_out(plan, &mut failed)?;
        if let Err(error) = self.forget_untranslated() {
            failed.push(Failure { subject: Subject::Sweep, error });
        }
        Ok(Applied { done: steps.saturating_sub(failed.len()), failed })
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        let count = |(&(family, table), &(owned, written))| RuleCount {
            family,
            table: Table::name(table),
            owned,
            written,
        };
        self.counts.iter().map(count).collect()
    }

    fn localhost_node_ports(&self) -> Option<u64> {
        Some(self.packets.values().map(|counters| counters.localhost).sum())
    }

    fn drops(&self) -> Vec<DropCount> {
        let packets = self.packets.values().map(|counters| counters.invalid).sum();
        let some = (packets > 0).then(|| DropCount { reason: "invalid".to_owned(), packets });
        some.into_iter().collect()
    }

    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        let layouts = match self.layouts.take() {
            Some(layouts) => layouts,
            None => self.read_layouts()?,
        };
        let mut groups: HashMap<(IpAddr, u16), Vec<Group>> = HashMap::new();
        for (key, frontend) in layouts.iter().flat_map(Layout::frontends) {
            if key.protocol == Protocol::Udp {
                groups.entry((key.addr, key.port)).or_default().push(frontend.group);
            }
        }
        self.layouts = Some(layouts);
        let gone = std::mem::take(&mut self.gone_udp);
        self.forget_flows(|asked, (addr, port)| match groups.get(&asked) {
            Some(groups) => !groups.iter().any(|group| serving.contains(&(*group, addr, port))),
            // Only what was translated was ours.
            None => gone.contains(&asked) && asked != (addr, port),
        })
    }
}

/// Has the chains translate no new connection; those that are open go on for as long as the chains are there.
pub(crate) fn end_services() -> Result<(), DataplaneError> {
    if !tables::installed() {
        return Ok(());
    }
    super::end_services(&mut Iptables::open()?)
}

/// Takes every chain of ours out of the tables, where there are such tables.
pub fn remove_all() -> Result<(), DataplaneError> {
    if !tables::installed() {
        return Ok(());
    }
    let mut iptables = Iptables::open()?;
    let held = iptables.read()?;
    let removals = held.frontends.keys().copied().collect();
    iptables.carry_out(
        Plan { host: Some(Host::default()), removals, sweep: true, ..Plan::default() },
        &mut Vec::new(),
    )
}

/// A trailing `+` would stand for every link that begins so.
fn nameable(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    !name.is_empty() && !name.starts_with('-') && name.chars().all(plain)
}
