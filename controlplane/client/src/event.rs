//! Events: what happened to an object, for `kubectl describe` and `kubectl get events`.
//!
//! Repetitions raise the count of the Event that is there; many similar ones become one. Recording never waits and
//! never fails its caller.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Events wait here when the API server is slow; more are dropped.
const QUEUED: usize = 1000;
/// From so many different messages about one object and reason on, they are one Event.
const SIMILAR: u32 = 10;
/// How many Events are remembered to count repetitions.
const REMEMBERED: usize = 4096;

/// Whether an Event is worth a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// The course of things.
    Normal,
    /// Something is wrong.
    Warning,
}

impl EventType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// A reference to `object`, as Events and endpoints carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Occurrence {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records Events in the name of one component. Clones share the aggregation.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// A recorder and the task that writes what it records; run the task beside the component.
    pub fn new(
        client: Client,
        component: &'static str,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(QUEUED);
        (Self { sender }, write_events(client, component, receiver, shutdown))
    }

    /// Records that `reason` happened to `object`.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let (about, reason, message) = (reference(object), reason.to_owned(), message.into());
        let occurrence = Occurrence { about, kind, reason, message, at: Timestamp::now() };
        if self.sender.try_send(occurrence).is_err() {
            debug!("event dropped: too many are waiting");
        }
    }
}

async fn write_events(
    client: Client,
    component: &'static str,
    mut receiver: mpsc::Receiver<Occurrence>,
    shutdown: CancellationToken,
) {
    let mut aggregate = Aggregate::default();
    loop {
        let occurrence = tokio::select! {
            () = shutdown.cancelled() => return,
            next = receiver.recv() => match next {
                Some(occurrence) => occurrence,
                None => return,
            },
        };
        let write = aggregate.record(occurrence);
        let written = tokio::select! {
            () = shutdown.cancelled() => return,
            written = execute(&client, component, &write) => written,
        };
        if let Err(error) = written {
            debug!(%error, "cannot write an event");
        }
    }
}

async fn execute(client: &Client, component: &str, write: &Write) -> Result<(), kube::Error> {
    let namespace = write.first.about.namespace.as_deref().unwrap_or("default");
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    if write.count > 1 {
        let patch =
            json!({"count": write.count, "lastTimestamp": Time(write.last), "message": write.message});
        match api.patch(&write.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    api.create(&PostParams::default(), &write.event(component, namespace)).await.map(drop)
}

/// One Event as it should be now.
#[derive(Debug, Clone, PartialEq)]
struct Write {
    name: String,
    first: Arc<Occurrence>,
    message: String,
    count: i32,
    last: Timestamp,
}

impl Write {
    fn event(&self, component: &str, namespace: &str) -> Event {
        let mut event = Event {
            involved_object: self.first.about.clone(),
            type_: Some(self.first.kind.as_str().to_owned()),
            reason: Some(self.first.reason.clone()),
            message: Some(self.message.clone()),
            count: Some(self.count),
            first_timestamp: Some(Time(self.first.at)),
            last_timestamp: Some(Time(self.last)),
            event_time: None::<MicroTime>,
            source: Some(EventSource { component: Some(component.to_owned()), host: None }),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(String::new()),
            ..Event::default()
        };
        event.metadata.name = Some(self.name.clone());
        event.metadata.namespace = Some(namespace.to_owned());
        event
    }
}

/// Counts repetitions.
#[derive(Debug, Default)]
struct Aggregate {
    known: HashMap<EventKey, Write>,
    /// Different messages of one object and reason.
    similar: HashMap<EventKey, u32>,
    order: BTreeMap<u64, EventKey>,
    serial: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EventKey {
    uid: String,
    name: String,
    kind: EventType,
    reason: String,
    /// Empty when it stands for many similar messages.
    message: String,
}

impl Aggregate {
    fn record(&mut self, occurrence: Occurrence) -> Write {
        let about = &occurrence.about;
        let mut key = EventKey {
            uid: about.uid.clone().unwrap_or_default(),
            name: about.name.clone().unwrap_or_default(),
            kind: occurrence.kind,
            reason: occurrence.reason.clone(),
            message: String::new(),
        };
        let group = key.clone();
        key.message.clone_from(&occurrence.message);
        let mut message = occurrence.message.clone();
        if !self.known.contains_key(&key) {
            let similar = self.similar.entry(group.clone()).or_insert(0);
            *similar = similar.saturating_add(1);
            if *similar > SIMILAR {
                message = format!("(combined from similar events): {message}");
                key = group;
            }
        }
        if let Some(write) = self.known.get_mut(&key) {
            write.count = write.count.saturating_add(1);
            write.last = occurrence.at;
            write.message = message;
            return write.clone();
        }
        self.remember(key, occurrence, message)
    }

    fn remember(&mut self, key: EventKey, occurrence: Occurrence, message: String) -> Write {
        self.serial += 1;
        let nanos = u64::try_from(occurrence.at.as_nanosecond()).unwrap_or_default();
        let name = format!("{}.{:x}", key.name, nanos.wrapping_add(self.serial));
        let last = occurrence.at;
        let write = Write { name, first: Arc::new(occurrence), message, count: 1, last };
        self.known.insert(key.clone(), write.clone());
        self.order.insert(self.serial, key);
        if self.order.len() > REMEMBERED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.known.remove(&oldest);
            self.similar.remove(&EventKey { message: String::new(), ..oldest });
        }
        write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str, second: i64) -> Occurrence {
        Occurrence {
            about: ObjectReference { name: Some("web".into()), uid: Some("1".into()), ..Default::default() },
            kind: EventType::Warning,
            reason: "FailedScheduling".into(),
            message: message.into(),
            at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn a_repetition_counts_on_the_same_event() {
        let mut aggregate = Aggregate::default();
        let first = aggregate.record(occurrence("no node", 1));
        let second = aggregate.record(occurrence("no node", 2));
        assert_eq!((first.count, second.count), (1, 2));
        assert_eq!(first.name, second.name);
        assert_eq!(second.last, Timestamp::from_second(2).unwrap());
    }

    #[test]
    fn many_similar_messages_become_one_event() {
        let mut aggregate = Aggregate::default();
        let names: std::collections::BTreeSet<String> =
            (0..50).map(|n| aggregate.record(occurrence(&format!("try {n}"), n)).name).collect();
        assert_eq!(names.len(), 11);
        let last = aggregate.record(occurrence("try 99", 99));
        assert_eq!(last.count, 41);
        assert_eq!(last.message, "(combined from similar events): try 99");
    }

    #[test]
    fn memory_is_bounded() {
        let mut aggregate = Aggregate::default();
        for n in 0..6000 {
            let mut one = occurrence("no node", 1);
            one.about.uid = Some(n.to_string());
            aggregate.record(one);
        }
        assert!(aggregate.known.len() <= REMEMBERED && aggregate.similar.len() <= REMEMBERED);
    }
}
