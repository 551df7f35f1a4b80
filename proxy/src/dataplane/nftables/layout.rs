//! Which elements stand for which frontends: the pure part of the nftables data plane.
//!
//! [`Stand::elements`] says what one address takes; a change is the difference of two such lists. Backends keep their
//! index while others come and go, so that one endpoint's change is a few elements, however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use seaway_model::Protocol;
use seaway_nft::{Data, Element, Family, Verdict};

use super::codec::{self, Address};
use super::schema::{AFFINITY_MAX_BACKENDS, AFFINITY_MAX_S, OUTSIDE_OFFSET, Set, Target};
use crate::dataplane::{DataplaneError, Failure, Subject};
use crate::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Group, Scope};
use crate::plan::{Host, Plan};

/// One step. Steps are carried out in their order, all in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make both tables, empty, in the place of those that are there.
    Create,
    /// Make the chain of a target.
    AddChain(Family, Target),
    /// Remove the chain of a target.
    RemoveChain(Family, Target),
    /// Add elements.
    Add(Family, Set, Vec<Element>),
    /// Remove elements.
    Remove(Family, Set, Vec<Element>),
}

/// Elements by set and key.
pub(super) type Elements = BTreeMap<(Set, Vec<u8>), Element>;

/// The frontends at one address.
#[derive(Debug, Clone, Default)]
pub(super) struct Stand {
    /// Asked from this node, asked from outside.
    pub(super) frontends: [Option<Arc<Frontend>>; 2],
    /// Their backends in the order of their index. The second is for outside frontends that differ.
    pub(super) pools: [Arc<[Backend]>; 2],
}

const fn at(scope: Scope) -> usize {
    match scope {
        Scope::Internal => 0,
        Scope::External => 1,
    }
}

impl Stand {
    /// The outside frontend has backends of its own.
    fn is_apart(&self) -> bool {
        match &self.frontends {
            [Some(inside), Some(outside)] => inside.backends != outside.backends,
            _ => false,
        }
    }

    fn is_empty(&self) -> bool {
        self.frontends.iter().all(Option::is_none)
    }

    /// Gives every backend an index; those that stay keep theirs.
    fn place(&mut self) {
        let none = || Arc::from([]);
        let [inside, outside] = &self.frontends;
        let first = inside.as_ref().or(outside.as_ref()).map_or_else(none, |f| Arc::clone(&f.backends));
        let second = match outside {
            Some(outside) if self.is_apart() => Arc::clone(&outside.backends),
            _ => none(),
        };
        self.pools = [place(&self.pools[0], &first), place(&self.pools[1], &second)];
    }

