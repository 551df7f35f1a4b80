//! What a Service claims, or a pod with host ports: a handful of frontends, of tens of thousands of claimants.

use std::sync::Arc;

use super::Entry;
use crate::frontend::FrontendKey;

/// Frontends in the order of their keys, each once.
#[derive(Debug, Default)]
pub(super) struct Claims(Vec<(FrontendKey, Arc<Entry>)>);

impl Claims {
    /// Of frontends with the same key the first counts.
    pub(super) fn of(mut all: Vec<(FrontendKey, Arc<Entry>)>) -> Self {
        all.sort_by_key(|(key, _)| *key);
        all.dedup_by_key(|(key, _)| *key);
        Self(all)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = FrontendKey> {
        self.0.iter().map(|(key, _)| *key)
    }

    pub(super) fn get(&self, key: FrontendKey) -> Option<&Arc<Entry>> {
        let at = self.0.binary_search_by_key(&key, |(held, _)| *held).ok()?;
        Some(&self.0[at].1)
    }
}

impl IntoIterator for Claims {
    type Item = (FrontendKey, Arc<Entry>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use seaway_model::{Family, Protocol, ServiceKey};

    use super::*;
    use crate::frontend::{Frontend, FrontendKind, Group, Owner, Scope};

    fn claim(port: u16, kind: FrontendKind) -> (FrontendKey, Arc<Entry>) {
        let service = ServiceKey::new("default", "web");
        let frontend = Frontend {
            group: Group::of(&service, "", Protocol::Tcp, Family::V4),
            kind,
            backends: Arc::default(),
            affinity: None,
            source_ranges: Arc::default(),
            preserve_source: false,
            elsewhere: false,
            maglev: false,
            dsr: false,
            masquerade: false,
        };
        let key = FrontendKey {
            addr: [10, 96, 0, 1].into(),
            port,
            protocol: Protocol::Tcp,
            scope: Scope::Internal,
        };
        (
            key,
            Arc::new(Entry { frontend: Arc::new(frontend), owner: Owner { service, port_name: "".into() } }),
        )
    }

    #[test]
    fn the_first_use_of_an_address_counts() {
        let (held, other) = (claim(443, FrontendKind::ClusterIP), claim(80, FrontendKind::ClusterIP));
        let claims = Claims::of(vec![held.clone(), other.clone(), claim(443, FrontendKind::NodePort)]);
        assert_eq!(claims.keys().collect::<Vec<_>>(), [other.0, held.0]);
        assert_eq!(claims.get(held.0), Some(&held.1));
        assert_eq!(claims.get(FrontendKey { port: 81, ..held.0 }), None);
    }
}
