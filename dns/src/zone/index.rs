//! Services by namespace and name.
//!
//! Questions touch as little memory as can be, since most of it has to be fetched from far: one table, one hash over both
//! names, and in its place all that is told of a Service, with its name. A change leaves readers what they have: the table
//! is cut into parts by hash, and whoever changes a Service copies the list of parts and its one part.
//!
//! What a large table costs beside a small one is the wait for memory that is far away. Questions come in batches, so
//! that all of a batch can wait at once ([`Index::fetch`]).

use std::hash::BuildHasher;
use std::hint::black_box;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use imbl::OrdMap;
use seaway_model::ServiceKey;
use smallvec::SmallVec;

use super::service::ServiceRecords;

/// With 50,000 Services a part has fifty, which are copied in a few microseconds.
const PARTS: usize = 1024;

/// Two lines of the processor's cache that it fetches as one.
#[derive(Debug, Clone)]
#[repr(align(128))]
struct Entry(ServiceRecords);

const _: () = assert!(size_of::<Entry>() == 128);

/// The Services. A clone shares its parts.
#[derive(Debug, Clone)]
pub(super) struct Index {
    hasher: DefaultHashBuilder,
    parts: Arc<[Arc<HashTable<Entry>>]>,
    /// How many Services each namespace has.
    namespaces: OrdMap<Arc<str>, usize>,
}

impl Default for Index {
    fn default() -> Self {
        let empty = Arc::new(HashTable::new());
        Self {
            hasher: DefaultHashBuilder::default(),
            parts: vec![empty; PARTS].into(),
            namespaces: OrdMap::new(),
        }
    }
}

impl Index {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&ServiceRecords> {
        let hash = self.hash(namespace.as_bytes(), name.as_bytes());
        let entry = self.parts[part(hash)].find(hash, |entry| is(entry, namespace, name))?;
        Some(&entry.0)
    }

    /// Has the processor fetch what look-ups with these hashes will touch.
    pub(super) fn fetch(&self, hashes: &[u64]) {
        // No read of a loop depends on one of its former rounds, and rounds are short: the processor runs ahead and has
        // many reads on their way at once. First the parts, then their tables of what is where, then the Services.
        let parts = hashes.iter().map(|&hash| &self.parts[part(hash)]);
        let held: usize = parts.map(|part| part.len()).sum();
        let likely = hashes.iter().filter_map(|&hash| self.parts[part(hash)].iter_hash(hash).next());
        let likely: SmallVec<[&Entry; 32]> = likely.collect();
        let read: usize = likely.into_iter().map(|Entry(records)| records.touch()).sum();
        // What is of no use would not be read.
        black_box((held, read));
    }

    /// Whether there is a Service in `namespace`.
    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// Adds a Service that is not there.
    pub(super) fn insert(&mut self, records: ServiceRecords) {
        let ServiceKey { namespace, name } = records.key();
        let hash = self.hash(namespace.as_bytes(), name.as_bytes());
        *self.namespaces.entry(Arc::clone(namespace)).or_insert(0) += 1;
        let hasher = self.hasher.clone();
        let again = |Entry(held): &Entry| hasher.hash_one((held.namespace.as_bytes(), &*held.name));
        self.part_mut(hash).insert_unique(hash, Entry(records), again);
    }

    /// Takes a Service out.
    pub(super) fn remove(&mut self, key: &ServiceKey) -> Option<ServiceRecords> {
        self.get(&key.namespace, &key.name)?;
        let hash = self.hash(key.namespace.as_bytes(), key.name.as_bytes());
        let entries = self.part_mut(hash);
        let found = entries.find_entry(hash, |entry| is(entry, &key.namespace, &key.name)).ok()?;
        let (entry, _) = found.remove();
        match self.namespaces.get_mut(&key.namespace) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.namespaces.remove(&key.namespace)),
        }
        Some(entry.0)
    }

    fn part_mut(&mut self, hash: u64) -> &mut HashTable<Entry> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.parts)[part(hash)])
    }

    pub(super) fn hash(&self, namespace: &[u8], name: &[u8]) -> u64 {
        self.hasher.hash_one((namespace, name))
    }
}

fn is(Entry(held): &Entry, namespace: &str, name: &str) -> bool {
    *held.name == *name.as_bytes() && *held.namespace == *namespace
}

/// By bits that the tables themselves make little use of.
fn part(hash: u64) -> usize {
    (hash >> 24) as usize % PARTS
}
