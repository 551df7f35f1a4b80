//! What a watch tells to events for the store: reads and converts each object, and reports the ones that make no sense
//! once per version.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use seaway_model::{EndpointSlice, HostPod, Node, Service};
use serde::Deserialize;

use crate::convert::{self, InvalidObject, Names, object_name};
use crate::metrics::Metrics;
use crate::source::{Kind, News, Raw};
use crate::store::{Change, Event, ObjectKey, Store, Triggered, object_key};
use crate::wire::{self, Head, Meta, Text};

/// Is told about objects that make no sense, once per version of the object.
pub type OnInvalid = Arc<dyn Fn(ObjectReference, &InvalidObject) + Send + Sync>;

/// Converts what comes in.
pub(crate) struct Intake {
    names: Names,
    metrics: Metrics,
    on_invalid: Option<OnInvalid>,
    own_node: Option<String>,
    /// The version of each invalid object that was reported last.
    reported: HashMap<(Kind, String), String>,
    /// Slices that had no Service when it was looked last.
    orphans: BTreeSet<ObjectKey>,
}

/// What becomes of an object. `None`: it is of no concern.
type Converted<T> = Result<Option<T>, InvalidObject>;

impl Intake {
    pub(crate) fn new(metrics: Metrics, on_invalid: Option<OnInvalid>, own_node: Option<String>) -> Self {
        Self {
            names: Names::default(),
            metrics,
            on_invalid,
            own_node,
            reported: HashMap::new(),
            orphans: BTreeSet::new(),
        }
    }

    /// Hands on the events that `news` of this kind make.
    pub(crate) fn take(&mut self, kind: Kind, news: &News, out: &mut impl FnMut(Event)) {
        if let News::Failed(error) = news {
            self.metrics.error(kind.name());
            tracing::warn!(kind = kind.name(), error = %chain(error), "the watch failed and is tried again");
            match kind {
                Kind::Pod if error.is_forbidden() => out(Event::PodsDenied),
                Kind::Namespace if error.is_forbidden() => out(Event::NamespacesDenied),
                _ => {}
            }
        }
        match kind {
            Kind::Service => self.changes(kind, news, Self::service, |change| out(Event::Service(change))),
            Kind::EndpointSlice => self.changes(kind, news, Self::slice, |change| out(Event::Slice(change))),
            Kind::Node => self.changes(kind, news, Self::node, |change| out(Event::Node(change))),
            Kind::Pod => self.changes(kind, news, Self::pod, |change| out(Event::Pod(change))),
            Kind::Namespace => {
                self.changes(kind, news, Self::namespace, |change| out(Event::Namespace(change)));
            }
        }
    }

    /// Reports slices that had no Service when it was looked last, and have none now.
    pub(crate) fn look_for_orphans(&mut self, store: &Store) {
        let mut orphans = BTreeSet::new();
        for slice in store.orphans() {
            let key = object_key(slice);
            if self.orphans.contains(&key) {
                let error = convert::no_service(slice);
                let [name, namespace] = [&slice.name, &slice.namespace].map(|text| Some(Text::from(&**text)));
                self.report(Kind::EndpointSlice, &Meta { name, namespace, ..Meta::default() }, &error);
            }
            orphans.insert(key);
        }
        self.orphans = orphans;
    }

    fn service(&mut self, object: &wire::Service<'_>) -> Converted<Service> {
        convert::service(object, &mut self.names).map(Some)
    }

    fn slice(&mut self, object: &wire::EndpointSlice<'_>) -> Converted<(EndpointSlice, Triggered)> {
        let Some(converted) = convert::endpoint_slice(object, &mut self.names)? else { return Ok(None) };
        if let Some(first) = converted.left_out.first() {
            self.report(Kind::EndpointSlice, &object.metadata, first);
        }
        Ok(Some((converted.slice, converted.triggered_at)))
    }

    fn node(&mut self, object: &wire::Node<'_>) -> Converted<Node> {
        convert::node(object, &mut self.names).map(Some)
    }

    fn pod(&mut self, object: &wire::Pod<'_>) -> Converted<HostPod> {
        convert::host_pod(object, self.own_node.as_deref(), &mut self.names)
    }

    fn namespace(&mut self, object: &Head<'_>) -> Converted<Arc<str>> {
        convert::namespace(object, &mut self.names).map(Some)
    }

    fn changes<'a, W: Deserialize<'a>, T>(
        &mut self,
        kind: Kind,
        news: &'a News,
        convert: impl Fn(&mut Self, &W) -> Converted<T>,
        mut out: impl FnMut(Change<T>),
    ) {
        match news {
            News::ListBegins => out(Change::ListBegins),
            News::Listed(page) => {
                for object in page {
                    if let Some(converted) = self.converted(kind, object, &convert) {
                        out(Change::Listed(converted));
                    }
                }
            }
            News::ListEnds => {
                self.names.purge();
                out(Change::ListEnds);
            }
            News::Applied(object) => match self.converted(kind, object, &convert) {
                Some(converted) => out(Change::Applied(converted)),
                // It made sense before, perhaps: what it says now is that it should not be served.
                None => out(Change::Deleted(key(object))),
            },
            News::Deleted(object) => {
                self.metrics.event(kind.name());
                self.reported.remove(&(kind, name(object)));
                out(Change::Deleted(key(object)));
            }
            News::Failed(_) => {}
        }
    }

    fn converted<'a, W: Deserialize<'a>, T>(
        &mut self,
        kind: Kind,
        object: &'a Raw,
        convert: impl Fn(&mut Self, &W) -> Converted<T>,
    ) -> Option<T> {
        self.metrics.event(kind.name());
        let read = convert::read(kind.name(), object.get());
        match read.and_then(|read: W| convert(self, &read)) {
            Ok(converted) => converted,
            Err(error) => {
                self.report(kind, &head(object).metadata, &error);
                None
            }
        }
    }

    fn report(&mut self, kind: Kind, meta: &Meta<'_>, error: &InvalidObject) {
        let version = meta.resource_version.as_deref().unwrap_or_default();
        let reported = self.reported.insert((kind, object_name(meta)), version.to_owned());
        if reported.as_deref() != Some(version) {
            self.metrics.invalid(kind.name());
            tracing::warn!(%error, "left out");
            if let Some(on_invalid) = &self.on_invalid {
                on_invalid(reference(kind, meta), error);
            }
        }
    }
}

/// The object as an Event names it.
fn reference(kind: Kind, meta: &Meta<'_>) -> ObjectReference {
    let text = |text: &Option<Text<'_>>| text.as_deref().map(ToOwned::to_owned);
    ObjectReference {
        api_version: Some(kind.api_version().to_owned()),
        kind: Some(kind.name().to_owned()),
        namespace: text(&meta.namespace),
        name: text(&meta.name),
        uid: text(&meta.uid),
        resource_version: text(&meta.resource_version),
        ..ObjectReference::default()
    }
}

/// Who an object is, as far as it says so.
fn head(object: &Raw) -> Head<'_> {
    serde_json::from_str(object.get()).unwrap_or_default()
}

fn name(object: &Raw) -> String {
    object_name(&head(object).metadata)
}

fn key(object: &Raw) -> ObjectKey {
    let Head { metadata } = head(object);
    let part = |text: Option<Text<'_>>| text.as_deref().unwrap_or("").into();
    (part(metadata.namespace), part(metadata.name))
}

/// An error with everything that caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
