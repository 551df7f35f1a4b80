//! A whole cluster on one machine: what it consists of, how it comes up, is kept up, and goes away.
//!
//! Everything of a cluster is named after it and lies in four places only: network namespaces `<name>-*` with all
//! links inside them, one cgroup subtree with every process, one bpffs directory, one state directory. `down` needs
//! nothing but the name to find them all, whatever crashed before.

pub mod bpffs;
pub mod bringup;
pub mod component;
pub mod demo;
pub mod preflight;
pub mod publish;
pub mod spec;
pub mod supervisor;
pub mod teardown;
pub mod topology;

pub use spec::{ClusterSpec, Layout};
