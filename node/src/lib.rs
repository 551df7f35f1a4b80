//! The agent of one node: registers the Node, runs the service proxy, the pod network and cluster DNS for it, and runs
//! pods where no kubelet does.
//!
//! Everything it knows comes from the Kubernetes API; everything it does can be picked up by its next incarnation:
//! pods are held by detached shim processes, the kernel keeps the data plane's state.

mod agent;
mod beside;
mod cni;
mod config;
mod dns;
mod dns_slices;
mod events;
mod http;
mod kubelet;
mod namespaces;
mod pods;
mod proxy_events;
mod readiness;
mod register;
mod report;
mod runtime;
pub mod shim;
mod supervise;

pub use agent::{NodeError, cleanup_proxy, initialise_proxy, run};
pub use config::{NodeConfig, NodePortAddresses, Overlay, PodHandOver, ProxyMode, XdpMode};
pub use dns::counting_requests;
pub use seaway_dns::serve_as_standby;
pub use seaway_proxy::dataplane::userspace::serve_as_worker;
pub use seaway_proxy::{conntrack, kube_proxy, share_arenas};
