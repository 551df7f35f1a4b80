//! The kinds that a server knows, and how to find one by path or by its name in an object.

use std::sync::Arc;

use crate::Kind;
use crate::entries;

/// All kinds of a server, in the order of discovery.
#[derive(Debug, Clone)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
}

impl Registry {
    /// The built-in kinds.
    pub fn builtin() -> Self {
        Self { kinds: entries::builtin().into_iter().map(Arc::new).collect() }
    }

    /// Every kind.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// The kind behind `/apis/{group}/{version}/…/{plural}`; the core group is empty.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
    }

    /// The kind of an object that says `apiVersion` and `kind`.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.kinds.iter().find(|known| known.group == group && known.version == version && known.kind == kind)
    }

    /// The kind that stores the objects of `kind`: `kind` itself, or the kind that it is a view of.
    pub fn storage_of(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        let (group, plural) = &kind.storage;
        self.kinds
            .iter()
            .find(|known| known.group == *group && known.plural == *plural)
            .map_or_else(|| Arc::clone(kind), Arc::clone)
    }

    /// The groups besides the core group, each with its versions, in the order of discovery.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for kind in self.kinds.iter().filter(|kind| !kind.group.is_empty()) {
            match groups.iter_mut().find(|(group, _)| *group == kind.group) {
                Some((_, versions)) if versions.contains(&kind.version.as_ref()) => {}
                Some((_, versions)) => versions.push(&kind.version),
                None => groups.push((&kind.group, vec![&kind.version])),
            }
        }
        groups
    }

    /// Whether anything is served under this group and version.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.kinds.iter().any(|kind| kind.group == group && kind.version == version)
    }
}
