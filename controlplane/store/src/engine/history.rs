//! The recent events, bounded by number and by bytes. Watches resume from it, and a list at a past revision is the
//! current index with the later events undone.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{Change, Entry, Event, Revision, StoreError};

/// What one event weighs beside the value that it replaced.
const EVENT_OVERHEAD: usize = 200;

/// A ring of the events after `compacted`, without gaps.
#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    compacted: Revision,
    bytes: usize,
    limit_events: usize,
    limit_bytes: usize,
}

impl History {
    pub(super) fn new(compacted: Revision, limit_events: usize, limit_bytes: usize) -> Self {
        Self { events: VecDeque::new(), compacted, bytes: 0, limit_events, limit_bytes }
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.events.len() > self.limit_events || self.bytes > self.limit_bytes {
            self.drop_oldest();
        }
    }

    /// Forgets the events up to `revision`.
    pub(super) fn compact(&mut self, revision: Revision) {
        while self.events.front().is_some_and(|event| event.revision() <= revision) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= weight(&event);
            self.compacted = event.revision();
        }
    }

    /// The events after `revision`, oldest first.
    pub(super) fn after(
        &self,
        revision: Revision,
    ) -> Result<impl DoubleEndedIterator<Item = &Arc<Event>>, StoreError> {
        let Some(skip) = revision.checked_sub(self.compacted) else {
            return Err(StoreError::Compacted { requested: revision, compacted: self.compacted });
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.events.len());
        Ok(self.events.range(skip..))
    }

    /// What the keys under `prefix` that changed after `revision` were at it.
    pub(super) fn undo(
        &self,
        prefix: &str,
        revision: Revision,
    ) -> Result<BTreeMap<Arc<str>, Option<Arc<Entry>>>, StoreError> {
        let mut past = BTreeMap::new();
        for event in self.after(revision)?.rev().filter(|event| event.entry.key.starts_with(prefix)) {
            past.insert(Arc::clone(&event.entry.key), event.previous.clone());
        }
        Ok(past)
    }
}

/// A value in the index weighs nothing here; replaced and removed ones are kept alive by their events.
fn weight(event: &Event) -> usize {
    let removed = if event.change == Change::Deleted { event.entry.value.len() } else { 0 };
    EVENT_OVERHEAD + removed + event.previous.as_ref().map_or(0, |entry| entry.value.len())
}
