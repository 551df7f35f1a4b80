//! What is found in the kernel, taken over.
//!
//! The rules' comments say which frontends stand there. From those all chains are computed again and compared with
//! what was found: a frontend whose chains are not as they should be is not adopted, so that it is written anew, and
//! whatever else differs is in disorder and swept.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use seaway_model::Family;

use super::chains::{self, Bucket, Choice};
use super::edit::Edit;
use super::layout::{Layout, is_base};
use super::rule::{Rule, Table, digest};
use super::save::Saved;
use crate::frontend::{Backend, Frontend, FrontendKey};
use crate::plan::{Device, Host};

/// A frontend that rules speak of.
struct Candidate {
    frontend: Frontend,
    /// The choosing chain that they lead to.
    choice: Option<String>,
    /// The chain that they stand in.
    bucket: String,
}

impl Layout {
    /// Takes over what was found.
    pub(super) fn adopt(family: Family, saved: Saved, snat_ports: RangeInclusive<u16>) -> Self {
        let mut layout = Self::new(family, snat_ports);
        let sound = sound_choices(&saved);
        for (key, candidate) in candidates(&saved) {
            let Candidate { frontend, choice, bucket } = candidate;
            let bucket_fits = Bucket::of(&key, frontend.kind).chain() == bucket;
            let choice_fits = Choice::of(key.protocol, &frontend).map(|choice| choice.chain()) == choice
                && choice.is_none_or(|chain| sound.contains(&chain));
            let family_fits = frontend.backends.iter().all(|b| Family::of(b.addr) == family);
            if Family::of(key.addr) == family && bucket_fits && choice_fits && family_fits {
                layout.put(key, Arc::new(frontend), &mut Edit::default());
            }
        }
        layout.host = host(&saved);
        layout.jumps = saved.jumps;
        layout.compare(&saved.chains);
        layout
    }

    /// Notes what the kernel has in each chain, and what differs from what should be there.
    fn compare(&mut self, found: &BTreeMap<(Table, String), Vec<Rule>>) {
        for (place, rules) in found {
            if is_base(&place.1) {
                self.held.insert(place.clone(), digest(rules));
            }
        }
        let buckets: Vec<Bucket> = self.buckets.keys().copied().collect();
        for bucket in buckets {
            let (nat, filter) = self.rules_of(&bucket);
            for (table, wanted) in [(Table::Nat, nat), (Table::Filter, filter)] {
                let place = (table, bucket.chain());
                let held = found.get(&place).map(|rules| digest(rules));
                if let Some(held) = held {
                    self.held.insert(place, held);
                }
                if held != (!wanted.is_empty()).then(|| digest(&wanted)) {
                    self.dirty.insert(bucket);
                }
            }
        }
        let used = |(table, chain): &(Table, String)| {
            let own = self.choices.contains_key(chain) || self.backends.contains_key(chain);
            self.held.contains_key(&(*table, chain.clone())) || (*table == Table::Nat && own)
        };
        self.stale = found.keys().filter(|place| !used(place)).cloned().collect();
    }
}

/// The frontends that rules speak of. One that is translated is not refused: such a rule says nothing more about it.
fn candidates(saved: &Saved) -> BTreeMap<FrontendKey, Candidate> {
    let mut all: BTreeMap<FrontendKey, Candidate> = BTreeMap::new();
    for ((table, chain), rules) in &saved.chains {
        for rule in rules {
            let Some((key, mut frontend)) = chains::frontend_of(rule) else { continue };
            let choice = match table {
                Table::Nat => rule.target().map(str::to_owned),
                Table::Filter => None,
            };
            if let Some(known) = all.get_mut(&key) {
                if known.choice == choice {
                    let both = known.frontend.source_ranges.iter().chain(frontend.source_ranges.iter());
                    known.frontend.source_ranges = both.copied().collect();
                }
                continue;
            }
            if let Some(target) = &choice {
                frontend.backends = backends(saved, target);
            }
            all.insert(key, Candidate { frontend, choice, bucket: chain.clone() });
        }
    }
    all
}

/// The backends that a choosing chain speaks of.
fn backends(saved: &Saved, chain: &str) -> Arc<[Backend]> {
    let rules = saved.chains.get(&(Table::Nat, chain.to_owned()));
    let comments = rules.into_iter().flatten().filter_map(|rule| rule.value("--comment"));
    comments.filter_map(chains::backend_of_comment).collect()
}

/// The choosing chains that are as they should be, with all that they lead to, for the frontends that use them.
fn sound_choices(saved: &Saved) -> HashSet<String> {
    let mut sound = HashSet::new();
    for (key, candidate) in candidates(saved) {
        let Some(choice) = Choice::of(key.protocol, &candidate.frontend) else { continue };
        let chain = choice.chain();
        if sound.contains(&chain) {
            continue;
        }
        let holds = |chain: String, rules: &[Rule]| {
            let found = saved.chains.get(&(Table::Nat, chain));
            found.is_some_and(|found| digest(found) == digest(rules))
        };
        let all = choice.backends().all(|(chain, rules)| holds(chain, &rules));
        if all && holds(chain.clone(), &choice.rules()) {
            sound.insert(chain);
        }
    }
    sound
}

/// The node as the chains have it.
fn host(saved: &Saved) -> Host {
    let mut host = Host::default();
    let chain = |name: &str| saved.chains.get(&(Table::Nat, name.to_owned())).into_iter().flatten();
    for rule in chain("SEAWAY-PREROUTING") {
        let index = rule.value("--comment").and_then(|text| text.strip_prefix("sw1 uplink ")?.parse().ok());
        if let (Some(index), Some(name)) = (index, rule.value("-i")) {
            host.uplinks.insert(Device { name: name.into(), index });
        }
    }
    for rule in chain("SEAWAY-POSTROUTING") {
        let Some(text) = rule.value("--comment").and_then(|text| text.strip_prefix("sw1 node ")) else {
            continue;
        };
        host.node_v4 = text.parse().ok();
        host.node_v6 = text.parse().ok();
    }
    host
}