    fn target(&self, address: Address, scope: Scope) -> Option<Target> {
        let frontend = self.frontends[at(scope)].as_ref()?;
        // Packets from a loopback address leave the node on no link: as in kube-proxy's mode of this name, NodePorts do
        // not answer there.
        if frontend.backends.is_empty() || address.addr.is_loopback() {
            // Who asks from this node cannot try another one, and is told at once.
            let try_another = frontend.elsewhere && scope == Scope::External;
            return Some(if try_another { Target::Elsewhere } else { Target::Reject });
        }
        let local_policy = self.frontends[1].as_ref().is_some_and(|outside| outside.preserve_source);
        let masquerade = match scope {
            Scope::Internal => {
                frontend.masquerade || frontend.kind != FrontendKind::ClusterIP && !local_policy
            }
            Scope::External => !frontend.preserve_source,
        };
        Some(Target::Pick {
            count: u32::try_from(frontend.backends.len()).unwrap_or(u32::MAX),
            outside: scope == Scope::External && self.is_apart(),
            masquerade,
            affinity_s: frontend
                .affinity
                .map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).clamp(1, AFFINITY_MAX_S)),
        })
    }

    fn targets(&self, address: Address) -> impl Iterator<Item = Target> {
        [Scope::Internal, Scope::External].into_iter().filter_map(move |scope| self.target(address, scope))
    }

    /// The elements that stand for it alone.
    pub(super) fn elements(&self, address: Address) -> Elements {
        let mut all = Elements::new();
        let mut put = |set: Set, element: Element| all.insert((set, element.key.clone()), element);
        for (scope, set) in [(Scope::Internal, Set::Inside), (Scope::External, Set::Outside)] {
            let (Some(frontend), Some(target)) = (&self.frontends[at(scope)], self.target(address, scope))
            else {
                continue;
            };
            let apart = scope == Scope::External && self.is_apart();
            let mut element = Element::entry(address.bytes(), target.code());
            element.user_data = codec::head(frontend, apart);
            put(set, element);
            if frontend.affinity.is_some() {
                let (set, offset) =
                    if apart { (Set::MembersOutside, OUTSIDE_OFFSET) } else { (Set::Members, 0) };
                let pool = &self.pools[usize::from(apart)];
                for ((index, backend), number) in (offset..).zip(&**pool).zip(codec::numbers(pool)) {
                    put(Set::Numbers, codec::number(address, index, number));
                    put(set, codec::member(address, number, backend));
                }
            }
            if !frontend.source_ranges.is_empty() {
                put(Set::Guarded, Element::key(address.bytes()));
            }
            for range in &*frontend.source_ranges {
                put(Set::Ranges, codec::range(address, range));
            }
        }
        for (pool, offset) in self.pools.iter().zip([0, OUTSIDE_OFFSET]) {
            for (index, backend) in (offset..).zip(&**pool) {
                put(Set::Endpoints, codec::endpoint(address, index, backend));
            }
        }
        all
    }

    /// The elements that it needs as others may, too.
    fn shared(&self, address: Address) -> BTreeSet<(Set, Vec<u8>)> {
        let of_kind = self.frontends.iter().flatten().any(|f| f.kind == FrontendKind::ClusterIP);
        let cluster_ip = of_kind.then(|| (Set::ClusterIps, codec::addr_bytes(address.addr)));
        let local = self.pools.iter().flat_map(|pool| &**pool).filter(|backend| backend.local);
        let hairpin = local.map(|backend| {
            let addr = codec::addr_bytes(backend.addr);
            (Set::Hairpin, [addr.clone(), addr].concat())
        });
        hairpin.chain(cluster_ip).collect()
    }
}

/// `wanted` in an order in which as many as possible are where they are in `held`.
fn place(held: &Arc<[Backend]>, wanted: &Arc<[Backend]>) -> Arc<[Backend]> {
    if held.is_empty() || wanted.is_empty() {
        return Arc::clone(wanted);
    }
    let set: BTreeSet<&Backend> = wanted.iter().collect();
    let stays = |index: usize| held.get(index).filter(|backend| set.contains(*backend));
    let kept: BTreeSet<&Backend> = (0..wanted.len()).filter_map(stays).collect();
    if kept.len() == held.len() && held.len() == wanted.len() {
        return Arc::clone(held);
    }
    let mut new = wanted.iter().filter(|backend| !kept.contains(*backend));
    (0..wanted.len()).filter_map(|index| stays(index).or_else(|| new.next()).copied()).collect()
}

/// What the tables hold.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) stands: HashMap<Address, Stand>,
    pub(super) host: Host,
    /// Elements that several addresses need, with how many do.
    shared: HashMap<(Family, Set, Vec<u8>), u32>,
    /// Targets with how many frontends have them.
    targets: BTreeMap<(Family, Target), u32>,
    /// UDP addresses that have been given their first backend: flows that began before have none.
    pub(super) fresh_udp: BTreeSet<Address>,
    /// UDP addresses that are no more.
    pub(super) gone_udp: BTreeSet<Address>,
}

/// Elements to remove and to add, by set.
#[derive(Debug, Default)]
struct Changes {
    remove: BTreeMap<(Family, Set), Vec<Element>>,
    add: BTreeMap<(Family, Set), Vec<Element>>,
}

impl Changes {
    fn replace(&mut self, family: Family, mut before: Elements, after: Elements) {
        for ((set, key), element) in after {
            match before.remove(&(set, key)) {
                Some(held) if held == element => continue,
                Some(held) => self.remove.entry((family, set)).or_default().push(held),
                None => {}
            }
            self.add.entry((family, set)).or_default().push(element);
        }
        for ((set, _), held) in before {
            self.remove.entry((family, set)).or_default().push(held);
        }
    }
}

