//! What a list or a watch of one kind tells to events for the store: reads and converts each object, and reports the
//! ones that make no sense once per version.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use seaway_model::{EndpointSlice, HostPod, Node, Service};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::convert::{self, InvalidObject, Names, object_name};
use crate::metrics::Metrics;
use crate::source::{Kind, SourceError};
use crate::store::{Change, Event, ObjectKey, Store, Triggered, object_key};
use crate::wire::{self, Head, Meta, Object, Page, PageMeta, Text};

/// Is told about objects that make no sense, once per version of the object.
pub type OnInvalid = Arc<dyn Fn(ObjectReference, &InvalidObject) + Send + Sync>;

/// What has become known about a kind, beside the pages of its list.
#[derive(Debug)]
pub(crate) enum News<'a> {
    /// A list begins.
    ListBegins,
    /// The list is complete.
    ListEnds,
    /// An object appeared or changed.
    Applied(&'a RawValue),
    /// An object went. This is how it was.
    Deleted(&'a RawValue),
    /// It did not work, and is tried again.
    Failed(SourceError),
}

/// Tells of objects that make no sense.
pub(crate) struct Reports {
    metrics: Metrics,
    on_invalid: Option<OnInvalid>,
    /// The version of each object that was reported last.
    reported: Mutex<HashMap<(Kind, String), String>>,
}

impl Reports {
    pub(crate) fn new(metrics: Metrics, on_invalid: Option<OnInvalid>) -> Self {
        Self { metrics, on_invalid, reported: Mutex::default() }
    }

    fn report(&self, kind: Kind, meta: &Meta<'_>, error: &InvalidObject) {
        let version = meta.resource_version.as_deref().unwrap_or_default();
        let mut all = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let reported = all.insert((kind, object_name(meta)), version.to_owned());
        drop(all);
        if reported.as_deref() != Some(version) {
            self.metrics.invalid(kind.name());
            tracing::warn!(%error, "left out");
            if let Some(on_invalid) = &self.on_invalid {
                on_invalid(reference(kind, meta), error);
            }
        }
    }

    fn forget(&self, kind: Kind, name: String) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, name));
    }
}

/// Slices that had no Service when it was looked last.
#[derive(Default)]
pub(crate) struct Orphans(BTreeSet<ObjectKey>);

impl Orphans {
    /// Reports slices that had no Service when it was looked last, and have none now.
    pub(crate) fn look(&mut self, store: &Store, reports: &Reports) {
        let mut orphans = BTreeSet::new();
        for slice in store.orphans() {
            let key = object_key(slice);
            if self.0.contains(&key) {
                let error = convert::no_service(slice);
                let [name, namespace] = [&slice.name, &slice.namespace].map(|text| Some(Text::from(&**text)));
                let meta = Meta { name, namespace, ..Meta::default() };
                reports.report(Kind::EndpointSlice, &meta, &error);
            }
            orphans.insert(key);
        }
        self.0 = orphans;
    }
}

/// Converts what comes in of one kind.
pub(crate) struct Intake {
    kind: Kind,
    names: Names,
    metrics: Metrics,
    reports: Arc<Reports>,
    own_node: Option<String>,
}

/// What becomes of an object. `None`: it is of no concern.
type Converted<T> = Result<Option<T>, InvalidObject>;

impl Intake {
    pub(crate) fn new(kind: Kind, metrics: Metrics, reports: Arc<Reports>, own_node: Option<String>) -> Self {
        Self { kind, names: Names::default(), metrics, reports, own_node }
    }

    /// Hands on the events that `news` make.
    pub(crate) fn take(&mut self, news: &News<'_>, out: &mut impl FnMut(Event)) {
        if let News::Failed(error) = news {
            self.failed(error, out);
        }
        match self.kind {
            Kind::Service => self.change(news, Self::service, |change| out(Event::Service(change))),
            Kind::EndpointSlice => self.change(news, Self::slice, |change| out(Event::Slice(change))),
            Kind::Node => self.change(news, Self::node, |change| out(Event::Node(change))),
            Kind::Pod => self.change(news, Self::pod, |change| out(Event::Pod(change))),
            Kind::Namespace => self.change(news, Self::namespace, |change| out(Event::Namespace(change))),
        }
    }

    /// Hands on the events that a page of a list makes. Returns what the page says of itself.
    pub(crate) fn read_page(
        &mut self,
        text: &[u8],
        out: &mut impl FnMut(Event),
    ) -> Result<PageMeta, serde_json::Error> {
        match self.kind {
            Kind::Service => self.listed(text, Self::service, |change| out(Event::Service(change))),
            Kind::EndpointSlice => self.listed(text, Self::slice, |change| out(Event::Slice(change))),
            Kind::Node => self.listed(text, Self::node, |change| out(Event::Node(change))),
            Kind::Pod => self.listed(text, Self::pod, |change| out(Event::Pod(change))),
            Kind::Namespace => self.listed(text, Self::namespace, |change| out(Event::Namespace(change))),
        }
    }

