//! Owner references: who controls an object, and how objects are adopted and released.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use kube::core::{Selector, SelectorExt};
use seaway_client::WorkError;
use serde_json::{Value, json};

/// The owner that controls the object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object of `meta` is controlled by the object of `uid`.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// Index values: `owner/<uid>` of what is controlled, `orphan/<namespace>` of what is not.
pub(crate) fn index(meta: &ObjectMeta) -> Vec<String> {
    match controller_of(meta) {
        Some(owner) => vec![owned_by(&owner.uid)],
        None => vec![orphans_in(meta.namespace.as_deref().unwrap_or_default())],
    }
}

/// The index value of what the object of `uid` controls.
pub(crate) fn owned_by(uid: &str) -> String {
    format!("owner/{uid}")
}

/// The index value of what nobody controls in `namespace`.
pub(crate) fn orphans_in(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

/// The reference by which `owner` controls another object.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The selector of `object`, compiled. An empty one selects nothing, as it would select the whole namespace.
pub(crate) fn compile(selector: &LabelSelector, object: &str) -> Result<Selector, WorkError> {
    Selector::try_from(selector.clone())
        .map_err(|error| WorkError::Selector { object: object.to_owned(), reason: error.to_string() })
}

/// Whether `selector` selects an object with these labels.
pub(crate) fn selects(selector: &Selector, meta: &ObjectMeta) -> bool {
    static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    !selector.selects_all() && selector.matches(meta.labels.as_ref().unwrap_or(&NONE))
}

/// What an owner should do with an object of the kind it controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is its own and matches.
    Keep,
    /// It matches and nobody owns it.
    Adopt,
    /// It is its own but does not match any more.
    Release,
    /// It is none of its business.
    Ignore,
}

/// Decides whether `owner` keeps, adopts, releases or ignores an object.
pub(crate) fn claim(owner: &ObjectMeta, selector: &Selector, object: &ObjectMeta) -> Claim {
    let selected = selects(selector, object);
    let going = object.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(by) if Some(&by.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if selected => Claim::Keep,
        Some(_) if owner.deletion_timestamp.is_some() || going => Claim::Ignore,
        Some(_) => Claim::Release,
        None if selected && owner.deletion_timestamp.is_none() && !going => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The merge patch that makes `owner` the controller of the object of `meta`.
pub(crate) fn adoption(meta: &ObjectMeta, owner: OwnerReference) -> Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.push(owner);
    owners_patch(meta, &owners)
}

/// The merge patch by which the object of `uid` gives up the object of `meta`.
pub(crate) fn release(meta: &ObjectMeta, uid: &str) -> Value {
    let owners: Vec<_> =
        meta.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect();
    owners_patch(meta, &owners)
}

/// A merge patch of the owner references, for exactly the state that was decided on.
pub(crate) fn owners_patch(meta: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn claims() {
        let labels: LabelSelector = serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
        let selector = compile(&labels, "rs").unwrap();
        let by = |uid: &str| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]);
        let (web, db) = (json!({"app": "web"}), json!({"app": "db"}));
        let alive = meta(json!({"uid": "1"}));
        let dying = meta(json!({"uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let cases = [
            (&alive, json!({"labels": web, "ownerReferences": by("1")}), Claim::Keep),
            (&alive, json!({"labels": db, "ownerReferences": by("1")}), Claim::Release),
            (&alive, json!({"labels": web, "ownerReferences": by("2")}), Claim::Ignore),
            (&alive, json!({"labels": web}), Claim::Adopt),
            (&alive, json!({"labels": db}), Claim::Ignore),
            (&alive, json!({"labels": web, "deletionTimestamp": "2026-01-01T00:00:00Z"}), Claim::Ignore),
            (&dying, json!({"labels": web}), Claim::Ignore),
            (&dying, json!({"labels": db, "ownerReferences": by("1")}), Claim::Ignore),
        ];
        for (owner, object, expected) in cases {
            assert_eq!(claim(owner, &selector, &meta(object.clone())), expected, "{object}");
        }
    }

    #[test]
    fn an_empty_selector_claims_nothing() {
        let selector = compile(&LabelSelector::default(), "rs").unwrap();
        assert_eq!(claim(&meta(json!({"uid": "1"})), &selector, &meta(json!({}))), Claim::Ignore);
    }
}
