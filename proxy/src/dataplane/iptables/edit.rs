//! Changes to the tables of one family, and how they are told to `iptables-restore`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::rule::{Rule, Table};
use super::save::Jump;

/// Changes that are to be made together.
#[derive(Debug, Default)]
pub(super) struct Edit {
    /// Chains to write anew, whether they exist or not.
    pub(super) write: BTreeMap<(Table, String), Vec<Rule>>,
    /// Chains to delete.
    pub(super) delete: BTreeSet<(Table, String)>,
    /// Rules to insert into chains of others, first.
    pub(super) insert: Vec<Jump>,
    /// Rules to delete from chains of others.
    pub(super) remove: Vec<Jump>,
    /// Everything goes: `filter` first, or it would refuse what `nat` translates no more and somebody else serves.
    pub(super) everything_goes: bool,
}

impl Edit {
    /// A chain is needed no more. If it was to be written only now, that is enough.
    pub(super) fn forget(&mut self, place: (Table, String)) {
        if self.write.remove(&place).is_none() {
            self.delete.insert(place);
        }
    }

    /// The input of `iptables-restore --noflush`, or nothing.
    pub(super) fn render(&self) -> Option<String> {
        let mut order = Table::ALL;
        if self.everything_goes {
            order.reverse();
        }
        let tables: Vec<String> = order.into_iter().filter_map(|table| self.table(table)).collect();
        (!tables.is_empty()).then(|| tables.concat())
    }

    /// One table is changed as a whole or not at all. Naming a chain empties it, so that everything can be deleted
    /// in the end, whatever pointed to it.
    fn table(&self, table: Table) -> Option<String> {
        let mut text = String::new();
        let of = |place: &&(Table, String)| place.0 == table;
        for (_, chain) in self.write.keys().filter(of).chain(self.delete.iter().filter(of)) {
            writeln!(text, ":{chain} - [0:0]").ok()?;
        }
        for jump in self.remove.iter().filter(|jump| jump.table == table) {
            writeln!(text, "-D {} {}", jump.chain, jump.text).ok()?;
        }
        for ((_, chain), rules) in self.write.iter().filter(|((held, _), _)| *held == table) {
            for rule in rules {
                writeln!(text, "-A {chain} {rule}").ok()?;
            }
        }
        for jump in self.insert.iter().filter(|jump| jump.table == table) {
            writeln!(text, "-I {} 1 {}", jump.chain, jump.text).ok()?;
        }
        for (_, chain) in self.delete.iter().filter(of) {
            writeln!(text, "-X {chain}").ok()?;
        }
        (!text.is_empty()).then(|| format!("*{}\n{text}COMMIT\n", table.name()))
    }
}
