//! One kind of object, listed page by page and then watched, for ever.
//!
//! What comes is read and converted right here, kind beside kind: what is handed on are events for the store. One
//! object that cannot be read holds up no other.
//!
//! **Invariant:** errors never end it. It tries again with back-off, from where it was or, where the server has no
//! memory of that, from a new list.

use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::intake::{Intake, News};
use crate::store::Event;
use crate::wire::{Head, Text};

/// Objects per page of a list.
const PAGE_SIZE: u32 = 1000;
/// How long the server keeps a watch open.
const WATCH_S: u32 = 290;
/// A watch on which nothing has come for this long is a connection that nobody has told us is dead.
const SILENCE_MAX: Duration = Duration::from_secs(295);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Service,
    EndpointSlice,
    Node,
    Pod,
    Namespace,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
        }
    }

    pub(crate) const fn api_version(self) -> &'static str {
        if matches!(self, Self::EndpointSlice) { "discovery.k8s.io/v1" } else { "v1" }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Node => "/api/v1/nodes",
            Self::Pod => "/api/v1/pods",
            Self::Namespace => "/api/v1/namespaces",
        }
    }
}

/// Why a list or a watch ended.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    #[error("cannot list")]
    List(#[source] kube::Error),
    #[error("the list was cut off")]
    Cut(#[source] std::io::Error),
    #[error("the server lists what is not a list")]
    NotAList(#[source] serde_json::Error),
    #[error("the server does not say which version of the cluster this is")]
    NoVersion,
    #[error("cannot watch")]
    Watch(#[source] kube::Error),
    #[error("the watch broke")]
    Broken(#[source] std::io::Error),
    #[error("the server tells what is not an event")]
    NotAnEvent(#[source] serde_json::Error),
    #[error("the server ended the watch: {message} (code {code})")]
    Ended { code: u16, message: String },
    #[error("nobody listens any more")]
    Unheard,
}

impl SourceError {
    /// The client may not list this kind.
    pub(crate) fn is_forbidden(&self) -> bool {
        const FORBIDDEN: u16 = 403;
        matches!(self, Self::List(kube::Error::Api(status)) if status.code == FORBIDDEN)
    }

    /// Whether the server cannot go on from where the watch was: everything has to be listed anew.
    fn needs_list(&self) -> bool {
        const BAD_REQUEST: u16 = 400;
        const GONE: u16 = 410;
        /// "Too large resource version": the server has less history than we have seen.
        const TIMEOUT: u16 = 504;
        match self {
            Self::Watch(kube::Error::Api(status)) => matches!(status.code, BAD_REQUEST | GONE | TIMEOUT),
            Self::Ended { code, .. } => *code == GONE,
            Self::NoVersion | Self::NotAnEvent(_) => true,
            _ => false,
        }
    }
}

/// Lists and watches one kind.
pub(crate) struct Source {
    pub(crate) client: kube::Client,
    pub(crate) kind: Kind,
    /// Which objects of the kind; `None`: all.
    pub(crate) field_selector: Option<String>,
    /// What makes events of what comes.
    pub(crate) intake: Intake,
    /// Where it tells what it learns. Room for few: what nobody has taken is not asked for.
    pub(crate) out: mpsc::Sender<Vec<Event>>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "type")]
    what: Text<'a>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

impl Source {
    /// Goes on until nobody listens.
    pub(crate) async fn run(mut self) {
        let mut retry = Retry::default();
        let mut version = None;
        loop {
            let ended = match &mut version {
                Some(version) => self.watch(version, &mut retry).await,
                None => match self.list().await {
                    Ok(listed) => {
                        retry = Retry::default();
                        version = Some(listed);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = ended {
                if error.needs_list() {
                    version = None;
                }
                if self.tell(News::Failed(error)).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(retry.wait()).await;
        }
    }

    async fn tell(&mut self, news: News<'_>) -> Result<(), SourceError> {
        let mut events = Vec::new();
        self.intake.take(&news, &mut |event| events.push(event));
        self.hand_on(events).await
    }

    async fn hand_on(&self, events: Vec<Event>) -> Result<(), SourceError> {
        if events.is_empty() {
            return Ok(());
        }
        self.out.send(events).await.map_err(|_| SourceError::Unheard)
    }

    /// Lists everything. Returns the version of the cluster that the list shows.
    async fn list(&mut self) -> Result<String, SourceError> {
        self.tell(News::ListBegins).await?;
        let mut params = ListParams {
            limit: Some(PAGE_SIZE),
            field_selector: self.field_selector.clone(),
            ..ListParams::default()
        };
        let mut text = Vec::new();
        loop {
            let request = Request::new(self.kind.path()).list(&params);
            let request = request.map_err(|error| SourceError::List(kube::Error::BuildRequest(error)))?;
            let body = self.client.request_stream(request).await.map_err(SourceError::List)?;
            read_all(body, &mut text).await.map_err(SourceError::Cut)?;
            let mut events = Vec::new();
            let read = self.intake.read_page(&text, &mut |event| events.push(event));
            let page = read.map_err(SourceError::NotAList)?;
            self.hand_on(events).await?;
            params.continue_token = page.continue_token.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.resource_version.filter(|version| !version.is_empty());
                let version = version.ok_or(SourceError::NoVersion)?;
                drop(text);
                self.tell(News::ListEnds).await?;
                return Ok(version);
            }
        }
    }

    /// Follows what happens after `version`, and moves that on, until the server ends it.
    async fn watch(&mut self, version: &mut String, retry: &mut Retry) -> Result<(), SourceError> {
        let params = WatchParams {
            field_selector: self.field_selector.clone(),
            timeout: Some(WATCH_S),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.kind.path()).watch(&params, version);
        let request = request.map_err(|error| SourceError::Watch(kube::Error::BuildRequest(error)))?;
        let lines = self.client.request_stream(request).await.map_err(SourceError::Watch)?;
        let mut lines = std::pin::pin!(lines);
        let mut line = Vec::new();
        loop {
            line.clear();
            match timeout(SILENCE_MAX, lines.read_until(b'\n', &mut line)).await {
                // Without its end it was cut off: it will come again.
                Ok(Ok(_)) if line.last() != Some(&b'\n') => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(SourceError::Broken(error)),
                Err(_) => return Ok(()),
            }
            *retry = Retry::default();
            self.event(&line, version).await?;
        }
    }

    async fn event(&mut self, line: &[u8], version: &mut String) -> Result<(), SourceError> {
        let Line { what, object } = serde_json::from_slice(line).map_err(SourceError::NotAnEvent)?;
        let shown = version_of(object);
        match &*what {
            "ADDED" | "MODIFIED" => self.tell(News::Applied(object)).await?,
            "DELETED" => self.tell(News::Deleted(object)).await?,
            "BOOKMARK" => {}
            _ => {
                let Status { code, message } = serde_json::from_str(object.get()).unwrap_or_default();
                return Err(SourceError::Ended { code, message });
            }
        }
        *version = shown.ok_or(SourceError::NoVersion)?;
        Ok(())
    }
}

/// Puts the whole of `body` into `text`, whose room is used again.
async fn read_all(body: impl AsyncBufRead, text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut body = std::pin::pin!(body);
    text.clear();
    loop {
        let piece = body.fill_buf().await?;
        if piece.is_empty() {
            return Ok(());
        }
        text.extend_from_slice(piece);
        let taken = piece.len();
        body.consume_unpin(taken);
    }
}

fn version_of(object: &RawValue) -> Option<String> {
    let head: Head<'_> = serde_json::from_str(object.get()).ok()?;
    head.metadata.resource_version.filter(|version| !version.is_empty()).map(|version| version.to_string())
}

/// Waits between attempts: short at first, since most interruptions are a server that restarts.
#[derive(Debug, Default)]
struct Retry {
    attempts: u32,
}

impl Retry {
    fn wait(&mut self) -> Duration {
        let wait = RETRY_MIN.saturating_mul(1 << self.attempts.min(10)).min(RETRY_MAX);
        self.attempts += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_further_and_further_apart() {
        let mut retry = Retry::default();
        let waits: Vec<u128> = (0..9).map(|_| retry.wait().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
