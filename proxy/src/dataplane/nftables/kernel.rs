//! What the nftables data plane needs of a kernel: the real one here, and one in memory in `memory`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use seaway_nft::conntrack::{self, Flow};
use seaway_nft::{Batch, Chain, Family, NftError};

use super::adopt::Contents;
use super::layout::{Layout, Op};
use super::schema::{self, NO_DROP, Set};
use crate::dataplane::DataplaneError;
use crate::status::DropCount;

/// Tables and connections.
pub trait Kernel: Send {
    /// Carries out `ops` together or not at all.
    fn commit(&mut self, ops: &[Op]) -> Result<(), DataplaneError>;

    /// What the tables hold. They may be missing, or another version's.
    fn read(&mut self) -> Result<Found, DataplaneError>;

    /// The number of the ruleset's generation: it counts every change, whoever makes it.
    fn generation(&mut self) -> Result<u32, DataplaneError>;

    /// UDP connections.
    fn udp_flows(&mut self) -> Result<Vec<Flow>, DataplaneError>;

    /// Forgets a connection. False: it was gone already.
    fn forget(&mut self, flow: &Flow) -> Result<bool, DataplaneError>;

    /// Packets dropped, by reason.
    fn drops(&self) -> Vec<DropCount>;

    /// The ports of source NAT.
    fn snat_ports(&self) -> RangeInclusive<u16>;
}

/// What was found in the place of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Tables that this version did not make.
    Foreign,
    /// Tables that this version made.
    Ours(Contents),
}

/// The kernel that this process runs on, in the network namespace that it is in.
#[derive(Debug)]
pub struct Netlink {
    snat_ports: RangeInclusive<u16>,
    comment: String,
}

impl Default for Netlink {
    fn default() -> Self {
        let snat_ports = crate::dataplane::tracked_snat_ports();
        Self { comment: schema::comment(&snat_ports), snat_ports }
    }
}

impl Kernel for Netlink {
    fn commit(&mut self, ops: &[Op]) -> Result<(), DataplaneError> {
        let mut batch = Batch::new();
        for op in ops {
            encode(op, &self.snat_ports, &mut batch);
        }
        seaway_nft::commit(batch, "change the tables of Services").map_err(failed)
    }

    fn read(&mut self) -> Result<Found, DataplaneError> {
        let comments = Family::ALL.map(|family| seaway_nft::table_comment(schema::table(family)));
        let [v4, v6] = comments;
        match (v4.map_err(failed)?, v6.map_err(failed)?) {
            (None, None) => Ok(Found::Nothing),
            (Some(v4), Some(v6)) if v4 == self.comment && v6 == self.comment => {
                Ok(Found::Ours(contents().map_err(failed)?))
            }
            _ => Ok(Found::Foreign),
        }
    }

    fn generation(&mut self) -> Result<u32, DataplaneError> {
        seaway_nft::generation().map_err(failed)
    }

    fn udp_flows(&mut self) -> Result<Vec<Flow>, DataplaneError> {
        const UDP: u8 = 17;
        conntrack::flows(None, UDP).map_err(failed)
    }

    fn forget(&mut self, flow: &Flow) -> Result<bool, DataplaneError> {
        conntrack::forget(flow).map_err(failed)
    }

    fn drops(&self) -> Vec<DropCount> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for family in Family::ALL {
            for counter in seaway_nft::counters(schema::table(family)).unwrap_or_default() {
                *all.entry(counter.name).or_default() += counter.packets;
            }
        }
        all.into_iter()
            .filter(|(name, packets)| *packets > 0 && name != NO_DROP)
            .map(|(reason, packets)| DropCount { reason, packets })
            .collect()
    }

    fn snat_ports(&self) -> RangeInclusive<u16> {
        self.snat_ports.clone()
    }
}

fn contents() -> Result<Contents, NftError> {
    let mut contents = Contents::default();
    for family in Family::ALL {
        let table = schema::table(family);
        contents.chains.insert(family, seaway_nft::chains(table)?);
        // What rules write comes and goes with clients.
        for set in Set::ALL.into_iter().filter(|set| *set != Set::Affinity) {
            let elements = seaway_nft::elements(table, set.name())?;
            if !elements.is_empty() {
                contents.elements.insert((family, set), elements);
            }
        }
    }
    Ok(contents)
}

/// The messages of one step.
pub(super) fn encode(op: &Op, snat_ports: &RangeInclusive<u16>, batch: &mut Batch) {
    match op {
        Op::Create => schema::create(batch, snat_ports),
        Op::AddChain(family, target) => {
            let (table, name) = (schema::table(*family), target.chain());
            batch.add_chain(table, Chain { name: &name, base: None });
            for rule in target.rules(*family) {
                batch.add_rule(table, &name, &rule);
            }
        }
        Op::RemoveChain(family, target) => batch.delete_chain(schema::table(*family), &target.chain()),
        Op::Add(family, set, elements) => {
            batch.add_elements(schema::table(*family), set.name(), elements);
        }
        Op::Remove(family, set, elements) => {
            batch.delete_elements(schema::table(*family), set.name(), elements);
        }
    }
}

/// Whether the chains that are there are those of `layout`, with all their rules.
pub(super) fn chains_are_whole(
    contents: &Contents,
    layout: &Layout,
    snat_ports: &RangeInclusive<u16>,
) -> bool {
    Family::ALL.into_iter().all(|family| {
        let held = contents.chains.get(&family).into_iter().flatten();
        let held: BTreeMap<String, u32> = held.map(|chain| (chain.name.clone(), chain.uses)).collect();
        held == schema::expected_chains(family, snat_ports, layout.targets(family))
    })
}

/// Removes the tables, if they are there.
pub(crate) fn remove_all() -> Result<(), DataplaneError> {
    match seaway_nft::generation() {
        Ok(_) => {}
        Err(error) if error.errno() == Some(rustix::io::Errno::PERM) => return Err(failed(error)),
        // A kernel without nf_tables has no tables.
        Err(_) => return Ok(()),
    }
    let mut batch = Batch::new();
    for family in Family::ALL {
        let table = schema::table(family);
        if seaway_nft::table_comment(table).map_err(failed)?.is_some() {
            batch.delete_table(table);
        }
    }
    seaway_nft::commit(batch, "remove the tables of Services").map_err(failed)
}

fn failed(source: NftError) -> DataplaneError {
    DataplaneError::Loader {
        action: "the tables of the nftables data plane failed",
        source: Box::new(source),
    }
}
