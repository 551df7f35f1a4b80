//! The cache of one kind: what the watch delivered, plus what we wrote ourselves and the watch has yet to deliver.
//!
//! Writing our own results into the cache is what keeps controllers from acting twice on a stale one. It is safe
//! because resource versions are ordered: a result older than the watch's position is ignored (the watch has
//! already told us what became of it), and a watch event older than a cached result is ignored too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::Resource;

use crate::key::{Key, resource_version};

/// What happened to one object. Both sides are there when it was modified.
#[derive(Debug, Clone)]
pub struct Change<K> {
    /// The object before, unless it is new.
    pub old: Option<Arc<K>>,
    /// The object after, unless it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object before and after, whichever there are.
    pub fn sides(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }

    /// The newest known state.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

type IndexFn<K> = fn(&K) -> Vec<String>;

/// The cache of one kind, with one secondary index.
#[derive(Debug)]
pub struct Store<K> {
    inner: RwLock<Inner<K>>,
    index: IndexFn<K>,
}

#[derive(Debug)]
struct Inner<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexed: HashMap<String, BTreeSet<Key>>,
    /// How far the watch has come.
    seen: u64,
    /// UIDs that the server told us are deleted, before the watch did.
    gone: HashSet<String>,
}

impl<K: Resource> Default for Store<K> {
    fn default() -> Self {
        Self::with_index(|_| Vec::new())
    }
}

