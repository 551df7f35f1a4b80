//! Where everything lies in the maps: user space's picture of them, rebuilt from the kernel at start and moved on
//! with each plan. [`Layout::compile`] is pure: plan in, ordered map operations out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};
use imbl::OrdMap;
use ipnet::IpNet;
use seaway_ebpf_loader as loader;

use super::alloc::Allocator;
use super::codec::{self, PROBES};
use super::kernel::Room;
use crate::dataplane::{DataplaneError, Failure, Subject};
use crate::frontend::{Backend, Frontend, FrontendKey, Group};
use crate::plan::Plan;

/// Map operations in the order in which they have to be carried out.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ops {
    pub(super) add_ranges: Vec<loader::SourceRange>,
    pub(super) put_slices: Vec<(u32, Vec<loader::BackendEntry>)>,
    pub(super) put_tables: Vec<loader::MaglevTable>,
    pub(super) put_services: Vec<(loader::Frontend, loader::ServiceEntry)>,
    pub(super) remove_services: Vec<loader::Frontend>,
    pub(super) remove_ranges: Vec<loader::SourceRange>,
}

impl Ops {
    /// Takes out the entries that stand for all other ports of an address.
    pub(super) fn take_refusals(&mut self) -> Vec<(loader::Frontend, loader::ServiceEntry)> {
        let (refusals, rest) =
            std::mem::take(&mut self.put_services).into_iter().partition(|(key, _)| key.protocol.is_none());
        self.put_services = rest;
        refusals
    }
}

/// What is in the maps, as read.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) services: Vec<(loader::Frontend, loader::ServiceEntry)>,
    pub(super) ranges: Vec<loader::SourceRange>,
    /// The backend array from its beginning to the end of the last slice.
    pub(super) backends: Vec<loader::BackendEntry>,
    pub(super) capacity: u32,
    /// Chunks that Maglev tables may take.
    pub(super) maglev_capacity: u32,
}

/// What lies where.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    alloc: Allocator,
    /// Of chunks of Maglev tables.
    tables: Allocator,
    /// Boxed: half of a table's room is empty.
    groups: HashMap<Group, Box<Placed>>,
    ids: HashSet<u32>,
    group_of: HashMap<FrontendKey, Group>,
    /// Guards and how many frontends need each.
    guards: HashMap<loader::Frontend, usize>,
    /// Guards that some frontend needs and the kernel has not.
    missing_guards: HashMap<loader::Frontend, loader::ServiceEntry>,
    stale_services: BTreeSet<loader::Frontend>,
    stale_ranges: BTreeSet<loader::SourceRange>,
}

/// A group in the maps.
#[derive(Debug, Clone)]
struct Placed {
    id: u32,
    probe: u32,
    /// Vectors, since most groups have a handful and there are tens of thousands of groups.
    members: Vec<(FrontendKey, Member)>,
    /// Slices by base.
    slices: Vec<(u32, Arc<[Backend]>)>,
    tables: Vec<Table>,
    ranges: BTreeSet<IpNet>,
}

/// The Maglev table of a slice.
#[derive(Debug, Clone, Copy)]
struct Table {
    slice: u32,
    base: u32,
    size: u32,
}

#[derive(Debug, Clone)]
struct Member {
    frontend: Arc<Frontend>,
    base: u32,
}

impl Layout {
    /// Empty maps.
    fn new(capacity: u32, maglev_capacity: u32) -> Self {
        Self {
            alloc: Allocator::new(capacity),
            tables: Allocator::new(maglev_capacity),
            groups: HashMap::new(),
            ids: HashSet::new(),
            group_of: HashMap::new(),
            guards: HashMap::new(),
            missing_guards: HashMap::new(),
            stale_services: BTreeSet::new(),
            stale_ranges: BTreeSet::new(),
        }
    }

