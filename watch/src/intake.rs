//! Watch streams to events: converts each object, and reports the ones that make no sense once per version.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher;

use crate::convert::{self, InvalidObject, Names, object_name};
use crate::metrics::Metrics;
use crate::store::{Change, Event, ObjectKey};

/// An item of one of the streams.
#[allow(clippy::large_enum_variant, reason = "an item is converted as it passes, none is kept")]
pub(crate) enum Incoming {
    Service(watcher::Result<watcher::Event<Service>>),
    Slice(watcher::Result<watcher::Event<EndpointSlice>>),
    Node(watcher::Result<watcher::Event<Node>>),
    Pod(watcher::Result<watcher::Event<Pod>>),
    Namespace(watcher::Result<watcher::Event<Namespace>>),
}

/// Is told about objects that make no sense, once per version of the object.
pub type OnInvalid = Arc<dyn Fn(ObjectReference, &InvalidObject) + Send + Sync>;

/// Converts what comes in.
pub(crate) struct Intake {
    names: Names,
    metrics: Metrics,
    on_invalid: Option<OnInvalid>,
    own_node: Option<String>,
    /// The version of each invalid object that was reported last.
    reported: HashMap<(&'static str, String), String>,
}

impl Intake {
    pub(crate) fn new(metrics: Metrics, on_invalid: Option<OnInvalid>, own_node: Option<String>) -> Self {
        Self { names: Names::default(), metrics, on_invalid, own_node, reported: HashMap::new() }
    }

    /// The event for `incoming`, if it means anything to the store.
    pub(crate) fn convert(&mut self, incoming: Incoming) -> Option<Event> {
        match incoming {
            Incoming::Service(item) => {
                let change = self.change("Service", item, |intake, object| {
                    convert::service(object, &mut intake.names).map(Some)
                })?;
                Some(Event::Service(change))
            }
            Incoming::Slice(item) => {
                let change = self.change("EndpointSlice", item, |intake, object| {
                    let Some(converted) = convert::endpoint_slice(object, &mut intake.names)? else {
                        return Ok(None);
                    };
                    if let Some(first) = converted.left_out.first() {
                        intake.report("EndpointSlice", object, first);
                    }
                    Ok(Some((converted.slice, converted.triggered_at)))
                })?;
                Some(Event::Slice(change))
            }
            Incoming::Node(item) => {
                let change = self.change("Node", item, |intake, object| {
                    convert::node(object, &mut intake.names).map(Some)
                })?;
                Some(Event::Node(change))
            }
            Incoming::Pod(item) => {
                let denied = matches!(&item, Err(error) if is_forbidden(error));
                let change = self.change("Pod", item, |intake, object| {
                    convert::host_pod(object, intake.own_node.as_deref(), &mut intake.names)
                });
                change.map(Event::Pod).or_else(|| denied.then_some(Event::PodsDenied))
            }
            Incoming::Namespace(item) => {
                let denied = matches!(&item, Err(error) if is_forbidden(error));
                let change = self.change("Namespace", item, |intake, object| {
                    Ok(Some(intake.names.share(&object.name_any())))
                });
                change.map(Event::Namespace).or_else(|| denied.then_some(Event::NamespacesDenied))
            }
        }
    }

    fn change<K: ResourceExt, T>(
        &mut self,
        kind: &'static str,
        item: watcher::Result<watcher::Event<K>>,
        convert: impl FnOnce(&mut Self, &K) -> Result<Option<T>, InvalidObject>,
    ) -> Option<Change<T>> {
        let event = match item {
            Ok(event) => event,
            Err(error) => {
                self.metrics.error(kind);
                tracing::warn!(kind, error = %chain(&error), "the watch failed and is tried again");
                return None;
            }
        };
        self.metrics.event(kind);
        match event {
            watcher::Event::Init => Some(Change::ListBegins),
            watcher::Event::InitDone => {
                self.names.purge();
                Some(Change::ListEnds)
            }
            watcher::Event::InitApply(object) => self.converted(kind, &object, convert).map(Change::Listed),
            watcher::Event::Apply(object) => match self.converted(kind, &object, convert) {
                Some(converted) => Some(Change::Applied(converted)),
                // It made sense before, perhaps: what it says now is that it should not be served.
                None => Some(Change::Deleted(key(&object))),
            },
            watcher::Event::Delete(object) => {
                self.reported.remove(&(kind, object_name(object.meta())));
                Some(Change::Deleted(key(&object)))
            }
        }
    }

    fn converted<K: ResourceExt, T>(
        &mut self,
        kind: &'static str,
        object: &K,
        convert: impl FnOnce(&mut Self, &K) -> Result<Option<T>, InvalidObject>,
    ) -> Option<T> {
        match convert(self, object) {
            Ok(converted) => converted,
            Err(error) => {
                self.report(kind, object, &error);
                None
            }
        }
    }

    fn report<K: ResourceExt>(&mut self, kind: &'static str, object: &K, error: &InvalidObject) {
        let version = object.resource_version().unwrap_or_default();
        let reported = self.reported.insert((kind, object_name(object.meta())), version.clone());
        if reported.as_deref() != Some(version.as_str()) {
            self.metrics.invalid(kind);
            tracing::warn!(%error, "left out");
            if let Some(on_invalid) = &self.on_invalid {
                on_invalid(reference(kind, object), error);
            }
        }
    }
}

/// The object as an Event names it.
fn reference<K: ResourceExt>(kind: &'static str, object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" }.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: object.namespace(),
        name: Some(object.name_any()),
        uid: object.uid(),
        resource_version: object.resource_version(),
        ..ObjectReference::default()
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    const FORBIDDEN: u16 = 403;
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == FORBIDDEN)
}

fn key<K: ResourceExt>(object: &K) -> ObjectKey {
    (Arc::from(object.namespace().unwrap_or_default()), Arc::from(object.name_any()))
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
