//! A kernel in memory that takes what the real one takes and refuses what that refuses, so that the battery runs
//! without any privilege.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;

use seaway_nft::conntrack::Flow;
use seaway_nft::{ChainInfo, Data, Element, Family, Verdict};

use super::adopt::Contents;
use super::kernel::{Found, Kernel};
use super::layout::Op;
use super::schema::{Set, expected_chains};
use crate::dataplane::DataplaneError;
use crate::status::DropCount;

/// Tables in memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    tables: Option<Tables>,
    generation: u32,
    /// Elements written and removed, and chains.
    pub writes: usize,
    /// UDP connections.
    pub flows: Vec<Flow>,
}

#[derive(Debug, Clone, Default)]
struct Tables {
    elements: BTreeMap<(Family, Set), BTreeMap<Vec<u8>, Element>>,
    /// Chains of targets, with their rules.
    chains: BTreeMap<(Family, String), u32>,
}

impl Tables {
    fn carry_out(&mut self, op: &Op) -> Result<usize, String> {
        match op {
            Op::Create => *self = Self::default(),
            Op::AddChain(family, target) => {
                let rules = u32::try_from(target.rules(*family).len()).unwrap_or(0);
                self.chains.insert((*family, target.chain()), rules);
            }
            Op::RemoveChain(family, target) => {
                if self.leading_to(*family, &target.chain()) > 0 {
                    return Err(format!("chain {} is in use", target.chain()));
                }
                self.chains.remove(&(*family, target.chain())).ok_or("no such chain")?;
            }
            Op::Add(family, set, elements) => {
                for element in elements {
                    self.add(*family, *set, element)?;
                }
                return Ok(elements.len());
            }
            Op::Remove(family, set, elements) => {
                let held = self.elements.entry((*family, *set)).or_default();
                for element in elements {
                    held.remove(&element.key).ok_or_else(|| format!("no such element in {}", set.name()))?;
                }
                return Ok(elements.len());
            }
        }
        Ok(1)
    }

    fn add(&mut self, family: Family, set: Set, element: &Element) -> Result<(), String> {
        if let Some(Data::Verdict(Verdict::Goto(chain))) = &element.data
            && !["reject", "elsewhere"].contains(&chain.as_str())
            && !self.chains.contains_key(&(family, chain.clone()))
        {
            return Err(format!("no chain {chain}"));
        }
        let held = self.elements.entry((family, set)).or_default();
        match held.insert(element.key.clone(), element.clone()) {
            Some(former) if former != *element => Err(format!("another such element in {}", set.name())),
            _ => Ok(()),
        }
    }

    fn leading_to(&self, family: Family, chain: &str) -> u32 {
        let leads = |element: &&Element| matches!(&element.data, Some(Data::Verdict(Verdict::Goto(to))) if to == chain);
        let targets = self.elements.get(&(family, Set::Targets)).into_iter().flat_map(BTreeMap::values);
        u32::try_from(targets.filter(leads).count()).unwrap_or(0)
    }

    fn contents(&self, ports: &RangeInclusive<u16>) -> Contents {
        let mut contents = Contents::default();
        for (name, elements) in &self.elements {
            if !elements.is_empty() {
                contents.elements.insert(*name, elements.values().cloned().collect());
            }
        }
        for family in Family::ALL {
            let mut chains = expected_chains(family, ports, std::iter::empty());
            for ((of, name), rules) in &self.chains {
                if *of == family {
                    chains.insert(name.clone(), *rules);
                }
            }
            let chain = |(name, rules): (String, u32)| {
                let uses = rules + self.leading_to(family, &name);
                ChainInfo { name, uses }
            };
            contents.chains.insert(family, chains.into_iter().map(chain).collect());
        }
        contents
    }
}

impl Kernel for Memory {
    fn commit(&mut self, ops: &[Op]) -> Result<(), DataplaneError> {
        let created = self.tables.is_some() || ops.first() == Some(&Op::Create);
        let mut tables = self.tables.clone().filter(|_| created).unwrap_or_default();
        for op in ops {
            let refused = |what: String| DataplaneError::Io {
                action: format!("cannot carry out {op:?}"),
                source: io::Error::other(what),
            };
            self.writes += tables.carry_out(op).map_err(refused)?;
        }
        self.tables = Some(tables);
        self.generation += 1;
        Ok(())
    }

    fn read(&mut self) -> Result<Found, DataplaneError> {
        let ports = self.snat_ports();
        Ok(self.tables.as_ref().map_or(Found::Nothing, |tables| Found::Ours(tables.contents(&ports))))
    }

    fn generation(&mut self) -> Result<u32, DataplaneError> {
        Ok(self.generation)
    }

    fn udp_flows(&mut self) -> Result<Vec<Flow>, DataplaneError> {
        Ok(self.flows.clone())
    }

    fn forget(&mut self, flow: &Flow) -> Result<bool, DataplaneError> {
        let before = self.flows.len();
        self.flows.retain(|held| held != flow);
        Ok(self.flows.len() < before)
    }

    fn drops(&self) -> Vec<DropCount> {
        Vec::new()
    }

    fn snat_ports(&self) -> RangeInclusive<u16> {
        32_768..=65_535
    }
}