    /// The layout that the kernel's maps have. What does not make sense is stale: it is not adopted, and swept later.
    pub(super) fn adopt(contents: &Contents) -> Self {
        let mut layout = Self::new(contents.capacity, contents.maglev_capacity);
        let mut ranges: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
        for range in &contents.ranges {
            match IpNet::new(range.addr, range.prefix) {
                Ok(net) => _ = ranges.entry(range.service).or_default().insert(net),
                Err(_) => _ = layout.stale_ranges.insert(*range),
            }
        }
        let mut found_guards = HashSet::new();
        for (key, entry) in &contents.services {
            match codec::frontend_key(key) {
                None => _ = found_guards.insert(*key),
                Some(frontend) if layout.adopt_frontend(frontend, entry, &contents.backends, &ranges) => {}
                Some(_) => _ = layout.stale_services.insert(*key),
            }
        }
        let restricted = layout.groups.values().filter(|placed| !placed.ranges.is_empty());
        let restricted: HashSet<u32> = restricted.map(|placed| placed.id).collect();
        layout
            .stale_ranges
            .extend(contents.ranges.iter().filter(|range| !restricted.contains(&range.service)));
        layout.adopt_guards(found_guards);
        layout
    }

    fn adopt_frontend(
        &mut self,
        key: FrontendKey,
        entry: &loader::ServiceEntry,
        array: &[loader::BackendEntry],
        ranges: &BTreeMap<u32, BTreeSet<IpNet>>,
    ) -> bool {
        let Some((mut frontend, probe)) = codec::frontend(&key, entry) else { return false };
        let (start, end) = (entry.base as usize, entry.base as usize + entry.count as usize);
        let Some(slice) = array.get(start..end) else { return false };
        let Some(backends) = codec::backends(slice, entry.id) else { return false };
        if entry.source_ranges {
            let Some(nets) = ranges.get(&entry.id) else { return false };
            frontend.source_ranges = nets.iter().copied().collect();
        }
        let fresh = !self.groups.contains_key(&frontend.group);
        if fresh && self.ids.contains(&entry.id) {
            return false; // Another group has the id.
        }
        let placed =
            self.groups.entry(frontend.group).or_insert_with(|| Box::new(Placed::new(entry.id, probe)));
        if placed.id != entry.id {
            return false;
        }
        if !placed.adopt_table(entry, &mut self.tables) {
            if placed.members.is_empty() {
                self.groups.remove(&frontend.group);
            }
            return false; // Its Maglev table overlaps another one.
        }
        let known = placed.slices.iter().find(|(base, held)| *base == entry.base && held[..] == backends[..]);
        let known = known.map(|(_, held)| Arc::clone(held));
        let slice = match known {
            Some(held) => held,
            None if entry.count == 0 => Arc::default(),
            None if self.alloc.reserve(entry.base, entry.count) => {
                let held: Arc<[Backend]> = backends.into();
                placed.slices.push((entry.base, Arc::clone(&held)));
                held
            }
            None => {
                if placed.members.is_empty() {
                    self.groups.remove(&frontend.group);
                }
                return false; // It overlaps another slice.
            }
        };
        self.ids.insert(entry.id);
        frontend.backends = slice;
        placed.ranges.extend(frontend.source_ranges.iter());
        self.group_of.insert(key, frontend.group);
        if let Some((guard, _)) = codec::guard(&key, &frontend) {
            *self.guards.entry(guard).or_default() += 1;
        }
        let same = placed.members.iter().map(|(_, member)| &member.frontend).find(|held| ***held == frontend);
        let frontend = same.map_or_else(|| Arc::new(frontend), Arc::clone);
        placed.members.push((key, Member { frontend, base: entry.base }));
        true
    }

    fn adopt_guards(&mut self, found: HashSet<loader::Frontend>) {
        for placed in self.groups.values() {
            for (key, member) in &placed.members {
                if let Some((guard, entry)) = codec::guard(key, &member.frontend)
                    && !found.contains(&guard)
                {
                    self.missing_guards.insert(guard, entry);
                }
            }
        }
        self.stale_services.extend(found.into_iter().filter(|guard| !self.guards.contains_key(guard)));
    }

    /// All frontends.
    pub(super) fn frontends(&self) -> OrdMap<FrontendKey, Arc<Frontend>> {
        let members = self.groups.values().flat_map(|placed| &placed.members);
        members.map(|(key, member)| (*key, Arc::clone(&member.frontend))).collect()
    }

