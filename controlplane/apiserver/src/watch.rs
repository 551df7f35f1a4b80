//! WATCH: the store's events as a stream of JSON lines. Where nothing has to look into the objects, every watcher sends
//! the same bytes that the store keeps.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use seaway_kinds::{
    ApiError, Kind,
    negotiate::{Encoding, Output},
    partial,
    table::{self, TableOptions},
};
use seaway_store::{Change, Entry, Event, ListOptions, Store, Watch};
use serde_json::json;
use tokio::time::{Instant, Sleep};

use crate::{
    api::{Api, Call},
    body::{BodyError, Chunk},
    list, objects,
    query::{Query, Selection, WatchQuery},
    response::{self, ApiResult},
};

/// A watch without a timeout ends after this long plus up to as much again, so that clients spread.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Opens a watch.
pub(crate) async fn watch(call: &Call<'_>) -> ApiResult {
    let (output, encoding) = call.negotiate()?;
    if encoding != Encoding::Json {
        return Err(ApiError::not_acceptable("a watch is only available as application/json"));
    }
    let query = WatchQuery::parse(call.kind, call.query)?;
    let selection = selection(call)?;
    let table = match output {
        Output::Table(version) => Some(list::table_options(call, version)?),
        Output::Object | Output::Metadata(_) => None,
    };
    let view =
        View { kind: Arc::clone(call.kind), output, table, plain: selection.is_everything(), selection };
    let stream = match begin(call, &query, view).await {
        Ok(stream) => stream.boxed_unsync(),
        // Clients expect to hear of a version that is gone inside of the stream.
        Err(error) if error.code == 410 => crate::body::full(error_line(&error)),
        Err(error) => return Err(error),
    };
    let mut response = response::bytes(200, "application/json", Bytes::new());
    *response.body_mut() = stream;
    Ok(response)
}

/// The selectors; a watch of one object selects by its name.
fn selection(call: &Call<'_>) -> Result<Selection, ApiError> {
    let Some(name) = call.path.name else { return Selection::parse(call.kind, call.query) };
    let encoded: String = form_urlencoded::Serializer::new(String::new())
        .append_pair("fieldSelector", &format!("metadata.name={name}"))
        .finish();
    Selection::parse(call.kind, &Query::parse(Some(&encoded)))
}

async fn begin(call: &Call<'_>, query: &WatchQuery, view: View) -> Result<Stream, ApiError> {
    let failed = |error| objects::store_error(call.kind, "", error);
    let prefix = objects::prefix(call.kind, call.namespace());
    if let Some(after) = query.after
        && after > call.api.store.revision()
    {
        // The store was replaced by a younger one: only a new list helps, and this makes every client do one.
        return Err(ApiError::expired(format!("resource version {after} is of another store: list again")));
    }
    let from_state = query.initial_events || query.after.unwrap_or(0) == 0;
    let (initial, after) = if from_state {
        let page = call.api.store.list(&prefix, ListOptions::default()).await.map_err(failed)?;
        (VecDeque::from(page.entries), page.revision)
    } else {
        (VecDeque::new(), query.after.unwrap_or(0))
    };
    let events = call.api.store.watch(&prefix, after).map_err(failed)?;
    let spread = DEFAULT_TIMEOUT.mul_f64(f64::from(u8::try_from(after % 251).unwrap_or(0)) / 251.0);
    let timeout = query.timeout.unwrap_or(DEFAULT_TIMEOUT + spread);
    let now = Instant::now();
    let mut stream = Stream {
        api: Arc::clone(call.api),
        view,
        initial,
        initial_end: (query.initial_events && query.bookmarks).then_some(after),
        events,
        seen: after,
        bookmark_at: query.bookmarks.then(|| now + call.api.bookmark_interval),
        ends_at: now + timeout,
        alarm: Box::pin(tokio::time::sleep_until(now)),
        closing: Box::pin(call.api.closing.clone().cancelled_owned()),
        ended: false,
        open: call.api.metrics.watch_opened(&call.kind.plural),
    };
    stream.set_alarm();
    Ok(stream)
}

/// What a watcher sees of the objects.
struct View {
    kind: Arc<Kind>,
    output: Output,
    table: Option<TableOptions>,
    /// No selector: no need to look into the objects.
    plain: bool,
    selection: Selection,
}

impl View {
    /// The line for an event; `None` when it does not concern this watcher.
    fn line(&mut self, event: &Event) -> Result<Option<Chunk>, ApiError> {
        let (word, value) = match (event.change, self.plain) {
            (Change::Created, true) => ("ADDED", event.entry.value.clone()),
            (Change::Updated, true) => ("MODIFIED", event.entry.value.clone()),
            (Change::Deleted, true) => ("DELETED", event.entry.value.clone()),
            (_, false) => match self.selected(event)? {
                Some(selected) => selected,
                None => return Ok(None),
            },
        };
        self.render(word, &value).map(Some)
    }

    /// What the event means to somebody who sees only selected objects.
    fn selected(&self, event: &Event) -> Result<Option<(&'static str, Bytes)>, ApiError> {
        let is = event.change != Change::Deleted && self.matches(&event.entry.value)?;
        let was = match &event.previous {
            Some(previous) => self.matches(&previous.value)?,
            None => false,
        };
        Ok(match (was, is) {
            (false, false) => None,
            (false, true) => Some(("ADDED", event.entry.value.clone())),
            (true, true) => Some(("MODIFIED", event.entry.value.clone())),
            // It left the selection: the last state that was in it, as of now.
            (true, false) => {
                event.previous.as_ref().map(|previous| ("DELETED", previous.stamped(event.revision())))
            }
        })
    }

