//! One kind of object: its names, what can be done with it, and how it is prepared for being stored.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use crate::decode::BodyType;
use crate::strategy::{self, CreateContext, Strategy};
use crate::table::TableSpec;
use crate::{ApiError, FieldError};

/// A part of an object that has its own path, such as `status` or `scale`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// The last part of the path.
    pub name: Cow<'static, str>,
    /// What its bodies are: `Scale` in `autoscaling/v1` for `scale`; the kind itself for `status`.
    pub body: BodyType,
    /// What can be done with it.
    pub verbs: Vec<Cow<'static, str>>,
}

/// One kind of object, as served under one group and version.
#[derive(Debug)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// The version within the group.
    pub version: Cow<'static, str>,
    /// The kind's name, such as `Deployment`.
    pub kind: Cow<'static, str>,
    /// The name in paths, such as `deployments`.
    pub plural: Cow<'static, str>,
    /// The singular that kubectl accepts, such as `deployment`.
    pub singular: Cow<'static, str>,
    /// Abbreviations that kubectl accepts.
    pub short_names: Vec<Cow<'static, str>>,
    /// Names of groups of kinds, such as `all`.
    pub categories: Vec<Cow<'static, str>>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<Cow<'static, str>>,
    /// Its subresources, in the order of discovery.
    pub subresources: Vec<Subresource>,
    /// Group and plural under which its objects are stored: its own, except for views of another kind
    /// (`events.k8s.io` Events are the core Events).
    pub storage: (Cow<'static, str>, Cow<'static, str>),
    /// The field selectors besides `metadata.name` and `metadata.namespace`, with what an absent field counts as.
    pub(crate) fields: &'static [(&'static str, &'static str)],
    pub(crate) strategy: &'static Strategy,
    pub(crate) table: &'static TableSpec,
}

impl Kind {
    /// `v1` or `apps/v1`: what `apiVersion` says.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods` or `deployments.apps`: how messages name the resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether `verb` (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`) is served.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// Whether objects of the kind are kept. Reviews are answered and forgotten.
    pub fn is_stored(&self) -> bool {
        self.has_verb("get")
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|known| known.name == name)
    }

    /// What an absent `field` counts as in field selectors; `None` when the kind does not offer that field.
    pub(crate) fn selectable_field(&self, field: &str) -> Option<&'static str> {
        match field {
            "metadata.name" => Some(""),
            "metadata.namespace" if self.namespaced => Some(""),
            _ => self.fields.iter().find(|(known, _)| *known == field).map(|(_, absent)| *absent),
        }
    }

    /// The fields that field selectors may name.
    pub fn selectable_fields(&self) -> impl Iterator<Item = &'static str> {
        let own = ["metadata.name", "metadata.namespace"];
        own.into_iter()
            .take(1 + usize::from(self.namespaced))
            .chain(self.fields.iter().map(|(field, _)| *field))
    }

    /// What the bodies of this kind are, for [`crate::decode::decode`].
    pub fn body(&self) -> BodyType {
        BodyType { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }

    /// Sets `apiVersion` and `kind`, which may be absent in what a client sent.
    pub fn stamp(&self, object: &mut Value) {
        object["apiVersion"] = self.api_version().into();
        object["kind"] = self.kind.as_ref().into();
    }

    /// Makes the object that is stored from a decoded body: name, uid, times and generation set, status emptied,
    /// defaults filled in, validated. Allocated fields (`clusterIP`, node ports) are the caller's to add afterwards.
    pub fn prepare_create(&self, object: Value, context: &CreateContext<'_>) -> Result<Value, ApiError> {
        strategy::prepare_create(self, object, context)
    }

    /// Makes the object that replaces `old` from a decoded body or a patched copy: what belongs to the server or to
    /// `status` is taken from `old`, the generation grows when the spec changed, the rules for changes hold.
    /// Precondition on `metadata.resourceVersion` is the caller's; the result carries `old`'s.
    pub fn prepare_update(&self, new: Value, old: &Value, now: Timestamp) -> Result<Value, ApiError> {
        strategy::prepare_update(self, new, old, now)
    }

    /// The same for the `status` subresource: only `status` (and for Nodes and Pods what status writers may touch of
    /// `metadata`) is taken from `new`.
    pub fn prepare_status_update(&self, new: Value, old: &Value, now: Timestamp) -> Result<Value, ApiError> {
        strategy::prepare_status_update(self, new, old, now)
    }

    /// Every fault of a complete object, for instance after the caller filled in allocated fields.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        strategy::validate(self, object)
    }

    /// The object as it is stored, when this kind is a view of another one. Otherwise the same.
    pub fn to_storage(&self, object: Value) -> Value {
        (self.strategy.to_storage)(object)
    }

    /// The stored object as this kind shows it.
    pub fn from_storage(&self, stored: Value) -> Value {
        (self.strategy.from_storage)(stored)
    }
}

/// `version`, or `group/version` outside the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}