    /// Whether no Service is served.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Which group has which id.
    pub(super) fn groups_by_id(&self) -> HashMap<u32, Group> {
        self.groups.iter().map(|(group, placed)| (placed.id, *group)).collect()
    }

    /// Every backend with the id of its group.
    pub(super) fn backends_by_id(&self) -> HashSet<(u32, (IpAddr, u16))> {
        let slices = self.groups.values().flat_map(|placed| {
            let backends = placed.slices.iter().flat_map(|(_, backends)| backends.iter());
            backends.map(|backend| (placed.id, (backend.addr, backend.port)))
        });
        slices.collect()
    }

    /// How much room there has to be for all that is held and for what `plan` adds; slices that it replaces stay for a
    /// moment beside the new ones.
    pub(super) fn needs(&self, plan: &Plan) -> Room {
        let (mut services, mut backends, mut ranges, mut chunks) = (0, 0, 0, 0_u32);
        let (mut seen, mut last) = (HashSet::new(), None);
        for (key, frontend) in &plan.upserts {
            services += usize::from(!self.group_of.contains_key(key));
            let guard = codec::guard(key, frontend).map(|(guard, _)| guard);
            services += usize::from(guard.is_some_and(|guard| !self.guards.contains_key(&guard)));
            let slice = (frontend.group, frontend.backends.as_ptr());
            // In the order of keys, those of one slice mostly stand together.
            if last.replace(slice) != Some(slice) && seen.insert(slice) {
                backends += frontend.backends.len();
                ranges += frontend.source_ranges.len();
                let count = u32::try_from(frontend.backends.len()).unwrap_or(u32::MAX);
                let size = codec::table_size(frontend, count).unwrap_or(0);
                chunks = chunks.saturating_add(loader::maglev_chunks(size));
            }
        }
        if ranges > 0 {
            ranges += self.stale_ranges.len();
            ranges += self.groups.values().map(|placed| placed.ranges.len()).sum::<usize>();
        }
        services += self.group_of.len() + self.guards.len() + self.stale_services.len();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Room {
            services: number(services),
            backends: self.alloc.used().saturating_add(number(backends)),
            source_ranges: number(ranges),
            maglev: self.tables.used().saturating_add(chunks),
        }
    }

    /// The maps have been exchanged for larger ones.
    pub(super) fn extend(&mut self, room: &Room) {
        self.alloc.extend(room.backends);
        self.tables.extend(room.maglev);
    }

    /// How much there is to sweep.
    pub(super) fn stale(&self) -> usize {
        self.stale_services.len() + self.stale_ranges.len() + self.missing_guards.len()
    }

    /// The operations that carry out `plan`. Frontends that cannot be placed are reported and left as they are.
    pub(super) fn compile(&mut self, plan: &Plan, now: Instant) -> (Ops, Vec<Failure>) {
        let mut ops = Ops::default();
        let mut failed = Vec::new();
        // Groups that may have let go of something.
        let mut touched = BTreeSet::new();
        for (key, frontend) in &plan.upserts {
            if let Err(error) = self.upsert(*key, frontend, now, &mut ops, &mut touched) {
                touched.insert(frontend.group);
                failed.push(Failure { subject: Subject::Frontend(*key), error });
            }
        }
        for key in &plan.removals {
            self.take_out(key, &mut ops, &mut touched);
            ops.remove_services.extend(codec::key(key));
        }
        for group in touched {
            self.settle(group, now, &mut ops);
        }
        if plan.sweep {
            ops.put_services.extend(self.missing_guards.drain());
            ops.remove_services.extend(std::mem::take(&mut self.stale_services));
            ops.remove_ranges.extend(std::mem::take(&mut self.stale_ranges));
        }
        // What is written anew in this plan must not go in it.
        if !ops.remove_services.is_empty() {
            let written: HashSet<loader::Frontend> = ops.put_services.iter().map(|(key, _)| *key).collect();
            ops.remove_services.retain(|key| !written.contains(key));
        }
        let added: HashSet<loader::SourceRange> = ops.add_ranges.iter().copied().collect();
        ops.remove_ranges.retain(|range| !added.contains(range));
        (ops, failed)
    }

