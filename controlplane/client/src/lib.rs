//! What the scheduler and the controllers share as clients of the Kubernetes API: informers (one list and watch per
//! type), keyed work queues, events, and the rules by which a pod may be placed on a node.
//!
//! Nothing here knows Seaway's own API server: whatever speaks the Kubernetes API over HTTPS serves.

mod event;
mod informer;
mod key;
pub mod placement;
mod queue;
mod store;
mod work;

pub use event::{EventType, Recorder, reference};
pub use informer::Informer;
pub use key::{Key, resource_version};
pub use queue::Queue;
pub use store::{Change, Store};
pub use work::{WorkError, work};
