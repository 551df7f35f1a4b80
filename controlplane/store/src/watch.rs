//! One reader's view of the events. The channel holds pointers to shared events, so a watcher costs the same whatever
//! the objects weigh; a reader that falls too far behind is ended and resumes by revision.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::mpsc;

use crate::Event;

/// Pointers that may wait for one reader before it is ended.
pub(crate) const BACKLOG_LIMIT: usize = 16 * 1024;

/// A stream of events. It ends when the store closes or when the reader was too slow ([`Watch::lagged`]).
#[derive(Debug)]
pub struct Watch {
    past: VecDeque<Arc<Event>>,
    live: mpsc::Receiver<Arc<Event>>,
    lagged: Arc<AtomicBool>,
}

impl Watch {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Polls for the next event.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        if let Some(event) = self.past.pop_front() {
            if self.past.is_empty() {
                self.past = VecDeque::new();
            }
            return Poll::Ready(Some(event));
        }
        self.live.poll_recv(cx)
    }

    /// The next event if one is waiting. When this is `None` and the store's revision was read before, the reader has
    /// seen everything up to that revision.
    pub fn try_next(&mut self) -> Option<Arc<Event>> {
        self.past.pop_front().or_else(|| self.live.try_recv().ok())
    }

    /// Whether the stream was ended because the reader was too slow.
    pub fn lagged(&self) -> bool {
        self.lagged.load(Ordering::Acquire)
    }
}

/// The store's end of a [`Watch`].
#[derive(Debug)]
pub(crate) struct Subscriber {
    prefix: Box<str>,
    events: mpsc::Sender<Arc<Event>>,
    lagged: Arc<AtomicBool>,
}

impl Subscriber {
    /// Hands the event on; `false` when the subscriber is to be dropped.
    pub(crate) fn offer(&self, event: &Arc<Event>) -> bool {
        if !event.entry.key.starts_with(&*self.prefix) {
            return true;
        }
        match self.events.try_send(Arc::clone(event)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lagged.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Whether nobody reads any more.
    pub(crate) fn closed(&self) -> bool {
        self.events.is_closed()
    }
}

/// Both ends of a watch that starts with `past`.
pub(crate) fn channel(prefix: &str, past: VecDeque<Arc<Event>>, limit: usize) -> (Subscriber, Watch) {
    let (events, live) = mpsc::channel(limit);
    let lagged = Arc::new(AtomicBool::new(false));
    let subscriber = Subscriber { prefix: prefix.into(), events, lagged: Arc::clone(&lagged) };
    (subscriber, Watch { past, live, lagged })
}
