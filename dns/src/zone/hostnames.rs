//! Which endpoints of a Service have which host name.
//!
//! A Service may have thousands, all of them with a name, and this is made anew with each change of one: a table of places
//! takes a hash for each, where an order of the names would take a dozen comparisons.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use seaway_model::Endpoint;
use smallvec::SmallVec;

/// Places of endpoints that share a name: one, or one of each family.
pub(super) type Places = SmallVec<[usize; 2]>;

/// Places in a list of endpoints, by host name.
#[derive(Debug)]
pub(super) struct Hostnames {
    hasher: DefaultHashBuilder,
    places: HashTable<usize>,
    /// Whether several endpoints have the same name.
    shared: bool,
}

impl Hostnames {
    /// The host names among `endpoints` of those that are `usable`; `None` where there are none.
    pub(super) fn of(endpoints: &[Endpoint], usable: impl Fn(&Endpoint) -> bool) -> Option<Box<Self>> {
        let named = |endpoint: &Endpoint| endpoint.hostname.is_some() && usable(endpoint);
        let count = endpoints.iter().filter(|endpoint| named(endpoint)).count();
        if count == 0 {
            return None;
        }
        let hasher = DefaultHashBuilder::default();
        let (mut places, mut shared) = (HashTable::with_capacity(count), false);
        for (at, endpoint) in endpoints.iter().enumerate().filter(|(_, endpoint)| named(endpoint)) {
            let name = name(endpoint);
            let hash = hash(&hasher, name);
            shared |= places.find(hash, |&other| is(&endpoints[other], name)).is_some();
            // There is room for all of them.
            places.insert_unique(hash, at, |_| hash);
        }
        Some(Box::new(Self { hasher, places, shared }))
    }

    /// The places of the endpoints whose name is `name`, in order. `endpoints` are those that this is about.
    pub(super) fn find(&self, name: &str, endpoints: &[Endpoint]) -> Places {
        let alike = self.places.iter_hash(hash(&self.hasher, name));
        let mut places: Places = alike
            .copied()
            .filter(|&at| endpoints.get(at).is_some_and(|endpoint| is(endpoint, name)))
            .collect();
        places.sort_unstable();
        places
    }

    /// Whether several endpoints have the same name.
    pub(super) fn are_shared(&self) -> bool {
        self.shared
    }
}

fn name(endpoint: &Endpoint) -> &str {
    endpoint.hostname.as_deref().unwrap_or_default()
}

fn is(endpoint: &Endpoint, name: &str) -> bool {
    endpoint.hostname.as_ref().is_some_and(|held| held.eq_ignore_ascii_case(name))
}

/// The same in capitals as in lower case, which all are but for a few.
fn hash(hasher: &DefaultHashBuilder, name: &str) -> u64 {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return hasher.hash_one(name.to_ascii_lowercase().as_bytes());
    }
    hasher.hash_one(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_case_lead_to_their_endpoints() {
        let endpoints: Vec<Endpoint> = ["a", "B", "", "A", "c", "b", "-"]
            .iter()
            .map(|name| {
                let mut endpoint = Endpoint::new([192, 0, 2, 1].into(), [].into());
                endpoint.hostname = (!name.is_empty()).then(|| (*name).into());
                endpoint
            })
            .collect();
        let usable = |endpoint: &Endpoint| endpoint.hostname.as_deref() != Some("-");
        let names = Hostnames::of(&endpoints, usable).unwrap();
        let found = |name| names.find(name, &endpoints).to_vec();
        assert_eq!((found("a"), found("b"), found("C")), (vec![0, 3], vec![1, 5], vec![4]));
        assert_eq!((found(""), found("-"), found("d")), (vec![], vec![], vec![]));
        assert!(names.are_shared());
        assert!(Hostnames::of(&endpoints[2..3], usable).is_none());
        assert!(!Hostnames::of(&endpoints[..3], usable).unwrap().are_shared());
    }
}