impl Layout {
    /// The operations that carry out `plan`, and the frontends that cannot be had. The layout is then as they make it.
    pub(super) fn compile(&mut self, plan: &Plan) -> (Vec<Op>, Vec<Failure>) {
        let mut changes = Changes::default();
        let mut failed = Vec::new();
        let mut wanted: BTreeMap<Address, Stand> = BTreeMap::new();
        let upserts = plan.upserts.iter().map(|(key, frontend)| (*key, Some(frontend)));
        for (key, frontend) in upserts.chain(plan.removals.iter().map(|key| (*key, None))) {
            if let Some(what) = frontend.and_then(|frontend| unsupported(&key, frontend)) {
                let error = DataplaneError::Unsupported { frontend: key, what, backend: "nftables" };
                failed.push(Failure { subject: Subject::Frontend(key), error });
                continue;
            }
            let address = Address::of(&key);
            let held = || self.stands.get(&address).cloned().unwrap_or_default();
            wanted.entry(address).or_insert_with(held).frontends[at(key.scope)] = frontend.cloned();
        }
        let mut targets: BTreeMap<(Family, Target), i64> = BTreeMap::new();
        for (address, mut stand) in wanted {
            stand.place();
            self.change(address, stand, &mut changes, &mut targets);
        }
        if let Some(host) = &plan.host {
            for family in Family::ALL {
                changes.replace(family, host_elements(family, &self.host), host_elements(family, host));
            }
            self.host = host.clone();
        }
        (self.steps(changes, targets), failed)
    }

    fn change(
        &mut self,
        address: Address,
        stand: Stand,
        changes: &mut Changes,
        targets: &mut BTreeMap<(Family, Target), i64>,
    ) {
        let family = address.family();
        let before = self.stands.remove(&address).unwrap_or_default();
        changes.replace(family, before.elements(address), stand.elements(address));
        for (stand, by) in [(&stand, 1), (&before, -1)] {
            for target in stand.targets(address) {
                *targets.entry((family, target)).or_default() += by;
            }
        }
        let (shared, former) = (stand.shared(address), before.shared(address));
        for (set, key) in shared.difference(&former) {
            let count = self.shared.entry((family, *set, key.clone())).or_default();
            *count += 1;
            if *count == 1 {
                changes.add.entry((family, *set)).or_default().push(Element::key(key.clone()));
            }
        }
        for (set, key) in former.difference(&shared) {
            let name = (family, *set, key.clone());
            let count = self.shared.entry(name.clone()).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.shared.remove(&name);
                changes.remove.entry((family, *set)).or_default().push(Element::key(key.clone()));
            }
        }
        self.note_udp(address, &before, &stand);
        if !stand.is_empty() {
            self.stands.insert(address, stand);
        }
    }

    fn note_udp(&mut self, address: Address, before: &Stand, stand: &Stand) {
        if address.protocol != Protocol::Udp {
            return;
        }
        let serves = |stand: &Stand| stand.frontends.iter().flatten().any(|f| !f.backends.is_empty());
        if serves(stand) && !serves(before) {
            self.fresh_udp.insert(address);
        }
        if stand.is_empty() {
            self.gone_udp.insert(address);
        } else {
            self.gone_udp.remove(&address);
        }
    }

    /// Chains before what leads to them, removals before additions: an entry that changes is removed and added.
    fn steps(&mut self, mut changes: Changes, targets: BTreeMap<(Family, Target), i64>) -> Vec<Op> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for ((family, target), by) in targets {
            let before = self.targets.get(&(family, target)).copied().unwrap_or(0);
            let after = u32::try_from(i64::from(before) + by).unwrap_or(0);
            let name = (family, Set::Targets);
            match (before, after) {
                (0, 1..) => {
                    first.extend(target.is_dynamic().then_some(Op::AddChain(family, target)));
                    changes.add.entry(name).or_default().push(target_element(target));
                }
                (1.., 0) => {
                    changes.remove.entry(name).or_default().push(target_element(target));
                    last.extend(target.is_dynamic().then_some(Op::RemoveChain(family, target)));
                }
                _ => {}
            }
            match after {
                0 => self.targets.remove(&(family, target)),
                _ => self.targets.insert((family, target), after),
            };
        }
        let remove = changes.remove.into_iter().map(|((family, set), e)| Op::Remove(family, set, e));
        let add = changes.add.into_iter().map(|((family, set), e)| Op::Add(family, set, e));
        first.into_iter().chain(remove).chain(add).chain(last).collect()
    }

    /// Everything that the tables hold for this, by family.
    pub(super) fn elements(&self, family: Family) -> Elements {
        let mut all = host_elements(family, &self.host);
        for (address, stand) in self.stands.iter().filter(|(address, _)| address.family() == family) {
            all.extend(stand.elements(*address));
        }
        let shared = self.shared.keys().filter(|(of, _, _)| *of == family);
        all.extend(shared.map(|(_, set, key)| ((*set, key.clone()), Element::key(key.clone()))));
        all.extend(self.targets(family).map(target_element).map(|e| ((Set::Targets, e.key.clone()), e)));
        all
    }

    /// The targets that are in use.
    pub(super) fn targets(&self, family: Family) -> impl Iterator<Item = Target> {
        self.targets.keys().filter(move |(of, _)| *of == family).map(|(_, target)| *target)
    }

    /// The layout of these, as they were read.
    pub(super) fn of(stands: HashMap<Address, Stand>, host: Host) -> Self {
        let mut layout = Self { host, ..Self::default() };
        for (address, stand) in &stands {
            for target in stand.targets(*address) {
                *layout.targets.entry((address.family(), target)).or_default() += 1;
            }
            for (set, key) in stand.shared(*address) {
                *layout.shared.entry((address.family(), set, key)).or_default() += 1;
            }
        }
        Self { stands, ..layout }
    }

    /// The frontends.
    pub(super) fn frontends(&self) -> imbl::OrdMap<FrontendKey, Arc<Frontend>> {
        let of = |address: &Address, scope, stand: &Stand| {
            Some((address.key(scope), stand.frontends[at(scope)].clone()?))
        };
        let pairs = self.stands.iter().flat_map(|(address, stand)| {
            [Scope::Internal, Scope::External].into_iter().filter_map(move |scope| of(address, scope, stand))
        });
        pairs.collect()
    }

    /// The Service port that an address belongs to.
    pub(super) fn group(&self, address: &Address) -> Option<Group> {
        self.stands.get(address)?.frontends.iter().flatten().next().map(|frontend| frontend.group)
    }
}

