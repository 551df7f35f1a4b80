//! Tables in memory that do what `iptables-restore --noflush` and `iptables-save` do, as far as we use them: tests
//! need no kernel, and see what the programs would refuse.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::ops::RangeInclusive;

use seaway_model::Family;
use seaway_nft::conntrack::Flow;

use super::rule::{Rule, Table};
use super::tables::Tables;
use crate::dataplane::DataplaneError;

type Chains = BTreeMap<String, Vec<String>>;

/// Tables in memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    tables: BTreeMap<(Family, Table), Chains>,
    /// What was restored, for tests to look at.
    pub restored: Vec<(Family, String)>,
    /// A frontend whose rules name this word is refused, as a kernel refuses what it does not know.
    pub refuse: Option<String>,
    /// Ports that are reserved, such as `8080,9000-9100`.
    pub reserved_ports: String,
}

const OWN_TARGETS: [&str; 8] = ["RETURN", "ACCEPT", "DROP", "REJECT", "MARK", "DNAT", "SNAT", "MASQUERADE"];

impl Memory {
    /// The tables of a kernel in which nothing stands.
    pub fn new() -> Self {
        let mut memory = Self::default();
        for family in Family::ALL {
            for (table, chains) in [
                (Table::Nat, &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"][..]),
                (Table::Filter, &["INPUT", "FORWARD", "OUTPUT"][..]),
            ] {
                let chains = chains.iter().map(|chain| ((*chain).to_owned(), Vec::new())).collect();
                memory.tables.insert((family, table), chains);
            }
        }
        memory
    }

    /// The rules of a chain.
    pub fn rules(&self, family: Family, table: Table, chain: &str) -> Option<Vec<Rule>> {
        let rules = self.tables.get(&(family, table))?.get(chain)?;
        rules.iter().map(|text| Rule::parse(text)).collect()
    }

    fn commit(&mut self, family: Family, table: Table, lines: &[&str]) -> Result<(), String> {
        let mut chains = self.tables.get(&(family, table)).cloned().unwrap_or_default();
        for line in lines {
            change(&mut chains, line).map_err(|why| format!("{line:?}: {why}"))?;
            if self.refuse.as_ref().is_some_and(|word| line.contains(&**word)) {
                return Err(format!("{line:?}: refused"));
            }
        }
        for text in chains.values().flatten() {
            let rule = Rule::parse(text).ok_or("unreadable")?;
            let target = rule.target().unwrap_or("RETURN");
            if !OWN_TARGETS.contains(&target) && !chains.contains_key(target) {
                return Err(format!("{text:?} leads to a chain that is not there"));
            }
        }
        self.tables.insert((family, table), chains);
        Ok(())
    }
}

fn change(chains: &mut Chains, line: &str) -> Result<(), String> {
    if let Some(declared) = line.strip_prefix(':') {
        let name = declared.split(' ').next().unwrap_or_default();
        if name.len() > 28 {
            return Err("the name is too long".into());
        }
        chains.insert(name.to_owned(), Vec::new());
        return Ok(());
    }
    let (verb, rest) = line.split_once(' ').ok_or("no argument")?;
    let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let chain = chains.get_mut(name).ok_or("no such chain")?;
    match verb {
        "-A" => chain.push(text.to_owned()),
        "-I" => chain.insert(0, text.strip_prefix("1 ").ok_or("no number")?.to_owned()),
        "-D" => {
            let canonical = |text: &str| Rule::parse(text).map(|rule| rule.canonical());
            let at = chain.iter().position(|held| canonical(held) == canonical(text));
            chain.remove(at.ok_or("no such rule")?);
        }
        "-X" if !chain.is_empty() => return Err("not empty".into()),
        "-X" => drop(chains.remove(name)),
        _ => return Err("unknown verb".into()),
    }
    Ok(())
}

impl Tables for Memory {
    fn save(&mut self, family: Family) -> Result<String, DataplaneError> {
        let mut text = String::new();
        for ((_, table), chains) in self.tables.iter().filter(|((held, _), _)| *held == family) {
            let declared: String = chains.keys().fold(String::new(), |mut all, chain| {
                let _infallible = writeln!(all, ":{chain} - [0:0]");
                all
            });
            let rules = chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain, rule)));
            let rules = rules.fold(String::new(), |mut all, (chain, rule)| {
                let _infallible = writeln!(all, "-A {chain} {rule}");
                all
            });
            let _infallible = write!(text, "*{}\n{declared}{rules}COMMIT\n", table.name());
        }
        Ok(text)
    }

    fn restore(&mut self, family: Family, input: &str) -> Result<(), DataplaneError> {
        self.restored.push((family, input.to_owned()));
        for part in input.split("COMMIT\n").filter(|part| !part.is_empty()) {
            let mut lines = part.lines();
            let table = lines.next().and_then(|line| Table::named(line.strip_prefix('*')?));
            let lines: Vec<&str> = lines.collect();
            let done =
                table.ok_or_else(|| "no table".to_owned()).and_then(|t| self.commit(family, t, &lines));
            done.map_err(|why| DataplaneError::Io {
                action: "iptables-restore failed".into(),
                source: io::Error::other(why),
            })?;
        }
        Ok(())
    }

    fn set_sysctl(&mut self, _name: &'static str, _value: &str) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn udp_flows(&mut self, _family: Family) -> Result<Vec<Flow>, DataplaneError> {
        Ok(Vec::new())
    }

    fn forget(&mut self, _flow: &Flow) -> Result<bool, DataplaneError> {
        Ok(false)
    }

    fn snat_ports(&self) -> RangeInclusive<u16> {
        seaway_model::snat_ports(&seaway_model::port_ranges(&self.reserved_ports))
    }
}