impl<K: Resource> Store<K> {
    /// An empty store whose objects are found by the values that `index` gives for them.
    pub fn with_index(index: IndexFn<K>) -> Self {
        let inner =
            Inner { objects: BTreeMap::new(), indexed: HashMap::new(), seen: 0, gone: HashSet::new() };
        Self { inner: RwLock::new(inner), index }
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    /// All objects, ordered by key.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        let from = inner.objects.range(Key::new(namespace, "")..);
        from.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| Arc::clone(object)).collect()
    }

    /// The objects for which the index function gave `value`, ordered by key.
    pub fn indexed(&self, value: &str) -> Vec<Arc<K>> {
        let inner = self.read();
        let keys = inner.indexed.get(value).into_iter().flatten();
        keys.filter_map(|key| inner.objects.get(key)).cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The watch (or one of its lists) delivered `object`.
    pub fn observe(&self, object: K) -> Option<Change<K>> {
        let mut inner = self.write();
        inner.seen = inner.seen.max(resource_version(&object));
        inner.put(object, self.index, true)
    }

    /// A write returned `object`: the cache shows it at once.
    pub fn wrote(&self, object: K) -> Option<Change<K>> {
        let mut inner = self.write();
        if resource_version(&object) <= inner.seen {
            return None;
        }
        inner.put(object, self.index, false)
    }

    /// The watch delivered the end of `object`.
    pub fn observe_deleted(&self, object: &K) -> Option<Change<K>> {
        let mut inner = self.write();
        inner.seen = inner.seen.max(resource_version(object));
        if let Some(uid) = &object.meta().uid {
            inner.gone.remove(uid);
        }
        let key = Key::of(object);
        let cached = inner.objects.get(&key)?;
        if cached.meta().uid == object.meta().uid { inner.take(&key, self.index) } else { None }
    }

    /// The server told us that the object of `key` and `uid` is deleted.
    pub fn forget(&self, key: &Key, uid: &str) -> Option<Change<K>> {
        let mut inner = self.write();
        let cached = inner.objects.get(key)?;
        if cached.meta().uid.as_deref() != Some(uid) {
            return None;
        }
        inner.gone.insert(uid.to_owned());
        inner.take(key, self.index)
    }

    /// The watch is at `version`, whatever it delivered.
    pub fn bookmark(&self, version: u64) {
        let mut inner = self.write();
        inner.seen = inner.seen.max(version);
    }

    /// A complete list as of `version`: what it lacks is gone, except results of our own writes that are newer.
    pub fn replace(&self, list: Vec<K>, version: u64) -> Vec<Change<K>> {
        let mut inner = self.write();
        let listed: HashSet<Key> = list.iter().map(Key::of).collect();
        let uids: HashSet<String> = list.iter().filter_map(|object| object.meta().uid.clone()).collect();
        inner.gone.retain(|uid| uids.contains(uid));
        let stale: Vec<Key> = inner
            .objects
            .iter()
            .filter(|(key, object)| !listed.contains(*key) && resource_version(object.as_ref()) <= version)
            .map(|(key, _)| key.clone())
            .collect();
        let mut changes: Vec<Change<K>> =
            stale.iter().filter_map(|key| inner.take(key, self.index)).collect();
        changes.extend(list.into_iter().filter_map(|object| inner.put(object, self.index, true)));
        // A list may be of an older version than we have seen (another server, a restored backup): follow it.
        inner.seen = version;
        changes
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource> Inner<K> {
    fn put(&mut self, mut object: K, index: IndexFn<K>, observed: bool) -> Option<Change<K>> {
        if object.meta().uid.as_ref().is_some_and(|uid| self.gone.contains(uid)) {
            return None;
        }
        let key = Key::of(&object);
        if let Some(cached) = self.objects.get(&key) {
            let (ours, theirs) = (resource_version(cached.as_ref()), resource_version(&object));
            let newer = theirs > ours || (observed && theirs == 0);
            if !newer {
                return None;
            }
        }
        object.meta_mut().managed_fields = None;
        let old = self.take(&key, index).and_then(|change| change.old);
        for value in index(&object) {
            self.indexed.entry(value).or_default().insert(key.clone());
        }
        let new = Arc::new(object);
        self.objects.insert(key, Arc::clone(&new));
        Some(Change { old, new: Some(new) })
    }

    fn take(&mut self, key: &Key, index: IndexFn<K>) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        for value in index(&old) {
            if let Some(keys) = self.indexed.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.indexed.remove(&value);
                }
            }
        }
        Some(Change { old: Some(old), new: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn version(store: &Store<ConfigMap>, name: &str) -> Option<u64> {
        store.get(&Key::new("ns", name)).map(|object| resource_version(object.as_ref()))
    }

    #[test]
    fn a_write_shows_before_the_watch_delivers_it_and_once() {
        let store = Store::default();
        store.replace(vec![], 5);
        assert!(store.wrote(object("a", "1", 7)).is_some());
        assert_eq!(version(&store, "a"), Some(7));
        assert!(store.observe(object("a", "1", 7)).is_none(), "delivered a second time");
    }

    #[test]
    fn a_result_older_than_the_watch_makes_no_ghost() {
        let store = Store::default();
        store.replace(vec![], 5);
        store.observe(object("a", "1", 7));
        store.observe_deleted(&object("a", "1", 9));
        assert!(store.wrote(object("a", "1", 7)).is_none());
        assert_eq!(version(&store, "a"), None);
    }

    #[test]
    fn an_older_event_does_not_undo_a_write() {
        let store = Store::default();
        store.replace(vec![object("a", "1", 3)], 5);
        store.wrote(object("a", "1", 8));
        assert!(store.observe(object("a", "1", 6)).is_none());
        assert_eq!(version(&store, "a"), Some(8));
    }

    #[test]
    fn a_list_drops_what_it_lacks_but_not_newer_writes() {
        let store = Store::default();
        store.replace(vec![object("a", "1", 3), object("b", "2", 4)], 5);
        store.wrote(object("c", "3", 12));
        store.replace(vec![object("a", "1", 3)], 10);
        assert_eq!((version(&store, "a"), version(&store, "b")), (Some(3), None));
        assert_eq!(version(&store, "c"), Some(12));
        store.replace(vec![object("a", "1", 3)], 20);
        assert_eq!(version(&store, "c"), None);
    }

    #[test]
    fn a_deletion_that_we_were_told_of_is_not_undone_by_a_late_event() {
        let store = Store::default();
        store.replace(vec![object("a", "1", 3)], 5);
        store.forget(&Key::new("ns", "a"), "1");
        store.observe(object("a", "1", 6));
        assert_eq!(version(&store, "a"), None);
        store.observe_deleted(&object("a", "1", 7));
        store.observe(object("a", "2", 8));
        assert_eq!(version(&store, "a"), Some(8), "another object of the same name");
    }

    #[test]
    fn the_index_follows_changes() {
        let store = Store::with_index(|object: &ConfigMap| object.metadata.uid.iter().cloned().collect());
        store.replace(vec![object("a", "x", 1), object("b", "x", 2)], 2);
        assert_eq!(store.indexed("x").len(), 2);
        store.observe(object("a", "y", 3));
        assert_eq!((store.indexed("x").len(), store.indexed("y").len()), (1, 1));
        store.observe_deleted(&object("a", "y", 4));
        assert_eq!(store.indexed("y").len(), 0);
    }
}