/// What a frontend asks for that cannot be had.
fn unsupported(key: &FrontendKey, frontend: &Frontend) -> Option<&'static str> {
    if frontend.backends.len() >= OUTSIDE_OFFSET as usize {
        return Some("a million backends");
    }
    if frontend.affinity.is_some() && frontend.backends.len() > AFFINITY_MAX_BACKENDS {
        return Some("session affinity with more than 2047 backends");
    }
    if codec::kind_number(frontend.kind).is_none() {
        return Some("this kind of address");
    }
    if key.scope == Scope::Internal && !frontend.source_ranges.is_empty() {
        return Some("source ranges for clients on the node");
    }
    let ranges = &frontend.source_ranges;
    let overlap = ranges.iter().enumerate().any(|(at, a)| {
        ranges.iter().skip(at + 1).any(|b| a.contains(&b.network()) || b.contains(&a.network()))
    });
    overlap.then_some("source ranges that overlap")
}

fn host_elements(family: Family, host: &Host) -> Elements {
    let node = match family {
        Family::Ip => host.node_v4.map(IpAddr::V4),
        Family::Ip6 => host.node_v6.map(IpAddr::V6),
    };
    let node = codec::node(node).map(|element| (Set::Node, element));
    let uplinks = host.uplinks.iter().map(|device| (Set::Uplinks, codec::uplink(&device.name, device.index)));
    uplinks.chain(node).map(|(set, element)| ((set, element.key.clone()), element)).collect()
}

fn target_element(target: Target) -> Element {
    let verdict = Data::Verdict(Verdict::Goto(target.chain()));
    Element { data: Some(verdict), ..Element::key(target.code()) }
}

#[cfg(test)]
mod tests;