    fn upsert(
        &mut self,
        key: FrontendKey,
        frontend: &Arc<Frontend>,
        now: Instant,
        ops: &mut Ops,
        touched: &mut BTreeSet<Group>,
    ) -> Result<(), DataplaneError> {
        let unsupported = |what| DataplaneError::Unsupported { frontend: key, what, backend: "ebpf" };
        let place = codec::key(&key).ok_or_else(|| unsupported("SCTP"))?;
        let (id, probe) = self.id(frontend.group).ok_or_else(|| unsupported("a ninth group of one id"))?;
        let base = self.slice(frontend, id, now, ops)?;
        let table = self.table(frontend, base, now, ops)?;
        // Before the former frontend lets go of its own, which is the same as a rule.
        if let Some((guard, entry)) = codec::guard(&key, frontend) {
            let users = self.guards.entry(guard).or_default();
            *users += 1;
            let missing = self.missing_guards.remove(&guard).is_some();
            if *users == 1 || missing {
                ops.put_services.push((guard, entry));
            }
            self.stale_services.remove(&guard);
        }
        self.take_out(&key, ops, touched);
        let placed = self.groups.entry(frontend.group).or_insert_with(|| Box::new(Placed::new(id, probe)));
        for net in frontend.source_ranges.iter() {
            if placed.ranges.insert(*net) {
                ops.add_ranges.push(range(id, *net));
            }
        }
        placed.members.push((key, Member { frontend: Arc::clone(frontend), base }));
        self.group_of.insert(key, frontend.group);
        self.stale_services.remove(&place);
        ops.put_services.push((place, codec::entry(&key, frontend, id, probe, base, table)));
        Ok(())
    }

    /// The id of a group; a new one takes the first that is free.
    fn id(&mut self, group: Group) -> Option<(u32, u32)> {
        if let Some(placed) = self.groups.get(&group) {
            return Some((placed.id, placed.probe));
        }
        let tries = (0..PROBES).filter_map(|probe| Some((codec::id_of(group, probe)?, probe)));
        let (id, probe) = tries.into_iter().find(|(id, _)| !self.ids.contains(id))?;
        self.ids.insert(id);
        self.groups.insert(group, Box::new(Placed::new(id, probe)));
        Some((id, probe))
    }

    /// The slice of the frontend's backends; one that the group has already is shared.
    fn slice(
        &mut self,
        frontend: &Frontend,
        id: u32,
        now: Instant,
        ops: &mut Ops,
    ) -> Result<u32, DataplaneError> {
        if frontend.backends.is_empty() {
            return Ok(0);
        }
        let placed = self.groups.get_mut(&frontend.group);
        let held = placed.as_ref().and_then(|placed| {
            placed.slices.iter().find(|(_, backends)| **backends == *frontend.backends).map(|(base, _)| *base)
        });
        if let Some(base) = held {
            return Ok(base);
        }
        let full = |alloc: &Allocator| DataplaneError::Full {
            map: "backends",
            capacity: alloc.capacity(),
            wanted: u64::from(alloc.used()) + frontend.backends.len() as u64,
        };
        let len = u32::try_from(frontend.backends.len()).map_err(|_| full(&self.alloc))?;
        let Some(base) = self.alloc.allocate(len, now) else { return Err(full(&self.alloc)) };
        if let Some(placed) = placed {
            placed.slices.push((base, Arc::clone(&frontend.backends)));
        }
        ops.put_slices.push((base, codec::slice(&frontend.backends, id)));
        Ok(base)
    }

    /// The Maglev table of the slice at `base`, where the frontend wants one: its place and its size.
    fn table(
        &mut self,
        frontend: &Frontend,
        base: u32,
        now: Instant,
        ops: &mut Ops,
    ) -> Result<Option<(u32, u32)>, DataplaneError> {
        let count = u32::try_from(frontend.backends.len()).unwrap_or(u32::MAX);
        let Some(size) = codec::table_size(frontend, count) else { return Ok(None) };
        let Some(placed) = self.groups.get_mut(&frontend.group) else { return Ok(None) };
        if let Some(held) = placed.tables.iter().find(|table| table.slice == base) {
            return Ok(Some((held.base, held.size)));
        }
        let chunks = loader::maglev_chunks(size);
        let Some(at) = self.tables.allocate(chunks, now) else {
            return Err(DataplaneError::Full {
                map: "maglev",
                capacity: self.tables.capacity(),
                wanted: u64::from(self.tables.used()) + u64::from(chunks),
            });
        };
        let backends: Vec<_> = frontend.backends.iter().map(|b| (b.addr, b.port)).collect();
        placed.tables.push(Table { slice: base, base: at, size });
        ops.put_tables.push(loader::MaglevTable { base: at, slots: loader::maglev::table(&backends) });
        Ok(Some((at, size)))
    }