    fn matches(&self, value: &Bytes) -> Result<bool, ApiError> {
        Ok(self.selection.matches(&objects::shown(&self.kind, value)?))
    }

    /// The line for an object that was there before the watch.
    fn initial(&mut self, entry: &Entry) -> Result<Option<Chunk>, ApiError> {
        if !self.plain && !self.matches(&entry.value)? {
            return Ok(None);
        }
        self.render("ADDED", &entry.value).map(Some)
    }

    fn render(&mut self, word: &'static str, value: &Bytes) -> Result<Chunk, ApiError> {
        let object = match (self.output, &mut self.table) {
            (Output::Table(_), Some(options)) => {
                let object = objects::shown(&self.kind, value)?;
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                options.now = Timestamp::now();
                let shown = table::render(&self.kind, [&object], metadata, options);
                // The columns go with the first event only.
                options.omit_columns = true;
                shown.to_string().into()
            }
            (Output::Metadata(version), _) => {
                partial::metadata(&objects::shown(&self.kind, value)?, version).to_string().into()
            }
            _ => objects::shown_bytes(&self.kind, value)?,
        };
        Ok(line(word, object))
    }

    /// An event without an object: everything up to this version was sent.
    fn bookmark(&self, revision: u64, initial_end: bool) -> Chunk {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.output {
            Output::Object => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Output::Metadata(version) => partial::metadata(&json!({"metadata": metadata}), version),
            Output::Table(version) => json!({
                "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                "columnDefinitions": [], "rows": [],
            }),
        };
        line("BOOKMARK", object.to_string().into())
    }
}

fn line(word: &'static str, object: Bytes) -> Chunk {
    let begin: &'static [u8] = match word {
        "ADDED" => br#"{"type":"ADDED","object":"#,
        "MODIFIED" => br#"{"type":"MODIFIED","object":"#,
        "DELETED" => br#"{"type":"DELETED","object":"#,
        "BOOKMARK" => br#"{"type":"BOOKMARK","object":"#,
        _ => br#"{"type":"ERROR","object":"#,
    };
    Chunk::of([Bytes::from_static(begin), object, Bytes::from_static(b"}\n")])
}

fn error_line(error: &ApiError) -> Bytes {
    format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", error.status()).into()
}

/// The body of a watch.
struct Stream {
    api: Arc<Api>,
    view: View,
    /// Objects that were there before.
    initial: VecDeque<Arc<Entry>>,
    /// The version of the bookmark that ends them.
    initial_end: Option<u64>,
    events: Watch,
    /// Everything up to this version was sent or does not concern this watcher.
    seen: u64,
    bookmark_at: Option<Instant>,
    ends_at: Instant,
    alarm: Pin<Box<Sleep>>,
    closing: Closing,
    ended: bool,
    /// Counts the watch as open as long as it lives.
    #[expect(dead_code, reason = "held for its Drop")]
    open: crate::metrics::OpenWatch,
}

type Closing = BoxFuture<'static, ()>;

impl Stream {
    fn set_alarm(&mut self) {
        let at = self.bookmark_at.map_or(self.ends_at, |at| at.min(self.ends_at));
        self.alarm.as_mut().reset(at);
    }

    /// The next line of what was there before the watch.
    fn next_initial(&mut self) -> Option<Result<Chunk, ApiError>> {
        while let Some(entry) = self.initial.pop_front() {
            if let Some(line) = self.view.initial(&entry).transpose() {
                return Some(line);
            }
        }
        self.initial_end.take().map(|revision| Ok(self.view.bookmark(revision, true)))
    }

    /// The next line of what happens.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, ApiError>>> {
        loop {
            let Some(event) = std::task::ready!(self.events.poll_next(cx)) else {
                self.ended = true;
                let lagged = self.events.lagged();
                return Poll::Ready(
                    lagged.then(|| Err(ApiError::too_old(self.seen, self.api.store.compacted()))),
                );
            };
            self.seen = event.revision();
            if let Some(line) = self.view.line(&event).transpose() {
                return Poll::Ready(Some(line));
            }
        }
    }

    /// The bookmark that is due, or the end of the stream.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, ApiError>>> {
        std::task::ready!(self.alarm.as_mut().poll(cx));
        let now = Instant::now();
        if now >= self.ends_at {
            self.ended = true;
            return Poll::Ready(None);
        }
        self.bookmark_at = self.bookmark_at.map(|_| now + self.api.bookmark_interval);
        self.set_alarm();
        // The revision is read first: nothing up to it can still be on its way when the queue is empty afterwards.
        let revision = self.api.store.revision();
        match self.poll_event(cx) {
            Poll::Ready(event) => Poll::Ready(event),
            Poll::Pending => {
                self.seen = self.seen.max(revision);
                // Arms the alarm for this task.
                if self.alarm.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Some(Ok(self.view.bookmark(self.seen, false))))
            }
        }
    }

    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, ApiError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(line) = self.next_initial() {
            return Poll::Ready(Some(line));
        }
        if let Poll::Ready(line) = self.poll_event(cx) {
            return Poll::Ready(line);
        }
        if self.closing.as_mut().poll(cx).is_ready() {
            self.ended = true;
            return Poll::Ready(None);
        }
        self.poll_alarm(cx)
    }
}

impl HttpBody for Stream {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let stream = self.get_mut();
        let line = std::task::ready!(stream.poll_line(cx));
        Poll::Ready(line.map(|line| {
            let line = line.unwrap_or_else(|error| {
                stream.ended = true;
                Chunk::from(error_line(&error))
            });
            Ok(Frame::data(line))
        }))
    }
}
