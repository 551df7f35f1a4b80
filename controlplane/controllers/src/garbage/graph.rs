//! Who owns whom, and what to do with an object by it. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use seaway_client::Key;

/// Holds an object until those that block its deletion are gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Holds an object until those that it owns are let go.
pub(super) const ORPHAN: &str = "orphan";

/// A kind as owner references name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KindRef {
    pub(super) api_version: String,
    pub(super) kind: String,
}

/// An object in the graph.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) kind: KindRef,
    pub(super) key: Key,
    pub(super) meta: ObjectMeta,
}

impl Owner {
    /// For messages.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.kind.kind.to_lowercase(), self.key)
    }

    fn is_going(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    fn has_finalizer(&self, finalizer: &str) -> bool {
        self.meta.finalizers.iter().flatten().any(|one| one == finalizer)
    }

    fn waits_for_dependents(&self) -> bool {
        self.is_going() && self.has_finalizer(FOREGROUND)
    }

    fn owners(&self) -> &[OwnerReference] {
        self.meta.owner_references.as_deref().unwrap_or_default()
    }
}

/// What happens to what an object owns when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Propagation {
    Background,
    Foreground,
    Orphan,
    /// What the object's finalizers say.
    Default,
}

impl Propagation {
    /// Resolves `Default` by the finalizers of `meta`.
    pub(super) fn for_object(self, meta: &ObjectMeta) -> Self {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|one| one == finalizer);
        match self {
            Self::Default if has(ORPHAN) => Self::Orphan,
            Self::Default if has(FOREGROUND) => Self::Foreground,
            Self::Default => Self::Background,
            given => given,
        }
    }
}

/// What to do with an object.
#[derive(Debug)]
pub(super) enum Decision {
    Keep,
    /// Take these owners out of its references: others still hold it.
    Disown(HashSet<String>),
    /// Nobody holds it.
    Delete(Propagation),
    /// Let go what it owns, then it.
    Orphan(Vec<Owner>),
    /// What blocked its deletion is gone.
    Release,
    /// Delete these, which block its deletion.
    Await(Vec<Owner>),
}

/// The graph of owner references.
#[derive(Debug, Default)]
pub(super) struct Graph {
    objects: HashMap<String, Owner>,
    /// Who names an owner, by the owner's UID, whether or not that one is there.
    dependents: HashMap<String, BTreeSet<String>>,
    /// Pairs of dependent and owner where the server says that there is no such owner.
    absent: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// The object of that UID.
    pub(super) fn get(&self, uid: &str) -> Option<&Owner> {
        self.objects.get(uid)
    }

    /// An object is there or has changed. Gives the UIDs to decide on.
    pub(super) fn set(&mut self, kind: &KindRef, meta: &ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        self.unlink(&uid);
        let key = Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let object = Owner { kind: kind.clone(), key, meta: slim(meta) };
        let mut due = Vec::new();
        for owner in object.owners() {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            // An owner that waits for this one may have to wait no longer, or one more must go.
            if self.objects.get(&owner.uid).is_some_and(Owner::waits_for_dependents) {
                due.push(owner.uid.clone());
            }
        }
        let (going, owned) = (object.is_going(), !object.owners().is_empty());
        self.objects.insert(uid.clone(), object);
        if going {
            due.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        if going || owned {
            due.push(uid);
        }
        due
    }

    /// An object is gone. Gives the UIDs to decide on.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut due: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for dependent in &due {
            self.absent.entry(dependent.clone()).or_default().insert(uid.to_owned());
        }
        if let Some(object) = self.objects.get(uid) {
            due.extend(object.owners().iter().map(|owner| owner.uid.clone()));
        }
        self.unlink(uid);
        self.objects.remove(uid);
        self.absent.remove(uid);
        due
    }

    fn unlink(&mut self, uid: &str) {
        let owners: Vec<String> = self
            .objects
            .get(uid)
            .map(|object| object.owners().iter().map(|owner| owner.uid.clone()).collect())
            .unwrap_or_default();
        for owner in owners {
            if let Some(dependents) = self.dependents.get_mut(&owner) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner);
                }
            }
        }
    }

    /// The owners of an object that are neither in the graph nor known to be absent.
    pub(super) fn unknown_owners(&self, uid: &str) -> Vec<OwnerReference> {
        let Some(object) = self.objects.get(uid).filter(|object| !object.is_going()) else {
            return Vec::new();
        };
        let known = |owner: &&OwnerReference| {
            self.objects.contains_key(&owner.uid)
                || self.absent.get(uid).is_some_and(|absent| absent.contains(&owner.uid))
        };
        object.owners().iter().filter(|owner| !known(owner)).cloned().collect()
    }

    /// The server says that `uid` has no such owner.
    pub(super) fn mark_absent(&mut self, uid: &str, owner: &str) {
        if self.objects.contains_key(uid) {
            self.absent.entry(uid.to_owned()).or_default().insert(owner.to_owned());
        }
    }

    /// Decides what to do with an object.
    pub(super) fn decide(&self, uid: &str) -> Option<(Owner, Decision)> {
        let object = self.objects.get(uid)?;
        let decision =
            if object.is_going() { self.decide_going(uid, object) } else { self.decide_owned(uid, object) };
        Some((object.clone(), decision))
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Owner> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|dependent| self.objects.get(dependent))
    }

    fn decide_going(&self, uid: &str, object: &Owner) -> Decision {
        if object.has_finalizer(ORPHAN) {
            return Decision::Orphan(self.dependents_of(uid).cloned().collect());
        }
        if !object.has_finalizer(FOREGROUND) {
            return Decision::Keep;
        }
        let blocks = |dependent: &&Owner| {
            dependent
                .owners()
                .iter()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        if !self.dependents_of(uid).any(|dependent| blocks(&dependent)) {
            return Decision::Release;
        }
        // Those that somebody else holds too are decided on by themselves (they are disowned).
        let only_ours = |dependent: &&Owner| !dependent.is_going() && dependent.owners().len() == 1;
        Decision::Await(self.dependents_of(uid).filter(only_ours).cloned().collect())
    }

    fn decide_owned(&self, uid: &str, object: &Owner) -> Decision {
        if object.owners().is_empty() {
            return Decision::Keep;
        }
        let absent = self.absent.get(uid);
        let (mut solid, mut waiting, mut loose) = (0, 0, HashSet::new());
        for owner in object.owners() {
            let holds = match self.objects.get(&owner.uid) {
                Some(there) if there.waits_for_dependents() && can_own(there, object) => {
                    waiting += 1;
                    false
                }
                Some(there) => can_own(there, object),
                // When nobody knows it is better kept.
                None => absent.is_none_or(|absent| !absent.contains(&owner.uid)),
            };
            if holds {
                solid += 1;
            } else {
                loose.insert(owner.uid.clone());
            }
        }
        if solid > 0 {
            return if loose.is_empty() { Decision::Keep } else { Decision::Disown(loose) };
        }
        let has_dependents = self.dependents_of(uid).next().is_some();
        if waiting > 0 && has_dependents {
            return Decision::Delete(Propagation::Foreground);
        }
        Decision::Delete(Propagation::Default)
    }
}