    /// Forgets a frontend; what only it used is given back by [`Layout::settle`].
    fn take_out(&mut self, key: &FrontendKey, ops: &mut Ops, touched: &mut BTreeSet<Group>) {
        let Some(group) = self.group_of.remove(key) else { return };
        touched.insert(group);
        let member = self.groups.get_mut(&group).and_then(|placed| {
            let at = placed.members.iter().position(|(held, _)| held == key)?;
            Some(placed.members.swap_remove(at).1)
        });
        let Some((guard, _)) = member.and_then(|member| codec::guard(key, &member.frontend)) else { return };
        if let Some(users) = self.guards.get_mut(&guard) {
            *users -= 1;
            if *users == 0 {
                self.guards.remove(&guard);
                self.missing_guards.remove(&guard);
                ops.remove_services.push(guard);
            }
        }
    }

    /// Gives back what no frontend of the group uses any more.
    fn settle(&mut self, group: Group, now: Instant, ops: &mut Ops) {
        let Some(placed) = self.groups.get_mut(&group) else { return };
        let serving = placed.members.iter().filter(|(_, member)| !member.frontend.backends.is_empty());
        let used: BTreeSet<u32> = serving.map(|(_, member)| member.base).collect();
        placed.slices.retain(|(base, backends)| {
            let keep = used.contains(base);
            if !keep {
                self.alloc.release(*base, u32::try_from(backends.len()).unwrap_or(u32::MAX), now);
            }
            keep
        });
        let hashed = placed.members.iter().filter(|(_, member)| member.frontend.maglev);
        let hashed: BTreeSet<u32> = hashed.map(|(_, member)| member.base).collect();
        placed.tables.retain(|table| {
            let keep = used.contains(&table.slice) && hashed.contains(&table.slice);
            if !keep {
                self.tables.release(table.base, loader::maglev_chunks(table.size), now);
            }
            keep
        });
        let members = placed.members.iter();
        let wanted: BTreeSet<IpNet> =
            members.flat_map(|(_, member)| member.frontend.source_ranges.iter().copied()).collect();
        ops.remove_ranges.extend(placed.ranges.difference(&wanted).map(|net| range(placed.id, *net)));
        placed.ranges = wanted;
        if placed.members.is_empty() {
            self.ids.remove(&placed.id);
            self.groups.remove(&group);
        }
    }
}

impl Placed {
    fn new(id: u32, probe: u32) -> Self {
        // What most have: a frontend in either scope, of the same backends.
        let (members, slices) = (Vec::with_capacity(2), Vec::with_capacity(1));
        Self { id, probe, members, slices, tables: Vec::new(), ranges: BTreeSet::new() }
    }

    /// Takes over the Maglev table of an entry, if it has one. False: it cannot lie there.
    fn adopt_table(&mut self, entry: &loader::ServiceEntry, tables: &mut Allocator) -> bool {
        let found = Table { slice: entry.base, base: entry.maglev_base, size: entry.maglev_size };
        if found.size == 0 {
            return true;
        }
        if let Some(held) = self.tables.iter().find(|table| table.slice == found.slice) {
            return (held.base, held.size) == (found.base, found.size);
        }
        let sound = tables.reserve(found.base, loader::maglev_chunks(found.size));
        if sound {
            self.tables.push(found);
        }
        sound
    }
}

fn range(id: u32, net: IpNet) -> loader::SourceRange {
    loader::SourceRange { service: id, addr: net.addr(), prefix: net.prefix_len() }
}

#[cfg(test)]
mod tests;
