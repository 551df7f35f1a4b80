//! Kubernetes Events about what the agent does. Best effort: they wait in a bounded queue, and repeated ones only count
//! up.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

const QUEUE: usize = 512;
/// Different events that are remembered to be counted up.
const REMEMBERED: usize = 256;
const COMPONENT: &str = "seaway-node";

/// Normal or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// As expected.
    Normal,
    /// Someone should look.
    Warning,
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Takes events.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Note>,
}

impl Recorder {
    /// Writes through `client` from a task that ends with the last recorder.
    pub(crate) fn new(client: kube::Client, node: &str) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, node.to_owned(), notes));
        Self { queue }
    }

    /// Notes an event. When too many wait it is dropped.
    pub(crate) fn note(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        if self.queue.try_send(Note { about, severity, reason, message }).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }
}

type Key = (Option<String>, Option<String>, &'static str, String);

async fn write(client: kube::Client, node: String, mut notes: mpsc::Receiver<Note>) {
    let mut written: BTreeMap<Key, (String, i32)> = BTreeMap::new();
    while let Some(note) = notes.recv().await {
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = (note.about.uid.clone(), note.about.field_path.clone(), note.reason, note.message.clone());
        let now = Time(jiff::Timestamp::now());
        if let Some((name, count)) = written.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": now});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
        }
        let event = event(&note, &node, &namespace, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if written.len() >= REMEMBERED {
                    written.clear();
                }
                written.insert(key, (name, 1));
            }
            Err(error) => tracing::debug!(%error, reason = note.reason, "event not written"),
        }
    }
}

fn event(note: &Note, host: &str, namespace: &str, now: Time) -> Event {
    let about = note.about.name.as_deref().unwrap_or("unknown");
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let kind = match note.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{}", &unique[..16])),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        type_: Some(kind.to_owned()),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.clone()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(host.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(host.to_owned()),
        ..Event::default()
    }
}
