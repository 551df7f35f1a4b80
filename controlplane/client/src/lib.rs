//! What the scheduler and the controllers share as clients of the Kubernetes API: informers (one list and watch per
//! type), keyed work queues, events, and the rules by which a pod may be placed on a node.
//!
//! Nothing here knows Seaway's own API server: whatever speaks the Kubernetes API over HTTPS serves.