/// An owner is of the whole cluster or of the same namespace; any other reference is void.
fn can_own(owner: &Owner, dependent: &Owner) -> bool {
    owner.key.namespace.is_empty() || owner.key.namespace == dependent.key.namespace
}

/// Only what decisions need: the graph holds every object there is.
fn slim(meta: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        deletion_timestamp: meta.deletion_timestamp.clone(),
        finalizers: meta.finalizers.clone(),
        owner_references: meta.owner_references.clone(),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn kind() -> KindRef {
        KindRef { api_version: "v1".into(), kind: "ConfigMap".into() }
    }

    fn add(graph: &mut Graph, uid: &str, owners: &[(&str, bool)], extra: Value) -> Vec<String> {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, blocks)| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": blocks}))
            .collect();
        let mut meta = json!({"name": uid, "namespace": "ns", "uid": uid, "ownerReferences": owners});
        meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        graph.set(&kind(), &serde_json::from_value(meta).unwrap())
    }

    fn going(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    fn decide(graph: &Graph, uid: &str) -> Decision {
        graph.decide(uid).unwrap().1
    }

    #[test]
    fn an_object_goes_when_its_last_owner_has_gone() {
        let mut graph = Graph::default();
        add(&mut graph, "a", &[], json!({}));
        add(&mut graph, "b", &[], json!({}));
        add(&mut graph, "child", &[("a", false), ("b", false)], json!({}));
        assert!(matches!(decide(&graph, "child"), Decision::Keep));
        assert_eq!(graph.remove("a"), ["child"]);
        assert!(matches!(decide(&graph, "child"), Decision::Disown(uids) if uids.contains("a")));
        graph.remove("b");
        assert!(matches!(decide(&graph, "child"), Decision::Delete(Propagation::Default)));
    }

    #[test]
    fn an_owner_that_was_never_seen_is_asked_for() {
        let mut graph = Graph::default();
        add(&mut graph, "child", &[("ghost", false)], json!({}));
        assert_eq!(graph.unknown_owners("child").len(), 1);
        assert!(matches!(decide(&graph, "child"), Decision::Keep));
        graph.mark_absent("child", "ghost");
        assert!(graph.unknown_owners("child").is_empty());
        assert!(matches!(decide(&graph, "child"), Decision::Delete(_)));
    }

    #[test]
    fn foreground_deletion_waits_for_what_blocks_it() {
        let mut graph = Graph::default();
        add(&mut graph, "child", &[("owner", true)], json!({}));
        add(&mut graph, "bystander", &[("owner", false)], json!({}));
        let due = add(&mut graph, "owner", &[], going(FOREGROUND));
        assert!(due.contains(&"child".to_owned()) && due.contains(&"owner".to_owned()));
        assert!(matches!(decide(&graph, "owner"), Decision::Await(all) if all.len() == 2));
        assert!(matches!(decide(&graph, "child"), Decision::Delete(Propagation::Default)));
        assert!(graph.remove("child").contains(&"owner".to_owned()));
        assert!(matches!(decide(&graph, "owner"), Decision::Release), "the bystander does not block");
    }

    #[test]
    fn orphans_are_let_go() {
        let mut graph = Graph::default();
        add(&mut graph, "owner", &[], going(ORPHAN));
        add(&mut graph, "child", &[("owner", true)], json!({}));
        assert!(matches!(decide(&graph, "owner"), Decision::Orphan(all) if all.len() == 1));
        assert!(matches!(decide(&graph, "child"), Decision::Keep));
    }

    #[test]
    fn an_owner_in_another_namespace_is_none() {
        let mut graph = Graph::default();
        add(&mut graph, "owner", &[], json!({"namespace": "elsewhere"}));
        add(&mut graph, "child", &[("owner", false)], json!({}));
        assert!(matches!(decide(&graph, "child"), Decision::Delete(_)));
    }

    #[test]
    fn nothing_is_left_of_what_is_gone() {
        let mut graph = Graph::default();
        add(&mut graph, "owner", &[], json!({}));
        add(&mut graph, "child", &[("owner", false)], json!({}));
        graph.remove("owner");
        graph.remove("child");
        assert!(graph.objects.is_empty() && graph.dependents.is_empty() && graph.absent.is_empty());
    }
}