    fn failed(&self, error: &SourceError, out: &mut impl FnMut(Event)) {
        let kind = self.kind;
        self.metrics.error(kind.name());
        tracing::warn!(kind = kind.name(), error = %chain(error), "the watch failed and is tried again");
        match kind {
            Kind::Pod if error.is_forbidden() => out(Event::PodsDenied),
            Kind::Namespace if error.is_forbidden() => out(Event::NamespacesDenied),
            _ => {}
        }
    }

    fn service(&mut self, object: &wire::Service<'_>) -> Converted<Arc<Service>> {
        convert::service(object, &mut self.names).map(Arc::new).map(Some)
    }

    fn slice(&mut self, object: &wire::EndpointSlice<'_>) -> Converted<(Arc<EndpointSlice>, Triggered)> {
        let Some(converted) = convert::endpoint_slice(object, &mut self.names)? else { return Ok(None) };
        if let Some(first) = converted.left_out.first() {
            self.reports.report(self.kind, &object.metadata, first);
        }
        Ok(Some((Arc::new(converted.slice), converted.triggered_at)))
    }

    fn node(&mut self, object: &wire::Node<'_>) -> Converted<Arc<Node>> {
        convert::node(object, &mut self.names).map(Arc::new).map(Some)
    }

    fn pod(&mut self, object: &wire::Pod<'_>) -> Converted<Arc<HostPod>> {
        let pod = convert::host_pod(object, self.own_node.as_deref(), &mut self.names)?;
        Ok(pod.map(Arc::new))
    }

    fn namespace(&mut self, object: &Head<'_>) -> Converted<Arc<str>> {
        convert::namespace(object, &mut self.names).map(Some)
    }

    fn change<'a, W: Deserialize<'a>, T>(
        &mut self,
        news: &News<'a>,
        convert: impl Fn(&mut Self, &W) -> Converted<T>,
        mut out: impl FnMut(Change<T>),
    ) {
        match news {
            News::ListBegins => out(Change::ListBegins),
            News::ListEnds => {
                self.names.purge();
                out(Change::ListEnds);
            }
            News::Applied(object) => match self.converted(object, &convert) {
                Some(converted) => out(Change::Applied(converted)),
                // It made sense before, perhaps: what it says now is that it should not be served.
                None => out(Change::Deleted(key(object))),
            },
            News::Deleted(object) => {
                self.metrics.events(self.kind.name(), 1);
                self.reports.forget(self.kind, object_name(&head(object).metadata));
                out(Change::Deleted(key(object)));
            }
            News::Failed(_) => {}
        }
    }

    /// Reads a page in one go; where that fails, object by object, to find the one that makes no sense.
    fn listed<'a, W: Deserialize<'a> + Object, T>(
        &mut self,
        text: &'a [u8],
        convert: impl Fn(&mut Self, &W) -> Converted<T>,
        mut out: impl FnMut(Change<T>),
    ) -> Result<PageMeta, serde_json::Error> {
        // The whole of it is UTF-8, so that nobody has to look at string after string.
        if let Ok(text) = std::str::from_utf8(text) {
            let (mut objects, mut listed) = (0, Vec::new());
            let read = wire::read_page(text, |object: W| {
                objects += 1;
                match convert(self, &object) {
                    Ok(converted) => listed.extend(converted),
                    Err(error) => self.reports.report(self.kind, object.meta(), &error),
                }
            });
            if let Ok(metadata) = read {
                self.metrics.events(self.kind.name(), objects);
                for object in listed {
                    out(Change::Listed(object));
                }
                return Ok(metadata);
            }
        }
        let page: Page<&RawValue> = serde_json::from_slice(text)?;
        for object in page.items.unwrap_or_default() {
            self.converted(object, &convert).into_iter().for_each(|object| out(Change::Listed(object)));
        }
        Ok(page.metadata)
    }

    fn converted<'a, W: Deserialize<'a>, T>(
        &mut self,
        object: &'a RawValue,
        convert: impl Fn(&mut Self, &W) -> Converted<T>,
    ) -> Option<T> {
        self.metrics.events(self.kind.name(), 1);
        let read = convert::read(self.kind.name(), object.get());
        match read.and_then(|read: W| convert(self, &read)) {
            Ok(converted) => converted,
            Err(error) => {
                self.reports.report(self.kind, &head(object).metadata, &error);
                None
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
fn head(object: &RawValue) -> Head<'_> {
    serde_json::from_str(object.get()).unwrap_or_default()
}

fn key(object: &RawValue) -> ObjectKey {
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
